"""`diffup evaluate`: rows, files, the record of episodes, resuming, errors."""

from __future__ import annotations

import csv
import json
import re
import runpy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeBackbone, build_fake, random_decoder, save_tiny_decoder, shape_image, tiny_config
from PIL import Image
from runs import Interrupt

from diffup import cli
from diffup.data.folder import LabelledFolder
from diffup.data.open import DATASETS, open_dataset
from diffup.data.pascal5i import COCO_TO_PASCAL
from diffup.decoder.weights import decoder_hash, load_decoder
from diffup.errors import ConfigError, DataError
from diffup.evaluation import sweep, table
from diffup.evaluation.episodes import Episode, draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.evaluation.protocols import PROTOCOLS, draw_stream
from diffup.evaluation.record import EpisodeRecord, Setting
from diffup.evaluation.scores import THRESHOLDS, EpisodeScore, summarise
from diffup.model import DiffUp

FILES = ("scores.json", "scores.csv")
SCORE = EpisodeScore(0, 1, "q0", 100, (3, 7), (1, 6), ((1, 2),) * 19, ((4, 5),) * 19, 0.25, 0.75, 0.125)
EPISODES = [Episode(1, f"q{index}", ("s",)) for index in range(3)]


@pytest.fixture(autouse=True)
def encoders(families: Callable[..., None]) -> None:
    families(fake=build_fake)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"), backbone="fake", steps=2, ensemble=1)


def evaluate(data: Path, decoder: Path, out: Path, *options: str) -> int:
    given = ["evaluate", str(data), "--decoder", str(decoder), "-o", str(out), "--device", "cpu", "--batch-size", "2"]
    return cli.main([*given, *options])


def rows_of(out: Path) -> list[dict[str, object]]:
    return json.loads((out / "scores.json").read_text())["rows"]


def setting_of(**changes: object) -> Setting:
    facts = {"dataset": "d", "protocol": "folder", "split": "test", "classes": "fold", "fold": 0, "shots": 1}
    facts |= {"annotation": "mask", "backbone": "b", "fingerprint": "f", "input_size": (64, 64), "decoder": "x"}
    facts |= {"decoder_hash": "h", "seed": 0, "steps": 4, "ensemble": 4, "threshold": 0.5, "batch_size": 16}
    return Setting(**(facts | {"bf16": False, "device": "cpu", "refine": True} | changes))


# --- rows and files --------------------------------------------------------------------------------------------------


def test_every_combination_makes_a_row(
    shapes: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--fold", "1", "--shots", "1", "2", "--annotation", "mask", "none", "--steps", "1", "2"]
    assert evaluate(shapes, decoder, tmp_path, *options, "--backbone", "fake", "fake:b", "--episodes", "2") == 0
    rows = rows_of(tmp_path)
    varied = [(row["backbone"], row["fingerprint"], row["shots"], row["annotation"], row["steps"]) for row in rows]
    assert len(rows) == len(set(varied)) == 16 and all(row["episodes"] == 2 for row in rows)
    printed = capsys.readouterr().out
    assert "dataset data, protocol folder, split test" in printed and str(tmp_path / "scores.csv") in printed
    figures, _, ends = printed.partition("95 % intervals")
    for part in (figures, ends):
        assert len(re.findall(r"^ *fake\S* .* (?:mask|none) .*[\d-]\]?$", part, re.MULTILINE)) == 16


def test_each_encoder_has_its_input_size(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    options = ["--fold", "1", "--backbone", "fake@96", "fake:b", "--input-size", "32", "--episodes", "1"]
    assert evaluate(shapes, decoder, tmp_path, *options) == 0
    assert [row["input_size"] for row in rows_of(tmp_path)] == [[96, 96], [32, 32]]


def test_csv_and_json_agree(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    assert evaluate(shapes, decoder, tmp_path, "--episodes", "2", "--seeds", "0", "1", "--quiet") == 0
    rows = rows_of(tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 4, "two folds, two seeds"
    for line, row in zip(lines, rows, strict=True):
        assert set(line) == {name for name, value in row.items() if not isinstance(value, dict)}
        for name, text in line.items():
            value = row[name]
            expected = "x".join(map(str, value)) if isinstance(value, list) else str(value)
            assert text == ("" if value is None else expected)


def test_a_row_is_what_the_evaluator_gives(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    assert evaluate(shapes, decoder, tmp_path, "--fold", "1", "--episodes", "3", "--seeds", "4", "--quiet") == 0
    folder = LabelledFolder.open(shapes)
    model = DiffUp(load_decoder(decoder), FakeBackbone(input_size=(64, 64)), "cpu")
    episodes = draw_episodes(folder, "test", [1, 2], 1, 3, seed=4)
    scores = Evaluator(model, folder).run(episodes, seed=4, batch_size=2)
    [row] = rows_of(tmp_path)
    assert (row["miou"], row["fb_iou"], row["prior_best_miou"]) == (scores.miou, scores.fb_iou, scores.best_prior)
    assert row["miou_by_threshold"] == {str(t): value for t, value in scores.miou_by_threshold.items()}
    assert row["class_iou"] == {folder.classes[c]: iou for c, iou in scores.class_iou.items()}


def test_means_and_spreads(shapes: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(shapes, decoder, tmp_path, "--episodes", "2", "--seeds", "0", "1", "2") == 0
    rows = rows_of(tmp_path)
    [mean] = json.loads((tmp_path / "scores.json").read_text())["means"]
    by_fold = [statistics.fmean(row["miou"] for row in rows if row["fold"] == fold) for fold in (0, 1)]
    by_seed = [statistics.fmean(row["miou"] for row in rows if row["seed"] == seed) for seed in (0, 1, 2)]
    assert mean["miou"] == pytest.approx(statistics.fmean(by_fold))
    assert mean["miou_over_folds"] == pytest.approx(statistics.stdev(by_fold))
    assert mean["miou_over_seeds"] == pytest.approx(statistics.stdev(by_seed))
    assert (mean["folds"], mean["seeds"], mean["episodes"]) == ([0, 1], [0, 1, 2], 12)
    assert f"± {mean['miou_over_folds']:.2f} over 2 folds" in capsys.readouterr().out


INTERVALS = {"miou": [31.0, 39.04], "fb_iou": [55.0, 65.0], "boundary_iou": [15.0, 26.0]}
INTERVALS |= {"prior_best_miou": [25.0, 35.0], "gain_over_prior": [-1.26, 9.0]}


def text_of(*rows: dict[str, object]) -> str:
    means = [mean | {"intervals": INTERVALS} for mean in table.means(rows)]
    return table.to_text(table.ScoreTable(list(rows), means, []))


def table_row(**changes: object) -> dict[str, object]:
    """A row as `table.facts` makes it, with an mIoU of 35 at 0.5 and 38.1 at 0.45."""
    row = {**vars(setting_of()), "episodes": 2, "miou": 35.0, "fb_iou": 60.0, "best_threshold": 0.45}
    row |= {"best_miou": 38.1, "prior_best_threshold": 0.3, "prior_best_miou": 30.0, "quality_correlation": 0.5}
    row |= {"presence_auc": 91.0, "false_alarms": float("nan")}
    row |= {"boundary_iou": 20.0, "gain_over_prior": 5.0, "intervals": INTERVALS}
    row |= {"class_iou": {}, "miou_by_threshold": {"0.45": 38.1, "0.5": 35.0}, "prior_miou_by_threshold": {}}
    return row | changes


def test_headings_say_what_they_are() -> None:
    _, heading, *_ = text_of(table_row()).splitlines()
    names = ["mIoU", "FB-IoU", "boundary IoU", "best mIoU", "at", "prior's best", "at", "r(quality, IoU)"]
    names += ["presence AUC", "false alarms"]
    assert re.split(r"  +", heading.strip()) == names


def test_intervals_are_a_table_of_their_own_and_no_wider() -> None:
    _, heading, *lines = text_of(table_row(fold=0), table_row(fold=1)).splitlines()
    at = lines.index("95 % intervals, from 1000 resamples of the query photos:")
    names, first, _, mean = (re.split(r"  +", line.strip()) for line in lines[at + 1 :])
    assert names == ["fold", "mIoU", "FB-IoU", "boundary IoU", "prior's best", "mIoU - prior's best"]
    assert first == ["0", "[31.0, 39.0]", "[55.0, 65.0]", "[15.0, 26.0]", "[25.0, 35.0]", "+5.0 [-1.3, +9.0]"]
    assert mean == ["mean", *first[1:]]
    assert max(map(len, lines[at + 1 :])) <= len(heading)


def test_a_clearly_better_threshold_is_named() -> None:
    line = "threshold 0.45 would give 38.1 instead of 35.0 mIoU on these episodes; choose it on training classes"
    assert line in text_of(table_row()).splitlines()
    close = table_row(miou_by_threshold={"0.45": 35.9, "0.5": 35.0})
    assert "would give" not in text_of(close)


def test_the_better_threshold_is_that_of_the_mean_over_folds() -> None:
    folds = [
        table_row(fold=0, miou=30.0, miou_by_threshold={"0.3": 40.0, "0.4": 34.0, "0.5": 30.0}),
        table_row(fold=1, miou=40.0, miou_by_threshold={"0.3": 20.0, "0.4": 40.0, "0.5": 40.0}),
    ]
    assert "threshold 0.4 would give 37.0 instead of 35.0 mIoU" in text_of(*folds)
    text = text_of(table_row(shots=1), table_row(shots=5, miou_by_threshold={"0.5": 35.0}))
    assert "shots 1: threshold 0.45 would give" in text and "shots 5: threshold" not in text


def test_rows_of_the_same_episodes_are_compared(
    shapes: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--episodes", "4", "--annotation", "mask", "box", "--shots", "1", "2"]
    assert evaluate(shapes, decoder, tmp_path, *options) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    means = {(mean["shots"], mean["annotation"]): mean for mean in content["means"]}
    [found] = content["differences"]  # with two shots, other queries are drawn
    assert (found["of"], found["to"]) == ({"annotation": "box"}, {"annotation": "mask"})
    assert found["miou"] == pytest.approx(means[1, "box"]["miou"] - means[1, "mask"]["miou"], abs=1e-9)
    low, high = found["interval"]
    assert low <= found["miou"] <= high
    line = f"annotation box minus annotation mask: {found['miou']:+.1f} [{low:+.1f}, {high:+.1f}] mIoU"
    assert line in capsys.readouterr().out
    assert content["bootstrap"] == {"resamples": 1000, "seed": 0, "level": 0.95}
    for row in (*content["rows"], *content["means"]):
        assert set(row["intervals"]) == set(table.FIGURES) and 1 <= row["photos"] <= row["episodes"]


def test_a_single_row_has_no_spread(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    assert evaluate(shapes, decoder, tmp_path, "--fold", "0", "--episodes", "1", "--quiet") == 0
    [mean] = json.loads((tmp_path / "scores.json").read_text())["means"]
    assert mean["miou_over_folds"] is None and mean["miou_over_seeds"] is None


def test_the_other_classes_and_another_split(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    options = ["--fold", "0", "--others", "--split", "train", "--episodes", "4", "--quiet"]
    assert evaluate(shapes, decoder, tmp_path, *options) == 0
    [row] = rows_of(tmp_path)
    assert set(row["class_iou"]) <= {"square", "disc"} and (row["classes"], row["split"]) == ("others", "train")


# --- the record and resuming -----------------------------------------------------------------------------------------


def dies_in_its_third_batch(patch: pytest.MonkeyPatch) -> None:
    """The process dies while it writes, and leaves a torn line."""
    plain, calls = EpisodeRecord.append, []

    def append(self: EpisodeRecord, setting: Setting, episodes: list[Episode], scores: list[EpisodeScore]) -> None:
        calls.append(len(scores))
        plain(self, setting, episodes, scores)
        if len(calls) == 3:
            content = self.path.read_bytes()
            self.path.write_bytes(content[: len(content) - 40])
            raise Interrupt

    patch.setattr(EpisodeRecord, "append", append)


OPTIONS = ("--episodes", "5", "--annotation", "scribble", "--quiet")


def test_an_evaluation_that_was_killed_ends_as_one_that_was_not(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    assert evaluate(shapes, decoder, tmp_path / "whole", *OPTIONS) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupt):
        dies_in_its_third_batch(patch)
        evaluate(shapes, decoder, tmp_path / "parts", *OPTIONS)
    assert not (tmp_path / "parts" / "scores.json").exists()
    torn = (tmp_path / "parts" / "episodes.jsonl").read_bytes()
    assert len(torn) > 1000 and not torn.endswith(b"\n")
    assert evaluate(shapes, decoder, tmp_path / "parts", *OPTIONS) == 0
    for name in FILES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, parts = ((tmp_path / run / "episodes.jsonl").read_bytes() for run in ("whole", "parts"))
    assert sorted(whole.splitlines()) == sorted(parts.splitlines())
    assert parts.startswith(torn[: torn.rfind(b"\n") + 1]), "what was there stays"


def test_what_is_on_record_is_not_scored_again(
    shapes: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(shapes, decoder, tmp_path, "--fold", "1", "--episodes", "3", "--quiet") == 0
    first, counted = (tmp_path / "scores.json").read_bytes(), []
    plain = Evaluator._batch

    def batch(self: Evaluator, episodes: list[Episode], indices: range, *rest: object) -> list[EpisodeScore]:
        counted.append(indices)
        return plain(self, episodes, indices, *rest)

    monkeypatch.setattr(Evaluator, "_batch", batch)
    assert evaluate(shapes, decoder, tmp_path, "--fold", "1", "--episodes", "3", "--quiet") == 0
    assert counted == [] and (tmp_path / "scores.json").read_bytes() == first
    assert evaluate(shapes, decoder, tmp_path, "--fold", "1", "--episodes", "6", "--quiet") == 0
    assert counted == [range(2, 4), range(4, 6)], "a longer stream begins as the shorter one; batches are whole"
    counted.clear()
    assert evaluate(shapes, decoder, tmp_path, "--fold", "1", "--episodes", "3", "--steps", "1", "--quiet") == 0
    assert counted == [range(2), range(2, 3)], "another setting"


def test_the_key_changes_with_everything_but_names() -> None:
    plain = setting_of()
    assert setting_of(decoder="y", backbone="c").key == plain.key
    changes = {"dataset": "e", "protocol": "bam", "split": "train", "classes": "others", "fold": 1, "shots": 2}
    changes |= {"annotation": "box", "fingerprint": "g", "input_size": (64, 96), "decoder_hash": "i", "seed": 1}
    changes |= {"steps": 5, "ensemble": 5, "threshold": 0.6, "batch_size": 8, "bf16": True, "device": "cuda"}
    changes |= {"text": "h", "templates": "a {}.", "refine": False}
    assert set(changes) == set(vars(plain)) - {"decoder", "backbone"}
    keys = {setting_of(**{name: value}).key for name, value in changes.items()}
    assert len(keys | {plain.key}) == len(changes) + 1


def test_the_decoders_hash_is_of_weights_and_config(decoder: Path) -> None:
    plain, config = load_decoder(decoder), tiny_config(backbone="fake", steps=2, ensemble=1)
    assert decoder_hash(plain) == decoder_hash(random_decoder(config))
    assert decoder_hash(plain) == decoder_hash(random_decoder(tiny_config(backbone="other", steps=3)))
    assert decoder_hash(plain) != decoder_hash(random_decoder(config, seed=1))
    assert decoder_hash(plain) != decoder_hash(random_decoder(tiny_config(shift="none")))


def test_a_record_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path, setting = tmp_path / "new" / "record.jsonl", setting_of()
    EpisodeRecord(path).append(setting, EPISODES, [SCORE])
    record = EpisodeRecord(path)
    assert record.known(setting, EPISODES) == {0: SCORE} and record.known(setting_of(seed=1), EPISODES) == {}
    other = [Episode(1, "q0", ("t",)), *EPISODES[1:]]
    assert record.known(setting, other) == {}, "another support makes another episode"
    record.append(setting, EPISODES, [EpisodeScore(2, *list(vars(SCORE).values())[1:])])
    assert list(EpisodeRecord(path).known(setting, EPISODES)) == [0, 2]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [("is" in line) for line in lines] == [True, False, False] and lines[0]["is"]["annotation"] == "mask"


def test_episodes_of_another_revision_are_scored_again(shapes: Path, decoder: Path, tmp_path: Path) -> None:
    options = ["--fold", "1", "--episodes", "2", "--quiet"]
    assert evaluate(shapes, decoder, tmp_path / "new", *options) == 0
    entries = [json.loads(line) for line in (tmp_path / "new" / "episodes.jsonl").read_text().splitlines()]
    for entry in entries:  # as it was before boundaries were scored
        entry["setting"] = "0123456789abcdef"
        for name in ("revision", "query", "boundary"):
            entry.pop(name, None)
    old = tmp_path / "old" / "episodes.jsonl"
    old.parent.mkdir()
    old.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = old.read_bytes()
    assert evaluate(shapes, decoder, tmp_path / "old", *options) == 0
    assert old.read_bytes() == before + (tmp_path / "new" / "episodes.jsonl").read_bytes()
    for name in FILES:
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_presences_that_do_not_know_the_number_of_supports_are_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, setting = tmp_path / "record.jsonl", setting_of()
    with monkeypatch.context() as before:
        before.setattr("diffup.evaluation.record.REVISION", 6)
        EpisodeRecord(path).append(setting, EPISODES, [SCORE])
    assert EpisodeRecord(path).known(setting, EPISODES) == {}


def test_a_torn_line_is_dropped_and_a_damaged_one_named(tmp_path: Path) -> None:
    path, setting = tmp_path / "record.jsonl", setting_of()
    EpisodeRecord(path).append(setting, EPISODES, [SCORE])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-90:-1])
    record = EpisodeRecord(path)
    assert record.known(setting, EPISODES) == {0: SCORE}
    record.append(setting_of(seed=1), EPISODES, [SCORE])
    assert path.read_bytes().startswith(whole) and len(EpisodeRecord(path).known(setting_of(seed=1), EPISODES)) == 1
    for damage in (b"{]\n", b'{"setting": "a"}\n', b"[1]\n", whole.splitlines()[1].replace(b"[[1, 2], ", b"[") + b"\n"):
        path.write_bytes(whole + damage + whole)
        with pytest.raises(DataError, match=r"record\.jsonl, line 3 is damaged"):
            EpisodeRecord(path)


def test_scores_follow_from_the_episodes_whatever_their_order() -> None:
    episodes = [
        EpisodeScore(0, 1, "a", 100, (10, 40), (2, 20), ((5, 10),) * 19, ((1, 10),) * 19, 0.3, 0.6, None),
        EpisodeScore(1, 1, "b", 100, (30, 40), (4, 20), ((5, 30),) * 19, ((2, 10),) * 19, 0.9, 0.4, 0.5),
        EpisodeScore(2, 4, "c", 50, (0, 10), (1, 8), ((0, 1),) * 19, ((0, 1),) * 19, 0.1, 0.8, 0.3),
    ]
    scores = summarise(episodes, [1, 4, 7])
    assert scores == summarise(episodes[::-1], [7, 4, 1])
    assert scores.class_iou == {1: 50.0, 4: 0.0, 7: 0.0}
    assert scores.miou == pytest.approx(50 / 3), "a class that never occurs counts as 0"
    background = (60 + 60 + 40) / (90 + 70 + 50)
    assert scores.fb_iou == pytest.approx(100 * (40 / 90 + background) / 2)
    assert set(scores.prior_miou_by_threshold) == set(THRESHOLDS)
    assert scores.prior_miou_by_threshold[0.5] == pytest.approx(100 * 3 / 20 / 3)
    assert scores.boundary_iou == pytest.approx(100 * (6 / 40 + 1 / 8) / 3)
    assert scores.quality_correlation > 0.9
    assert scores.presence_auc == pytest.approx(100 * 5 / 6), "of six pairs, only 0.4 does not exceed 0.5"
    assert scores.false_alarms == 50, "0.5 reaches the least presence of the three queries, 0.4"
    assert scores.figures()["gain_over_prior"] == pytest.approx(100 * (1 / 2 - 3 / 20) / 3)
    assert episodes[1].iou == 0.75 and episodes[0].prior_iou() == 0.1


# --- protocols of the literature -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC's layout with eight test images of the classes 1 to 3; one at a time, then 1 and 2 side by side."""
    root = tmp_path_factory.mktemp("voc")
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    contents = [(1,), (2,), (3,), (1,), (2,), (3,), (1, 2), (2, 1)]
    for index, classes in enumerate(contents):
        image, labels = shape_image(classes, (160, 200), seed=index)
        labels[:5] = 255
        Image.fromarray(image).save(root / "JPEGImages" / f"i{index}.jpg")
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"i{index}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(f"i{index}" for index in range(len(contents))))
    return root


@pytest.mark.parametrize("protocol", ["hsnet", "bam"])
def test_benchmarks_are_scored_by_their_protocol(pascal: Path, decoder: Path, tmp_path: Path, protocol: str) -> None:
    options = ["--dataset", "pascal5i", "--protocol", protocol, "--fold", "0", "--episodes", "3", "--quiet"]
    assert evaluate(pascal, decoder, tmp_path, *options) == 0
    data, rule = open_dataset("pascal5i", pascal), PROTOCOLS[protocol]
    rows = rows_of(tmp_path)
    assert [row["seed"] for row in rows] == list(rule.seeds)
    model = DiffUp(load_decoder(decoder), FakeBackbone(input_size=(64, 64)), "cpu")
    stream = draw_stream(data, 0, 1, protocol, rule.seeds[-1], 3)
    scores = Evaluator(model, data, scored=rule.scored).run(
        stream, classes=data.fold(0), seed=rule.seeds[-1], batch_size=2
    )
    assert rows[-1]["miou"] == scores.miou and rows[-1]["protocol"] == protocol
    assert list(rows[-1]["class_iou"]) == ["aeroplane", "bicycle", "bird", "boat", "bottle"], "all that the fold has"
    pixels = {json.loads(line).get("pixels") for line in (tmp_path / "episodes.jsonl").read_text().splitlines()}
    assert pixels - {None} == ({160 * 200 - 5 * 200} if protocol == "bam" else {400 * 400 - 13 * 400})


# --- data sets and errors --------------------------------------------------------------------------------------------


def test_data_sets_by_name(shapes: Path, tmp_path: Path) -> None:
    assert open_dataset("folder", shapes).name == "data"
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("")
    assert open_dataset("pascal5i", tmp_path).fold(0) == (1, 2, 3, 4, 5)
    assert open_dataset("coco_to_pascal", tmp_path).fold(1) == COCO_TO_PASCAL[1]
    with pytest.raises(ConfigError, match="dataset='pascal': expected one of " + ", ".join(DATASETS)):
        open_dataset("pascal", tmp_path)
    for name, option in (("folder", "lists"), ("pascal5i", "masks"), ("fss1000", "year")):
        with pytest.raises(ConfigError, match=f"{option}='1': the data set '{name}' has no such option"):
            open_dataset(name, tmp_path, **{option: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "voc"], "dataset='voc': expected one of folder, pascal5i"),
        (["--dataset", "pascal5i"], "JPEGImages is missing"),
        (["--dataset", "coco20i"], "val2014 is missing"),
        (["--dataset", "coco20i", "--year", "2015"], "year=2015"),
        (["--dataset", "fss1000"], "is missing; FSS-1000 looks like this"),
        (["--lists", "x"], "lists='x'"),
        (["--fold", "7"], "fold=7"),
        (["--split", "val"], "split='val'"),
        (["--shots", "0"], "shots=0"),
        (["--shots", "0", "--backbone", "fakes"], "shots=0"),
        (["--episodes", "0"], "episodes=0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--annotation", "sketch"], "annotation='sketch': expected one of mask, box"),
        (["--annotation", "instance_box"], "annotation='instance_box': data has no instances"),
        (["--protocol", "hsnet"], "protocol='hsnet': data is scored by 'folder' alone"),
        (["--protocol", "coco"], "protocol='coco': expected one of folder, hsnet, bam"),
        (["--steps", "51"], "steps=51"),
        (["--threshold", "1"], "threshold=1.0"),
        (["--seeds", "0", str(2**32)], f"seeds={2**32}"),
        (["--backbone", "fake="], "NAME[=CHECKPOINT][@PIXELS]"),
        (["--backbone", "fakes"], "did you mean 'fake'"),
        (["--decoder", "nowhere"], "'nowhere' is no folder"),
        (["--device", "abacus"], "device='abacus'"),
    ],
)
def test_errors_come_before_anything_is_scored(
    options: list[str], message: str, shapes: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(shapes, decoder, out, "--episodes", "2", *options) == cli.FAILED
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("diffup: error: ") and message in printed.err
    assert not out.exists()


def test_a_missing_folder(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "no_data", decoder, tmp_path / "out") == cli.FAILED
    assert "no_data" in capsys.readouterr().err


def test_protocols_of_the_literature_fix_the_split(tmp_path: Path) -> None:
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("")
    data = open_dataset("pascal5i", tmp_path)
    plan = sweep.Plan().resolve(data)
    assert (plan.protocol, plan.folds, plan.seeds) == ("hsnet", (0, 1, 2, 3), (0,))
    assert len(sweep.Plan(protocol="bam").resolve(data).seeds) == 5
    with pytest.raises(ConfigError, match="protocol='folder': pascal5i is scored by 'hsnet' or 'bam'"):
        sweep.Plan(protocol="folder").resolve(data)
    for changes in ({"split": "train"}, {"others": True}):
        with pytest.raises(ConfigError, match="protocol 'hsnet' fixes what is scored"):
            sweep.Plan(**changes).resolve(data)


def test_the_benchmark_script_scores_the_training_free_anchor(shapes: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "coco_mini.py"))
    arguments = [str(shapes), "--anchor", "--backbone", "fake", "--fold", "1", "--episodes", "3", "-o", str(tmp_path)]
    arguments.append("--no-refine")  # which would refine the decoder's map, here the prior, and not the prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["coco_mini.py", *arguments, "--device", "cpu", "--quiet"])
        assert script["main"]() == 0
        [row] = rows_of(tmp_path)
        assert row["decoder"] == "anchor" and row["steps"] == row["ensemble"] == 1 and row["refine"] is False
        assert row["miou_by_threshold"] == row["prior_miou_by_threshold"]
        patch.setattr(sys, "argv", ["coco_mini.py", *arguments, "--split", "none"])
        assert script["main"]() == cli.FAILED
