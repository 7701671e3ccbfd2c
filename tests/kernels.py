"""What computes in the tests, and in the programs that they start: results to the bit are those of the same kernels."""

from __future__ import annotations

import os

import torch


def choose() -> None:
    """One thread unless OMP_NUM_THREADS says otherwise, and oneDNN unless DIFFUP_TEST_MKLDNN=0.

    One thread is as fast on the small tensors of the tests; more fight with whatever else runs.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if os.environ.get("DIFFUP_TEST_MKLDNN") == "0":
        torch.backends.mkldnn.enabled = False
