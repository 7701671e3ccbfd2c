"""What the server for labelling tools is made of: joined prototypes, kept shots, and a model that threads share."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import teach, tiny_model
from labelling import ask, masks, predictions, saved, scene, server, small_model, version
from starlette.testclient import TestClient

from diffup import DiffUp, Mask
from diffup.errors import DataError, PrototypesError
from diffup.prototypes import join_prototypes
from diffup.serve.learner import MAX_SHOTS, Learner
from diffup.serve.shots import ShotFolder, ShotGoneError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_joined_prototypes_are_those_of_all_supports() -> None:
    model = small_model()
    pairs = [(scene(seed)[0], Mask(scene(seed)[1] == 1)) for seed in range(3)]
    single = [model.prototypes(image, mask, name="square") for image, mask in pairs]
    together = model.prototypes([image for image, _ in pairs], [mask for _, mask in pairs], name="square")
    joined = join_prototypes(single)
    assert joined.shots == 3 and joined.name == "square" and not joined.kept_supports
    for one, other in zip(joined.features.levels, together.features.levels, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < 1e-5
    assert (joined.features.foreground == together.features.foreground).all()
    assert join_prototypes(single[:1]).features.levels[0].shape[1] == 3  # the views of a single support
    with pytest.raises(PrototypesError, match="empty list"):
        join_prototypes([])


def test_joined_prototypes_keep_what_is_not_the_class() -> None:
    model = small_model()
    image, labels = scene(0)
    first, last = (model.prototypes(image, Mask(labels == 1), name="square", negatives=[scene(n)[0]]) for n in (1, 2))
    plain = model.prototypes(image, Mask(labels == 1), name="square")
    joined = join_prototypes([first, plain, last])
    assert joined.shots == 3 and joined.negative is not None and joined.negative.shots == 2
    assert join_prototypes([plain, plain]).negative is None


def test_known_classes_are_added_to(tmp_path: Path, scenes: Path) -> None:
    model = small_model()
    client = server(tmp_path / "shots", [scenes], known=teach(model, ["square"]))
    before = masks(predictions(client, 1)[0])["square"]
    ask(client, "/webhook", saved(0))
    expected = join_prototypes([*teach(model, ["square"]), model.prototypes(scene(0)[0], scene(0)[1] == 1)])
    after = masks(predictions(client, 1)[0])["square"]
    assert (after == model.segment(scene(1)[0], expected, min_presence=0.0).mask).all() and (after != before).any()


def test_the_shots_changed_last_are_used(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffup.serve.learner.MAX_SHOTS", 1)
    client = server(tmp_path / "shots", [scenes])
    for seed in (1, 0):
        ask(client, "/webhook", saved(seed, updated_at=f"2026-11-30T10:00:0{9 - seed}Z"))
    image, labels = scene(0)
    expected = small_model().segment(scene(2)[0], image, labels == 1, min_presence=0.0)
    assert (masks(predictions(client, 2)[0])["square"] == expected.mask).all()
    assert MAX_SHOTS == 10


class Counted:
    """Counts how many use the model at a time."""

    def __init__(self, model: DiffUp) -> None:
        self.model, self.now, self.most = model, 0, 0
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def segment(self, *args: Any, **options: Any) -> Any:
        return self._count(lambda: self.model.segment(*args, **options))

    def prototypes(self, *args: Any, **options: Any) -> Any:
        return self._count(lambda: self.model.prototypes(*args, **options))

    def _count(self, call: Callable[[], Any]) -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return call()
        finally:
            with self.lock:
                self.now -= 1


def test_predictions_while_it_learns(tmp_path: Path, scenes: Path) -> None:
    """Every answer is that of a state between two saved annotations, and the last is that of a server alone."""
    model = Counted(tiny_model(min_presence=0.0))
    client = server(tmp_path / "shots", [scenes], model=model)
    ask(client, "/webhook", saved(0))
    states = {version(client): masks(predictions(client, 3)[0])["square"].tobytes()}
    for action, seed in (("ANNOTATION_CREATED", 1), ("ANNOTATION_CREATED", 2)):
        ask(client, "/webhook", saved(seed, action=action))
        states[version(client)] = masks(predictions(client, 3)[0])["square"].tobytes()
    for seed in (2, 1):
        ask(client, "/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": seed + 1}]})
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(predictions, client, 3) for _ in range(3)]
        told = [pool.submit(ask, client, "/webhook", saved(seed)) for seed in (1, 2)]
        asked += [pool.submit(predictions, client, 3) for _ in range(3)]
    for future in told:
        future.result()
    known = set(states.values()) | {marked_with(scenes, tmp_path / "other", (0, 2))}
    assert {masks(future.result()[0])["square"].tobytes() for future in asked} <= known
    assert masks(predictions(client, 3)[0])["square"].tobytes() == states[version(client)]
    assert model.most == 1


def marked_with(scenes: Path, shots: Path, seeds: tuple[int, ...]) -> bytes:
    client = server(shots, [scenes])
    for seed in seeds:
        ask(client, "/webhook", saved(seed))
    return masks(predictions(client, 3)[0])["square"].tobytes()


def test_a_shot_that_goes_while_it_is_learnt(tmp_path: Path, client: TestClient, scenes: Path) -> None:
    ask(client, "/webhook", saved(0))
    folder = ShotFolder(tmp_path / "shots")
    (shot,) = folder.shots()
    folder.remove(shot.annotation)
    with pytest.raises(ShotGoneError):
        folder.read(shot)
    listed = iter([[shot], []])
    folder.shots = lambda: next(listed)
    assert Learner(small_model(), folder).segment(scene(1)[0], ["square"]) is None


def test_a_damaged_folder_is_refused(tmp_path: Path, client: TestClient) -> None:
    ask(client, "/webhook", saved(0))
    path = tmp_path / "shots" / "annotations" / "1.json"
    content = json.loads(path.read_text())
    for damage in (
        "{",
        "[]",
        json.dumps(content | {"annotations": []}),
        json.dumps(content | {"annotations": [content["annotations"][0] | {"id": "../1"}]}),
        json.dumps(content | {"data": {"image": "../../0.png"}}),
        json.dumps(content | {"data": {"image": 3}}),
    ):
        path.write_text(damage)
        with pytest.raises(DataError, match=r"1\.json"):
            ShotFolder(tmp_path / "shots")


def test_known_classes_are_checked(tmp_path: Path) -> None:
    classes = teach(small_model(), ["square"])
    with pytest.raises(PrototypesError, match="more than once"):
        Learner(small_model(), ShotFolder(tmp_path), classes * 2)
