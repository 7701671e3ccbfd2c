"""What a decoder says of its masks (presence, quality, score), the evidence of how true it is, and its calibration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import build_fake, save_tiny_decoder, shape_image, tiny_config, tiny_model

from diffup import DiffUp
from diffup.data.folder import LabelledFolder
from diffup.decoder.quality import calibrated_score
from diffup.decoder.sampling import Ensemble
from diffup.decoder.weights import CONFIG, save_decoder
from diffup.errors import ConfigError, DataError
from diffup.evaluation import trust as evidence_of
from diffup.evaluation.calibration import (
    FITTED,
    PARTS,
    Evidence,
    answers,
    calibrate,
    calibration_error,
    fit_logistic,
    join,
    report,
    spearman,
)
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator, episode_generators
from diffup.evaluation.trust import gather
from diffup.inference import trust
from diffup.priors.presence import EVIDENCE

PLAIN = (1.0, 0.5, -0.75, 2.0, -1.0)
"""Factors of evidence that no decoder was fitted to."""


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(values, dtype=np.float64)))


def logit(shares: Any) -> Any:
    shares = np.asarray(shares, dtype=np.float64)
    return np.log(shares / (1 - shares))


# --- estimates of a mask ---------------------------------------------------------------------------------------------


def test_the_score_by_hand() -> None:
    """Logits of a quality of 0 and 1 are those of 0.001 and 0.999."""
    quality, presence = torch.tensor([0.75, 0.75, 0.0, 1.0]), torch.tensor([0.5, 0.0, 1.0, 1.0])
    found = calibrated_score(quality, presence, (0.5, -0.5))
    edge = np.log(999)
    by_hand = [0.5 * sigmoid(0.5 * np.log(3) - 0.5), 0.0, sigmoid(-0.5 * edge - 0.5), sigmoid(0.5 * edge - 0.5)]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_an_empty_mask_has_no_quality() -> None:
    mean = torch.stack([torch.full((64, 64), value) for value in (0.75, 0.25)])
    maps = {name: torch.zeros_like(mean) for name in ("variance", "error")}
    samples = Ensemble(mean=mean, iou=torch.tensor([0.5, 0.5]), trace=None, timesteps=(), **maps)
    evidence = torch.tensor([[0.0, float(logit(0.75)), 1.0, 0, 0], [0.0, 20.0, 1.0, 0, 0]])
    calibration = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0)
    config = tiny_config(presence_calibration=(0.0, 1.0, 0, 0, 0), quality_calibration=calibration)
    judged = trust(samples, evidence, torch.tensor([0.5, 0.5]), dataclasses.replace(config, score_calibration=(0.5, 1)))
    quality = sigmoid(logit(0.75) + 2)
    assert judged.presence.tolist() == pytest.approx([0.75, 1.0])
    assert judged.quality.tolist() == pytest.approx([quality, 0.0], abs=1e-6)
    least = sigmoid(-0.5 * np.log(999) + 1)
    assert judged.score.tolist() == pytest.approx([0.75 * sigmoid(0.5 * logit(quality) + 1), least], abs=1e-6)


def test_results_have_the_decoders_calibrations() -> None:
    query, _ = shape_image((1, 2), seed=3)
    support, labels = shape_image((1,), seed=4)
    calibrations = {
        "presence_calibration": (2.0, 1.0, -1.0, 4.0, -2.0),  # twice those, and 1/2 more for supports
        "quality_calibration": (0.5, 1.5, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 5.0),
        "score_calibration": (3.0, 0.25),
    }
    plain, judged = (
        tiny_model(**changes).segment(query, support, labels == 1, threshold=0.05)
        for changes in ({"presence_calibration": PLAIN}, calibrations)
    )
    assert np.array_equal(plain.mask, judged.mask)
    assert judged.presence == pytest.approx(float(sigmoid(2 * logit(plain.presence) + 0.5)), abs=1e-5)
    right = sigmoid(3 * logit(judged.quality) + 0.25)
    assert judged.score == pytest.approx(float(judged.presence * right), abs=1e-5)
    branch = (0.0, 1.0, *[0.0] * 7)
    by_branch = tiny_model(quality_calibration=branch).segment(query, support, labels == 1, threshold=0.05)
    mixed = sigmoid(0.5 * logit(plain.quality) + 1.5 * logit(by_branch.quality) - 1)
    assert judged.quality == pytest.approx(float(mixed), abs=1e-5)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_rank_correlation_by_hand() -> None:
    """Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5."""
    found = spearman(np.array([1.0, 2.0, 2.0, 40.0]), np.array([-1.0, 0.3, 0.2, 9.0]))
    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    values = np.random.default_rng(0).random(50)
    assert spearman(values, np.exp(5 * values)) == pytest.approx(1) and spearman(values, -values) == pytest.approx(-1)


def test_the_calibration_error_by_hand() -> None:
    """Two of 0.05, of which one is true, are 0.9 off together; 0.9375 and 1, both true, 0.0625; 0.5 is on its own."""
    probability = np.array([0.05, 0.9375, 0.5, 0.05, 1.0])
    truth = np.array([True, True, False, False, True])
    assert calibration_error(probability, truth) == pytest.approx((0.9 + 0.0625 + 0.5) / 5)
    assert calibration_error(probability, truth, bins=1) == pytest.approx(abs(2.5375 - 3) / 5)


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_a_logistic_regression_recovers_its_factors() -> None:
    inputs = np.random.default_rng(0).normal(size=(400, 3))
    inputs[:, 2] = 1
    for factors in ((1.5, -0.7, 0.3), (0.0, 2.0, -1.0)):
        found = fit_logistic(inputs, sigmoid(inputs @ np.array(factors)))
        assert found == pytest.approx(factors, abs=1e-3)  # the ridge pulls them to 0 a little


def test_a_logistic_regression_of_what_is_separable_is_finite() -> None:
    inputs, truth = np.array([[-2.0, 1], [-1.0, 1], [1.0, 1], [2.0, 1]]), np.array([0.0, 0.0, 1.0, 1.0])
    factor, offset = fit_logistic(inputs, truth)
    assert 1 < factor < 20 and offset == pytest.approx(0, abs=1e-6)
    slope = inputs[:, 0] @ (sigmoid(factor * inputs[:, 0] + offset) - truth) + 1e-3 * factor
    assert slope == pytest.approx(0, abs=1e-9), "the loss is at its minimum"


MADE_UP = (0.8, 0.4, -0.3, 0.1, 0.5, 0, -0.2, 0, -0.2)


def made_up(seed: int = 0, count: int = 500) -> Evidence:
    """Evidence whose calibrations are known: of the presence 2, -1, 1, of the quality `MADE_UP`."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((4 * count, EVIDENCE))
    rows[:, :2], rows[:, 2] = rng.normal((-0.5, 0), 1, size=(4 * count, 2)), 1
    there = rng.random(4 * count) < sigmoid(rows[:, :3] @ (2, -1, 1))  # half of them
    shown, absent = rows[there][:count], rows[~there][:count]
    expected, predicted, area = rng.uniform(0.05, 0.95, (3, count, len(FITTED)))
    thresholds = np.broadcast_to(logit(np.array(FITTED)), expected.shape)
    estimates = np.stack([logit(expected), logit(predicted), np.log(area), thresholds], axis=2)
    iou = sigmoid(estimates @ MADE_UP[:4] + (0.5 * shown[:, 0] - 0.2)[:, None])
    photos = tuple(map(str, range(count)))
    return Evidence(shown, absent, FITTED, estimates, np.ones(iou.shape, bool), iou, photos)


def test_several_supports_are_calibrated_with_their_offset() -> None:
    evidence = made_up()
    scaled = {name: getattr(evidence, name) * np.array([2.0, 2, 2, 1, 1]) for name in ("shown", "absent")}
    config, more = (calibrate(part, tiny_config()) for part in (evidence, dataclasses.replace(evidence, **scaled)))
    assert more.presence_calibration[:3] == pytest.approx(np.array(config.presence_calibration[:3]) / 2, abs=1e-2)
    assert more.quality_calibration == pytest.approx((*MADE_UP[:4], 0.25, 0, -0.1, 0, -0.1), abs=2e-3)


def test_only_what_is_asked_for_is_fitted() -> None:
    evidence, config = made_up(), tiny_config()
    best = int(evidence.iou.mean(axis=0).argmax())
    threshold = calibrate(evidence, config, fit=["threshold"])
    assert threshold == dataclasses.replace(config, threshold=FITTED[best]) != config
    quality = calibrate(evidence, threshold, fit=["quality"])
    assert quality.quality_calibration != config.quality_calibration
    assert quality.presence_calibration == config.presence_calibration and quality.min_presence == 0
    assert calibrate(evidence, config, fit=PARTS) == calibrate(evidence, quality, fit=["presence"])
    with pytest.raises(ConfigError, match="fit='treshold': choose from threshold, presence, quality"):
        calibrate(evidence, config, fit=["treshold"])


def test_supports_and_text_are_calibrated_apart() -> None:
    evidence = made_up()
    by_text = dataclasses.replace(evidence, **{name: of_text(getattr(evidence, name)) for name in ("shown", "absent")})
    config = tiny_config()
    alone = calibrate(by_text, config)
    assert alone.presence_calibration[:3] == config.presence_calibration[:3]
    assert alone.presence_calibration[3] > 1, "the first similarity tells presence"
    both = calibrate(join([evidence, by_text]), config)
    assert both.presence_calibration[:3] == pytest.approx(calibrate(evidence, config).presence_calibration[:3])
    assert both.presence_calibration[3:] == pytest.approx(alone.presence_calibration[3:])
    assert alone.quality_calibration == pytest.approx((*MADE_UP[:4], 0, 0, -0.2, 0.5, -0.2), abs=2e-3)
    assert both.quality_calibration == pytest.approx((*MADE_UP[:7], 0.5, -0.2), abs=2e-3)
    shifted = dataclasses.replace(by_text, iou=sigmoid(logit(by_text.iou) + 1))
    apart = calibrate(join([evidence, shifted]), config)
    assert apart.quality_calibration == pytest.approx((*MADE_UP[:7], 0.5, 0.8), abs=4e-3)


def test_classes_with_supports_and_a_name_do_not_count_where_each_source_is_fitted() -> None:
    evidence, config = made_up(), tiny_config()
    by_text = dataclasses.replace(evidence, **{name: of_text(getattr(evidence, name)) for name in ("shown", "absent")})
    rows = {name: 0.6 * (getattr(evidence, name) + getattr(by_text, name)) for name in ("shown", "absent")}
    with_both = dataclasses.replace(evidence, **rows)
    apart, found = calibrate(join([evidence, by_text]), config), calibrate(join([evidence, by_text, with_both]), config)
    assert found.presence_calibration == apart.presence_calibration
    assert found.quality_calibration == apart.quality_calibration
    with pytest.raises(ConfigError, match="every class has supports and a name"):
        calibrate(with_both, config)
    assert calibrate(with_both, config, fit=["threshold"]).presence_calibration == config.presence_calibration


def of_text(rows: np.ndarray) -> np.ndarray:
    """The first similarity, as evidence of text."""
    return np.stack([*[np.zeros(len(rows))] * 3, rows[:, 0], np.ones(len(rows))], axis=1)


@pytest.mark.parametrize("recall", [0.9, 0.5])
def test_calibrations_are_fitted_and_the_recall_is_what_was_asked_for(recall: float) -> None:
    evidence, config = made_up(), tiny_config(backbone="x")
    found = calibrate(evidence, config, recall=recall)
    assert found.quality_calibration == pytest.approx(MADE_UP, abs=2e-3)
    assert found.same_network(config) and found.backbone == "x"
    assert found.presence_calibration[:3] == pytest.approx((2, -1, 1), abs=0.4)  # standard errors are about 0.13
    assert found.presence_calibration[3:] == config.presence_calibration[3:], "there is no evidence of text"
    shown, absent = (sigmoid(part @ found.presence_calibration) for part in (evidence.shown, evidence.absent))
    assert np.mean([*shown, *absent]) == pytest.approx(0.5, abs=1e-3), "as many show the class as do not"
    assert (shown >= found.min_presence).mean() == pytest.approx(recall, abs=0.01)
    assert round(found.min_presence, 3) == found.min_presence
    quality, iou = answers(evidence, found)
    assert quality == pytest.approx(iou, abs=2e-3) and (iou == evidence.iou[:, FITTED.index(0.5)]).all()
    right = sigmoid(found.score_calibration[0] * logit(quality) + found.score_calibration[1])
    assert right[iou > 0.6].min() > 0.8 and right[iou < 0.4].max(initial=0) < 0.2


def test_the_report_by_hand() -> None:
    config = tiny_config(presence_calibration=(0.0, 0.0, 0.0, 2.0, 0.0), min_presence=0.5)
    estimates = np.zeros((4, 2, 4))
    estimates[:, 0, 0] = logit(np.array([0.9, 0.5, 0.6, 0.3]))
    evidence = Evidence(
        shown=of_text(logit(np.array([0.5, 0.6, 0.7, 0.8]))[:, None] / 2),
        absent=of_text(logit(np.array([0.1, 0.2, 0.55, 0.5]))[:, None] / 2),
        thresholds=(0.5, 0.7),
        estimates=estimates,
        marked=np.array([[True, True], [False, False], [True, True], [True, True]]),
        iou=np.array([[0.8, 1], [0.0, 1], [0.7, 1], [0.4, 1]]),
        photos=("a", "b", "c", "d"),
    )
    found = report(evidence, config)
    assert found == {
        "auc": pytest.approx(14.5 / 16),
        "recall": pytest.approx(1.0),
        "false_alarms": pytest.approx(0.5),
        "false_alarms_at_recall": pytest.approx(0.5),  # at 0.5, since three of four are fewer than nine in ten
        "presence_error": pytest.approx((0.5 + 0.4 + 0.3 + 0.2 + 0.1 + 0.2 + 0.55 + 0.5) / 8),
        "iou": pytest.approx((0.8 + 0.7 + 0.4) / 4),
        "best_threshold": 0.7,
        "best_iou": 1.0,
        "spearman": pytest.approx(1.0),
        "error": pytest.approx((0.1 + 0.0 + 0.1 + 0.1) / 4),
        "score_error": pytest.approx((0.1 + 0.001 + 0.4 + 0.3) / 4),
    }


# --- evidence --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(shapes: Path) -> LabelledFolder:
    return LabelledFolder.open(shapes)


def test_evidence_is_of_photos_with_and_without_the_class(
    folder: LabelledFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Episode, str]] = []
    others: list[str] = []
    plain = Evaluator.evidence

    def evidence(self: Evaluator, episode: Episode, annotation: str, support: Any, name: str) -> object:
        asked.append((episode, annotation))
        others.append(name)
        return plain(self, episode, annotation, support, name)

    monkeypatch.setattr(Evaluator, "evidence", evidence)
    model = tiny_model(threshold=0.1)
    found = gather(model, folder, [1, 2, 3], split="train", episodes=8, seed=5)
    monkeypatch.undo()
    episodes = draw_episodes(folder, "train", [1, 2, 3], 1, 8, seed=5)
    assert asked == [(episode, "mask") for episode in episodes]
    assert found.photos == tuple(episode.query for episode in episodes)
    for episode, other in zip(episodes, others, strict=True):
        assert other in folder.split("train") and not (folder.mask(other) == episode.class_id).any()
    assert len(set(others)) > 1
    for index, (episode, other) in enumerate(zip(episodes, others, strict=True)):
        [support] = episode.supports
        shown, absent = (
            model.segment(
                folder.image_path(query),
                folder.image_path(support),
                folder.mask(support) == episode.class_id,
                generator=episode_generators(5, index)[1],
            )
            for query in (episode.query, other)
        )
        for rows, result in ((found.shown, shown), (found.absent, absent)):
            assert sigmoid(rows[index] @ model.config.presence_calibration) == pytest.approx(result.presence, abs=1e-5)
        column = found.column(0.1)
        assert sigmoid(found.estimates[index, column, 0]) == pytest.approx(shown.quality, abs=1.1e-3)  # cut at 0.001
        labels = folder.mask(episode.query)
        counted, target = labels != folder.ignore, labels == episode.class_id
        both, either = (shown.mask & target & counted).sum(), ((shown.mask | target) & counted).sum()
        assert found.iou[index, column] == pytest.approx(both / max(either, 1), abs=3 / max(either, 1)), "a few pixels"
    assert found.iou.max() > 0 and found.thresholds == FITTED


def test_evidence_is_that_of_its_seed(folder: LabelledFolder) -> None:
    model = tiny_model()
    first, again, other = (
        gather(model, folder, [1, 2], split="train", episodes=4, annotation="scribble", shots=2, seed=seed)
        for seed in (0, 0, 1)
    )
    for name in ("shown", "absent", "estimates", "marked", "iou"):
        assert np.array_equal(getattr(first, name), getattr(again, name)) and len(getattr(first, name)) == 4
    assert first.photos == again.photos and not np.array_equal(first.shown, other.shown)


def test_evidence_needs_a_photo_without_the_class(folder: LabelledFolder) -> None:
    squares = dataclasses.replace(folder, images={"train": ("train0", "train3", "train5", "train6")})
    with pytest.raises(DataError, match="every image shows the class 'square', so none can lack it"):
        gather(tiny_model(), squares, [1], split="train", episodes=2)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def decoder(families: Callable[..., None], tmp_path: Path) -> Path:
    families(fake=build_fake)
    return save_tiny_decoder(tmp_path / "decoder", backbone="fake", steps=1, ensemble=1)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Figures of the only setting."""
    [figures] = json.loads(capsys.readouterr().out).values()
    return figures


def test_calibrations_are_written_and_used(
    decoder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(decoder), str(shapes), "--episodes", "12", "--fold", "0", "--fold", "1"]
    before = (decoder / CONFIG).read_bytes()
    assert evidence_of.main(options) == 0
    uncalibrated = printed(capsys)
    assert (decoder / CONFIG).read_bytes() == before and uncalibrated["recall"] == 1.0, "nothing is refused as yet"
    assert evidence_of.main([*options, "--write"]) == 0
    figures = printed(capsys)
    assert set(figures) == set(report(made_up(), tiny_config()))
    assert figures["recall"] >= 0.8 and figures["error"] < uncalibrated["error"]

    model = DiffUp.from_pretrained(decoder)
    config = model.config
    assert config.min_presence > 0 and config.same_network(tiny_config()) and config.backbone == "fake"
    before_it = tiny_config()
    assert config.presence_calibration[:3] != before_it.presence_calibration[:3]
    assert config.score_calibration != before_it.score_calibration
    neutral = {
        "presence_calibration": before_it.presence_calibration,
        "quality_calibration": before_it.quality_calibration,
        "score_calibration": (1.0, 0.0),
        "min_presence": 0.0,
    }
    save_decoder(tmp_path / "plain", model.decoder.state_dict(), dataclasses.replace(config, **neutral))
    query, _ = shape_image((1, 2), seed=3)
    support, labels = shape_image((1,), seed=4)
    judged, plain = (
        DiffUp.from_pretrained(path).segment(query, support, labels == 1) for path in (decoder, tmp_path / "plain")
    )
    assert judged.min_presence == config.min_presence and plain.min_presence == 0
    assert judged.presence != plain.presence
    assert np.array_equal(judged.probability, plain.probability)


def test_several_annotations_and_shots_are_told_apart_and_together(
    decoder: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(decoder), str(shapes), "--episodes", "3", "--annotation", "mask", "--annotation", "box"]
    assert evidence_of.main([*options, "--shots", "1", "--shots", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    each = [f"{shots}-shot {annotation}" for annotation in ("mask", "box") for shots in (1, 2)]
    assert [name.partition(" ")[2] for name in found] == [*each, ""] and list(found)[-1] == "all"
    assert len({json.dumps(figures) for figures in found.values()}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": "nowhere"}, "nowhere"),
        ({"data": "nowhere"}, "nowhere"),
        ({"split": "val"}, "split='val'"),
        ({"fold": "7"}, "fold=7"),
        ({"annotation": "drawing"}, "annotation='drawing'"),
        ({"shots": "0"}, "shots=0: it must be 1 or more"),
        ({"episodes": "0"}, "episodes=0: it must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_told(
    change: dict[str, str], message: str, decoder: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (decoder / CONFIG).read_bytes()
    given = {"decoder": str(decoder), "data": str(shapes), "fold": "1", "episodes": "2"} | change
    options = [f"--{name}={value}" for name, value in given.items() if name not in ("decoder", "data")]
    assert evidence_of.main([given["decoder"], given["data"], *options, "--write"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err and not printed.out
    assert (decoder / CONFIG).read_bytes() == before


def test_parts_are_fitted_and_written(decoder: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = DiffUp.from_pretrained(decoder).config
    options = [str(decoder), str(shapes), "--episodes", "4"]
    assert evidence_of.main([*options, "--write", "--fit", "threshold"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = DiffUp.from_pretrained(decoder).config
    (figures,) = found.values()
    assert after == dataclasses.replace(before, threshold=figures["best_threshold"])
    with pytest.raises(SystemExit):
        evidence_of.main([*options, "--fit", "quality"])
    assert "give --write too" in capsys.readouterr().err
