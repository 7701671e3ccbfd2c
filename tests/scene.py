"""A query with a square and a disc, a support with a square, and what it means that two results are equal."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import shape_image

from diffup import Segmentation

QUERY, TRUTH = shape_image((1, 2), (70, 100), seed=1)
SUPPORT, LABELS = shape_image((1,), (80, 64), seed=2)
MASK = LABELS == 1


def assert_equal(a: Segmentation, b: Segmentation) -> None:
    """Bit for bit."""
    for name in ("image", "mask", "probability", "variance", "error_map", "prior"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("quality", "presence", "score", "min_presence", "threshold", "backbone"):
        assert getattr(a, name) == getattr(b, name), name


def assert_close(a: Segmentation, b: Segmentation) -> None:
    """Equal up to rounding, which the normalisations of a random decoder enlarge; the priors agree to 1e-5."""
    assert np.array_equal(a.image, b.image)
    assert np.abs(a.probability - b.probability).max() < 5e-4
    assert (a.mask != b.mask)[np.abs(a.probability - a.threshold) > 1e-3].sum() == 0
    assert np.abs(a.prior - b.prior).max() < 1e-4
    for name in ("quality", "presence", "score"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-4), name
