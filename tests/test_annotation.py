"""Annotations on the pixels of their image, against brute force, and every documented error."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from diffup.errors import AnnotationError, DiffUpError, ImageError
from diffup.inputs.annotations import Box, Mask, Points, Scribble, pair_supports, parse_annotation, rasterise

SIZE = (20, 30)  # height, width


def _distance_to_segment(x: float, y: float, start: tuple[float, float], end: tuple[float, float]) -> float:
    along = (end[0] - start[0], end[1] - start[1])
    squared = along[0] ** 2 + along[1] ** 2
    part = 0.0
    if squared > 0:
        part = min(1.0, max(0.0, ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / squared))
    return math.hypot(x - start[0] - part * along[0], y - start[1] - part * along[1])


def _near(segments: list[tuple[tuple[float, float], tuple[float, float]]], radius: float) -> torch.Tensor:
    """Pixels of an image of SIZE whose centre is within the radius of a segment, one by one."""
    return torch.tensor(
        [
            [float(any(_distance_to_segment(x, y, *segment) <= radius for segment in segments)) for x in range(SIZE[1])]
            for y in range(SIZE[0])
        ]
    )


_box = st.tuples(
    st.floats(0, SIZE[1] - 0.01), st.floats(0, SIZE[0] - 0.01), st.floats(0.01, SIZE[1]), st.floats(0.01, SIZE[0])
).map(lambda box: (box[0], box[1], min(box[0] + box[2], SIZE[1]), min(box[1] + box[3], SIZE[0])))
_integer_point = st.tuples(st.integers(0, SIZE[1] - 1), st.integers(0, SIZE[0] - 1))


@given(st.lists(_box, min_size=1, max_size=3).filter(lambda boxes: np.max(boxes) > 1.01))
@settings(max_examples=60, deadline=None)
def test_boxes_equal_brute_force(boxes: list[tuple[float, float, float, float]]) -> None:
    regions = rasterise(Box(boxes), SIZE)
    for y, x in itertools.product(range(SIZE[0]), range(SIZE[1])):
        touched = any(x0 < x + 1 and x < x1 and y0 < y + 1 and y < y1 for x0, y0, x1, y1 in boxes)
        assert (regions.foreground[y, x] > 0) == touched
        assert regions.background[y, x] == (not touched)


def test_a_box_counts_most_in_its_middle() -> None:
    foreground = rasterise(Box([(2, 4, 7, 9), (6.5, 4, 27, 9)]), SIZE).foreground
    assert foreground[6, 4] == 1 and foreground[6, 16] == 1  # middles
    along = foreground[6, 2:6]
    assert along[0] < along[1] < along[2] > along[3]
    assert foreground[4, 2] < foreground[6, 2] < 0.5  # corners least
    assert torch.allclose(foreground[4:9, 12], foreground[4:9, 12].flip(0))
    thin = rasterise(Box(3, 0, 4, 20), SIZE).foreground
    assert thin[:, 3].min() > 0 and thin[10, 3] > 0.99


def test_boxes_that_leave_nothing_outside_say_as_little_as_none() -> None:
    for box in (Box(0, 0, SIZE[1], SIZE[0]), Box([(0, 0, 16, SIZE[0]), (12, 0, SIZE[1], SIZE[0])])):
        regions, unknown = rasterise(box, SIZE), rasterise(None, SIZE)
        assert torch.equal(regions.foreground, unknown.foreground)
        assert torch.equal(regions.background, unknown.background)


@given(st.lists(_integer_point, min_size=1, max_size=4), st.floats(0.1, 12))
@settings(max_examples=40, deadline=None)
def test_scribbles_equal_brute_force(vertices: list[tuple[int, int]], width: float) -> None:
    regions = rasterise(Scribble(vertices, width=width + 0.0123), SIZE)  # off the ties that rounding decides
    segments = list(itertools.pairwise(vertices)) or [(vertices[0], vertices[0])]
    radius = max((width + 0.0123) / 2, math.sqrt(0.5) + 1e-9)
    assert torch.equal(regions.foreground, _near(segments, radius))
    assert not regions.background.any()


@given(st.lists(_integer_point, min_size=1, max_size=4), st.floats(0.1, 6))
@settings(max_examples=40, deadline=None)
def test_points_equal_brute_force(points: list[tuple[int, int]], radius: float) -> None:
    regions = rasterise(Points(points, radius=radius + 0.0123), SIZE)
    expected = _near([(point, point) for point in points], max(radius + 0.0123, math.sqrt(0.5) + 1e-9))
    assert torch.equal(regions.foreground, expected)
    assert not regions.background.any()


@given(st.floats(0, SIZE[1], exclude_max=True), st.floats(0, SIZE[0], exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_every_point_within_the_image_marks_a_pixel_near_it(x: float, y: float) -> None:
    assume(max(x, y) > 1.01)
    for annotation in (Points([(x, y)], radius=0.01), Scribble([(x, y)], width=0.01)):
        marked = rasterise(annotation, SIZE).foreground.nonzero()
        assert len(marked)
        assert all(abs(row - y) <= 1 and abs(column - x) <= 1 for row, column in marked.tolist())


def test_long_strokes_equal_brute_force_though_they_are_drawn_in_pieces() -> None:
    start, end, width = np.array([3.0, 10.0]), np.array([390.0, 280.0]), 7.1
    foreground = rasterise(Scribble([start, end], width=width), (300, 400)).foreground.numpy()
    y, x = np.mgrid[:300, :400]
    along = end - start
    part = (((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along @ along)).clip(0, 1)
    distance = np.hypot(x - start[0] - part * along[0], y - start[1] - part * along[1])
    np.testing.assert_array_equal(foreground, distance <= width / 2)


def test_sizes_default_to_two_percent_of_the_shorter_side() -> None:
    for size in ((400, 900), (900, 400)):
        dot = rasterise(Points([(200, 200)]), size).foreground
        assert torch.equal(dot, rasterise(Points([(200, 200)], radius=8), size).foreground)
        stroke = rasterise(Scribble([(50, 60), (300, 200)]), size).foreground
        assert torch.equal(stroke, rasterise(Scribble([(50, 60), (300, 200)], width=8), size).foreground)


def test_masks_and_no_mask() -> None:
    soft = torch.rand(SIZE)
    regions = rasterise(Mask(soft), SIZE)
    assert torch.equal(regions.foreground, soft) and torch.equal(regions.background, 1 - soft)
    regions = rasterise(None, SIZE)
    assert torch.equal(regions.foreground, torch.ones(SIZE)) and torch.equal(regions.background, torch.zeros(SIZE))


def test_the_forms_of_boxes_points_and_strokes() -> None:
    assert Box(1, 2, 3, 4) == Box((1, 2, 3, 4)) == Box([(1, 2, 3, 4)]) == Box(np.array([[1, 2, 3, 4]]))
    assert Box(1, 2, 3, 4) == Box(torch.tensor([1, 2, 3, 4]))
    assert Box([(1, 2, 3, 4), (5, 6, 7, 8)]).boxes == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert Points((3, 4)) == Points([(3, 4)]) == Points(np.array([[3, 4]])) == Points(torch.tensor([[3, 4]]))
    line = [(2, 3), (20, 15)]
    expected = rasterise(Scribble(line, width=3), SIZE).foreground
    image = expected.numpy().astype(bool)
    forms = (tuple(line), [line], np.array(line), torch.tensor(line), [np.array(line)], [torch.tensor(line)], image)
    for form in (*forms, torch.from_numpy(image), Image.fromarray(image)):
        assert torch.equal(rasterise(Scribble(form, width=3), SIZE).foreground, expected)
    two = rasterise(Scribble([line, [(1, 1), (2, 2), (3, 3)]], width=3), SIZE).foreground
    assert torch.equal(two, torch.maximum(expected, rasterise(Scribble([(1, 1), (3, 3)], 3), SIZE).foreground))


def test_annotations_are_short_in_print() -> None:
    assert repr(Box(1, 2, 3, 4)) == "Box(boxes=((1.0, 2.0, 3.0, 4.0),), negative=())"
    assert repr(Mask(np.ones(SIZE))) == "Mask(a torch tensor of shape (20, 30) and type float32)"
    assert repr(Scribble([(1, 2)], width=3)) == "Scribble(1 polylines, width=3.0)"


def test_what_is_marked_as_negative_is_background_even_under_other_marks() -> None:
    clicks = rasterise(Points([(5, 5), (20, 10)], radius=3, negative=[(7, 5)]), SIZE)
    positive, negative = (rasterise(Points(points, 3), SIZE).foreground for points in ([(5, 5), (20, 10)], (7, 5)))
    assert torch.equal(clicks.background, negative)
    assert torch.equal(clicks.foreground, positive * (1 - negative))
    strokes = rasterise(Scribble([(2, 3), (25, 3)], width=3, negative=[[(2, 15), (25, 15)]]), SIZE)
    assert torch.equal(strokes.background, rasterise(Scribble([(2, 15), (25, 15)], width=3), SIZE).foreground)
    boxes = rasterise(Box(2, 2, 12, 12, negative=(8, 8, 20, 16)), SIZE)
    whole = rasterise(Box(2, 2, 12, 12), SIZE)
    assert (boxes.foreground[8:16, 8:20] == 0).all()
    assert torch.equal(boxes.foreground[:8], whole.foreground[:8])
    assert (boxes.background[8:16, 8:20] == 1).all()
    assert torch.equal(boxes.background[:8], whole.background[:8])


def test_negatives_alone_correct_but_support_nothing() -> None:
    for alone in (Points(negative=(3, 4)), Scribble(negative=[(3, 4), (9, 9)]), Box(negative=(3, 4, 9, 9))):
        with pytest.raises(AnnotationError, match="marks no pixel of the class"):
            rasterise(alone, SIZE)
    assert Points(negative=[(3, 4)]).negative == ((3.0, 4.0),)
    assert Box(negative=np.array([(3, 4, 9, 9)])).boxes == ()
    with pytest.raises(AnnotationError, match="fractions"):
        Points([(30, 40)], negative=[(0.5, 0.25)])
    with pytest.raises(AnnotationError, match=r"annotation: point 0 .*outside"):
        rasterise(Points([(3, 4)], negative=[(30, 4)]), SIZE)


def test_loose_input_is_a_mask(tmp_path: Path) -> None:
    truth = np.zeros(SIZE, dtype=bool)
    truth[3:9, 4:20] = True
    path = tmp_path / "mask.png"
    Image.fromarray(truth).save(path)
    for value in (path, str(path), truth, torch.from_numpy(truth), Image.open(path), truth * np.uint8(255)):
        parsed = parse_annotation(value)
        assert isinstance(parsed, Mask) and torch.equal(parsed.mask, torch.from_numpy(truth).float())
    for annotation in (None, Box(1, 2, 3, 4), Points([(1, 2)]), Scribble([(1, 2)]), Mask(truth)):
        assert parse_annotation(annotation) is annotation


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box(20, 2, 3, 4), r"box 0 is \(20, 2, 3, 4\), which is inverted"),
        (lambda: Box([(1, 2, 3, 4), (1, 4, 3, 4)]), "box 1 .* inverted or empty"),
        (lambda: Box(1, 2, 3), "4 numbers each"),
        (lambda: Box(), "at least one"),
        (lambda: Box([]), "at least one"),
        (lambda: Box(1, 2, math.nan, 4), "Box: .* NaN or infinity"),
        (lambda: Box("1,2,3,4"), "Box: expected"),
        (lambda: Box(None), "Box: expected"),
        (lambda: Box([(1, 2, 3, 4), (1, 2)]), "Box: expected"),
        (lambda: Box(10**400, 0, 1, 1), "Box: expected"),
        (lambda: Points([]), "at least one"),
        (lambda: Points([(1, 2, 3)]), "2 numbers each"),
        (lambda: Points([(1, math.inf)]), "NaN or infinity"),
        (lambda: Points([(1, 2)], radius=0), "radius must be a positive number"),
        (lambda: Points([(1, 2)], radius="3"), r"radius in pixels or None, got '3'"),
        (lambda: Points([(1, 2)], radius=True), "radius in pixels or None"),
        (lambda: Scribble([]), "Scribble: expected a polyline"),
        (lambda: Scribble([[]]), "Scribble: expected"),
        (lambda: Scribble(None), "got None"),
        (lambda: Scribble([(1, 2), (3,)]), "Scribble: expected"),
        (lambda: Scribble([[(1, 2)], [(3, math.nan)]]), "NaN"),
        (lambda: Scribble([(1, 2)], width=-1), "width must be a positive number"),
        (lambda: Scribble([(1, 2)], width=math.nan), "width must be a positive number"),
        (lambda: Scribble("no/such/strokes.png"), "Scribble: there is no file"),
        (lambda: Mask("no/such/mask.png"), "Mask: there is no file"),
        (lambda: Mask(None), "Mask: expected"),
    ],
)
def test_faults_are_found_when_an_annotation_is_made(build: object, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Mask(np.ones((20, 31))), r"the mask is 31 x 20 pixels, its image 30 x 20 \(width x height\)"),
        (Mask(np.ones((30, 20))), "lies on its side"),
        (Mask(np.zeros(SIZE)), "marks no pixel"),
        (Scribble(np.zeros(SIZE)), "marks no pixel"),
        (Scribble(np.ones((5, 5))), "Give the annotation at the size of its image"),
        (Box([(0, 0, 2, 2), (5, 5, 30.5, 9)]), r"box 1 is \(5, 5, 30.5, 9\) and leaves its image.*\(0, 0, 30, 20\)"),
        (Box(-1, 0, 2, 2), "leaves its image"),
        (Box(100, 100, 200, 200), "leaves its image"),
        (Points([(1, 1), (30, 4)]), r"point 1 is \(30, 4\), outside"),
        (Points([(1, -0.5)]), "point 0 .* outside"),
        (Scribble([[(1, 1)], [(2, 2), (3, 20)]]), r"stroke 1, vertex 1 is \(3, 20\), outside"),
    ],
)
def test_annotations_that_do_not_fit_their_image(annotation: Mask | Box | Scribble | Points, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        rasterise(annotation, SIZE, "annotation[2]")
    assert str(caught.value).startswith("annotation[2]: ")


def test_supports_of_mixed_kinds() -> None:
    photo = data.astronaut()[:100, :120]
    images = [photo, Image.fromarray(photo[:50]), torch.rand(3, 40, 60), photo]
    annotations = [np.eye(100, 120, dtype=bool), Box(10, 5, 60, 45), Scribble([(30, 20), (50, 30)]), None]
    supports = pair_supports(images, annotations)
    assert [tuple(support.image.shape) for support in supports] == [
        (3, 100, 120),
        (3, 50, 120),
        (3, 40, 60),
        (3, 100, 120),
    ]
    assert [type(support.annotation) for support in supports] == [Mask, Box, Scribble, type(None)]
    for support in supports:
        regions = rasterise(support.annotation, tuple(support.image.shape[1:]))
        assert torch.equal(support.regions.foreground, regions.foreground)
        assert torch.equal(support.regions.background, regions.background)


def test_single_images_and_lists_of_one_are_the_same() -> None:
    photo = data.astronaut()[:40, :50]
    box = Box(1, 2, 30, 20)
    for support, annotation in ((photo, box), ([photo], box), (photo, [box]), ((photo,), (box,))):
        (pair,) = pair_supports(support, annotation)
        assert pair.image.shape == (3, 40, 50) and pair.annotation == box
    assert [pair.annotation for pair in pair_supports([photo, photo])] == [None, None]


@pytest.mark.parametrize(
    ("support", "annotation", "error", "message"),
    [
        ([], None, AnnotationError, "^support: got an empty list"),
        ([np.zeros(SIZE)], [], AnnotationError, "^annotation: got 0 for 1 support images"),
        ([np.zeros(SIZE)] * 3, [None] * 2, AnnotationError, "^annotation: got 2 for 3 support images"),
        ([np.zeros(SIZE)] * 3, Box(1, 2, 3, 4), AnnotationError, "^annotation: got 1 for 3 support images"),
        (np.zeros(SIZE), [Box(1, 2, 3, 4), Box(2, 3, 4, 5)], AnnotationError, r"several boxes on one image are Box\("),
        (np.zeros(SIZE), (1, 2, 3, 4), AnnotationError, r"^annotation: .*For a box .* give Box\(1, 2, 3, 4\)"),
        (np.zeros(SIZE), [1, 2, 3, 4], AnnotationError, r"^annotation: .*For a box .* give Box\(1, 2, 3, 4\)"),
        (np.zeros(SIZE), [(1, 2, 3, 4)], AnnotationError, r"^annotation\[0\]: .*For a box .* give Box\(1, 2, 3, 4\)"),
        (np.zeros(SIZE), [(1, 2), (3, 4)], AnnotationError, r"^annotation: .*give Points\(\[\(1, 2\), \(3, 4\)\]\)"),
        (np.zeros(SIZE), np.array([1, 2, 3, 4]), AnnotationError, r"^annotation: .*If it is a box, give Box\(1, 2, 3"),
        (np.zeros(SIZE), np.array([[1, 2, 3, 4]]), AnnotationError, r"^annotation: .* 30 x 20 pixels\..* Box\(array\)"),
        (np.zeros(SIZE), torch.ones(3, 2), AnnotationError, r"^annotation: .* 30 x 20 pixels\..* Points\(array\)"),
        (np.zeros(SIZE), Box(0, 0, 1, 1), AnnotationError, r"^annotation: .*fractions.*\(the image has 30 x 20 pixels"),
        (np.zeros(SIZE), Points([(0, 0), (1, 1)]), AnnotationError, r"^annotation: .*fractions of it"),
        ([np.zeros(SIZE)], [Scribble([(0, 0), (1, 1)])], AnnotationError, r"^annotation\[0\]: .*fractions of it"),
        ([np.zeros(SIZE)] * 4, (1, 2, 3, 4), AnnotationError, r"^annotation\[0\]: .*got 1 \(int\).*Box\(x0, y0"),
        ([np.zeros(SIZE), "gone.png"], None, ImageError, r"^support\[1\]: there is no file"),
        (np.full((*SIZE, 3), np.nan), None, ImageError, "^support: .*NaN"),
        (np.zeros((2, 20, 30, 3)), None, ImageError, "^support: .*give a list of images"),
        ([np.zeros(SIZE)] * 2, [None, np.zeros(SIZE)], AnnotationError, r"^annotation\[1\]: .*marks no pixel"),
        ([np.zeros(SIZE)] * 2, [np.ones((9, 9)), None], AnnotationError, r"^annotation\[0\]: the mask is 9 x 9"),
        (np.zeros(SIZE), np.full(SIZE, np.nan), AnnotationError, "^annotation: .*NaN"),
        (np.zeros(SIZE), {"box": 1}, AnnotationError, r"^annotation: expected Mask.*\(dict\)"),
        (np.zeros(SIZE), "gone.png", AnnotationError, "^annotation: there is no file"),
    ],
)
def test_faulty_supports_are_named(support: object, annotation: object, error: type[DiffUpError], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_supports(support, annotation)  # type: ignore[arg-type]


_number = st.one_of(st.integers(-5, 40), st.floats(width=32), st.none(), st.text(max_size=2))
_nested_numbers = st.recursive(_number, lambda inner: st.lists(inner, max_size=5), max_leaves=12)


@given(st.sampled_from([Box, Points, Scribble, Mask, parse_annotation]), _nested_numbers, st.data())
@settings(max_examples=300, deadline=None)
def test_any_input_gives_regions_or_an_annotation_error(kind: type, value: object, drawn: st.DataObject) -> None:
    options = {}
    if kind in (Points, Scribble):
        options = {"radius" if kind is Points else "width": drawn.draw(_number)}
    try:
        regions = rasterise(kind(value, **options), SIZE)
    except AnnotationError:
        return
    for weights in (regions.foreground, regions.background):
        assert weights.shape == SIZE and weights.dtype == torch.float32
        assert weights.min() >= 0 and weights.max() <= 1
    assert regions.foreground.any()
    assert (regions.foreground + regions.background).max() <= 1


# --- another unit than pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: Box(0.1, 0.1, 0.9, 0.9),
        lambda: Box([(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 1, 1)]),
        lambda: Box(0.5, 0.5, 0.2, 0.3),  # centre and size, which read as corners is inverted
        lambda: Box(-0.0004, 0, 1.0002, 0.5),
        lambda: Box(np.float32([0, 0.25, 1, 1])),
        lambda: Points([(0.5, 0.5)]),
        lambda: Points([(0.4, 0.5), (1, 0)]),
        lambda: Points(torch.tensor([[0.4, 0.5]])),
        lambda: Scribble([(0.1, 0.1), (0.9, 0.9)]),
        lambda: Scribble([[(0, 0), (1, 1)], [(0.5, 0), (1, 1)]]),
    ],
)
def test_fractions_are_refused_and_the_message_says_how_to_make_pixels(build: object) -> None:
    with pytest.raises(AnnotationError, match=r"first pixel .* fractions .* pixels: multiply x by the image's width"):
        build()  # type: ignore[operator]


def test_positions_near_the_corner_are_pixels_where_something_else_says_so() -> None:
    photo = np.zeros(SIZE)
    for annotation in (
        Points([(0, 0)]),
        Points([(1, 1)]),
        Scribble([(0, 0)]),
        Points([(0.5, 0.5), (12, 3)]),
        Scribble([[(0.2, 0.4), (0.9, 0.9)], [(5, 5)]]),
        Box([(0.5, 0.5, 1, 1), (3, 3, 9, 9)]),
        Box(0.5, 0.5, 1.5, 1.5),
    ):
        (support,) = pair_supports(photo, annotation)
        assert support.regions.foreground.any()
    (support,) = pair_supports(np.zeros((1, 1)), Box(0, 0, 1, 1))
    assert not support.regions.annotated, "all of an image of one pixel"


def test_bytes_are_masks_and_stroke_images(tmp_path: Path) -> None:
    truth = np.zeros(SIZE, dtype=bool)
    truth[3:9, 4:20] = True
    path = tmp_path / "mask.png"
    Image.fromarray(truth).save(path)
    content = path.read_bytes()
    for annotation in (content, Mask(content), Scribble(content)):
        (support,) = pair_supports(np.zeros(SIZE), annotation)
        assert torch.equal(support.regions.foreground, torch.from_numpy(truth).float())


@pytest.mark.parametrize("give", [str, Mask, Scribble])
def test_black_masks_and_masks_of_another_size_are_named_by_their_file(give: type, tmp_path: Path) -> None:
    path = tmp_path / "black.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    with pytest.raises(
        AnnotationError, match=r"^annotation: the .*'.*black\.png' is 0 everywhere \(black\), so it marks no"
    ):
        pair_supports(np.zeros(SIZE), give(str(path)))
    Image.fromarray(np.eye(40, 60, dtype=bool)).save(path)
    with pytest.raises(
        AnnotationError, match=r"^annotation: the .*'.*black\.png' is 60 x 40 pixels, its image 30 x 20"
    ):
        pair_supports(np.zeros(SIZE), give(str(path)))


def test_the_size_of_a_resized_mask_is_named_before_its_values(tmp_path: Path) -> None:
    path = tmp_path / "resized.png"
    truth = Image.fromarray(np.kron(np.eye(2, dtype=np.uint8), np.full((10, 15), 255, np.uint8)))
    truth.resize((77, 51), Image.Resampling.BICUBIC).save(path)
    with pytest.raises(AnnotationError, match=r"'.*resized\.png' is 77 x 51 pixels, its image 30 x 20 .*NEAREST"):
        pair_supports(np.zeros(SIZE), path)


def test_inverted_masks_warn_once_a_call() -> None:
    mask = np.ones(SIZE, dtype=bool)
    mask[5:12, 8:20] = False
    with pytest.warns(UserWarning, match=r"annotation\[0\] .*annotation\[2\] .*: marks most .*inverted") as caught:
        pair_supports([np.zeros(SIZE)] * 3, [mask, ~mask, Mask(mask)])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair_supports([np.zeros(SIZE)] * 2, [~mask, Box(0, 0, 29, 20)])


@pytest.mark.parametrize(
    ("annotation", "annotated"),
    [
        (None, False),
        (Mask(np.ones(SIZE)), False),  # tells no pixel from another
        (Box(0, 0, SIZE[1], SIZE[0]), False),
        (Mask(np.eye(*SIZE)), True),
        (Mask(np.full(SIZE, 0.9999)), True),
        (Box(0, 0, SIZE[1] - 1, SIZE[0]), True),
        (Points([(3, 3)]), True),
        (Points([(15, 10)], radius=50), False),
        (Scribble([(3, 3), (9, 9)]), True),
    ],
)
def test_what_counts_as_annotated(annotation: Mask | Box | Scribble | Points | None, annotated: bool) -> None:
    assert rasterise(annotation, SIZE).annotated is annotated
