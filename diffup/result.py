"""What a segmentation returns: the mask, how sure the model is of it, and pictures of both."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diffup.errors import ImageError
from diffup.formats.coco import coco_annotations
from diffup.formats.detections import to_detections
from diffup.inputs.masks import bounding_box
from diffup.utils import pictures
from diffup.utils.files import checked_ending, replacing
from diffup.utils.resize import resize_maps

MAPS = ("probability", "variance", "error_map", "prior")
"""The maps of a result, in the order of `Segmentation.maps`."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The class in one query image.

    The decoder's maps are kept at their own size. The mask and the maps at the query's size are made when they are
    first read, so that a stream of results holds none that nobody reads.

    Attributes:
        image: (H, W, 3) uint8, the query as RGB, upright.
        maps: (4, h, w) float32, probability, variance, error map and prior at the decoder's size.
        quality: the IoU that the decoder expects its samples to have, in [0, 1], each cut at a probability of 1/2,
            whatever `threshold` is (DQM, section 4 and eqs. 18 to 20).
        threshold: probability above which a pixel is in the mask, in (0, 1).
        backbone: name of the encoder.
        trace: (S, h, w) float32, `x_t` of the first sample along the sampling, about -1 to 1; `None` if not recorded.
        trace_timesteps: the time step t of each of the S states.

    Raises:
        ImageError: arrays of other shapes or types, values that are not finite, or a quality outside [0, 1].
    """

    image: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.float32]
    quality: float
    threshold: float
    backbone: str
    trace: npt.NDArray[np.float32] | None = None
    trace_timesteps: tuple[int, ...] = ()

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
        if not 0.0 <= self.quality <= 1.0:
            raise ImageError(f"quality: expected a number in [0, 1], got {self.quality}.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the query in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @functools.cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool, where the class is."""
        return self.probability > self.threshold

    @functools.cached_property
    def probability(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 1], the mean over the ensemble of samples."""
        return self._enlarged("probability")

    @functools.cached_property
    def variance(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 0.25], the variance over the ensemble: where the samples disagree."""
        return self._enlarged("variance")

    @functools.cached_property
    def error_map(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [-2, 2], what the decoder thinks its samples lack (positive) or have too much (negative).

        It is `x_0 - x_t`, averaged over the samples (DQM).
        """
        return self._enlarged("error_map")

    @functools.cached_property
    def prior(self) -> npt.NDArray[np.float32]:
        """(H, W) float32 in [0, 1], the mean of the fused priors: what is known without the decoder (eq. 12)."""
        return self._enlarged("prior")

    def _enlarged(self, name: str) -> npt.NDArray[np.float32]:
        index = MAPS.index(name)
        return enlarge(torch.from_numpy(self.maps[index : index + 1]), self.size)[0].numpy()

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Segmentation({width} x {height} pixels, {self.mask.mean():.1%} of them marked, "
            f"quality {self.quality:.2f}, {self.backbone})"
        )

    def overlay(self, colour: tuple[int, int, int] = (255, 60, 40), alpha: float = 0.45) -> Image.Image:
        """The query with the mask tinted and outlined.

        Args:
            colour: red, green and blue from 0 to 255.
            alpha: how much of the colour covers the image, from 0 (the outline alone) to 1.

        Raises:
            ImageError: a colour or an alpha outside of its range.
        """
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise ImageError(f"colour: expected (red, green, blue) from 0 to 255, got {colour}.")
        if not 0.0 <= alpha <= 1.0:
            raise ImageError(f"alpha: expected a number from 0 to 1, got {alpha}.")
        return Image.fromarray(pictures.tint(self.image, self.mask, colour, alpha))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask as a PNG file of 0 and 255, at the query's size.

        The file appears whole or not at all: it is written beside its place and then moved.

        Args:
            path: a file name that ends in .png; its folder is made if needed, an older file is replaced.

        Returns:
            The path.

        Raises:
            FormatError: another file ending.
            StorageError: the file cannot be written.
        """
        path = checked_ending(path, ".png")
        with replacing(path) as unfinished:
            self.to_pil().save(unfinished, format="PNG")
        return path

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name, as for `numpy.savez(path, **result.to_numpy())`.

        Returns:
            `image`, `mask`, `probability`, `variance`, `error_map` and `prior`, as the attributes have them; no copies.
        """
        return {name: getattr(self, name) for name in ("image", "mask", *MAPS)}

    def to_pil(self) -> Image.Image:
        """The mask as a PIL image of mode "L", 0 and 255, at the query's size."""
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
        """The mask as annotations of COCO, ready for `diffup.formats.coco_document`.

        Args:
            image_id: id of the query.
            category_id: id of the class.
            encoding: "rle" or "polygon", see `diffup.formats.coco_annotations`.
            instances: make an object of every connected part.
            tolerance: how far, in pixels, polygons may be off.

        Returns:
            One annotation, or one for each part; none for an empty mask. `score` is the quality.

        Raises:
            FormatError: an unknown encoding or an impossible tolerance.
            MissingPackageError: pycocotools is not installed, or scikit-image for polygons and parts
                (`pip install "diffup[formats]"`).
        """
        return coco_annotations(
            [self.mask],
            image_id,
            [category_id],
            encoding=encoding,
            instances=instances,
            tolerance=tolerance,
            scores=[self.quality],
        )

    def to_supervision(self, class_id: int = 0, class_name: str | None = None, *, instances: bool = False) -> Any:
        """The mask as `supervision.Detections`.

        Args:
            class_id: number of the class.
            class_name: put into `data["class_name"]`, which supervision's label annotator shows.
            instances: make a detection of every connected part.

        Returns:
            Detections with boxes, masks, `class_id` and, as `confidence`, the quality; empty for an empty mask.

        Raises:
            MissingPackageError: supervision is not installed (`pip install "diffup[supervision]"`), or scikit-image for
                parts.
        """
        return to_detections(self.mask, self.quality, class_id, class_name, instances)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON.

        Returns:
            `width` and `height` in pixels; `area_fraction`, the marked part of the image; `box`, the mask's bounding
            box [x0, y0, x1, y1] as `Box` counts it, or `None` for an empty mask; `quality`; `uncertainty`, the standard
            deviation over the ensemble, averaged over the image, in [0, 0.5]; `threshold`; `backbone`.
        """
        height, width = self.size
        box = bounding_box(self.mask)
        return {
            "width": width,
            "height": height,
            "area_fraction": float(self.mask.mean()),
            "box": None if box is None else list(box),
            "quality": float(self.quality),
            "uncertainty": float(np.sqrt(self.variance.clip(min=0)).mean(dtype=np.float64)),
            "threshold": float(self.threshold),
            "backbone": self.backbone,
        }

    def overview(self, height: int = 256) -> Image.Image:
        """The overlay, prior, probability, standard deviation over the ensemble and error map side by side.

        The prior and the probability are grey, black being 0 and white 1. The deviation goes from black (0) to pale
        yellow (0.5, the largest possible); the error map from blue (-2, too much) over white (0) to red (2, missing).

        Args:
            height: of each picture, in pixels.

        Raises:
            ImageError: a height below 1.
        """
        _check_positive(height, "height")
        prior, probability, variance, error_map = (
            pictures.shrink(getattr(self, name), height) for name in ("prior", "probability", "variance", "error_map")
        )
        panels = [
            ("mask", np.asarray(self.overlay())),
            ("prior", pictures.grey(prior)),
            ("probability", pictures.grey(probability)),
            ("deviation", pictures.heat(2 * np.sqrt(variance.clip(min=0)))),
            ("error map", pictures.signed(error_map / 2)),
        ]
        return pictures.strip(panels, height)

    def trace_picture(self, count: int = 8, height: int = 128) -> Image.Image:
        """States `x_t` along the sampling, from noise to mask, evenly chosen (the paper's Fig. 7).

        Args:
            count: number of states to show, the first and the last among them; fewer if the sampling had fewer.
            height: of each picture, in pixels.

        Raises:
            ImageError: no trace was recorded, or a count or height below 1.
        """
        if self.trace is None or not len(self.trace):
            raise ImageError("trace: none was recorded. Ask for it when segmenting: segment(..., trace=True).")
        _check_positive(count, "count")
        _check_positive(height, "height")
        chosen = np.unique(np.linspace(len(self.trace) - 1, 0, count).round().astype(int))
        panels = [(f"t = {self.trace_timesteps[i]}", pictures.grey((self.trace[i] + 1) / 2)) for i in chosen]
        return pictures.strip(panels, height)


def _check_positive(value: int, name: str) -> None:
    if value < 1:
        raise ImageError(f"{name}: expected at least 1, got {value}.")


def enlarge(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring decoder maps to an image's size.

    Args:
        maps: (N, h, w).
        size: the image's (height, width).

    Returns:
        (N, H, W) on the CPU.
    """
    return resize_maps(maps[None], size)[0].cpu()


def _sides(maps: npt.NDArray[Any]) -> tuple[int | str, ...]:
    return maps.shape[1:] if maps.ndim == 3 else ("h", "w")
