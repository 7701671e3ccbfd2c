"""`Segmentation`, the result for one class in one query: mask, probability, uncertainty, quality, and pictures."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffup.correct import Corrected, Correction
from diffup.errors import AnnotationError, ConfigError, ImageError
from diffup.formats.coco import coco_annotations
from diffup.formats.detections import to_detections
from diffup.inputs.masks import bounding_box
from diffup.instances import SMALLEST, Instance, find_instances
from diffup.overview import TINT, map_panels, mask_panel, support_panels
from diffup.refine import REFINE, Guide, refine
from diffup.utils import pictures
from diffup.utils.files import checked_ending, replacing
from diffup.utils.panels import GREY, Panel, strip
from diffup.utils.resize import resize_maps

_EPS = 1e-6  # probabilities are clamped to this distance from 0 and 1, so that their odds are finite

MAPS = ("probability", "variance", "error_map", "prior")
"""Names of the maps of a result, in the order of `Segmentation.maps`."""

_SURE = 0.8
"""Presence from which on a class is said plainly to be in the photo."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one class in one query image.

    The decoder's maps are stored at their own size. The mask and the maps at the query's size are computed on first
    access, which saves memory in a stream of results. Mask and probability are refined to the query's outlines
    (`diffup.refine`) unless `refine` is false; the other maps are enlarged bilinearly.

    Attributes:
        image: (H, W, 3) uint8, the query as RGB, upright.
        maps: (4, h, w) float32, probability, variance, error map and prior at the decoder's size.
        quality: expected IoU of the mask if the query shows the class, in [0, 1]; before refinement.
        threshold: probability above which a pixel is in the mask, in (0, 1).
        backbone: name of the encoder.
        presence: probability that the query shows the class, in [0, 1].
        min_presence: presence below which the mask is empty, in [0, 1].
        score: probability that the query shows the class and the IoU of the mask is above 1/2, in [0, 1].
        refine: whether mask and probability are refined to the query's outlines.
        trace: (S, h, w) float32, the noisy mask `x_t` of the first sample at S steps, about -1 to 1; None if it was not
            recorded.
        trace_timesteps: time step t of each of the S states.
        levels: four tensors (C_l, h_l, w_l) float32, features of the query, which corrections need; empty in results of
            `segment_many`.
        corrected: state of the corrections (`correct`); None without any.
        supports: pictures of the supports with their annotations, (h, w, 3) uint8 each, which the overview shows; none
            for a class given by prototypes or text.

    Raises:
        ImageError: an array has the wrong shape or type or values that are not finite, or the quality, the
            presence or the score is outside [0, 1].
    """

    image: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.float32]
    quality: float
    threshold: float
    backbone: str
    presence: float = 1.0
    min_presence: float = 0.0
    score: float = 1.0
    refine: bool = REFINE
    trace: npt.NDArray[np.float32] | None = None
    trace_timesteps: tuple[int, ...] = ()
    levels: tuple[torch.Tensor, ...] = ()
    corrected: Corrected | None = None
    supports: tuple[pictures.Bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or not self.image.size:
            raise ImageError(f"image: expected a shape (H, W, 3) of at least one pixel, got {self.image.shape}.")
        expected: dict[str, tuple[tuple[int | str, ...], type[np.generic]]] = {
            "image": ((*self.image.shape[:2], 3), np.uint8),
            "maps": ((len(MAPS), *_sides(self.maps)), np.float32),
        }
        if 0 in self.maps.shape:
            raise ImageError(f"maps: expected a shape (4, h, w) of at least one position, got {self.maps.shape}.")
        if self.trace is not None:
            expected["trace"] = ((len(self.trace_timesteps), *_sides(self.trace)), np.float32)
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ImageError(
                    f"{name}: expected shape {shape} and type {np.dtype(dtype)}, got {array.shape} and {array.dtype}."
                )
            if not np.isfinite(array).all():
                raise ImageError(f"{name}: contains NaN or infinity.")
        for name in ("quality", "presence", "min_presence", "score"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ImageError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}.")

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, without the enlarged maps, which can be made again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the query in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def present(self) -> bool:
        """Whether the class counts as present: the presence is not below `min_presence`."""
        return bool(self.presence >= self.min_presence)

    @property
    def present_in_words(self) -> Literal["yes", "perhaps", "no"]:
        """Whether the class is in the query: "no" if it is absent (`present`), "yes" from a presence of 0.8 on."""
        if not self.present:
            return "no"
        return "yes" if self.presence >= _SURE else "perhaps"

    @functools.cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, mask of the class: the pixels whose probability is above the threshold.

        It is empty if the class is absent (`present`).
        """
        return self.probability > self.threshold if self.present else np.zeros(self.size, dtype=bool)

    @functools.cached_property
    def probability(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 1], probability of the class, the mean over the ensemble of samples.

        A decoder with a temperature shifts its logits so that the mask's own threshold lies at 1/2
        (`diffup.decoder.threshold`): it ranks pixels, and is no frequency.
        If it is refined, it depends on the threshold, at which the query's outlines divide the class from the rest.
        """
        return self.full_probability().numpy()

    @functools.cached_property
    def variance(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 0.25], variance of the probability over the ensemble, before any shift.

        It is high where samples disagree.
        """
        return self._enlarged("variance")

    @functools.cached_property
    def error_map(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [-2, 2], predicted error of the samples: positive where they miss the class, else negative.

        The error is `x_0 - x_t`, averaged over the samples (DQM).
        """
        return self._enlarged("error_map")

    @functools.cached_property
    def expected_error(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [-1, 1], expected error of the mask: positive where it may miss the class, else negative.

        The probability, corrected by the predicted error, is rescaled so that 1/2 is at the threshold
        (`odds_over`), less 1 in the mask. So it is positive outside of the mask and negative within.
        """
        odds = odds_over(torch.from_numpy(self.probability + self.error_map / 2), self.threshold)
        return np.asarray((odds / (1 + odds)).numpy() - self.mask, dtype=np.float32)

    @functools.cached_property
    def prior(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 1], mean of the fused priors, the estimate before the decoder (eq. 12)."""
        return self._enlarged("prior")

    def correct(self, *corrections: Correction) -> Segmentation:
        """Correct the mask by what is marked on the query, positive, negative or both, in turn.

        Nothing is encoded again. A clicked pixel, the pixels of a stroke and those of a negative box get their label;
        around them the mask follows by distance and likeness. Of a box of the class only the middle is sure to be it.
        `result.correct(a).correct(b)` equals `result.correct(a, b)`.

        Args:
            *corrections: `Points`, `Scribble` and `Box` with coordinates of the query, one or more; `negative=` of each
                says what is not the class.

        Returns:
            A new result with another mask and probability; presence, quality, score and the other maps remain the
            decoder's, but for the presence, which is 1 once something was marked as the class.

        Raises:
            AnnotationError: there is no correction, or one is of another kind, leaves the query, or marks nothing.
            ConfigError: the result keeps no features of the query, as one of `segment_many`.

        Examples:
            >>> better = result.correct(Points([(120, 80)], negative=[(30, 40)]))
        """
        if not corrections:
            raise AnnotationError("correction: nothing is marked. Give Points, Scribble or Box on the query.")
        if not self.levels:
            raise ConfigError(
                "correct: this result keeps no features of its query, to save memory in a stream of results; segment "
                "the image by itself: model.segment(query, prototypes).correct(...)"
            )
        state = self.corrected
        if state is None:
            state = Corrected.start(self.image, torch.from_numpy(self.maps[:1]), self.levels)
        for index, item in enumerate(corrections):
            state = state.turn(item, self.threshold, f"correction[{index}]")
        presence = 1.0 if bool((state.seeds.label > 0).any()) else self.presence
        return dataclasses.replace(self, corrected=state, presence=presence)

    def full_probability(self, guide: Guide | None = None) -> torch.Tensor:
        """Compute the probability of the class at the query's size, without storing it.

        Args:
            guide: guide of the query, which the results of several classes may share; by default it is computed.

        Returns:
            (H, W) float32 in [0, 1].
        """
        if self.corrected is None:
            coarse = torch.from_numpy(self.maps[:1])
            if not self.refine:
                return enlarge(coarse, self.size)[0]
            return refine(coarse, Guide.of(self.image) if guide is None else guide, self.threshold)[0]
        return self.corrected.probability(self.threshold, self.refine)

    def _enlarged(self, name: str) -> npt.NDArray[np.float32]:
        index = MAPS.index(name)
        return enlarge(torch.from_numpy(self.maps[index : index + 1]), self.size)[0].numpy()

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Segmentation({width} x {height} pixels, {self.mask.mean():.1%} of them marked, "
            f"presence {self.presence:.2f}{'' if self.present else ' (absent)'}, quality {self.quality:.2f}, "
            f"{self.backbone})"
        )

    def overlay(self, colour: pictures.Colour = pictures.RED, alpha: float = TINT) -> Image.Image:
        """Draw the query with the mask tinted and outlined.

        Args:
            colour: RGB colour of the mask, three numbers from 0 to 255.
            alpha: opacity of the tint, from 0 (outline only) to 1.

        Raises:
            ImageError: `colour` or `alpha` is out of range.
        """
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise ImageError(f"colour: expected (red, green, blue) from 0 to 255, got {colour}.")
        if not 0.0 <= alpha <= 1.0:
            raise ImageError(f"alpha: expected a number from 0 to 1, got {alpha}.")
        return Image.fromarray(pictures.tint(self.image, self.mask, colour, alpha))

    def instances(self, smallest: float = SMALLEST) -> list[Instance]:
        """Find the objects of the class: the mask's connected parts, touching objects separated.

        Objects are told apart by waists of the mask and edges of the query (`diffup.instances`); an object that others
        divide becomes several.

        Args:
            smallest: least part of the image, in [0, 1], that an object has; smaller ones are left out.

        Returns:
            The objects, the one with the greatest score first.

        Raises:
            ConfigError: `smallest` is outside of [0, 1].
            MissingPackageError: scikit-image is not installed (extra `formats`).
        """
        return find_instances(self.mask, self.image, self.probability, self.score, smallest)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask as a grey PNG file with values 0 and 255, at the query's size.

        The file is written under a temporary name and then renamed, so a partial file is never left.

        Args:
            path: path of the file, ending in .png; its folder is created if needed, an older file is replaced.

        Returns:
            The path of the file.

        Raises:
            FormatError: the path has another ending.
            StorageError: the file cannot be written.
        """
        path = checked_ending(path, ".png")
        with replacing(path) as unfinished:
            self.to_pil().save(unfinished, format="PNG")
        return path

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by name, ready for `numpy.savez(path, **result.to_numpy())`.

        Returns:
            The attributes `image`, `mask`, `probability`, `variance`, `error_map` and `prior`, not copied.
        """
        return {name: getattr(self, name) for name in ("image", "mask", *MAPS)}

    def to_pil(self) -> Image.Image:
        """Return the mask as a PIL image of mode "L" with values 0 and 255, at the query's size."""
        return Image.fromarray(self.mask.astype(np.uint8) * np.uint8(255))

    def to_coco(
        self,
        image_id: int = 1,
        category_id: int = 1,
        *,
        encoding: Literal["rle", "polygon"] = "rle",
        instances: bool = False,
        tolerance: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Return the mask as COCO annotations, ready for `diffup.formats.coco_document`.

        Args:
            image_id: COCO id of the query image.
            category_id: COCO id of the class.
            encoding: format of the masks, "rle" (run lengths, exact) or "polygon" (outlines).
            instances: whether to make an annotation of every object (`instances`) with its own score.
            tolerance: maximum distance of polygons from the true outline, in pixels.

        Returns:
            One annotation, or one for each object; none for an empty mask. `score` is the score.

        Raises:
            FormatError: the encoding is unknown or the tolerance is out of range.
            MissingPackageError: pycocotools is not installed, or scikit-image for polygons and objects
                (extra `formats`).
        """
        masks, scores = self._objects(instances)
        ids = [category_id] * len(masks)
        return coco_annotations(masks, image_id, ids, encoding=encoding, tolerance=tolerance, scores=scores)

    def to_supervision(self, class_id: int = 0, class_name: str | None = None, *, instances: bool = False) -> Any:
        """Return the mask as `supervision.Detections`.

        Args:
            class_id: number of the class.
            class_name: name of the class, stored in `data["class_name"]`, which supervision's label annotator shows.
            instances: whether to make a detection of every object (`instances`) with its own score.

        Returns:
            Detections with boxes, masks, `class_id` and, as `confidence`, the score; empty for an empty mask.

        Raises:
            MissingPackageError: supervision is not installed (extra `supervision`), or scikit-image,
                which `instances` needs.
        """
        masks, scores = self._objects(instances)
        names = None if class_name is None else [class_name] * len(masks)
        return to_detections(masks, scores, [class_id] * len(masks), names)

    def _objects(self, apart: bool) -> tuple[list[npt.NDArray[np.bool_]], list[float]]:
        """Masks and scores of the objects, or of the whole mask."""
        if not apart:
            return [self.mask], [self.score]
        found = self.instances()
        return [item.mask for item in found], [item.score for item in found]

    def summary(self) -> dict[str, Any]:
        """Summarise the result in numbers that can be written as JSON.

        Returns:
            `width` and `height` in pixels; `area_fraction`, the mask's share of the image in [0, 1]; `box`, the mask's
            bounding box [x0, y0, x1, y1] in the coordinates of `Box`, None for an empty mask; `presence`, `quality` and
            `score` in [0, 1]; `present`, whether the class counts as present; `uncertainty`, the standard deviation
            over the ensemble, averaged over the image, in [0, 0.5]; `threshold`; `backbone`.
        """
        height, width = self.size
        box = bounding_box(self.mask)
        return {
            "width": width,
            "height": height,
            "area_fraction": float(self.mask.mean()),
            "box": None if box is None else list(box),
            "presence": float(self.presence),
            "present": self.present,
            "quality": float(self.quality),
            "score": float(self.score),
            "uncertainty": float(np.sqrt(self.variance.clip(min=0)).mean(dtype=np.float64)),
            "threshold": float(self.threshold),
            "backbone": self.backbone,
        }

    def overview(self, height: int = 256) -> Image.Image:
        """Draw supports, mask and maps side by side, each with a title and a legend.

        The supports are shown with their annotations as they were given, up to three of them. The maps are those of
        `panels`.

        Args:
            height: height of each picture in pixels, 1 or more.

        Raises:
            ImageError: `height` is below 1.
        """
        _check_positive(height, "height")
        given, found = support_panels(self.supports), mask_panel(self.image, self.mask, self.score, height)
        return strip([*given, found, *self.panels(height).values()], height)

    def panels(self, height: int) -> dict[str, Panel]:
        """Paint the maps, each with its colour scale.

        Prior and probability are grey, from black (0) to white (1). The deviation, the standard deviation over the
        ensemble, goes from black (0) to pale yellow (its 99 % quantile and all above). The expected
        error goes from blue (-1, too much) over white (0) to red (1, missed), and is pale up to 1/2, where the mask is
        right rather than wrong.

        Args:
            height: greatest height of a picture in pixels.

        Returns:
            "prior", "probability", "deviation" and "expected error".
        """
        return map_panels(self.prior, self.probability, self.variance, self.expected_error, height)

    def trace_picture(self, count: int = 8, height: int = 128) -> Image.Image:
        """Draw evenly spaced states `x_t` of the sampling, from noise to mask (paper, Fig. 7).

        Args:
            count: number of states to show, first and last included; fewer if the trace has fewer.
            height: height of each picture in pixels, 1 or more.

        Raises:
            ImageError: no trace was recorded, or `count` or `height` is below 1.
        """
        if self.trace is None or not len(self.trace):
            raise ImageError("trace: none was recorded. Ask for it when segmenting: segment(..., trace=True).")
        _check_positive(count, "count")
        _check_positive(height, "height")
        chosen = np.unique(np.linspace(len(self.trace) - 1, 0, count).round().astype(int))
        panels = [Panel(f"t = {self.trace_timesteps[i]}", GREY.paint((self.trace[i] + 1) / 2)) for i in chosen]
        return strip(panels, height)


def _check_positive(value: int, name: str) -> None:
    if value < 1:
        raise ImageError(f"{name}: expected at least 1, got {value}.")


def odds_over(probability: torch.Tensor, threshold: float) -> torch.Tensor:
    """Compute odds relative to the odds at the threshold; they exceed 1 where the probability exceeds the threshold.

    Args:
        probability: probabilities, of any shape; they are clamped to [0, 1] and kept away from its ends.
        threshold: probability in (0, 1) at which the odds are 1.
    """
    clipped = probability.clamp(_EPS, 1 - _EPS)
    return clipped / (1 - clipped) * ((1 - threshold) / threshold)


def enlarge(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize decoder maps to an image's size.

    Args:
        maps: (N, h, w), maps at the decoder's size.
        size: (height, width) of the image in pixels.

    Returns:
        (N, H, W), the resized maps, on the CPU.
    """
    return resize_maps(maps[None], size)[0].cpu()


def _sides(maps: npt.NDArray[Any]) -> tuple[int | str, ...]:
    return maps.shape[1:] if maps.ndim == 3 else ("h", "w")
