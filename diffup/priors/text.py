"""Textual priors: similarity of every position of the query to the name of the class (BAFT, eq. 10, with text)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffup.priors.affinity import affinity, enhance
from diffup.priors.normalisation import Normalisation, normalise
from diffup.priors.similarity import unit
from diffup.utils.resize import resize_maps

_POWER = 2.0  # exponent of the affinity


def text_similarity(features: Tensor, embeddings: Tensor, vocabulary_mean: Tensor) -> Tensor:
    """Cosine of every position to every text prompt, minus its mean cosine to a vocabulary (eq. 10).

    The cosine to any name is high wherever there is an object; only the excess over the vocabulary is evidence for this
    name. The cosine is linear in the unit embedding, so the vocabulary's mean embedding is enough.

    Args:
        features: (B, C, h, w), dense features of the queries in the text space.
        embeddings: (V, C), unit embeddings of V text prompts (names times templates).
        vocabulary_mean: (C,), mean unit embedding of a vocabulary.

    Returns:
        (B, V, h, w) in [-2, 2].
    """
    return torch.einsum("vc,bchw->bvhw", embeddings - vocabulary_mean, unit(features.float(), dim=1))


def text_affinities(query: Tensor, widths: Sequence[int] = ()) -> list[Tensor]:
    """Affinities of the queries' positions by which maps of any class are enhanced, one for each encoder.

    Args:
        query: (B, C, h, w), features of the queries at the visual encoder's last level.
        widths: channels of each member of a joint backbone; empty for a single one.

    Returns:
        Tensors (B, h * w, h * w).
    """
    centred = (query - query.mean(dim=(2, 3), keepdim=True)).flatten(2)
    return [affinity(member, _POWER) for member in torch.split(centred, list(widths) or query.shape[1], dim=1)]


def text_maps(
    similar: Tensor, query: Tensor, widths: Sequence[int] = (), affinities: Sequence[Tensor] | None = None
) -> Tensor:
    """Prior maps of the named class, one for each text prompt: similarities enhanced with the affinity (eq. 11).

    Args:
        similar: (B, V, h', w'), similarities of V text prompts (`text_similarity`).
        query: (B, C, h, w), features of the queries at the visual encoder's last level, for the affinity.
        widths: channels of each member of a joint backbone, whose enhanced maps are averaged; empty for a single one.
        affinities: precomputed result of `text_affinities`; None computes it.

    Returns:
        (B, V, h, w) in [-2, 2].
    """
    affinities = text_affinities(query, widths) if affinities is None else affinities
    resized = resize_maps(similar, (query.shape[2], query.shape[3])).flatten(2)
    spread = torch.stack([enhance(resized, member) for member in affinities]).mean(dim=0)
    return spread.view(*spread.shape[:2], *query.shape[2:])


def text_views(
    maps: Tensor, size: tuple[int, int], spread: Tensor | None, kinds: int, method: Normalisation
) -> tuple[Tensor, Tensor]:
    """Text maps as views of the query at one level: the same map under every prior kind.

    Only one dense map lies in the text space, so every level uses that map, enhanced with the level's own affinity
    (docs/text.md).

    Args:
        maps: (B, V, h', w'), maps of V text prompts (`text_maps`).
        size: (h, w), resolution of the level in positions.
        spread: (B, h * w, h * w), affinity of the query's positions; None does not enhance the maps.
        kinds: number of prior kinds M.
        method: method that normalises maps to [0, 1].

    Returns:
        Two tensors (B, V, M, h * w): the maps in [0, 1], and the similarities that they are stretched from.
    """
    similar = resize_maps(maps, size).flatten(2)
    similar = similar if spread is None else enhance(similar, spread)
    stretched = normalise(similar, method)
    return stretched[:, :, None].expand(-1, -1, kinds, -1), similar[:, :, None].expand(-1, -1, kinds, -1)
