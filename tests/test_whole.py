"""The whole model as one graph: what it computes is what `segment` computes, in torch and under onnxruntime."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import FakeBackbone, random_decoder, save_tiny_cnn, tiny_config
from PIL import Image
from skimage import data

from diffup import Box, DiffUp, Mask, Prototypes, cli
from diffup.backbones import load_backbone
from diffup.backbones.base import hash_weights
from diffup.decoder.options import SamplingOptions
from diffup.errors import ConfigError, FormatError, ImageError
from diffup.priors.config import PriorConfig
from diffup.publish.export import TOLERANCE
from diffup.publish.photo_model import OUTPUTS, AnyClass, FixedClasses, resize_photo, support_inputs
from diffup.publish.whole import Differences, export_whole, open_session
from diffup.publish.whole_model import WholeModel
from diffup.utils.resize import _cell_weights, triangle_weights

PROGRAM = Path(__file__).resolve().parents[1] / "examples" / "onnx_whole.py"
CNN = "timm:test_efficientnet"
VIT = "timm:test_vit"


def tiny_model(name: str = CNN, size: int = 64) -> DiffUp:
    torch.manual_seed(0)
    decoder = random_decoder(tiny_config(temperature=1.5))
    return DiffUp(decoder, load_backbone(name, pretrained=False, input_size=size), "cpu")


def two_classes(model: DiffUp) -> list[Prototypes]:
    """A class of one support, which has three views, and one of two supports."""
    mask = np.zeros((512, 512), dtype=bool)
    mask[20:200, 160:290] = True
    face = model.prototypes(data.astronaut(), Mask(mask), name="face", threshold=0.4)
    supports = [data.astronaut(), data.chelsea()]
    return [face, model.prototypes(supports, [Mask(mask), Box(100, 60, 300, 250)], name="cat")]


def photos() -> list[np.ndarray]:
    """A cat (300 x 451), a cup (400 x 600), and a strip smaller than the encoder's input."""
    return [data.chelsea(), data.coffee(), np.ascontiguousarray(data.astronaut()[:50, 100:400])]


def crops() -> list[np.ndarray]:
    """Five photos of one size."""
    cat, cup, _ = photos()
    return [cat[:250, :200], cat[:250, 90:290], cat[:250, 180:380], cup[:250, :200], cup[:250, 300:500]]


def check_batches(path: Path, support: dict[str, np.ndarray] | None = None) -> None:
    """A file gives batches of 1, 2 and 5 photos the results that it gives each of them alone."""
    session = open_session(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert {item.shape[0] for item in session.get_outputs()} == {"batch"}
    assert {side for item in session.get_inputs()[1:] for side in item.shape if isinstance(side, str)} <= {"views"}
    graph = pytest.importorskip("onnx").load(path).graph
    varying = {dim.dim_param for value in graph.value_info for dim in value.type.tensor_type.shape.dim}
    assert set(re.findall(r"[a-z]\w*", " ".join(varying))) <= {"batch", "height", "width", "views"}
    batch = np.stack([photo.transpose(2, 0, 1) for photo in crops()])
    alone = [session.run(None, {"photo": photo[None], **(support or {})}) for photo in batch]
    assert np.abs(alone[0][0] - alone[3][0]).max() > 10 * TOLERANCE
    for count in (1, 2, 5):
        together = session.run(None, {"photo": batch[:count], **(support or {})})
        for part, *parts in zip(together, *alone[:count], strict=True):
            assert part.shape[0] == count and np.abs(part - np.concatenate(parts)).max() < TOLERANCE


def as_input(photo: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous()


def graph_module(model: DiffUp, classes: list[Prototypes]) -> FixedClasses:
    sampling = SamplingOptions().resolve(model.config)
    supports = [item.prepared(model.config.priors, (), torch.device("cpu")) for item in classes]
    thresholds = [sampling.threshold(item.threshold) for item in classes]
    return FixedClasses(model.backbone, model.decoder, sampling, thresholds, supports).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "size"), [(CNN, 64), (VIT, 160)])
def test_the_module_computes_what_segment_does(name: str, size: int) -> None:
    model = tiny_model(name, size)
    classes = two_classes(model)
    module = graph_module(model, classes)
    sampling = SamplingOptions().resolve(model.config)
    single = AnyClass(module.backbone, module.decoder, sampling, [0.4])
    for photo in photos():
        expected = model.segment(photo, classes).results
        with torch.no_grad():
            probability, presence, quality, score, maps = (part[0] for part in module(as_input(photo))[: len(OUTPUTS)])
            alone = single(
                as_input(photo), *support_inputs(classes[0].prepared(model.config.priors, (), model.device)).values()
            )
        for index, result in enumerate(expected):
            assert np.abs(probability[index].numpy() - result.maps[0]).max() < 1e-4
            assert np.abs(maps[index].numpy() - result.maps).max() < 1e-4
            assert [float(v[index]) for v in (presence, quality, score)] == pytest.approx(
                [result.presence, result.quality, result.score], abs=1e-4
            )
        assert torch.allclose(alone[0][0, 0], probability[0], atol=1e-5)


def test_a_batch_computes_what_its_photos_do_alone() -> None:
    model = tiny_model()
    module = graph_module(model, two_classes(model))
    batch = torch.cat([as_input(photo) for photo in crops()])
    with torch.no_grad():
        together, alone = module(batch), [module(photo[None]) for photo in batch]
    for part, *parts in zip(together[: len(OUTPUTS)], *alone, strict=False):
        assert torch.allclose(part, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(481, 128), (37, 64), (64, 64), (2000, 512), (1, 8), (640, 3)])
def test_resizing_by_matrices_is_interpolation(source: int, target: int) -> None:
    image = torch.rand(1, 3, source, 20, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image, (target, 30), mode="bilinear", antialias=True)
    assert torch.allclose(resize_photo(image, (target, 30)), expected.clamp(0, 1), atol=1e-5)
    assert torch.allclose(triangle_weights(source, target).sum(dim=1), torch.ones(target))


@pytest.mark.parametrize(("source", "target"), [(37, 32), (7, 7), (36, 16), (33, 32)])
def test_pooling_by_matrices_is_adaptive_pooling(source: int, target: int) -> None:
    maps = torch.rand(1, 2, source, source, generator=torch.Generator().manual_seed(0))
    weights = _cell_weights(source, target)
    assert torch.allclose(weights @ maps @ weights.mT, F.adaptive_avg_pool2d(maps, target), atol=1e-6)


def test_what_cannot_be_exported_whole(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = tiny_model()
    classes = two_classes(model)[:1]
    path = tmp_path / "pets.onnx"
    with pytest.raises(FormatError, match=r"\.onnx"):
        export_whole(model.backbone, model.decoder, classes, tmp_path / "pets.bin")
    with pytest.raises(ConfigError, match="not a FakeBackbone"):
        export_whole(FakeBackbone(), model.decoder, classes, path)
    with pytest.raises(ConfigError, match="images alone"):
        export_whole(model.backbone, model.decoder, [], path)
    named = replace(classes[0], features=None, text_prompt=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prototypes face"):
        export_whole(model.backbone, model.decoder, [named], path)
    opposed = replace(classes[0], negative=classes[0])
    with pytest.raises(ConfigError, match="prototypes face: their negatives cannot be exported"):
        export_whole(model.backbone, model.decoder, [opposed], path)
    ranked = random_decoder(tiny_config(priors=PriorConfig(grid=8, normalisation="rank")))
    with pytest.raises(ConfigError, match="normalisation='rank'"):
        export_whole(model.backbone, ranked, classes, path)
    tied = random_decoder(tiny_config(low_level_channels=2, low_level_width=8, low_level_encoder="fake"))
    with pytest.raises(ConfigError, match="low_level_channels=2"):
        export_whole(model.backbone, tied, classes, path)
    with pytest.raises(ConfigError, match="calibration: 7 photos, but int8 needs 8"):
        export_whole(model.backbone, model.decoder, classes, path, calibration=[data.coffee()] * 7)
    with pytest.raises(ImageError, match=r"calibration: there is no file 'lost\.png'"):
        export_whole(model.backbone, model.decoder, classes, path, calibration=["lost.png"] * 8)
    for folder in ("a folder of photos", tmp_path):
        with pytest.raises(ConfigError, match=r"calibration: expected a list of photos, got '"):
            export_whole(model.backbone, model.decoder, classes, path, calibration=folder)  # type: ignore[arg-type]
    for name in ("cats/dogs", "..\\dog"):
        with pytest.raises(ConfigError, match=r"the class is written to pets\.NAME\.npz.*another name"):
            export_whole(model.backbone, model.decoder, [replace(classes[0], name=name)], path, as_inputs=True)
    assert not list(tmp_path.iterdir())


def test_options_of_the_whole_model_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--whole"], "--prototypes FILE"),
        (["--prototypes", "a.safetensors"], "add --whole"),
        (["--int8"], "--int8: it belongs to the whole model"),
        (["--steps", "2"], "--steps: it belongs to the whole model"),
        (["--whole", "--prototypes", "a.safetensors", "--format", "onnx"], "one ONNX file"),
        (["--whole", "--prototypes", "a.safetensors"], ".onnx"),
    ):
        assert cli.main(["export", "-o", str(tmp_path / "out"), *options]) == cli.FAILED
        assert said in capsys.readouterr().err


def test_options_of_int8_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, none = tmp_path / "few", tmp_path / "none"
    few.mkdir()
    none.mkdir()
    for index in range(7):
        Image.fromarray(data.coffee()[:20, :20]).save(few / f"{index}.png")
    for options, said in (
        (["--int8"], "--int8 and --calibrate FOLDER go together"),
        (["--calibrate", str(few)], "--int8 and --calibrate FOLDER go together"),
        (["--int8", "--calibrate", str(few)], "holds 7 photos, fewer than 8; add some"),
        (["--int8", "--calibrate", str(none)], "holds no image"),
        (["--int8", "--calibrate", str(tmp_path / "lost")], "--calibrate: there is no folder"),
        (["--int8", "--calibrate", str(few / "0.png")], "is a file; give a folder of photos"),
    ):
        output = str(tmp_path / "out.onnx")
        assert cli.main(["export", "--whole", "--prototypes", "a.safetensors", "-o", output, *options]) == cli.FAILED
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "none"]


@pytest.mark.slow
def test_a_file_with_the_encoder_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    model = save_tiny_cnn(tmp_path, CNN)
    cat = model.prototypes(data.chelsea(), Box(100, 60, 300, 250), name="cat")
    cat.save("cat.safetensors")
    Path("photos").mkdir()
    for index in range(30):
        crop = photos()[index % 2][index * 3 :, index * 5 : index * 5 + 200]
        Image.fromarray(crop).save(f"photos/{index}.png")
    shared = ["--decoder", "decoder", "--backbone-weights", "encoder.pt", "--input-size", "64"]
    options = ["--whole", "--prototypes", "cat.safetensors", "--int8", "--calibrate", "photos"]
    assert cli.main(["export", *options, "-o", "cat.onnx", *shared]) == 0
    printed = capsys.readouterr()
    assert "diffup: calibrating the encoder in int8 on 24 photos ..." in printed.err.splitlines()
    change = re.search(r"int8 changes probabilities by (\S+) on average, and (\S+)% of the masks' pixels", printed.out)
    assert change is not None and 0 < float(change[1]) < 0.05 and float(change[2]) < 20
    whole = WholeModel.load("cat.onnx")
    assert (whole.facts.encoder_precision, whole.facts.calibration_photos) == ("int8", 24)
    check_batches(Path("cat.onnx"))
    expected = model.segment(data.coffee(), cat, refine=False)
    (found,) = whole.segment(data.coffee(), refine=False).results
    assert 0 < np.abs(found.maps[0] - expected.maps[0]).mean() < 0.05
    Image.fromarray(data.coffee()).save("photo.png")
    subprocess.run([sys.executable, str(PROGRAM), "cat.onnx", "photo.png", "-o", "masks"], check=True)
    assert Image.open("masks/photo_cat.png").size == (600, 400)
    assert cli.main(["segment", "photo.png", "--model", "cat.onnx", "-o", "out"]) == 0
    assert json.loads(Path("out/result.json").read_text())["settings"]["encoder_precision"] == "int8"


@pytest.mark.slow
def test_photos_are_segmented_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    model = save_tiny_cnn(tmp_path, CNN)
    classes = two_classes(model)
    files = [str(item.save(f"{item.name}.safetensors")) for item in classes]
    shared = ["--decoder", "decoder", "--backbone-weights", "encoder.pt", "--input-size", "64", "--seed", "3"]
    assert cli.main(["export", "--whole", "--prototypes", *files, "-o", "pets.onnx", *shared]) == 0
    assert (
        cli.main(["export", "--whole", "--prototypes", *files, "--prototypes-as-inputs", "-o", "any.v2.onnx", *shared])
        == 0
    )
    for index, photo in enumerate(photos()):
        Image.fromarray(photo).save(f"{index}.png")
    code = (
        "import runpy, sys; main = runpy.run_path(sys.argv[1])['main']; "
        "main(['pets.onnx', '0.png', '1.png', '2.png', '-o', 'fixed']); "
        "classes = ['any.v2.face.npz', 'any.v2.cat.npz']; "
        "main(['any.v2.onnx', '0.png', '1.png', '2.png', '--classes', *classes, '-o', 'any']); "
        "print([name for name in ('torch', 'diffup') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(PROGRAM)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    loaded = [Prototypes.load(file) for file in files]
    for index, photo in enumerate(photos()):
        results = model.segment(photo, loaded, seed=3, refine=False).results
        for item, result in zip(loaded, results, strict=True):
            near = np.abs(result.probability - result.threshold) < TOLERANCE
            found = np.asarray(Image.open(f"fixed/{index}_{item.name}.png")) > 0
            assert ((found == result.mask) | near).all() and (found != result.mask).mean() <= 1e-3
        # A class that is an input has the decoder's threshold.
        found, result = np.asarray(Image.open(f"any/{index}_cat.png")) > 0, results[1]
        assert (found != result.mask).mean() <= 1e-3
    check_batches(Path("pets.onnx"))
    check_batches(Path("any.v2.onnx"), dict(np.load("any.v2.cat.npz")))


@pytest.mark.slow
def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model(VIT, 160)
    classes = two_classes(model)
    options = SamplingOptions(ensemble=1, seed=2)
    path = tmp_path / "pets.onnx"
    found = export_whole(model.backbone, model.decoder, classes, path, options=options, encoder_licence="apache-2.0")
    assert found == Differences(found.float32) and found.float32 < TOLERANCE
    assert [file.name for file in tmp_path.iterdir()] == ["pets.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["diffup"])
    assert facts["classes"] == [
        {"name": "face", "threshold": 0.4},
        {"name": "cat", "threshold": model.config.threshold},
    ]
    assert facts["encoder"] == {"name": VIT, "fingerprint": model.backbone.fingerprint, "input_size": [160, 160]}
    assert facts["encoder_licence"] == "apache-2.0" and facts["decoder"] == hash_weights(model.decoder)
    assert (facts["steps"], facts["ensemble"]) == (model.config.steps, 1)
    for photo in photos():
        found = session.run(None, {"photo": as_input(photo).numpy()})
        expected = model.segment(photo, classes, options=options).results
        for index, result in enumerate(expected):
            assert np.abs(found[0][0, index] - result.maps[0]).max() < TOLERANCE
            assert found[1][0, index] == pytest.approx(result.presence, abs=TOLERANCE)
            assert found[2][0, index] == pytest.approx(result.quality, abs=TOLERANCE)
    check_batches(path)
