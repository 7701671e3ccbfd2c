"""What the tests of files of labelling tools ask of the supports that are read."""

from __future__ import annotations

import numpy as np

from diffup import Mask
from diffup.formats.supports import SupportSet
from diffup.inputs.annotations import pair_supports


def pixels(annotation: object) -> np.ndarray:
    """The pixels of a mask, (H, W) bool."""
    assert isinstance(annotation, Mask)
    return annotation.mask.numpy() > 0.5


def usable(shots: SupportSet) -> SupportSet:
    """The supports, after what `segment` does with them."""
    assert len(pair_supports(*shots)) == len(shots.support)
    return shots
