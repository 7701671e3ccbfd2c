"""Checks that an encoder follows the backbone protocol; for authors of plugins, `check_backbone` explains each fault.

Every check is a small function that takes a `_Trial` (the backbone, two images and its levels for them) and returns
None if it passes, raises `_Failure` with a sentence that names the problem and the remedy, or `_NotChecked` with the
reason. `diffup.backbones.testing` makes a pytest class of the checks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffup.backbones.base import Backbone, FrozenBackbone, check_pyramid, nearest_size
from diffup.backbones.registry import load_backbone
from diffup.errors import BackboneError, ConformanceError

Outcome = Literal["ok", "failed", "not checked"]

_TOLERANCE = 1e-3  # relative to the largest value: another batch size or thread may choose other kernels
_DEVICE_TOLERANCE = 2e-2  # relative to the largest value: another device computes convolutions in TF32
_FAINT = 1e-4  # relative to the largest value: with random weights a deep network may nearly lose the image
_MARGIN = 1.25  # each position of a map of two or three positions sees the whole image
_THREADS = 4


class _Failure(Exception):
    """A rule is broken; the message names it and the remedy."""


class _NotChecked(Exception):
    """A rule cannot be checked here; the message gives the reason."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: name of the check, one of `CHECKS`.
        outcome: `"ok"`, `"failed"`, or `"not checked"`.
        message: fault and remedy, or the reason for not checking; empty if the check passed.
    """

    check: str
    outcome: Outcome
    message: str = ""


@dataclass(frozen=True)
class Report:
    """Results of `check_backbone`; `str(report)` is a readable table.

    Attributes:
        backbone: name of the backbone.
        findings: result of each check, in the order of `CHECKS`.
    """

    backbone: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings of the checks that failed."""
        return tuple(finding for finding in self.findings if finding.outcome == "failed")

    def __str__(self) -> str:
        count = len(self.problems)
        verdict = (
            "keeps the protocol" if not count else f"breaks the protocol: {count} of {len(self.findings)} checks failed"
        )
        width = max(len(finding.check) for finding in self.findings)
        lines = [
            f"  {finding.outcome:11}  {finding.check:{width}}  {finding.message}".rstrip() for finding in self.findings
        ]
        return "\n".join([f"backbone '{self.backbone}' {verdict}", *lines])

    def raise_for_problems(self) -> None:
        """Raise an error if a check failed.

        Raises:
            ConformanceError: a check failed; the message is the whole report.
        """
        if not self.ok:
            raise ConformanceError(str(self))


def check_backbone(backbone: str | Backbone, **options: Any) -> Report:
    """Check that an encoder follows the backbone protocol, and report every fault.

    About twenty images are encoded, at `input_size` and near it; the backbone is not changed. The checks do not measure
    the quality of the features; only an evaluation with a decoder does.

    Args:
        backbone: name of a backbone, or an object to be used as one.
        **options: options of the family's factory if `backbone` is a name, e.g. a small `input_size`, which is faster.

    Returns:
        One finding for each of `CHECKS`.

    Raises:
        BackboneError: there is no such backbone, or it cannot be built.
        WeightsError: its weights cannot be loaded.

    Examples:
        >>> report = check_backbone("bundled:efficientnet_lite0", input_size=128)
        >>> print(report)
        >>> report.raise_for_problems()
    """
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, **options)
    elif options:
        raise BackboneError(f"options apply to backbone names only, got {sorted(options)} with a ready-made object")
    trial = _Trial(backbone)
    findings: list[Finding] = []
    for name, check in _CHECKS.items():
        findings.append(_run(name, check, trial))
        if name in ("members", "levels") and findings[-1].outcome == "failed":
            reason = f"'{name}' must hold first"
            findings += [Finding(rest, "not checked", reason) for rest in CHECKS[len(findings) :]]
            break
    return Report(str(getattr(backbone, "name", type(backbone).__name__)), tuple(findings))


def _run(name: str, check: Callable[[_Trial], None], trial: _Trial) -> Finding:
    """Run one check, and restore torch's random state."""
    try:
        with torch.random.fork_rng(devices=[]):
            check(trial)
    except _NotChecked as reason:
        return Finding(name, "not checked", str(reason))
    except (_Failure, BackboneError) as problem:
        return Finding(name, "failed", str(problem))
    except Exception as error:  # whatever a foreign encoder raises belongs into the report
        return Finding(name, "failed", f"raised {type(error).__name__}: {error}")
    return Finding(name, "ok")


class _Trial:
    """A backbone, and its levels for two images of noise at its input size once the check `levels` has passed."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.levels: list[Tensor] = []

    def noise(self, size: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
        """Two images of noise, (2, 3, H, W) in [0, 1], of a size or the backbone's input size."""
        size = size or self.backbone.input_size
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(2, 3, *size, generator=generator).to(self.backbone.device)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Encode images and check the levels."""
        with torch.no_grad():  # gradients have a check of their own
            return check_pyramid(self.backbone.pyramid(images), self.backbone.name, len(images))


def _check_members(trial: _Trial) -> None:
    """The attributes exist, with sensible values that do not change from one access to the next."""
    backbone = trial.backbone
    missing = [m for m in ("name", "input_size", "fingerprint", "device", "pyramid", "to") if not hasattr(backbone, m)]
    if missing:
        raise _Failure(f"it lacks {', '.join(missing)}; see diffup.backbones.Backbone")
    for member in ("name", "fingerprint"):
        value = getattr(backbone, member)
        if not isinstance(value, str) or not value:
            raise _Failure(f"{member} must be a text that is not empty, got {value!r}")
    size = backbone.input_size
    if not isinstance(size, tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise _Failure(f"input_size must be a tuple (height, width) of positive integers in pixels, got {size!r}")
    if not isinstance(backbone.device, torch.device):
        raise _Failure(f"device must be a torch.device, got {backbone.device!r}")
    if backbone.fingerprint != backbone.fingerprint:
        raise _Failure("fingerprint differs from one look to the next; caches of features would never be found again")


def _check_levels(trial: _Trial) -> None:
    """Four float32 levels (B, C, h, w), fine to coarse, finite."""
    trial.levels = trial.encode(trial.noise())
    for index, level in enumerate(trial.levels):
        if level.device != trial.backbone.device:
            raise _Failure(f"level {index} is on {level.device}, the backbone on {trial.backbone.device}")
    if trial.levels[0].shape[2] * trial.levels[0].shape[3] < 4:
        raise _Failure(f"the finest level has shape {tuple(trial.levels[0].shape)}: no map to find anything on")


def _check_gradients(trial: _Trial) -> None:
    """No gradient is recorded, even if the caller records gradients, and no parameter requires one."""
    with torch.enable_grad():
        levels = trial.backbone.pyramid(trial.noise())
    held = [str(index) for index, level in enumerate(levels) if level.requires_grad]
    if held:
        raise _Failure(
            f"level {', '.join(held)} carries a gradient, which keeps every activation in memory; decorate pyramid() "
            "with @torch.no_grad()"
        )
    if isinstance(trial.backbone, nn.Module):
        count = sum(parameter.requires_grad for parameter in trial.backbone.parameters())
        if count:
            raise _Failure(f"{count} parameters require a gradient: a frozen encoder calls requires_grad_(False)")


def _check_evaluation(trial: _Trial) -> None:
    """Dropout and BatchNorm are in evaluation mode, and encoding changes no weight or statistic."""
    if not isinstance(trial.backbone, nn.Module):
        raise _NotChecked("not an nn.Module")
    training = [name or "the backbone itself" for name, module in trial.backbone.named_modules() if module.training]
    if training:
        raise _Failure(
            f"in training mode: {', '.join(training[:4])}{', ...' if len(training) > 4 else ''}; call eval()"
        )
    before = {key: value.clone() for key, value in trial.backbone.state_dict().items()}
    trial.encode(trial.noise(seed=1))
    changed = [key for key, value in trial.backbone.state_dict().items() if not torch.equal(before[key], value)]
    if changed:
        raise _Failure(f"encoding changes {', '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}")


def _check_determinism(trial: _Trial) -> None:
    """The same images give the same levels, whatever the random state."""
    torch.manual_seed(1)
    _same(trial.encode(trial.noise()), trial.levels, "differ from one call to the next; is there dropout or noise?")


def _check_batch(trial: _Trial) -> None:
    """The levels of an image do not depend on what else is in the batch."""
    for index in range(2):
        alone = trial.encode(trial.noise()[index : index + 1])
        _same(
            alone, [level[index : index + 1] for level in trial.levels], "of an image change with the rest of the batch"
        )


def _check_images(trial: _Trial) -> None:
    """The caller's images are not changed."""
    images = trial.noise()
    before = images.clone()
    trial.encode(images)
    if not torch.equal(images, before):
        raise _Failure("pyramid() changes the caller's images in place; normalise a copy")


def _check_range(trial: _Trial) -> None:
    """Features depend on images in [0, 1], black and white ones included."""
    black, white = (trial.encode(torch.full_like(trial.noise(), value)) for value in (0.0, 1.0))
    maps = zip(trial.levels, black, white, strict=True)
    change = max(max(_difference(level, dark), _difference(light, dark)) for level, dark, light in maps)
    if change < _FAINT:
        raise _Failure(
            f"no level changes with the image (by {change:.1g} of its largest value between black, white and noise): "
            "images come in [0, 1], not in 0..255"
        )
    if isinstance(trial.backbone, FrozenBackbone):
        for name in ("mean", "std"):
            values = getattr(trial.backbone, name).flatten().tolist()
            if max(values) > 1.5 or min(values) < 0 or (name == "std" and min(values) <= 0):
                shown = tuple(round(value, 3) for value in values)
                raise _Failure(f"{name}={shown} is not for images in [0, 1]; values for 0..255 are divided by 255")


def _check_orientation(trial: _Trial) -> None:
    """A change at the top right of an image changes its levels most at the top right: no axis is swapped or flipped."""
    height, width = trial.backbone.input_size
    grey = torch.full((1, 3, height, width), 0.5, device=trial.backbone.device)
    changed = grey.clone()
    changed[..., : height // 2, (width + 1) // 2 :] = trial.noise()[:1, :, : height // 2, (width + 1) // 2 :]
    for index, (a, b) in enumerate(zip(trial.encode(changed), trial.encode(grey), strict=True)):
        change = (a - b).abs().mean(dim=(0, 1))
        rows, columns = change.shape[0] // 2, change.shape[1] // 2
        if not rows or not columns or _difference(a, b) < _FAINT:
            continue
        corners = {
            "top left": change[:rows, :columns],
            "top right": change[:rows, -columns:],
            "bottom left": change[-rows:, :columns],
            "bottom right": change[-rows:, -columns:],
        }
        means = {corner: float(part.mean()) for corner, part in corners.items()}
        largest = max(means, key=means.__getitem__)
        if means[largest] > _MARGIN * means["top right"]:
            raise _Failure(
                f"a change at the top right of the image changes level {index} most at the {largest}: levels are "
                "(B, C, h, w), h from top to bottom, w from left to right"
            )


def _check_sizes(trial: _Trial) -> None:
    """Images of another shape, wide or odd, give levels of that shape, or a BackboneError."""
    height, width = trial.backbone.input_size
    multiple = getattr(trial.backbone, "multiple", (1, 1))
    wide = nearest_size((height, 2 * width), multiple)
    for size in (wide, (height + 1, width + 3)):
        try:
            levels = trial.encode(trial.noise(size))
        except BackboneError as error:
            if "breaks the protocol" in str(error):
                raise
            continue  # said clearly; the caller resizes to input_size anyway
        except Exception as error:
            raise _Failure(
                f"images of {size[0]} x {size[1]} px raise {type(error).__name__} ({error}); raise a "
                "diffup.errors.BackboneError that says which sizes it takes"
            ) from error
        if size == wide:
            _expect_wide(levels, trial.levels, size)


def _expect_wide(levels: Sequence[Tensor], own: Sequence[Tensor], size: tuple[int, int]) -> None:
    for index, (level, usual) in enumerate(zip(levels, own, strict=True)):
        if level.shape[3] <= usual.shape[3] and usual.shape[3] > 1:
            raise _Failure(
                f"level {index} has shape {tuple(level.shape)} for images of {size[0]} x {size[1]} px, no wider than "
                "for images half as wide"
            )


def _check_device(trial: _Trial) -> None:
    """`to` returns the backbone on the device, and another device gives the same features."""
    backbone, home = trial.backbone, trial.backbone.device
    moved = backbone.to(home)
    if moved is None or not hasattr(moved, "pyramid"):
        raise _Failure(f"to() must return the backbone, got {type(moved).__name__}")
    if moved.device != home:
        raise _Failure(f"to('{home}') says afterwards that it is on {moved.device}")
    if home.type != "cpu" or not torch.cuda.is_available():
        raise _NotChecked("to() returns the backbone; no second device here to move to")
    try:
        there = backbone.to("cuda")
        if there.device.type != "cuda":
            raise _Failure(f"to('cuda') says afterwards that it is on {there.device}")
        levels = check_pyramid(there.pyramid(trial.noise().to(there.device)), backbone.name, 2)
        _same([level.cpu() for level in levels], trial.levels, "differ between CPU and CUDA", _DEVICE_TOLERANCE)
    finally:
        backbone.to(home)


def _check_threads(trial: _Trial) -> None:
    """Several threads can encode at the same time."""
    images = [trial.noise(seed=seed) for seed in range(_THREADS)]
    expected = [trial.encode(batch) for batch in images]
    found: dict[int, list[Tensor] | Exception] = {}
    barrier = threading.Barrier(_THREADS)

    def encode(index: int) -> None:
        barrier.wait()
        try:
            found[index] = trial.encode(images[index])
        except Exception as error:  # raised below, in the waiting thread
            found[index] = error

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, levels in sorted(found.items()):
        if isinstance(levels, Exception):
            raise _Failure(f"{_THREADS} threads at a time: {type(levels).__name__}: {levels}") from levels
        _same(
            levels, expected[index], f"differ when {_THREADS} threads encode at a time; guard shared state with a lock"
        )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
    return float((a - b).abs().max()) / scale


def _same(got: Sequence[Tensor], expected: Sequence[Tensor], what: str, tolerance: float = _TOLERANCE) -> None:
    """Raise `_Failure` if levels differ by more than rounding."""
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        b = b.to(a.device)
        if a.shape != b.shape:
            raise _Failure(f"the features of level {index} {what} (shapes {tuple(a.shape)} and {tuple(b.shape)})")
        if _difference(a, b) > tolerance:
            raise _Failure(f"the features of level {index} {what} (by {_difference(a, b):.1g} of the largest value)")


_CHECKS: dict[str, Callable[[_Trial], None]] = {
    "members": _check_members,
    "levels": _check_levels,
    "gradients": _check_gradients,
    "evaluation mode": _check_evaluation,
    "determinism": _check_determinism,
    "batch": _check_batch,
    "caller's images": _check_images,
    "image range": _check_range,
    "orientation": _check_orientation,
    "other sizes": _check_sizes,
    "device": _check_device,
    "threads": _check_threads,
}
CHECKS: tuple[str, ...] = tuple(_CHECKS)
"""Names of the checks, in the order in which they run."""
