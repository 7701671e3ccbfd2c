"""Rendering of training views: whole images, random crops, and objects pasted onto other photos.

Every view depends only on the seed and its index, so a cache can be filled, resumed or checked view by view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from diffup.data.base import TrainingData
from diffup.inputs.images import read_image, resize_image, shrink_image
from diffup.training.config import ViewsConfig

LONGEST_SIDE = 384
"""Maximum side in pixels, to which photos are scaled down before cropping and pasting, so that scales are comparable
across data sets."""


_COUNTS, _COUNT_SHARES = (1, 2, 4, 10), (0.55, 0.2, 0.15, 0.1)
"""Numbers of objects of one class pasted into an image, and their probabilities."""


@dataclass(frozen=True)
class Rendered:
    """A rendered view.

    Args:
        image: (3, h, w) in [0, 1], the view.
        mask: (h, w) uint8, class ids.
        source: index of the training image that the view shows, -1 for pasted images.
    """

    image: Tensor
    mask: npt.NDArray[np.uint8]
    source: int


class Renderer:
    """Renders views of a data set's training images.

    Args:
        data: the data set.
        names: names of the training images.
        pairs: names of the images of each training class, from which objects are pasted (`TrainingData.pairs`).
        backgrounds: paths of photos onto which objects are pasted; empty to paste onto the training images.
        config: settings of the views.
    """

    def __init__(
        self,
        data: TrainingData,
        names: Sequence[str],
        pairs: dict[int, tuple[str, ...]],
        backgrounds: Sequence[Path],
        config: ViewsConfig,
    ) -> None:
        self.data = data
        self.names = tuple(names)
        self.pairs = pairs
        self.backgrounds = tuple(backgrounds)
        self.config = config

    def whole(self, index: int) -> Rendered:
        """Return a whole training image.

        Args:
            index: number of the training image.
        """
        return Rendered(*self._load(self.names[index]), source=index)

    def crop(self, index: int) -> Rendered:
        """Render a crop with random box, mirroring and colours.

        Args:
            index: number of the crop; it shows the training image `index // crops`.
        """
        source = index // self.config.crops
        rng = np.random.default_rng([self.config.seed, 1, index])
        image, mask = self._load(self.names[source])
        return Rendered(
            *_flip_jitter(*_random_crop(image, mask, self.config.crop_scale, rng), self.config, rng), source
        )

    def pasted(self, index: int) -> Rendered:
        """Render a pasted image: objects of one or two uniformly drawn classes on a photo.

        Args:
            index: number of the pasted image.
        """
        rng = np.random.default_rng([self.config.seed, 2, index])
        if self.backgrounds:
            path = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            image = shrink_image(read_image(path, argument=str(path)), LONGEST_SIDE)
            mask = np.zeros(image.shape[1:], dtype=np.uint8)
        else:
            image, mask = self._load(self.names[int(rng.integers(len(self.names)))])
        image, mask = _random_crop(image, mask, 0.6, rng)
        for _ in range(int(rng.integers(1, 3))):
            c = int(rng.choice(list(self.pairs)))
            # From scenes with many objects the decoder learns to segment all of the class, not only the most similar.
            count = int(rng.choice(_COUNTS, p=_COUNT_SHARES))
            for name in rng.choice(self.pairs[c], size=1 + (count > 1)):
                other = self._load(str(name))
                for _ in range(-(-count // 2)):
                    image, mask = _paste(image, mask, *other, c, 0.8 / count**0.5, rng)
        return Rendered(*_flip_jitter(image, mask, self.config, rng), source=-1)

    def _load(self, name: str) -> tuple[Tensor, npt.NDArray[np.uint8]]:
        image = shrink_image(self.data.image(name), LONGEST_SIDE)
        mask = self.data.mask(name)
        return image, _resize_mask(mask, image.shape[1], image.shape[2])


def _resize_mask(mask: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    if mask.shape == (height, width):
        return mask
    resized = F.interpolate(torch.from_numpy(mask)[None, None], (height, width), mode="nearest-exact")
    return np.asarray(resized[0, 0].numpy(), dtype=np.uint8)


def _random_crop(
    image: Tensor, mask: npt.NDArray[np.uint8], smallest: float, rng: np.random.Generator
) -> tuple[Tensor, npt.NDArray[np.uint8]]:
    height, width = mask.shape
    h, w = (max(8, round(side * rng.uniform(smallest, 1))) for side in (height, width))
    h, w = min(h, height), min(w, width)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return image[:, top : top + h, left : left + w], mask[top : top + h, left : left + w]


def _flip_jitter(
    image: Tensor, mask: npt.NDArray[np.uint8], config: ViewsConfig, rng: np.random.Generator
) -> tuple[Tensor, npt.NDArray[np.uint8]]:
    if rng.random() < 0.5:
        image, mask = image.flip(-1), mask[:, ::-1]
    brightness, contrast, saturation = 1 + config.jitter * rng.uniform(-1, 1, 3)
    image = image * float(brightness)
    image = (image - image.mean()) * float(contrast) + image.mean()
    grey = image.mean(dim=0, keepdim=True)
    return ((image - grey) * float(saturation) + grey).clamp(0, 1), np.ascontiguousarray(mask)


def _paste(
    image: Tensor,
    mask: npt.NDArray[np.uint8],
    other: Tensor,
    other_mask: npt.NDArray[np.uint8],
    c: int,
    largest: float,
    rng: np.random.Generator,
) -> tuple[Tensor, npt.NDArray[np.uint8]]:
    """Paste the objects of class c of another image at a random size and place, mirrored or not, with soft borders.

    Their size is at most the share `largest` of the image's size.
    """
    rows, columns = np.nonzero(other_mask == c)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    cut = other[:, top:bottom, left:right]
    alpha = torch.from_numpy((other_mask[top:bottom, left:right] == c).astype(np.float32))[None]
    height, width = mask.shape
    scale = rng.uniform(min(0.15, largest / 2), largest) * min(height / cut.shape[1], width / cut.shape[2])
    size = max(4, round(cut.shape[1] * scale)), max(4, round(cut.shape[2] * scale))
    size = min(size[0], height), min(size[1], width)
    cut, alpha = resize_image(cut, size), _soften(alpha, size)
    if rng.random() < 0.5:
        cut, alpha = cut.flip(-1), alpha.flip(-1)
    y, x = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
    region = (slice(None), slice(y, y + size[0]), slice(x, x + size[1]))
    image, mask = image.clone(), mask.copy()
    image[region] = alpha * cut + (1 - alpha) * image[region]
    mask[region[1:]][alpha[0].numpy() > 0.5] = c
    return image, mask


def _soften(alpha: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(alpha[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
