"""Exported decoders: the same results under onnxruntime, `torch.export` and numpy, whatever the system and batch."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeBackbone, random_condition, random_decoder, save_tiny_decoder, shape_image, tiny_config
from PIL import Image

from diffup import DiffUp, cli
from diffup.decoder.base import Decoder
from diffup.decoder.config import FORMAT, DecoderConfig
from diffup.decoder.sampling import Samples, draw_noise, sample
from diffup.decoder.threshold import shifted, threshold_logit
from diffup.decoder.weights import load_decoder
from diffup.errors import ConfigError, ExportError, MissingPackageError
from diffup.model import RELEASED
from diffup.priors.config import PriorConfig
from diffup.publish import export
from diffup.publish.export import TOLERANCE, example_inputs, export_decoder, network_inputs, save_condition

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "examples" / "onnx_numpy.py"
VARIANTS = {
    "diffusion": {},
    "epsilon": {"prediction": "epsilon", "loss": "mse", "signal_scale": 1.0, "shift": "prior", "prior_skip": False},
    "one_step": {"system": "one_step", "error_modulation": False, "iou_modulation": False},
    "gan": {"system": "gan"},
    "no affinities": {"priors": PriorConfig(grid=8, self_affinity=False)},
}


@pytest.fixture(scope="module", params=[*VARIANTS, "released"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    """A decoder, and the folder that it was exported to as ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if request.param == "released":
        decoder = load_decoder(RELEASED)
    else:
        decoder = random_decoder(tiny_config(**VARIANTS[request.param]))
    folder = tmp_path_factory.mktemp("exported")
    written = export_decoder(decoder, folder, ("onnx",))
    graphs = {"network.onnx", "quality.onnx"}
    assert {path.name for path in folder.iterdir()} == {*graphs, "config.json"}
    assert {path.name for path in written} == graphs
    assert max(written.values()) < TOLERANCE
    return decoder, folder


def by_torch(decoder: Decoder, folder: Path, steps: int, ensemble: int = 2) -> Samples:
    """Samples of a random condition, which is written to the folder."""
    condition = random_condition(decoder.config.priors, batch=1)
    noise = draw_noise(condition, ensemble, torch.Generator().manual_seed(3))
    save_condition(folder / "condition.npz", condition, noise, (70, 90))
    return sample(decoder, condition, noise, steps)


def test_numpy_samples_the_same_masks(exported: tuple[Decoder, Path], tmp_path: Path) -> None:
    decoder, folder = exported
    program = runpy.run_path(str(PROGRAM))
    steps = min(3, decoder.config.max_steps)
    expected = by_torch(decoder, tmp_path, steps)
    condition = dict(np.load(tmp_path / "condition.npz"))
    graphs = [program["load_graph"](folder / f"{name}.onnx", threads=1) for name in ("network", "quality")]
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == FORMAT
    probability, error, iou = program["sample"](*graphs, condition, config, steps)
    assert probability.shape == expected.probability[0].shape
    assert np.abs(probability - expected.probability[0].numpy()).max() < TOLERANCE
    assert np.abs(error.mean(axis=0) - expected.error[0].numpy()).max() < 2 * TOLERANCE
    assert iou == pytest.approx(float(expected.iou[0]), abs=TOLERANCE)
    factors = torch.tensor(config["presence_calibration"])
    present = float(torch.sigmoid(torch.from_numpy(condition["evidence"][0]) @ factors))
    assert program["presence"](condition, config) == pytest.approx(present, abs=TOLERANCE)


def test_the_condition_has_every_input_of_the_network(exported: tuple[Decoder, Path], tmp_path: Path) -> None:
    import onnxruntime

    decoder, folder = exported
    by_torch(decoder, tmp_path, 1)
    session = onnxruntime.InferenceSession((folder / "network.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    names = tuple(entry.name for entry in session.get_inputs())
    assert names == network_inputs(decoder.config)
    assert ("affinity0" in names) == decoder.config.priors.self_affinity
    with np.load(tmp_path / "condition.npz") as arrays:
        assert set(arrays) == {*names[2:], "evidence", "noise", "size"}
        for entry in session.get_inputs()[2:]:
            assert arrays[entry.name].shape == (1, *entry.shape[1:])


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_program_divides_masks_as_the_library_does(temperature: float) -> None:
    pytest.importorskip("onnxruntime")
    program = runpy.run_path(str(PROGRAM))
    config = {"threshold": 0.4, "temperature": temperature}
    generator = torch.Generator().manual_seed(0)
    maps = torch.sigmoid(
        2 * torch.nn.functional.avg_pool2d(torch.randn(4, 96, 96, generator=generator), 33, 1) * 15 - 1
    )
    shift = -threshold_logit(maps, temperature) if temperature else torch.zeros(4)
    for each, expected in zip(maps, shifted(maps, shift), strict=True):
        assert np.abs(program["shown"](each.numpy(), config) - expected.numpy()).max() < 1e-5
        own = program["threshold_logit"](each.numpy(), config)
        assert ((each.logit().numpy() > own) == (expected.numpy() > 0.5)).mean() > 0.999


def test_the_program_enlarges_as_the_library_does() -> None:
    pytest.importorskip("onnxruntime")
    program = runpy.run_path(str(PROGRAM))
    small = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    for size in ((70, 90), (40, 300), (64, 64), (1, 1)):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(small)[None, None], size, mode="bilinear", antialias=True
        )
        assert np.abs(program["enlarge"](small, size) - expected[0, 0].numpy()).max() < 1e-5


def test_torch_export_gives_the_same(tmp_path: Path) -> None:
    decoder = random_decoder(tiny_config())
    written = export_decoder(decoder, tmp_path, ("pt2",))
    assert max(written.values()) < 1e-5
    program = torch.export.load(tmp_path / "network.pt2").module()
    for batch in (1, 5):
        inputs = example_inputs(decoder, batch, seed=9)
        output, error, iou = program(*inputs)
        assert output.shape == error.shape == (batch, 1, 64, 64) and iou.shape == (batch,)
        with torch.no_grad():
            expected = export.Network(decoder)(*inputs)
        assert torch.allclose(output, expected[0], atol=1e-5)
        swapped = (*inputs[:-1], inputs[-1].flip(2))
        assert not torch.allclose(program(*swapped)[0], output, atol=1e-5), "the last input, an affinity, is read"


def test_export_command_and_a_program_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, families: Callable[..., None]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    families(fake=lambda variant: FakeBackbone(input_size=(64, 64)))
    monkeypatch.chdir(tmp_path)
    save_tiny_decoder(Path("decoder"), backbone="fake")
    for index, name in enumerate(("query", "a")):
        image, labels = shape_image((1,), seed=index)
        Image.fromarray(image).save(f"{name}.png")
        Image.fromarray(labels * np.uint8(255)).save(f"{name}_mask.png")
    options = ["--condition", "query.png", "--support", "a.png", "--mask", "a_mask.png", "--seed", "5"]
    assert (
        cli.main(["export", "-o", "out", "--decoder", "decoder", "--format", "onnx", "--device", "cpu", *options]) == 0
    )
    expected = DiffUp.from_pretrained("decoder", device="cpu").segment(
        "query.png", "a.png", "a_mask.png", seed=5, refine=False
    )
    code = (
        "import runpy, sys; "
        f"runpy.run_path({str(PROGRAM)!r})['main'](['out', '-o', 'mask.png']); "
        "print([name for name in ('torch', 'diffup') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    mask = np.asarray(Image.open("mask.png")) > 0
    near_threshold = np.abs(expected.probability - expected.threshold) < TOLERANCE
    assert mask.shape == expected.mask.shape
    assert ((mask == expected.mask) | near_threshold).all()
    told = re.search(r"presence of the class (\S+), expected IoU (\S+)", done.stdout)
    assert told is not None
    assert [float(number) for number in told.groups()] == pytest.approx(
        [expected.presence, expected.quality], abs=0.005 + TOLERANCE
    )


@pytest.mark.parametrize("options", [["--condition", "query.png"], ["--support", "a.png"]])
def test_a_condition_needs_query_and_support(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "-o", "out", *options]) == cli.FAILED
    assert "go together" in capsys.readouterr().err


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder(tiny_config())
    with pytest.raises(ConfigError, match="choose of onnx, pt2"):
        export_decoder(decoder, tmp_path, ("tflite",))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no network to export"):
        export_decoder(random_decoder(DecoderConfig(system="prior")), tmp_path)
    tied = tiny_config(low_level_channels=2, low_level_width=8, low_level_encoder="fake")
    with pytest.raises(ConfigError, match="low_level_channels=2"):
        export_decoder(random_decoder(tied), tmp_path)
    condition = random_condition(decoder.config.priors, batch=1)
    with pytest.raises(ConfigError, match="npz"):
        save_condition(tmp_path / "condition.txt", condition, torch.zeros(1, 2, 64, 64), (8, 8))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingPackageError, match=r"pip install diffup\[onnx\]"):
            export_decoder(decoder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_is_refused_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = random_decoder(tiny_config())
    run = export._run
    monkeypatch.setattr(export, "_run", lambda *given: [value + 0.01 for value in run(*given)])
    with pytest.raises(ExportError, match="differs from the original by 0"):
        export_decoder(decoder, tmp_path, ("pt2",))
    assert not list(tmp_path.iterdir())
