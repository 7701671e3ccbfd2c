"""Tasks that the pictures of the documentation show, beside those of the quick start.

All photos come with scikit-image; what is drawn over some of them is named as drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from skimage import color, data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from quickstart import Scene, coins, motorcycle, person

from diffup import Box, Mask

Photo = npt.NDArray[np.uint8]
Point = tuple[float, float]

_OVERSAMPLING = 4  # lines are drawn at this many times the size, and reduced


def letters() -> Scene:
    """Return a task with strokes thinner than a pixel of the 64 x 64 mask: the support is the top of a page."""
    page = data.page()
    ink: npt.NDArray[np.bool_] = page < 110
    given = np.s_[5:75, 120:330]
    return Scene(page[given], {"mask": Mask(ink[given])}, page[80:], ink[80:])


def wheels() -> Scene:
    """Return a task with one wheel in one image of the stereo pair, mirrored; the query is the other image."""
    scene = motorcycle()
    return Scene(scene.support[150:, :420], {"box": Box(57, 105, 240, 300)}, scene.query)


def bench() -> Scene:
    """Return a task with the bench in one image of the stereo pair, mirrored; the query is the other image."""
    scene = motorcycle()
    return Scene(scene.support, {"box": Box(450, 90, 731, 270)}, scene.query)


def face() -> Scene:
    """Return a task with an astronaut's face in colour as support, and a cameraman in grey as query."""
    return Scene(data.astronaut()[:300], {"box": Box(165, 30, 285, 205)}, data.camera()[40:340])


def hair() -> Scene:
    """Return a task with an astronaut's hair in colour as support, and a cameraman in grey as query."""
    return Scene(data.astronaut()[:300], {"box": Box(170, 3, 280, 110)}, data.camera()[20:320])


def eye() -> Scene:
    """Return a task with a cat's left eye in one half of a photo as support; the query is the other half."""
    cat = data.chelsea()
    return Scene(cat[20:260, 235:], {"box": Box(25, 65, 105, 150)}, cat[20:260, :235])


def cat() -> Scene:
    """Return a task with a part of a cat's photo as support, and the mirrored photo as query."""
    photo = data.chelsea()
    return Scene(photo[:, 150:], {"box": Box(0, 0, 225, 300)}, photo[:, ::-1])


def cup() -> Scene:
    """Return a task with a mirrored photo of a cup as support, and the photo itself as query."""
    photo = data.coffee()
    return Scene(photo[:, ::-1], {"box": Box(215, 15, 425, 260)}, photo)


def rocket() -> Scene:
    """Return a task with a model of a shuttle behind an astronaut as support, and a rocket at night as query."""
    return Scene(data.astronaut(), {"box": Box(352, 2, 446, 225)}, data.rocket())


def tower() -> Scene:
    """Return a task with a lattice tower in one half of a photo as support; the query is the other half."""
    photo = data.rocket()
    return Scene(photo[:, :250], {"box": Box(172, 120, 232, 427)}, photo[:, 370:])


def horse() -> Scene:
    """Return a task with the silhouette of a horse as support; the query is its mirror image, painted over grass."""
    shape: npt.NDArray[np.bool_] = ~data.horse()
    query = color.gray2rgb(data.grass())[: shape.shape[0], : shape.shape[1]].copy()
    query[shape] = 60, 35, 20
    return Scene(np.where(shape, 0, 255).astype(np.uint8)[:, ::-1], {"box": Box(5, 5, 395, 325)}, query, shape)


def fence() -> Scene:
    """Return a task with wire netting drawn over grass as support; in the query it is drawn before an astronaut."""
    support, given = _drawn(data.grass()[:400, :400], _netting(50, 0), (), (225, 225, 225))
    query, truth = _drawn(data.astronaut()[:400], _netting(58, 9), (), (225, 225, 225))
    return Scene(support, {"mask": Mask(given)}, query, truth)


def bicycle() -> Scene:
    """Return a task with a bicycle drawn over grass as support; in the query a mirrored one is drawn over bricks."""
    support, _ = _drawn(data.grass()[:400], *_bicycle((256, 250), 85, 85), (20, 20, 20))
    query, truth = _drawn(data.brick()[:400], *_bicycle((256, 265), -92, 92), (20, 40, 110))
    return Scene(support, {"box": Box(43, 84, 469, 336)}, query, truth)


@dataclass(frozen=True)
class Line:
    """A straight line to draw, in pixels.

    Attributes:
        start: x and y of one end.
        end: x and y of the other.
        width: width.
    """

    start: Point
    end: Point
    width: float


@dataclass(frozen=True)
class Ring:
    """A circle to draw, in pixels.

    Attributes:
        centre: x and y of the centre.
        radius: outer radius.
        width: width of the line, inside of the radius.
    """

    centre: Point
    radius: float
    width: float


def _netting(mesh: int, shift: int) -> list[Line]:
    """Diagonal wires over 512 x 512 pixels, `mesh` pixels apart."""
    starts = range(shift - 512, 1024, mesh)
    return [Line((x, 0), (x + slope * 512, 512), 5) for x in starts for slope in (-1, 1)]


def _bicycle(middle: Point, across: float, down: float) -> tuple[list[Line], list[Ring]]:
    """A bicycle seen from the side: frame and spokes, and rims.

    Args:
        middle: point between the hubs.
        across: half of the wheels' diameter in x, negative for a bicycle that is mirrored.
        down: the same in y, positive.
    """

    def line(start: Point, end: Point, width: float) -> Line:
        ends = [(middle[0] + x * across, middle[1] + y * down) for x, y in (start, end)]
        return Line(ends[0], ends[1], width)

    rear, front, pedals, seat, head, bar = (-1.5, 0.0), (1.5, 0.0), (0.0, 0.1), (-0.8, -1.3), (0.9, -1.35), (0.8, -1.75)
    tubes = [(rear, seat), (seat, head), (head, pedals), (pedals, seat), (rear, pedals), (front, bar)]
    tubes += [(bar, (0.4, -1.85)), (seat, (-0.9, -1.65)), ((-1.2, -1.68), (-0.6, -1.65))]
    lines = [line(start, end, 0.09 * down) for start, end in tubes]
    for hub in (rear, front):
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            lines.append(line(hub, (hub[0] + 0.95 * np.cos(angle), hub[1] + 0.95 * np.sin(angle)), 1.25))
    rims = [Ring((middle[0] + hub[0] * across, middle[1]), down, 0.11 * down) for hub in (rear, front)]
    return lines, rims


def _drawn(
    photo: Photo, lines: Iterable[Line], rings: Iterable[Ring], colour: tuple[int, int, int]
) -> tuple[Photo, npt.NDArray[np.bool_]]:
    """Draw smooth lines and rings over a photo; the picture, and the mask of what is drawn."""
    height, width = photo.shape[:2]
    large = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    draw = ImageDraw.Draw(large)
    for line in lines:
        ends = [tuple(_OVERSAMPLING * value for value in point) for point in (line.start, line.end)]
        draw.line(ends, 255, round(_OVERSAMPLING * line.width))
    for ring in rings:
        box = [_OVERSAMPLING * (value + side * ring.radius) for side in (-1, 1) for value in ring.centre]
        draw.ellipse(box, outline=255, width=round(_OVERSAMPLING * ring.width))
    cover = np.asarray(large.resize((width, height), Image.Resampling.BOX))
    flat = Image.new("RGB", (width, height), colour)
    picture = Image.composite(flat, Image.fromarray(photo).convert("RGB"), Image.fromarray(cover))
    return np.asarray(picture), cover > 127


@dataclass(frozen=True)
class Outlined:
    """A task of the picture of outlines.

    Attributes:
        scene: makes the task, which has one annotation.
        annotation: key of the annotation that is given.
        part: left, top, right and bottom of the part of the query that is shown, in pixels.
        outcome: title of the refined mask: what is still wrong with it, after "failure" where it is of no use.
    """

    scene: Callable[[], Scene]
    part: tuple[int, int, int, int]
    outcome: str
    annotation: str = "box"


OUTLINES = {
    "coin": Outlined(coins, (0, 55, 225, 215), "refined"),
    "horse (drawn)": Outlined(horse, (0, 0, 400, 328), "refined"),
    "person": Outlined(person, (0, 90, 512, 480), "grass stays"),
    "rocket": Outlined(rocket, (170, 110, 510, 425), "towers stay"),
    "hair": Outlined(hair, (110, 10, 330, 160), "refined"),
    "cup": Outlined(cup, (150, 0, 470, 270), "handle missing"),
    "cat": Outlined(cat, (150, 100, 451, 300), "failure: fringes"),
    "wheel": Outlined(wheels, (430, 250, 680, 490), "failure: spokes"),
    "bench": Outlined(bench, (20, 90, 300, 290), "failure: wrong object"),
    "tower": Outlined(tower, (0, 150, 270, 427), "failure: lattice"),
    "fence (drawn)": Outlined(fence, (110, 0, 512, 330), "failure", "mask"),
    "bicycle (drawn)": Outlined(bicycle, (0, 80, 512, 385), "failure"),
}
"""Tasks of the picture of outlines, by the name of the class."""
