"""Training: steps, runs, kills and resumes, errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import make_folder, random_decoder
from PIL import Image
from runs import CONFIG, DECODER_CONFIG, STILL, Interrupt, assert_identical, encoder, state, trainer_of
from safetensors.torch import save_file

from diffup.backbones import Backbone
from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import load_decoder, save_decoder
from diffup.errors import ConfigError, DataError, MissingPackageError, TrainingError
from diffup.training import log as log_module
from diffup.training import trainer as trainer_module
from diffup.training.config import TrainConfig, ViewsConfig
from diffup.training.log import CURVES, LOG
from diffup.training.prepare import Banks, Sources, build_banks
from diffup.training.sampler import WHOLE, Episodes, EpisodeSampler
from diffup.training.trainer import CHECKPOINT, DECODER, train
from diffup.training.trainer import CONFIG as CONFIG_FILE

# --- steps -----------------------------------------------------------------------------------------------------------


class OneEpisode:
    """A sampler that always draws the same batch."""

    def __init__(self, sampler: EpisodeSampler) -> None:
        self.sampler = sampler

    def draw(self, seed: int, step: int, *rest: object) -> Episodes:
        return self.sampler.draw(0, 0, *rest)


@pytest.mark.parametrize(
    "decoder",
    [
        DECODER_CONFIG,
        dataclasses.replace(DECODER_CONFIG, prediction="epsilon", loss="mse", signal_scale=1.0),
    ],
    ids=["x0 bce_dice", "epsilon mse"],
)
def test_one_episode_is_learned_by_heart(banks: Banks, decoder: DecoderConfig) -> None:
    steps = 25
    config = dataclasses.replace(
        CONFIG, decoder=decoder, perturb=STILL, steps=steps, batch_size=4, learning_rate=1e-2, warmup=5
    )
    trainer = trainer_of(banks, config)
    trainer.sampler = OneEpisode(trainer.sampler)
    losses = [trainer.advance() for _ in range(steps)]
    total = [float(loss.total.detach()) for loss in losses]
    assert np.mean(total[-6:]) < 0.5 * np.mean(total[:4])
    error = [float(loss.error.detach()) for loss in losses]
    assert np.mean(error[-6:]) < np.mean(error[:4])


def test_the_learning_rate_warms_up_and_decays(banks: Banks) -> None:
    trainer = trainer_of(banks, dataclasses.replace(CONFIG, steps=6, warmup=2, learning_rate=0.1))
    rates = []
    for _ in range(6):
        trainer.advance()
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    cosine = [0.05 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    assert rates == pytest.approx([0.05, 0.1, *cosine])


def test_the_average_follows_the_weights(banks: Banks) -> None:
    at_once = trainer_of(banks, dataclasses.replace(CONFIG, ema=0.0))
    slowly = trainer_of(banks, dataclasses.replace(CONFIG, ema=0.999))
    start = {name: value.clone() for name, value in slowly.averaged.items()}
    for _ in range(2):
        at_once.advance()
        slowly.advance()
    name = "head.1.weight"
    weights = at_once.model.state_dict()
    assert torch.equal(weights[name], slowly.model.state_dict()[name])
    assert torch.equal(at_once.averaged[name], weights[name])
    moved, whole = (slowly.averaged[name] - start[name]).norm(), (weights[name] - start[name]).norm()
    assert 0 < moved < whole


def test_every_backbone_has_its_turn(shapes: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, backbones=("a", "b"), views=ViewsConfig(crops=0, pasted=0))
    sources = Sources.find(LabelledFolder.open(shapes), config)
    banks = build_banks(sources, config, [encoder(8), encoder(12)], tmp_path, progress=False)
    trainer = trainer_of(banks, config)
    drawn = []
    draw = trainer.sampler.draw

    def spy(seed: int, step: int, batch_size: int, features: dict, *rest: object) -> Episodes:
        drawn.append(features[WHOLE].arrays["level0"].shape[1])
        return draw(seed, step, batch_size, features, *rest)

    trainer.sampler.draw = spy
    for _ in range(4):
        trainer.advance()
    assert drawn == [8, 12, 8, 12]


def test_a_loss_that_is_no_number_stops_the_run(banks: Banks) -> None:
    trainer = trainer_of(banks)
    with torch.no_grad():
        trainer.model.head[1].bias.fill_(torch.nan)
    before = {name: value.clone() for name, value in trainer.averaged.items()}
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        trainer.advance()
    assert trainer.step == 0 and all(torch.equal(before[name], trainer.averaged[name]) for name in before)


def test_bfloat16_trains(banks: Banks) -> None:
    trainer = trainer_of(banks, dataclasses.replace(CONFIG, bf16=True))
    assert trainer.advance().total.isfinite()
    assert all(value.dtype == torch.float32 for value in trainer.model.state_dict().values())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_writes_a_checkpoint_a_log_and_a_decoder(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run(tmp_path)
    assert folder == tmp_path / DECODER
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["gradient_norm"] > 0 and line["samples_per_second"] > 0 for line in lines)
    assert TrainConfig.from_json((tmp_path / CONFIG_FILE).read_text()) == CONFIG
    assert not (tmp_path / CURVES).exists()
    decoder = load_decoder(folder)
    assert decoder.config == CONFIG.decoder
    averaged = {key[9:]: value for key, value in state(tmp_path).items() if key.startswith("averaged/")}
    assert_identical(dict(decoder.state_dict()), averaged)
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished is left


def test_stopped_and_gone_on_with_the_weights_are_the_same_bit_for_bit(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    run(tmp_path / "straight")
    for steps in (1, 3, None):
        run(tmp_path / "pieces", stop_after=steps)
    assert_identical(state(tmp_path / "straight"), state(tmp_path / "pieces"))
    again = run(tmp_path / "pieces")  # a run that is done stays as it is
    assert_identical(state(tmp_path / "straight"), state(tmp_path / "pieces"))
    assert load_decoder(again).config == CONFIG.decoder


def test_another_seed_gives_other_weights(run: Callable[..., Path], tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), dataclasses.replace(CONFIG, seed=seed), stop_after=1)
    a, b = state(tmp_path / "0"), state(tmp_path / "1")
    assert not torch.equal(a["model/stem.weight"], b["model/stem.weight"])


def test_features_in_memory_give_the_same_weights(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "mapped", stop_after=2)
    run(tmp_path / "loaded", stop_after=2, in_memory=True)
    assert_identical(state(tmp_path / "mapped"), state(tmp_path / "loaded"))


def test_checkpoints_do_not_change_the_run(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path / "often", checkpoint_every=1)
    run(tmp_path / "once", checkpoint_every=100)
    assert_identical(state(tmp_path / "often"), state(tmp_path / "once"))


def test_killed_between_checkpoint_and_decoder_the_decoder_is_not_left_behind(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_decoder(run(tmp_path / "straight")).state_dict()

    def die(*_: object) -> None:
        raise Interrupt

    for name in ("save_decoder", "save_checkpoint"):
        out = tmp_path / name
        run(out, stop_after=4)
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, name, die)
            with pytest.raises(Interrupt):
                run(out, checkpoint_every=6)
        assert_identical(dict(load_decoder(run(out)).state_dict()), dict(expected))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import kernels
import runs
from pathlib import Path
from diffup.training import bank, checkpoint, trainer
kernels.choose()
bank.CHUNK = 10
encoder, out, cache, moment = runs.encoder(), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
plain_pyramid, plain_save, count = encoder.pyramid, checkpoint.save_file, [0]

def pyramid(images):
    count[0] += 1
    if moment == "bank" and count[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain_pyramid(images)

def save_file(tensors, path, metadata):
    plain_save(tensors, path, metadata=metadata)
    if moment == "checkpoint" and metadata["step"] == "4":
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

encoder.pyramid, checkpoint.save_file = pyramid, save_file
settings = {"cache": cache, "checkpoint_every": 2, "tensorboard": False, "progress": False}
trainer.train(sys.argv[2], out, runs.CONFIG, [encoder], **settings)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_killed_at_any_moment_and_gone_on_with_the_weights_are_the_same(
    shapes: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    here = Path(__file__).parent
    out, cache = tmp_path / "killed", tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for moment in ("bank", "checkpoint"):
        command = [sys.executable, "-c", KILLED, str(here), str(shapes), str(out), str(cache), moment]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert (out / CHECKPOINT).exists() == (moment == "checkpoint")
    assert list(out.glob(".diffup-checkpoint-*"))  # half a checkpoint lies beside the whole one of step 2
    run(out, cache=cache)
    run(tmp_path / "straight")
    assert_identical(state(tmp_path / "straight"), state(out))


def test_curves_of_a_killed_run_go_on(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(log_module, "CURVES_EVERY", 1)
    with monkeypatch.context() as patch:
        plain, saved = trainer_module.save_checkpoint, []

        def die_at_the_second(*arguments: object) -> None:
            if saved:
                raise Interrupt
            saved.append(1)
            plain(*arguments)

        patch.setattr(trainer_module, "save_checkpoint", die_at_the_second)
        with pytest.raises(Interrupt):
            run(tmp_path, tensorboard=True)  # after step 4, whose checkpoint is missing
    written = int(time.time())
    while int(time.time()) == written:  # TensorBoard sorts the files of one second by text: "10" comes before "9"
        time.sleep(0.05)
    run(tmp_path, tensorboard=True)
    curves = accumulator.EventAccumulator(str(tmp_path / CURVES)).Reload()
    names = {"total", "diffusion", "error", "iou", "learning_rate", "gradient_norm", "samples_per_second"}
    assert set(curves.Tags()["scalars"]) == names
    for name in names:
        assert [point.step for point in curves.Scalars(name)] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in curves.Scalars("learning_rate")][:2] == pytest.approx([1.5e-3, 3e-3])


def test_curves_without_tensorboard_are_refused_where_they_are_asked_for(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "accelerate.*" "tensorboard'):
        run(tmp_path, tensorboard=True)
    assert not (tmp_path / CONFIG_FILE).exists()
    run(tmp_path, tensorboard=None, stop_after=1)
    assert not (tmp_path / CURVES).exists()


def test_a_run_starts_from_a_decoder_that_is_given(run: Callable[..., Path], tmp_path: Path) -> None:
    decoder = random_decoder(DECODER_CONFIG, seed=4)
    save_decoder(tmp_path / "initial", decoder.state_dict(), DECODER_CONFIG)
    config = dataclasses.replace(CONFIG, learning_rate=1e-12, weight_decay=0.0)
    trained = load_decoder(run(tmp_path / "run", config, initial=tmp_path / "initial", stop_after=1))
    for name, value in decoder.state_dict().items():
        assert torch.allclose(trained.state_dict()[name], value, atol=1e-8)
    with pytest.raises(TrainingError, match="initial"):  # its checkpoint is another run's
        run(tmp_path / "run", config, stop_after=1)


def test_a_decoder_of_another_architecture_is_no_start(run: Callable[..., Path], tmp_path: Path) -> None:
    other = dataclasses.replace(DECODER_CONFIG, channels=(8, 8, 8, 8))
    save_decoder(tmp_path / "initial", random_decoder(other).state_dict(), other)
    with pytest.raises(ConfigError, match=r"initial: .* than the config, channels=\(8, 8, 8, 8\); set"):
        run(tmp_path / "run", initial=tmp_path / "initial")


# --- errors of a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: 0.003 there, 0.001 here"),
        ({"decoder": dataclasses.replace(DECODER_CONFIG, shift="none")}, r"decoder\.shift: quadratic there, none here"),
        ({"steps": 5}, "a run of 6 steps; steps=5 would shorten it"),
    ],
)
def test_a_run_under_another_config_is_not_gone_on_with(
    run: Callable[..., Path], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    run(tmp_path, stop_after=1)
    before = state(tmp_path)
    with pytest.raises(TrainingError, match=named):
        run(tmp_path, dataclasses.replace(CONFIG, **changes))
    assert_identical(before, state(tmp_path))


def test_a_run_with_another_encoder_is_not_gone_on_with(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match="backbones"):
        run(tmp_path, backbones=[encoder(12)])


def test_a_run_on_other_data_is_not_gone_on_with(tmp_path: Path) -> None:
    data, photos = make_folder(tmp_path / "data"), tmp_path / "photos"
    photos.mkdir()

    def go_on(stop_after: int, **options: object) -> None:
        settings = {"cache": tmp_path / "cache", "tensorboard": False, "progress": False, "stop_after": stop_after}
        train(data, tmp_path / "run", CONFIG, [encoder()], **(settings | options))

    go_on(1)
    for path in data.rglob("*.png"):
        os.utime(path, (1, 1))  # as of a copy: the same data
    go_on(2)
    Image.new("RGB", (90, 70)).save(photos / "black.png")
    with pytest.raises(TrainingError, match=r"other settings or data.*backgrounds: "):
        go_on(3, backgrounds=photos)
    mask = np.asarray(Image.open(data / "masks" / "train0.png")).copy()
    mask[40:] = np.random.default_rng(0).integers(1, 3, mask[40:].shape)
    Image.fromarray(mask).save(data / "masks" / "train0.png")
    with pytest.raises(TrainingError, match="data: "):
        go_on(3)


def test_a_damaged_checkpoint_is_said_so(run: Callable[..., Path], tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        run(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        run(tmp_path)


def test_what_does_not_fit_is_refused_before_any_work(run: Callable[..., Path], shapes: Path, tmp_path: Path) -> None:
    idle: list[Backbone] = [encoder(), encoder()]
    with pytest.raises(ConfigError, match="backbones: 2 encoders given for the 1"):
        run(tmp_path, backbones=idle)
    for option in ("checkpoint_every", "stop_after"):
        with pytest.raises(ConfigError, match=f"{option}=0"):
            run(tmp_path, **{option: 0})
    with pytest.raises(DataError, match="fold=7"):
        run(tmp_path, dataclasses.replace(CONFIG, folds=(7,)))
    with pytest.raises(DataError, match=r"splits\.json"):
        train(tmp_path, tmp_path / "out", CONFIG, [encoder()], progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"backgrounds=.*empty"):
        run(tmp_path, cache=tmp_path / "fresh", backgrounds=tmp_path / "empty")
    assert not any(backbone.calls for backbone in idle)


def test_a_folder_without_anything_to_train_on_is_said_so(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    splits = json.loads((data / "splits.json").read_text())
    (data / "splits.json").write_text(json.dumps(splits | {"min_area_fraction": 0.99}))
    with pytest.raises(TrainingError, match="two images"):
        train(data, tmp_path / "out", CONFIG, [encoder()], progress=False)


# --- views, estimate, more steps -------------------------------------------------------------------------------------


def test_pasted_views_follow_the_number_of_photos() -> None:
    assert [ViewsConfig().pasted_of(images) for images in (2, 30, 199, 200, 2000)] == [20, 300, 1990, 2000, 2000]
    assert [ViewsConfig(pasted=number).pasted_of(30) for number in (0, 7, 2000)] == [0, 7, 2000]  # what is said, holds


def test_a_run_records_its_pasted_views_and_keeps_them(run: Callable[..., Path], tmp_path: Path) -> None:
    loose = dataclasses.replace(CONFIG, views=dataclasses.replace(CONFIG.views, pasted=None))
    run(tmp_path, CONFIG, stop_after=2)  # begun with 6 of them
    run(tmp_path, loose, stop_after=3)
    assert TrainConfig.from_json((tmp_path / CONFIG_FILE).read_text()).views.pasted == 6
    few = dataclasses.replace(loose, views=dataclasses.replace(loose.views, images=2, crops=0))
    run(tmp_path / "few", few, stop_after=1)
    assert TrainConfig.from_json((tmp_path / "few" / CONFIG_FILE).read_text()).views.pasted == 20


def test_the_estimate_counts_what_the_cache_then_holds(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, cache=tmp_path / "own", progress=True)
    told = capsys.readouterr().err
    counts = {group: int(told.split(f" {group}")[0].split()[-1]) for group in ("whole", "crop", "pasted")}
    held = {path.name.split("-")[0]: len(np.load(path / "mask.npy")) for path in (tmp_path / "own").iterdir()
            if (path / "mask.npy").exists()}  # fmt: skip
    assert counts == held
    size = sum(file.stat().st_size for file in (tmp_path / "own").rglob("*.npy")) / 1e9
    assert float(told.split("about ")[1].split(" GB")[0]) == pytest.approx(size, rel=0.1)
    assert "steps: 6; about" in told
    run(tmp_path, dataclasses.replace(CONFIG, steps=7), cache=tmp_path / "own", progress=True)
    again = capsys.readouterr().err
    assert "; all cached" in again and "steps: 1; about" in again


def test_steps_can_be_raised_and_what_that_means_is_said(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    longer = dataclasses.replace(CONFIG, steps=9)
    run(tmp_path, longer, progress=True)
    rate = CONFIG.learning_rate * 0.5 * (1 + math.cos(math.pi * 4 / 7))  # of step 6 of 9, after 2 of warm-up
    told = capsys.readouterr().err
    assert (
        f"steps raised from 6 to 9: from step 6 on the learning rate follows the schedule of 9 steps ({rate:.2g}"
        in told
    )
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert {"step": 6, "steps_before": 6, "steps": 9, "learning_rate": pytest.approx(rate)} in lines
    assert lines[-1]["step"] == 9
    assert TrainConfig.from_json((tmp_path / CONFIG_FILE).read_text()) == longer
    with pytest.raises(TrainingError, match="a run of 9 steps; steps=6 would shorten it"):
        run(tmp_path, CONFIG)
    with pytest.raises(TrainingError, match=r"other settings or data.*seed"):
        run(tmp_path, dataclasses.replace(longer, steps=12, seed=5))


def test_a_quick_run_is_small_whatever_the_settings() -> None:
    quick = TrainConfig().quick()
    assert (quick.steps, quick.warmup, quick.views.images, quick.views.crops, quick.views.pasted) == (
        300,
        50,
        50,
        1,
        100,
    )
    assert quick.decoder == TrainConfig().decoder
    assert TrainConfig(views=ViewsConfig(images=8)).quick().views.images == 8
