"""Encoder, priors and decoder as one module: what a graph computes from the pixels of photos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from diffup.backbones.base import FrozenBackbone
from diffup.decoder.base import Decoder
from diffup.decoder.options import Sampling
from diffup.decoder.sampling import CPU_BATCH, sample_ensemble
from diffup.inference import result_maps, trust
from diffup.priors.condition import EDGE_SIDE, Condition, assemble, class_maps
from diffup.priors.prepared import PreparedSupport, SupportLevel, prepare_query
from diffup.priors.presence import MatchedSupport
from diffup.utils.resize import triangle_weights

OUTPUTS = ("probability", "presence", "quality", "score", "maps")
"""Names of the outputs for C classes: (B, C, 64, 64), three of (B, C), and (B, C, 4, 64, 64), `Segmentation.maps`.

They are not refined (`diffup.refine`).
"""

TENSORS = ("prototypes", "contrast", "positions", "inside", "outside", "known", "low", "high")
"""Fields of a `SupportLevel` that are tensors, in the order of a graph's inputs."""


MATCHED = ("centred", "plain", "weights", "shots")
"""Fields of a `MatchedSupport`, in the order of a graph's inputs, whose names begin with `matched_`."""


def support_inputs(support: PreparedSupport) -> dict[str, Tensor]:
    """Tensors of a prepared class by the names of a graph's inputs.

    Args:
        support: the class, a batch of one.
    """
    named = {
        f"{name}{index}": getattr(level[0], name) for index, level in enumerate(support.levels) for name in TENSORS
    }
    matched = {f"matched_{name}": getattr(support.matched[0], name) for name in MATCHED}
    return named | matched | {"valid": support.valid, "share": support.share}


def support_of(tensors: Sequence[Tensor]) -> PreparedSupport:
    """Rebuild a prepared class from its tensors.

    Args:
        tensors: the tensors, in the order of `support_inputs`.
    """
    *levels, centred, plain, weights, shots, valid, share = tensors
    parts = [levels[start : start + len(TENSORS)] for start in range(0, len(levels), len(TENSORS))]
    members = [SupportLevel(**dict(zip(TENSORS, part, strict=True))) for part in parts]  # type: ignore[arg-type]
    matched = MatchedSupport(centred, plain, weights, shots)
    return PreparedSupport(tuple((member,) for member in members), valid, share, (matched,))


class PhotoModel(nn.Module):
    """Encoder, priors and decoder as one module.

    Args:
        backbone: the encoder.
        decoder: the decoder.
        sampling: sampling options; their noise is a constant of the graph.
        thresholds: probability above which a pixel is in the mask of each class, for its quality.
    """

    noise: Tensor
    thresholds: Tensor

    def __init__(
        self, backbone: FrozenBackbone, decoder: Decoder, sampling: Sampling, thresholds: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.steps = backbone, decoder, sampling.steps
        self.register_buffer("noise", sampling.noise, persistent=False)
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)

    def segment(self, photo: Tensor, classes: Sequence[PreparedSupport]) -> tuple[Tensor, ...]:
        """Segment C classes: the tensors of `OUTPUTS`, then the image that the encoder reads, and its levels.

        The last five let the graph name the encoder's ends; a file does not have them as outputs.

        Args:
            photo: (B, 3, H, W) uint8, RGB.
            classes: the prepared classes, batches of one.
        """
        batch, ensemble = photo.shape[0], self.noise.shape[0]
        config, priors = self.decoder.config, self.decoder.config.priors
        pixels = photo.float() / 255
        image = resize_photo(pixels, self.backbone.input_size)
        # Copies, because a level may be there twice, and a value of a graph has one name.
        levels = [level.clone() for level in self.backbone.unchecked_pyramid(image)]
        query = prepare_query(levels, resize_photo(pixels, (EDGE_SIDE, EDGE_SIDE)), priors)
        together = max(1, CPU_BATCH // ensemble)  # classes
        found = []
        for start in range(0, len(classes), together):
            group = [item.each(lambda t: t.expand(batch, *t.shape[1:])) for item in classes[start : start + together]]
            condition = Condition.cat([assemble(class_maps(query, item, priors), priors) for item in group])
            noise = self.noise.expand(condition.prior.shape[0], *self.noise.shape)
            samples = sample_ensemble(self.decoder, condition, noise, self.steps)
            thresholds = self.thresholds[start : start + together, None].expand(-1, batch).flatten()
            judged = trust(samples, condition.evidence, thresholds, config)
            results = (
                samples.probability,
                judged.presence,
                judged.quality,
                judged.score,
                result_maps(samples, condition),
            )
            found.append([rearrange(result, "(c b) ... -> b c ...", b=batch) for result in results])
        return *(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)), image, *levels


class AnyClass(PhotoModel):
    """The whole model for one class, which is given with the photo."""

    def forward(self, photo: Tensor, *support: Tensor) -> tuple[Tensor, ...]:
        """Segment one class: what `segment` returns.

        Args:
            photo: (B, 3, H, W) uint8, RGB.
            support: tensors of the class, as `support_inputs` orders them.
        """
        return self.segment(photo, [support_of(support)])


class FixedClasses(PhotoModel):
    """The whole model for fixed classes, whose prototypes are constants of the graph.

    Args:
        backbone: the encoder.
        decoder: the decoder.
        sampling: sampling options.
        thresholds: probability above which a pixel is in the mask of each class.
        classes: the prepared classes, batches of one.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        decoder: Decoder,
        sampling: Sampling,
        thresholds: Sequence[float],
        classes: Sequence[PreparedSupport],
    ) -> None:
        super().__init__(backbone, decoder, sampling, thresholds)
        self.counts = [len(support_inputs(item)) for item in classes]
        for index, item in enumerate(classes):
            for place, tensor in enumerate(support_inputs(item).values()):
                self.register_buffer(f"class{index}_{place}", tensor, persistent=False)

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """Segment all classes: photo (B, 3, H, W) uint8, RGB -> what `segment` returns."""
        classes = [
            support_of([getattr(self, f"class{index}_{place}") for place in range(count)])
            for index, count in enumerate(self.counts)
        ]
        return self.segment(photo, classes)


def resize_photo(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize photos of any size, as `diffup.inputs.images.resize_image` does: (B, 3, H, W) -> (B, 3, h, w) in [0, 1].

    It is a product with matrices, which a graph can compute for any size of the photo.
    """
    rows, columns = (triangle_weights(*sides) for sides in zip(pixels.shape[-2:], size, strict=True))
    return (rows @ pixels @ columns.mT).clamp(0, 1)
