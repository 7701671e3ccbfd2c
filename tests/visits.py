"""What the tests of the web page build on: encoders, drawings as a browser sends them, and photos as files."""

from __future__ import annotations

import io
import json

import numpy as np
from fakes import FakeBackbone, build_fake, shape_image
from PIL import Image

from diffup.decoder.options import SamplingOptions
from diffup.demo import session
from diffup.demo.encoders import Encoders
from diffup.demo.find import find
from diffup.demo.session import Session

SAMPLING = SamplingOptions(steps=3, ensemble=2, threshold=0.5)


def fake(variant: str | None, *, input_size: int = 64) -> FakeBackbone:
    """`build_fake`, with the name that was asked for."""
    built = build_fake(variant, input_size=input_size)
    built.name = f"fake:{variant}"
    return built


def drawing(tool: str, *marks: dict[str, object]) -> str:
    """What the canvas of an example sends: marks of one tool."""
    return json.dumps({"tool": tool, "marks": [{"tool": tool, **mark} for mark in marks]})


def box_around(mask: np.ndarray) -> tuple[str, tuple[int, int, int, int]]:
    """A box drawn around a mask, and its corners in pixels."""
    rows, columns = np.nonzero(mask)
    corners = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    height, width = mask.shape
    path = [[corners[0] / width, corners[1] / height], [corners[2] / width, corners[3] / height]]
    return drawing("box", {"path": path}), corners


def png(image: np.ndarray) -> bytes:
    """Content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def shapes_file(seed: int) -> tuple[str, bytes]:
    """Name and content of a photo with both shapes."""
    return f"photo{seed}.png", png(shape_image((2, 1), seed=seed)[0])


def add_shape(state: Session, name: str, seed: int = 0, label: int = 1) -> Session:
    """Add an example of a class: the shape with this label, in a box."""
    image, labels = shape_image((1, 2), seed=seed)
    state = session.load_draft(state, png(image), "example.png")
    return session.add_drawn(state, name, box_around(labels == label)[0])


def with_photos(state: Session, *seeds: int) -> Session:
    """Add photos; none is refused."""
    state, problems = session.add_photos(state, [shapes_file(seed) for seed in seeds])
    assert problems == []
    return state


def found(state: Session, encoders: Encoders, *chosen: str, options: SamplingOptions = SAMPLING) -> Session:
    """The session after a run."""
    return list(find(state, encoders, chosen or ("fake:a",), options))[-1][0]
