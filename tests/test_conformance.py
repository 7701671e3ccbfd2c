"""`check_backbone`: sound encoders pass, and each way of being wrong is told by the check that is meant for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from fakes import Changed, FakeBackbone, FakeFrozen
from safetensors.torch import save_file
from torch import Tensor, nn

from diffup import cli
from diffup.backbones import Backbone, FrozenBackbone, register_backbone
from diffup.backbones.conformance import CHECKS, Report, check_backbone
from diffup.backbones.testing import BackboneConformance
from diffup.errors import BackboneError, ConformanceError


class TestFake(BackboneConformance):
    backbone = FakeBackbone()

    @pytest.mark.parametrize("check", [check for check in CHECKS if check != "evaluation mode"])  # of modules alone
    def test_conformance(self, report: Report, check: str) -> None:
        super().test_conformance(report, check)


class TestFrozen(BackboneConformance):
    backbone = FakeFrozen()


class TestByName(BackboneConformance):
    backbone = "timm:test_vit"
    options: ClassVar[dict[str, Any]] = {"pretrained": False, "input_size": (64, 96)}


class Broken(FakeBackbone):
    """A sound backbone until one method is replaced."""

    def __init__(self, **members: Any) -> None:
        super().__init__()
        for name, value in members.items():
            setattr(self, name, value)


class Trained(nn.Module):
    """Convolutions that nobody froze."""

    name, fingerprint, input_size, device = "trained", "trained-1", (64, 64), torch.device("cpu")

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stages = nn.ModuleList(nn.Conv2d(i, 8, 2, 2) for i in (3, 8, 8, 8))
        self.dropout = nn.Dropout(dropout)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.stages:
            images = stage(images)
            levels.append(self.dropout(images))
        return levels


class Statistics(nn.Module):
    """BatchNorm that goes on learning in evaluation mode."""

    name, fingerprint, input_size, device = "statistics", "statistics-1", (64, 64), torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.eval().requires_grad_(False)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        self.norm.num_batches_tracked += 1
        return [F.avg_pool2d(self.norm(images), stride) for stride in (4, 8, 16, 32)]


class Shared(FakeBackbone):
    """Keeps the images of the call in the object, where another thread finds them."""

    together = threading.Barrier(4)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        self.images = images
        if threading.current_thread() is not threading.main_thread():
            self.together.wait(timeout=300)
        return super().pyramid(self.images)


class Units(FakeFrozen):
    """Normalised for images in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.mean += 123.0
        self.std += 58.0


def in_place(images: Tensor) -> list[Tensor]:
    return FakeBackbone().pyramid(images.sub_(0.5))


def of_bytes(images: Tensor) -> list[Tensor]:
    return FakeBackbone().pyramid(images.div(255).round())


def one_size(images: Tensor) -> list[Tensor]:
    if images.shape[-1] != 96:
        raise RuntimeError("size mismatch, m1: [9 x 9], m2: [8 x 8]")
    return FakeBackbone().pyramid(images)


def refuses_sizes(images: Tensor) -> list[Tensor]:
    if images.shape[-1] != 96:
        raise BackboneError("images must be 96 x 96")
    return FakeBackbone().pyramid(images)


def square(images: Tensor) -> list[Tensor]:
    return FakeBackbone().pyramid(F.interpolate(images, (96, 96)))


def changed(change: Callable[[int, Tensor], Tensor]) -> Backbone:
    return Changed(FakeBackbone(), change)


def failures(report: Report) -> dict[str, str]:
    return {finding.check: finding.message for finding in report.problems}


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (Broken(name=""), {"members": "name must be a text that is not empty, got ''"}),
        (Broken(input_size=96), {"members": "input_size must be a tuple (height, width)"}),
        (Broken(device="cpu"), {"members": "device must be a torch.device, got 'cpu'"}),
        (Broken(pyramid=lambda images: FakeBackbone().pyramid(images)[:3]), {"levels": "exactly 4 levels, got 3"}),
        (Broken(pyramid=lambda images: 1 / 0), {"levels": "raised ZeroDivisionError"}),
        (changed(lambda i, level: level.half()), {"levels": "level 0 must be float32"}),
        (changed(lambda i, level: level[..., :1, :1]), {"levels": "no map to find anything on"}),
        (changed(lambda i, level: level + torch.randn(1)), {"determinism": "is there dropout or noise?"}),
        (changed(lambda i, level: level - level.mean(0)), {"batch": "change with the rest of the batch"}),
        (changed(lambda i, level: level.mT if i == 2 else level), {"orientation": "level 2 most at the bottom left"}),
        (Broken(pyramid=in_place), {"caller's images": "normalise a copy"}),
        (Broken(pyramid=of_bytes), {"image range": "images come in [0, 1], not in 0..255"}),
        (Broken(pyramid=one_size), {"other sizes": "px raise RuntimeError (size mismatch"}),
        (Broken(pyramid=refuses_sizes), {}),
        (Broken(pyramid=square), {"other sizes": "no wider than for images half as wide"}),
        (Broken(to=lambda device: None), {"device": "to() must return the backbone, got NoneType"}),
        (Shared(), {"threads": "guard shared state with a lock"}),
        (Units(), {"image range": "values for 0..255 are divided by 255"}),
        (Statistics(), {"evaluation mode": "encoding changes norm.num_batches_tracked"}),
        (Trained().eval(), {"gradients": "decorate pyramid() with @torch.no_grad()"}),
        (Trained().eval().requires_grad_(False), {}),
        (
            Trained(dropout=0.5).requires_grad_(False),
            {
                "evaluation mode": "in training mode: the backbone itself, stages",
                "determinism": "differ from one call to the next",
            },
        ),
    ],
)
def test_what_is_wrong_is_told(backbone: Any, expected: dict[str, str]) -> None:
    found = failures(check_backbone(backbone))
    for check, message in expected.items():
        assert message in found.pop(check)
    knock_on = {check for cause in expected for check in KNOCK_ON.get(cause, ())}
    assert found.keys() <= knock_on, found


KNOCK_ON = {
    "determinism": ("batch", "orientation", "device", "threads"),
    "batch": ("orientation",),
    "orientation": ("other sizes",),
    "caller's images": ("threads",),
    "image range": ("orientation",),
}
"""Checks that may fail because another one does."""


def test_a_fingerprint_that_changes_is_no_fingerprint() -> None:
    class Restless(FakeBackbone):
        @property
        def fingerprint(self) -> str:
            return str(time.perf_counter_ns())

        @fingerprint.setter
        def fingerprint(self, value: str) -> None: ...

    assert "differs from one look to the next" in failures(check_backbone(Restless()))["members"]


def test_what_rests_on_a_failed_check_is_not_made() -> None:
    backbone = FakeBackbone()
    del backbone.fingerprint
    report = check_backbone(backbone)
    assert failures(report) == {"members": "it lacks fingerprint; see diffup.backbones.Backbone"}
    assert [finding.check for finding in report.findings] == list(CHECKS)
    assert all(finding.message == "'members' must hold first" for finding in report.findings[1:])


def test_report_in_words() -> None:
    sound = check_backbone(FakeBackbone())
    assert sound.ok
    assert str(sound).startswith("backbone 'fake:8-12-16-24-4-8-16-32' keeps the protocol\n  ok ")
    sound.raise_for_problems()
    report = check_backbone(changed(lambda i, level: level.half()))
    assert "breaks the protocol: 1 of 12 checks failed" in str(report)
    with pytest.raises(ConformanceError) as caught:
        report.raise_for_problems()
    assert str(caught.value) == str(report)
    assert isinstance(caught.value, BackboneError)


def test_the_callers_random_state_and_the_backbone_are_left_alone() -> None:
    backbone = FakeFrozen()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert check_backbone(backbone).ok
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert all(module.training is False for module in backbone.modules())


def test_by_name_with_options(families: Callable[..., None]) -> None:
    families()
    register_backbone("fake", lambda variant, input_size=96: FakeBackbone(input_size=(input_size, input_size)))
    assert check_backbone("fake", input_size=64).ok
    with pytest.raises(BackboneError, match=r"options apply to backbone names only, got \['input_size'\]"):
        check_backbone(FakeBackbone(), input_size=64)
    with pytest.raises(BackboneError, match="unknown backbone family 'fak'"):
        check_backbone("fak")


def test_pytest_class_fails_and_skips_by_check() -> None:
    report = check_backbone(changed(lambda i, level: level.half()))
    tests = BackboneConformance()
    tests.test_conformance(report, "members")
    with pytest.raises(pytest.fail.Exception, match="level 0 must be float32"):
        tests.test_conformance(report, "levels")
    with pytest.raises(pytest.skip.Exception, match="'levels' must hold first"):
        tests.test_conformance(report, "threads")


def test_command(families: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    timm = pytest.importorskip("timm")
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    assert cli.main(["backbones", "--check", f"timm:test_resnet={file}", "--input-size", "64"]) == 0
    assert "keeps the protocol" in capsys.readouterr().out
    assert cli.main(["backbones", "--input-size", "64"]) == cli.FAILED
    assert "it goes with --check" in capsys.readouterr().err
    families(bad=lambda variant: changed(lambda i, level: level.half()))
    assert cli.main(["backbones", "--check", "bad"]) == cli.FAILED
    assert "level 0 must be float32" in capsys.readouterr().err
    assert cli.main(["backbones", "--check", "bad", "--json"]) == cli.FAILED
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["check"] for f in findings if f["outcome"] == "failed"] == ["levels"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moves_between_devices() -> None:
    backbone: FrozenBackbone = FakeFrozen()
    finding = next(f for f in check_backbone(backbone).findings if f.check == "device")
    assert finding.outcome == "ok"
    assert backbone.device == torch.device("cpu")
