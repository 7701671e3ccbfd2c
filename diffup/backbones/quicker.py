"""The same encoder, quicker: BatchNorm folded into convolutions, and 1 x 1 convolutions by oneDNN.

Both are exact but for rounding. Fingerprints are of the encoder as it was loaded.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def quicker(encoder: nn.Module, fold: bool = True) -> tuple[nn.Module, int]:
    """Copy a frozen encoder with BatchNorm folded into the convolutions before it, and 1 x 1 convolutions by oneDNN.

    BatchNorm belongs to a convolution if it follows it in the definition of their common parent. That is a guess, which
    the caller must check by comparing features.

    Args:
        encoder: the encoder, in evaluation mode.
        fold: whether to fold BatchNorm.

    Returns:
        A copy that shares all weights but those of folded convolutions, or the encoder itself where there is nothing to
        change; and the number of layers of BatchNorm that were folded.
    """
    tensors = chain(encoder.parameters(), encoder.buffers())
    changed = copy.deepcopy(encoder, {id(tensor): tensor for tensor in tensors})
    folded = sum(_fold(parent) for parent in list(changed.modules())) if fold else 0
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    rerouted = sum(_reroute(module) for module in changed.modules()) if device.type == "cpu" else 0
    return changed if folded or rerouted else encoder, folded


def _fold(parent: nn.Module) -> int:
    """Fold BatchNorm into convolutions among the children of a module, and return the number of pairs."""
    pairs = [
        (first, conv, second, norm)
        for (first, conv), (second, norm) in pairwise(parent.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    ]
    for first, conv, second, norm in pairs:
        assert isinstance(conv, nn.Conv2d)
        setattr(parent, first, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
        rest = [layer for name in ("drop", "act") if isinstance(layer := getattr(norm, name, None), nn.Module)]
        setattr(parent, second, nn.Sequential(*rest))  # timm's BatchNormAct2d has its activation inside
    return len(pairs)


def _reroute(module: nn.Module) -> bool:
    """Let oneDNN compute a 1 x 1 convolution on one thread, too; whether the module is one.

    On one thread torch gives 1 x 1 convolutions of float32 to its own `slow_conv2d`, which takes three times as long
    here, unless they are strided, dilated or in a batch of 16. Dilation has no effect on a kernel of one position.
    """
    is_pointwise = (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding == (0, 0)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )
    if is_pointwise:
        vars(module)["dilation"] = (2, 2)
    return is_pointwise
