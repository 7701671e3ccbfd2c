"""What several test modules build on: encoders of a few lines, small decoders, and a folder of coloured shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from diffup import DiffUp, Prototypes
from diffup.backbones import Backbone, FrozenBackbone, load_backbone
from diffup.decoder.base import Decoder
from diffup.decoder.build import build_decoder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import save_decoder
from diffup.priors.affinity import HEADS, KEY_SIDE
from diffup.priors.condition import Condition, SupportFeatures
from diffup.priors.config import PriorConfig
from diffup.priors.presence import EVIDENCE
from diffup.text import TextSpace

TINY = {"channels": (8, 8, 16, 16), "condition_hidden": 8, "quality_hidden": 8}
"""Fields of a decoder config that make it as small as it can be."""

COLOURS = {1: (220, 40, 40), 2: (40, 180, 60), 3: (50, 70, 230)}
"""Colour of each class of `make_folder`."""


class FakeBackbone:
    """Random Fourier features of mean colours: a backbone of any width and strides, and not an `nn.Module`."""

    def __init__(
        self,
        widths: Sequence[int] = (8, 12, 16, 24),
        strides: Sequence[int] = (4, 8, 16, 32),
        input_size: tuple[int, int] = (96, 96),
        seed: int = 0,
    ) -> None:
        self.name = f"fake:{'-'.join(map(str, (*widths, *strides)))}"
        self.input_size = input_size
        self.fingerprint = f"{self.name}-{input_size}-{seed}"
        self.device = torch.device("cpu")
        self.strides = tuple(strides)
        self.calls = self.encoded = 0
        generator = torch.Generator().manual_seed(seed)
        self.projections = [torch.randn(width, 4, 1, 1, generator=generator) * 2 for width in widths]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        self.calls += 1
        self.encoded += len(images)
        levels = []
        for projection, stride in zip(self.projections, self.strides, strict=True):
            pooled = F.avg_pool2d(images, stride)
            levels.append(torch.cos(F.conv2d(pooled, projection[:, :3]) + projection[:, 3:].flatten()[:, None, None]))
        return levels

    def to(self, device: torch.device | str) -> FakeBackbone:
        self.device = torch.device(device)
        return self


class Changed:
    """A backbone whose features go through a function: rotated, padded, broken."""

    def __init__(self, inner: FakeBackbone, change: Callable[[int, Tensor], Tensor]) -> None:
        self.inner = inner
        self.change = change
        self.name = f"changed {inner.name}"
        self.input_size = inner.input_size
        self.fingerprint = f"changed {inner.fingerprint}"
        self.device = inner.device

    def pyramid(self, images: Tensor) -> list[Tensor]:
        return [self.change(index, level) for index, level in enumerate(self.inner.pyramid(images))]

    def to(self, device: torch.device | str) -> Changed:
        return self


class FakeFrozen(FrozenBackbone):
    """Strided convolutions with BatchNorm behind the library's own base class."""

    def __init__(self) -> None:
        settings = {"input_size": (64, 64), "levels": (0, 1, 2, 2), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stages = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o)) for i, o in ((3, 8), (8, 8), (8, 12))]
            super().__init__("fake:frozen", nn.Sequential(*stages), **settings)

    def features(self, images: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.encoder:
            images = stage(images)
            maps.append(images)
        return [maps[level] for level in self.levels]


def build_fake(variant: str | None, *, input_size: int = 64) -> FakeBackbone:
    """A family of encoders; variants whose names are of different lengths differ."""
    return FakeBackbone(input_size=(input_size, input_size), seed=len(variant or ""))


def random_backbone(name: str, seed: int = 0, **options: Any) -> FrozenBackbone:
    """An encoder by its name, with random weights unless there is a `checkpoint_path`."""
    torch.manual_seed(seed)
    if "checkpoint_path" not in options:
        options.setdefault("pretrained", False)
    backbone = load_backbone(name, **options)
    assert isinstance(backbone, FrozenBackbone)
    return backbone


def images(size: tuple[int, int], batch: int = 1, seed: int = 1) -> Tensor:
    """Images (B, 3, H, W) of uniform noise in [0, 1]."""
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(channels: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix."""
    matrix = torch.randn(channels, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(matrix)[0].float()


def rotate(features: Tensor, seed: int = 0) -> Tensor:
    """Features (..., C, h, w) in a rotated feature space, the same for every call with this seed."""
    return torch.einsum("dc,...chw->...dhw", rotation(features.shape[-3], seed), features)


def pad_channels(features: Tensor, count: int = 5) -> Tensor:
    """Features (..., C, h, w) with `count` more channels of zeros."""
    return F.pad(features, (0, 0, 0, 0, 0, count))


def tiny_config(**changes: object) -> DecoderConfig:
    """A decoder config that is small and fast, with any fields changed."""
    steps = 3 if changes.get("system", "diffusion") == "diffusion" else 1
    small = {
        "timesteps": 50,
        "steps": steps,
        "ensemble": 2,
        "threshold": 0.5,
        "temperature": 0.0,
        "priors": PriorConfig(grid=8),
    }
    return DecoderConfig(**(TINY | small | changes))


def random_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder with random weights in every layer, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = build_decoder(config)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return decoder


def save_tiny_decoder(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write a small random decoder; returns its folder."""
    config = tiny_config(**changes)
    save_decoder(folder, random_decoder(config, seed).state_dict(), config)
    return folder


def save_tiny_cnn(folder: Path, name: str, side: int = 64) -> DiffUp:
    """Write `decoder` and `encoder.pt` to a folder, a small random decoder and random weights of a timm encoder.

    Args:
        folder: the folder.
        name: name of the encoder.
        side: side of its input images in pixels.

    Returns:
        The model of both.
    """
    save_tiny_decoder(folder / "decoder", backbone=name)
    torch.manual_seed(0)
    encoder = load_backbone(name, pretrained=False, input_size=side)
    torch.save(encoder.encoder.state_dict(), folder / "encoder.pt")  # type: ignore[attr-defined]
    options = {"checkpoint_path": str(folder / "encoder.pt"), "input_size": side}
    return DiffUp.from_pretrained(folder / "decoder", device="cpu", **options)


def tiny_model(
    encoder: Backbone | None = None, /, text_backbone: TextSpace | None = None, seed: int = 0, **changes: object
) -> DiffUp:
    """A small random decoder behind an encoder, by default a `FakeBackbone`, on the CPU."""
    encoder = FakeBackbone() if encoder is None else encoder
    return DiffUp(random_decoder(tiny_config(**changes), seed), encoder, "cpu", text_backbone)


def teach(model: DiffUp, names: Sequence[str]) -> list[Prototypes]:
    """Classes 1, 2, ... of `shape_image` by these names, each of one support with its mask."""
    made = []
    for index, name in enumerate(names, start=1):
        image, labels = shape_image((index,), seed=index)
        made.append(model.prototypes(image, labels == index, name=name))
    return made


def random_condition(config: PriorConfig, batch: int = 2, seed: int = 0) -> Condition:
    """A condition of noise in [-1, 1], each row with self-affinities of its own."""
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int, side: int) -> Tensor:
        return torch.rand(batch, channels, side, side, generator=generator) * 2 - 1

    levels = tuple(noise(config.condition_channels, s) for s in (64, 32, 16, 8))
    prior, image, evidence = noise(1, 64), noise(3, 64), noise(EVIDENCE, 1)[:, :, 0, 0]
    affinity = random_affinity(batch, seed) if config.self_affinity else ()
    return Condition(levels, prior, image, evidence, affinity)


def random_affinity(queries: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Self-affinities of noise for so many queries: a few cells have most of a row's weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(queries, len(heads), side**2, KEY_SIDE**2) for side, heads in HEADS.items()]
    return tuple(torch.softmax(3 * torch.randn(shape, generator=generator), dim=3) for shape in shapes)


def random_episode(
    widths: Sequence[int] = (8, 12, 16, 24),
    sides: Sequence[int] = (16, 8, 4, 2),
    shots: int = 3,
    batch: int = 2,
    seed: int = 0,
) -> tuple[list[Tensor], SupportFeatures, Tensor]:
    """Features of queries, an annotated support side, and query images: what `build_condition` takes."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    query = [noise(batch, c, s, s) for c, s in zip(widths, sides, strict=True)]
    levels = tuple(noise(batch, shots, c, s, s) for c, s in zip(widths, sides, strict=True))
    foreground = torch.zeros(batch, shots, 128, 128)
    for shot in range(shots):
        foreground[:, shot, 20 + 8 * shot : 90, 30 : 100 - 6 * shot] = 1
    yes = torch.ones(batch, shots, dtype=torch.bool)
    support = SupportFeatures(levels, foreground, 1 - foreground, yes, annotated=yes, shots=shots)
    return query, support, torch.rand(batch, 3, 128, 128, generator=generator)


def shape_image(
    classes: Sequence[int], size: tuple[int, int] = (80, 96), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A grey noisy image with one coloured shape for each class, and its index mask.

    Class 1 is a red square, class 2 a green disc, class 3 a blue triangle; they lie side by side.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    image = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    slot = width / len(classes)
    for index, c in enumerate(classes):
        radius = rng.uniform(0.22, 0.4) * min(height, slot)
        cx = slot * index + rng.uniform(radius, slot - radius)
        cy = rng.uniform(radius, height - radius)
        dx, dy = x - cx, y - cy
        inside = {
            1: (abs(dx) < radius) & (abs(dy) < radius),
            2: dx**2 + dy**2 < radius**2,
            3: (abs(dy) < radius) & (2 * abs(dx) < dy + radius),
        }[c]
        image[inside] = np.clip(np.array(COLOURS[c]) + rng.integers(-15, 15, (int(inside.sum()), 3)), 0, 255)
        labels[inside] = c
    return image, labels


def save_photo(folder: Path, name: str, seed: int = 0, size: tuple[int, int] = (80, 96)) -> None:
    """Write NAME.png, a photo with a red square, and NAME_mask.png."""
    image, labels = shape_image((1,), size, seed)
    Image.fromarray(image).save(folder / f"{name}.png")
    save_mask(folder / f"{name}_mask.png", labels == 1)


def make_folder(root: Path) -> Path:
    """A labelled folder of ten training and five test images with the three classes; fold 0 holds out class 3."""
    plan = {
        "train": [(1,), (2,), (3,), (1, 2), (2, 3), (1, 3), (1,), (2,), (3, 2), (2, 1)],
        "test": [(1,), (2, 1), (3,), (1, 3), (2,)],
    }
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    images: dict[str, list[str]] = {}
    for split, contents in plan.items():
        images[split] = [f"{split}{index}" for index in range(len(contents))]
        for index, (name, classes) in enumerate(zip(images[split], contents, strict=True)):
            size = ((80, 96), (96, 72))[index % 2]
            image, labels = shape_image(classes, size, seed=100 * len(images) + index)
            labels[:2] = 255  # a strip to be ignored
            Image.fromarray(image).save(root / "images" / f"{name}.png")
            Image.fromarray(labels).save(root / "masks" / f"{name}.png")
    splits = {
        "ignore": 255,
        "min_area_fraction": 0.01,
        "classes": {"1": "square", "2": "disc", "3": "triangle"},
        "folds": {"0": [3], "1": [1, 2]},
        "images": images,
    }
    (root / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    return root


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as a grey PNG file of 0 and 255; its folder is made if needed."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask * np.uint8(255)).save(path)


COLOUR_WORDS = {"square": 1, "red": 1, "disc": 2, "green": 2, "triangle": 3, "blue": 3}
"""Class of `make_folder` that a word stands for."""


class FakeTextSpace:
    """A text space of colours: a name that holds the word of a shape (or a colour) means that shape's colour."""

    def __init__(self, input_size: tuple[int, int] = (48, 48)) -> None:
        self.name = "fake:text"
        self.input_size = input_size
        self.fingerprint = f"fake-text-{input_size}"
        self.device = torch.device("cpu")
        self.texts: list[str] = []

    def dense(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4) - 0.45

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        colours = [next((COLOURS[c] for word, c in COLOUR_WORDS.items() if word in text), (115,) * 3) for text in texts]
        vectors = torch.tensor(colours, dtype=torch.float32) / 255 - 0.45
        return F.normalize(vectors + torch.tensor([0.01 * len(text) for text in texts])[:, None] / 100, dim=1)

    def vocabulary_mean(self) -> Tensor:
        return torch.zeros(3)

    def to(self, device: torch.device | str) -> FakeTextSpace:
        return self


class ReadingBackbone(FakeBackbone):
    """An encoder with a text tower."""

    def text_space(self) -> FakeTextSpace:
        return FakeTextSpace()
