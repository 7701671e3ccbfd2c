"""A whole model in one file, run by onnxruntime: the results of `segment`, its files, and clear errors."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import random_decoder, save_tiny_cnn, tiny_config
from PIL import Image
from skimage import data

from diffup import Box, DiffUp, LabelMap, Prototypes, cli
from diffup.backbones import load_backbone
from diffup.errors import ConfigError, FormatError, MissingPackageError, PrototypesError
from diffup.priors.config import PriorConfig
from diffup.publish.export import TOLERANCE
from diffup.publish.photo_model import OUTPUTS
from diffup.publish.whole import Facts
from diffup.publish.whole_model import WholeModel, _read_facts

CNN = "timm:test_efficientnet"


def facts(**changes: Any) -> Facts:
    fields: dict[str, Any] = {
        "classes": [{"name": "cat", "threshold": 0.4}],
        "encoder": {"name": CNN, "fingerprint": "cnn-1", "input_size": [64, 64]},
        "encoder_licence": None,
        "decoder": "0" * 64,
        "version": "0.3.0",
        "steps": 1,
        "ensemble": 2,
        "threshold": 0.3,
        "min_presence": 0.2,
        "priors": asdict(PriorConfig(grid=8)),
    }
    return Facts(**(fields | changes))


@dataclass
class Session:
    """An onnxruntime session whose maps are a ramp from left to right, and whose inputs are kept."""

    presence: float = 0.5
    metadata: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = OUTPUTS
    shape: tuple[str | int, ...] = ("batch", 1, 64, 64)
    seen: dict[str, Any] = field(default_factory=dict)

    def run(self, names: list[str], inputs: dict[str, Any]) -> list[np.ndarray]:
        assert names == ["presence", "quality", "score", "maps"]
        self.seen = inputs
        ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 1, 4, 64, 64))
        return [np.array([[value]], dtype=np.float32) for value in (self.presence, 0.7, 0.6)] + [ramp]

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self.metadata)

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=self.shape) for name in self.outputs]


def photo() -> np.ndarray:
    return np.full((20, 64, 3), 99, np.uint8)


def test_thresholds_presence_and_options_of_masks() -> None:
    session = Session()
    model = WholeModel(session, facts())
    found = model.segment(photo(), refine=False)
    assert isinstance(found, LabelMap) and found.names == ("cat",)
    assert session.seen["photo"].shape == (1, 3, 20, 64) and session.seen["photo"].dtype == np.uint8
    ramp = np.linspace(0, 1, 64)
    assert (found["cat"].mask == (ramp > 0.4)).all()
    assert (found.labels == (ramp > 0.4)).all()
    assert (found.presence, found.quality) == ({"cat": 0.5}, {"cat": pytest.approx(0.7)})
    assert (model.segment(photo(), refine=False, threshold=0.8)["cat"].mask == (ramp > 0.8)).all()
    assert not model.segment(photo(), min_presence=0.6)["cat"].mask.any()
    assert model.segment(photo())["cat"].refine


def test_options_out_of_range() -> None:
    model = WholeModel(Session(), facts())
    for options, message in (
        ({"threshold": 0.0}, "threshold=0.0: it must lie between 0 and 1"),
        ({"threshold": 1.0}, "threshold=1.0: it must lie between 0 and 1"),
        ({"threshold": float("nan")}, "threshold=nan: it must lie between 0 and 1"),
        ({"threshold": "half"}, "threshold='half': it must be a number"),
        ({"min_presence": 1.5}, "min_presence=1.5: it must be 0 to 1"),
        ({"min_presence": True}, "min_presence=True: it must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.segment(photo(), **options)


def tiny_model() -> DiffUp:
    torch.manual_seed(0)
    return DiffUp(random_decoder(tiny_config()), load_backbone(CNN, pretrained=False, input_size=64), "cpu")


def test_prototypes_are_given_where_classes_are_inputs_and_nowhere_else() -> None:
    model = tiny_model()
    cat = model.prototypes(data.chelsea(), Box(100, 60, 300, 250), name="cat", threshold=0.6)
    encoder = {"name": CNN, "fingerprint": cat.fingerprint, "input_size": [64, 64]}
    session = Session()
    priors = asdict(model.config.priors)
    anything = WholeModel(session, facts(classes=[], encoder=encoder, priors=priors))
    assert "any class" in repr(anything)
    with pytest.raises(PrototypesError, match="none is given; give their prototypes"):
        anything.segment(photo())
    with pytest.raises(PrototypesError, match=r"classes inside \(cat\); leave them out"):
        WholeModel(session, facts()).segment(photo(), cat)
    with pytest.raises(PrototypesError, match=r"'cat' were made with .*the file has"):
        anything.segment(photo(), replace(cat, fingerprint="another"))
    with pytest.raises(ConfigError, match="negatives cannot be exported"):
        anything.segment(photo(), replace(cat, negative=cat))
    found = anything.segment(photo(), [cat, replace(cat, name="dog", threshold=None)], refine=False)
    assert found.names == ("cat", "dog") and [item.threshold for item in found.results] == [0.6, 0.3]
    assert session.seen["prototypes0"].shape[1] == 3  # the views of one support


def test_files_that_are_no_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    with pytest.raises(FormatError, match="there is no file"):
        WholeModel.load(tmp_path / "missing.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(FormatError, match=r"broken.onnx: onnxruntime cannot open it"):
        WholeModel.load(broken)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "foreign.onnx")
    with pytest.raises(FormatError, match=r"foreign.onnx is an ONNX file, but no whole model of diffup"):
        WholeModel.load(tmp_path / "foreign.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r'a whole model needs onnxruntime: pip install "onnx>='):
        WholeModel.load(broken)


def test_facts_of_another_version() -> None:
    own = asdict(facts())
    assert _read_facts(Session(metadata={"diffup": json.dumps(own)}), Path("a.onnx")) == Facts(
        **json.loads(json.dumps(own))
    )
    older = {name: value for name, value in own.items() if name != "priors"}
    for changed in (older, own | {"colour": 1}):
        with pytest.raises(FormatError, match=r"a\.onnx was written by another version of diffup"):
            _read_facts(Session(metadata={"diffup": json.dumps(changed)}), Path("a.onnx"))
    with pytest.raises(FormatError, match="outputs are missing"):
        _read_facts(Session(metadata={"diffup": json.dumps(own)}, outputs=OUTPUTS[:4]), Path("a.onnx"))
    with pytest.raises(FormatError, match=r"another version of diffup \(its outputs have no dimension of photos\)"):
        _read_facts(Session(metadata={"diffup": json.dumps(own)}, shape=(1, 64, 64)), Path("a.onnx"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prototypes", "a.safetensors"], "--prototypes: `diffup segment` takes it with --model FILE alone"),
        (["--model", "pets.onnx"], "--model: there is no file 'pets.onnx'"),
        (["--model", "pets.onnx", "--support", "photo.png"], "--support: it does not go with --model"),
        (["--model", "pets.onnx", "--click", "1,2"], "--click: it does not go with --model"),
        (["--model", "pets.onnx", "--steps", "2"], "--steps: it does not go with --model"),
        (["--model", "photo.png"], "photo.png: onnxruntime cannot open it"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("photo.png")
    assert cli.main(["segment", "photo.png", "-o", "out", *options]) == cli.FAILED
    assert said in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.slow
def test_the_command_gives_what_segment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    model = save_tiny_cnn(tmp_path, CNN)
    face = model.prototypes(data.astronaut(), Box(160, 20, 290, 200), name="face", threshold=0.4)
    cat = model.prototypes(data.chelsea(), Box(100, 60, 300, 250), name="cat")
    files = [str(item.save(f"{item.name}.safetensors")) for item in (face, cat)]
    classes = [Prototypes.load(file) for file in files]
    shared = ["--decoder", "decoder", "--backbone-weights", "encoder.pt", "--input-size", "64", "--quiet"]
    given = ["--whole", "--prototypes", *files, "--encoder-licence", "apache-2.0"]
    assert cli.main(["export", *given, "-o", "pets.onnx", *shared]) == 0
    assert cli.main(["export", *given, "--prototypes-as-inputs", "-o", "any.onnx", *shared]) == 0
    Image.fromarray(data.coffee()).save("photo.png")
    capsys.readouterr()

    assert cli.main(["segment", "photo.png", "--model", "pets.onnx", "-o", "out"]) == 0
    assert "face" in capsys.readouterr().out
    expected = model.segment("photo.png", classes)
    found = np.asarray(Image.open("out/mask.png"))
    assert Image.open("out/mask.png").mode == "P" and (found != expected.labels).mean() <= 1e-3
    assert sorted(path.name for path in Path("out").iterdir()) == ["mask.png", "overlay.png", "result.json"]
    report = json.loads(Path("out/result.json").read_text())
    for item, own in zip(report["classes"], expected.results, strict=True):
        assert [item[name] for name in ("presence", "quality", "score")] == pytest.approx(
            [own.presence, own.quality, own.score], abs=TOLERANCE
        )
    assert [item["threshold"] for item in report["classes"]] == [0.4, model.config.threshold]
    assert report["settings"]["backbone_licence"] == "apache-2.0" and report["settings"]["steps"] == model.config.steps

    options = ["--prototypes", files[1], "--min-presence", "0", "--no-refine"]
    assert cli.main(["segment", "photo.png", "--model", "any.onnx", *options, "-o", "one"]) == 0
    alone = model.segment("photo.png", classes[1], min_presence=0, refine=False)
    assert ((np.asarray(Image.open("one/mask.png")) > 0) != alone.mask).mean() <= 1e-3
    assert Path("one/overview.png").exists()
    report = json.loads(Path("one/result.json").read_text())
    assert report["name"] == "cat" and report["settings"]["refine"] is False
    assert report["uncertainty"] == pytest.approx(alone.summary()["uncertainty"], abs=TOLERANCE)

    capsys.readouterr()
    assert cli.main(["segment", "photo.png", "--model", "any.onnx", "-o", "none"]) == cli.FAILED
    assert "give their prototypes" in capsys.readouterr().err and not Path("none").exists()
