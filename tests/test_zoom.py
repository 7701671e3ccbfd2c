"""The second look: which crops are chosen, that merging leaves no seam, and what thin things gain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_decoder, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffup import DiffUp
from diffup.priors.config import PriorConfig
from diffup.zoom import MAX_CROPS, choose_crops, merge_crop


def marked(*boxes: tuple[int, int, int, int], side: int = 64, value: float = 1.0) -> torch.Tensor:
    probability = torch.zeros(side, side)
    for x0, y0, x1, y1 in boxes:
        probability[y0:y1, x0:x1] = value
    return probability


def test_a_crop_is_a_square_around_the_object_with_a_margin() -> None:
    (crop,) = choose_crops(marked((30, 20, 40, 25)), (640, 1280), 0.5, margin=0.5)
    x0, y0, x1, y1 = crop
    assert x1 - x0 == y1 - y0 == 400, "200 x 50 pixels with half of 200 around"
    assert (x0 + x1) / 2 == 700 and (y0 + y1) / 2 == 225
    (cornered,) = choose_crops(marked((0, 0, 10, 5)), (640, 1280), 0.5, margin=0.5)
    assert cornered == (0, 0, 400, 400), "moved into the image"
    (small,) = choose_crops(marked((30, 30, 31, 31)), (640, 1280), 0.5)
    assert small[2] - small[0] == 160, "a quarter of the shorter side at least"


def test_nothing_found_and_large_objects_need_no_crop() -> None:
    assert choose_crops(torch.zeros(64, 64), (100, 100), 0.5) == []
    assert choose_crops(marked((5, 5, 60, 60)), (100, 100), 0.5) == []
    assert choose_crops(marked((5, 5, 20, 20), value=0.4), (100, 100), 0.5) == []


def test_groups_far_apart_have_crops_of_their_own_near_ones_share_one() -> None:
    apart = choose_crops(marked((2, 2, 6, 6), (50, 50, 56, 56)), (640, 640), 0.5)
    assert len(apart) == 2 and apart[0][0] > apart[1][0], "the larger object first"
    assert len(choose_crops(marked((20, 20, 24, 24), (25, 20, 27, 24)), (640, 640), 0.5)) == 1
    crowd = [(x, y, x + 1, y + 1) for x in range(2, 62, 12) for y in range(2, 62, 12)]
    assert len(choose_crops(marked(*crowd), (640, 640), 0.5)) == MAX_CROPS


def test_what_is_faint_beside_the_rest_is_no_place_to_look() -> None:
    probability = marked((2, 2, 6, 6)) + marked((50, 50, 56, 56), value=0.4)
    assert choose_crops(probability, (640, 640), 0.25) == choose_crops(marked((2, 2, 6, 6)), (640, 640), 0.25)


@given(
    hnp.arrays(np.float32, (16, 16), elements=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 1.0])),
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
)
@settings(max_examples=100, deadline=None)
def test_crops_lie_in_the_image(probability: np.ndarray, size: tuple[int, int]) -> None:
    crops = choose_crops(torch.from_numpy(probability), size, 0.5)
    assert len(set(crops)) == len(crops) <= MAX_CROPS
    for x0, y0, x1, y1 in crops:
        assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
        assert (x1 - x0) * (y1 - y0) <= 0.5 * size[0] * size[1]


def test_merging_leaves_no_seam() -> None:
    maps = torch.zeros(2, 100, 120)
    merge_crop(maps, (20, 30, 80, 90), torch.stack([torch.ones(8, 8), torch.full((8, 8), 0.5)]))
    assert maps[0, 60, 50] == 1 and maps[1, 60, 50] == 0.5, "the crop's alone in its middle"
    outside = torch.ones(100, 120, dtype=torch.bool)
    outside[30:90, 20:80] = False
    assert not maps[:, outside].any()
    steps = max(maps[0].diff(dim=0).abs().max(), maps[0].diff(dim=1).abs().max())
    assert steps < 0.13, "one in a band of nine pixels"


def test_the_edges_of_the_image_are_no_seams() -> None:
    maps = torch.zeros(1, 40, 60)
    merge_crop(maps, (0, 0, 60, 40), torch.ones(1, 4, 4))
    torch.testing.assert_close(maps, torch.ones_like(maps))
    maps = torch.zeros(1, 40, 60)
    merge_crop(maps, (0, 0, 30, 40), torch.ones(1, 4, 4))
    torch.testing.assert_close(maps[0, :, :25], torch.ones(40, 25))
    assert (maps[0, :, 29] < 0.3).all() and not maps[0, :, 30:].any()


def test_a_crop_is_enlarged_like_the_rest() -> None:
    seen = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(1, 64, 64)
    merge_crop(maps, (0, 0, 64, 64), seen)
    expected = torch.nn.functional.interpolate(seen[None], (64, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(maps, expected)


def thin_scene(size: tuple[int, int], width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey noisy image with an upright red bar a third of its height."""
    image = np.random.default_rng(seed).integers(90, 140, (*size, 3)).astype(np.uint8)
    bar = np.zeros(size, dtype=bool)
    top, left = size[0] // 3, size[1] // 2
    bar[top : 2 * top, left : left + width] = True
    image[bar] = (220, 40, 40)
    return image, bar


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


class Colours(FakeBackbone):
    """Features that are the colours themselves."""

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.nn.functional.avg_pool2d(images, stride) for stride in self.strides]


def colour_model() -> DiffUp:
    """The bare prior over colours: what it marks follows from the image alone."""
    priors = PriorConfig(kinds=("contrast",), centre=False, grid=64, affinity=False, saliency=False, extra_priors=0)
    config = tiny_config(system="prior", prior_skip=False, priors=priors)
    return DiffUp(random_decoder(config), Colours(strides=(4, 4, 4, 4), input_size=(256, 256)), "cpu")


def test_a_second_look_resolves_what_the_first_pass_cannot() -> None:
    """The mechanism alone: an encoder that knows colours, and a bar thinner than a cell of the decoder's map.

    It does not say that photos gain: with real encoders they may lose, see the changelog.
    """
    query, bar = thin_scene((900, 1200), 8, seed=1)
    support, mask = thin_scene((200, 200), 60, seed=2)
    model = colour_model()
    once = model.segment(query, support, mask)
    twice = model.segment(query, support, mask, zoom=True)
    assert iou(twice.mask, bar) > 1.5 * iou(once.mask, bar), (iou(once.mask, bar), iou(twice.mask, bar))
    assert iou(twice.mask, bar) > 0.7
    assert twice.quality == once.quality


def test_the_second_look_repeats_with_the_seed_and_is_off_by_default() -> None:
    query, _ = thin_scene((300, 400), 8, seed=1)
    support, mask = thin_scene((200, 200), 60, seed=2)
    model = DiffUp(random_decoder(tiny_config(threshold=0.4)), FakeBackbone(), "cpu")
    plain, zoomed, again = (model.segment(query, support, mask, zoom=zoom, seed=3) for zoom in (False, True, True))
    np.testing.assert_array_equal(zoomed.probability, again.probability)
    np.testing.assert_array_equal(plain.probability, model.segment(query, support, mask, seed=3).probability)


PEAK = """
import resource, sys
import numpy as np
from fakes import FakeBackbone, random_decoder, tiny_config
from diffup import DiffUp
mask = np.zeros((200, 200), dtype=bool)
mask[50:150, 50:150] = True
small = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
model = DiffUp(random_decoder(tiny_config(threshold=0.3)), FakeBackbone(), "cpu")
model.segment(small, small, mask)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = model.segment(sys.argv[1], small, mask, zoom=True)
assert result.mask.shape == (4000, 6000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_large_photo_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((6000, 4000)).save(tmp_path / "large.jpg")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.jpg")],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024, f"{done.stdout} MiB"
