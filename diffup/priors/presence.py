"""Evidence that a query shows the class at all: similarities that are not stretched to the query's own range.

Priors tell where in a query the class is most likely. Whether it is there is another question, which the best matches
of the supports' foreground answer: where the class is missing, parts of it find nothing like them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffup.priors.similarity import unit

EVIDENCE = 5
"""Number of values of each query: two similarities to the supports and 1, then one to the text prompts and 1.

The logit of the presence is a linear function of them. The first three are multiplied by a power of the number of
supports: the more supports a similarity is the mean of, the less chance moves it, and the surer is what it tells.
Values of a source that a class does not have are 0; those of a class that has both are multiplied by `BOTH_SHARE`.
"""

SHOTS_POWER = 1 / 3
"""Power of the number of supports. It is below 1/2, that of independent supports, because what a class finds in photos
that do not show it is the same for all of its supports (`docs/experiments.md`)."""

BOTH_SHARE = 0.6
"""Share of each source in the logit of a class that has supports and a name. Both tell partly the same, so their sum
would be too sure (`docs/experiments.md`)."""

_EPS = 1e-6


@dataclass(frozen=True)
class MatchedQuery:
    """Unit features of B queries at P positions.

    Attributes:
        centred: (B, C, P), of features from which each image's mean is subtracted.
        plain: (B, C, P), of the features themselves.
    """

    centred: Tensor
    plain: Tensor

    @classmethod
    def of(cls, features: Tensor) -> MatchedQuery:
        """Take features (B, C, h, w)."""
        flat = features.flatten(2)
        return cls(unit(flat - flat.mean(dim=2, keepdim=True), dim=1), unit(flat, dim=1))


@dataclass(frozen=True)
class MatchedSupport:
    """Unit features of the K support views of B episodes, at S positions each.

    Attributes:
        centred: (B, K, S, C), of features from which each view's mean is subtracted.
        plain: (B, K, S, C), of the features themselves.
        weights: (B, K, S) in [0, 1], weights of the class, which sum to 1.
        shots: (B,), number of supports.
    """

    centred: Tensor
    plain: Tensor
    weights: Tensor
    shots: Tensor

    @classmethod
    def of(cls, views: Tensor, foreground: Tensor, valid: Tensor, shots: int) -> MatchedSupport:
        """Weigh each valid view equally.

        Args:
            views: (B, K, C, h, w), features of the support views.
            foreground: (B, K, h * w) in [0, 1], weights of the class.
            valid: (B, K) bool, False for padding.
            shots: number of supports, of which the views are.
        """
        weights = foreground / foreground.sum(dim=2, keepdim=True).clamp_min(_EPS) * valid[..., None]
        weights = weights / valid.sum(dim=1).clamp_min(1)[:, None, None]
        flat = views.flatten(3)
        centred = flat - flat.mean(dim=3, keepdim=True)
        return cls(unit(centred, dim=2).mT, unit(flat, dim=2).mT, weights, weights.new_full((len(weights),), shots))

    def each(self, change: Callable[[Tensor], Tensor]) -> MatchedSupport:
        """Apply a function to every tensor.

        Args:
            change: function of one tensor; the first dimension of all is B.
        """
        return MatchedSupport(change(self.centred), change(self.plain), change(self.weights), change(self.shots))


def presence_evidence(
    query: Sequence[MatchedQuery], support: Sequence[MatchedSupport] | None, text: Tensor | None
) -> Tensor:
    """Collect what tells whether queries show the class.

    Args:
        query: features of the queries at the last level, of each member of a joint backbone or of the only encoder.
        support: features of the supports likewise, a batch of the same size; None for zero-shot.
        text: (B, V, h, w), maps of V text prompts (`diffup.priors.text.text_maps`); None without text.

    Returns:
        (B, 5), values of `EVIDENCE`.
    """
    found = query[0].plain.new_zeros(query[0].plain.shape[0], EVIDENCE)
    if support is not None:
        pairs = zip(query, support, strict=True)
        found[:, :2] = torch.stack([support_evidence(*pair) for pair in pairs]).mean(dim=0)
        found[:, 2] = 1
        found *= support[0].shots[:, None] ** SHOTS_POWER
    if text is not None:
        found[:, 3], found[:, 4] = text_evidence(text), 1
    return found if support is None or text is None else found * BOTH_SHARE


def support_evidence(query: MatchedQuery, support: MatchedSupport) -> Tensor:
    """Mean similarity of the supports' foreground positions to their best matches in the query.

    Args:
        query: features of the queries.
        support: features of the support views, a batch of the same size.

    Returns:
        (B, 2) in [-1, 1], means over the valid views of the cosines of centred features, and of plain ones.
    """
    pairs = ((query.centred, support.centred), (query.plain, support.plain))
    weights = support.weights.flatten(1)
    found = []
    for ours, theirs in pairs:
        vectors = theirs.flatten(1, 2)
        if torch.compiler.is_exporting():  # a graph cannot loop over queries whose number varies
            best = (vectors @ ours).amax(dim=2)
        else:
            # Query by query: the rounding of a batched product would depend on the number of queries.
            best = torch.stack([(a @ b).amax(dim=1) for a, b in zip(vectors, ours, strict=True)])
        found.append((best * weights).sum(dim=1))
    return torch.stack(found, dim=1)


def text_evidence(maps: Tensor) -> Tensor:
    """Greatest similarity of the query's positions to the text prompts.

    Args:
        maps: (B, V, h, w), maps of V text prompts (`diffup.priors.text.text_maps`).

    Returns:
        (B,) in [-2, 2], that of the mean over the prompts.
    """
    return maps.float().mean(dim=1).flatten(1).amax(dim=1)
