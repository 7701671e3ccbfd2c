"""Pushing to and fetching from the Hugging Face hub: its client against a server on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub as loopback
import pytest
import torch
from fakes import FakeBackbone, make_folder, random_decoder, tiny_config, tiny_model
from huggingface_hub import constants, utils
from pages import ROOT

from diffup import DiffUp, cli
from diffup.decoder.weights import save_decoder
from diffup.errors import ConfigError, HubError, WeightsError
from diffup.publish.hub import write_repository
from diffup.publish.model_card import CardSources
from diffup.training.config import TrainConfig


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Hub]:
    """A hub on the loopback in the place of the real one, and an empty cache."""
    with loopback.serve() as server:
        loopback.use(server, tmp_path / "cache", monkeypatch)
        yield server


def model_of(seed: int = 0) -> DiffUp:
    return tiny_model(seed=seed, backbone="fake")


def load(source: str | Path, **options: object) -> DiffUp:
    return DiffUp.from_pretrained(source, backbone=FakeBackbone(), device="cpu", **options)


def same(a: DiffUp, b: DiffUp) -> bool:
    states = a.decoder.state_dict(), b.decoder.state_dict()
    return a.config == b.config and all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def push(model: DiffUp, repo: str = "ann/shapes", **options: object) -> str:
    return model.push_to_hub(repo, token="of-the-loopback", **options)


def test_what_was_pushed_comes_back(hub: loopback.Hub) -> None:
    model = model_of()
    url = push(model, message="first")
    assert url.startswith(f"{hub.address}/ann/shapes/commit/")
    assert set(hub.files("ann/shapes")) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert hub.messages == ["first"] and hub.private["ann/shapes"] is False
    assert same(load("ann/shapes"), model)
    assert not any("README" in line for line in hub.asked if "/resolve/" in line)  # only what is needed is fetched


def test_branches_and_commits(hub: loopback.Hub) -> None:
    first, second = model_of(1), model_of(2)
    commit = push(first).rsplit("/", 1)[1]
    push(second, revision="trial", private=True)
    push(first, revision="trial")
    push(second, revision="trial")  # a branch and a repository that are there already
    assert same(load("ann/shapes"), first) and same(load("ann/shapes", revision="trial"), second)
    push(second)
    assert same(load("ann/shapes", revision=commit), first) and same(load("ann/shapes"), second)
    with pytest.raises(WeightsError, match=r"'ann/shapes'.*RevisionNotFound"):
        load("ann/shapes", revision="nowhere")


def test_offline_what_was_fetched_before_is_used_and_nothing_is_asked(
    hub: loopback.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    push(model)
    load("ann/shapes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reset_session()
    hub.asked.clear()
    try:
        assert same(load("ann/shapes"), model)
        with pytest.raises(WeightsError, match=r"'ann/other' is no folder.*local copy"):
            load("ann/other")
        with pytest.raises(HubError, match=r"push to 'ann/shapes'.*[Oo]ffline"):
            push(model)
    finally:
        reset_session()
    assert hub.asked == []


def reset_session() -> None:
    """The client keeps a connection that remembers whether it was offline."""
    for name in ("close_session", "reset_sessions"):
        reset = getattr(utils, name, None)
        if reset is not None:
            reset()


def test_a_refusal_is_told_and_leaves_nothing(hub: loopback.Hub) -> None:
    hub.refuses = True
    with pytest.raises(HubError, match=r"push to 'ann/shapes'.*hf auth login"):
        push(model_of())
    assert hub.repositories == {}


@pytest.mark.parametrize("repo", ["shapes", "a/b/c", "a b/c", ""])
def test_names_are_checked_before_anything_is_sent(hub: loopback.Hub, repo: str) -> None:
    with pytest.raises(ConfigError, match="no name of a hub repository"):
        push(model_of(), repo)
    assert hub.asked == []


def test_a_repository_on_the_disk_is_a_decoder_folder(tmp_path: Path) -> None:
    model = model_of()
    folder = write_repository(tmp_path / "repository", model.decoder, "ann/shapes", dtype=torch.float16)
    loaded = load(folder)
    assert loaded.config == model.config and not same(loaded, model)  # rounded
    assert "float16" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_clients_own_settings_hold_in_a_process_of_its_own(hub: loopback.Hub, tmp_path: Path) -> None:
    """`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` as a user sets them."""
    model = model_of()
    model.save_pretrained(tmp_path / "decoder")
    fetch = "from diffup.decoder.weights import *; print(*load_decoder(fetch_decoder('ann/shapes')).config.channels)"
    arguments = ["push", str(tmp_path / "decoder"), "ann/shapes"]
    push = f"import sys; from diffup import cli; sys.exit(cli.main({arguments!r}))"
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "of-the-loopback", "HF_HOME": str(tmp_path / "home")}

    def run(code: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | settings | {"HF_HUB_DISABLE_XET": "1"} | more
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)

    pushed = run(push)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(f"{hub.address}/ann/shapes/commit/")
    fetched = run(fetch)
    assert fetched.stdout.split() == [str(width) for width in model.config.channels], fetched.stderr
    hub.asked.clear()
    assert run(fetch, HF_HUB_OFFLINE="1").stdout == fetched.stdout
    refused = run(push, HF_HUB_OFFLINE="1")
    assert refused.returncode == 2 and "push to 'ann/shapes'" in refused.stderr
    assert hub.asked == []


# --- the model card --------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_family(families: Callable[..., None]) -> None:
    families(fake=lambda variant: FakeBackbone())


@pytest.fixture
def decoder_folder(tmp_path: Path) -> Path:
    model = model_of()
    save_decoder(tmp_path / "decoder", model.decoder.state_dict(), model.config)
    return tmp_path / "decoder"


@pytest.fixture
def scores(tmp_path: Path, decoder_folder: Path, fake_family: None) -> Path:
    """The file that `diffup evaluate` writes, of both folds."""
    data = make_folder(tmp_path / "data")
    line = ["evaluate", str(data), "--decoder", str(decoder_folder), "--episodes", "3", "-o", str(tmp_path / "scores")]
    assert cli.main([*line, "--quiet", "--device", "cpu"]) == 0
    return tmp_path / "scores" / "scores.json"


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    config = TrainConfig(decoder=model_of().config, backbones=("fake:one", "fake:two"), folds=(1,), steps=77, seed=5)
    path.write_text(config.to_json())
    return path


def test_the_card_says_what_the_files_say(
    hub: loopback.Hub, decoder_folder: Path, scores: Path, training: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("Shapes drawn by a program.")
    line = ["push", str(decoder_folder), "ann/shapes", "--scores", str(scores), "--training", str(training)]
    line += ["--licence", "mit", "--notes", str(notes)]
    assert cli.main([*line, "--dry-run", str(tmp_path / "dry")]) == 0
    assert hub.asked == []
    assert cli.main([*line, "--private"]) == 0
    files = hub.files("ann/shapes")
    assert hub.private["ann/shapes"] is True
    assert {name: (tmp_path / "dry" / name).read_bytes() for name in files if name != ".gitattributes"} == {
        name: content for name, content in files.items() if name != ".gitattributes"
    }
    assert files["scores.json"] == scores.read_bytes() and files["training.json"] == training.read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: diffup\nlicense: mit\n")
    assert "`fake:one`, `fake:two`" in card and "| folds held out | 1 |" in card and "| 77, " in card
    assert card.endswith("## Notes\n\nShapes drawn by a program.\n") and "Not stated." not in card
    rows = json.loads(scores.read_text())["rows"]
    assert len(rows) == 2
    for row in rows:
        assert f"| {row['fold']} | 3 | {row['miou']:.1f} | {row['fb_iou']:.1f} | {row['prior_best_miou']:.1f} |" in card
    assert "shots 1, annotation mask, steps 3, ensemble 2, threshold 0.5." in card


def test_what_is_not_known_is_not_stated(tmp_path: Path) -> None:
    card = (write_repository(tmp_path, model_of().decoder, "ann/shapes") / "README.md").read_text()
    assert card.count("Not stated.") == 2 and "license" not in card


def test_rounding_after_the_scores_is_said(scores: Path, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "half", model_of().decoder, "a/b", CardSources(scores), dtype=torch.float16)
    assert "before the weights were rounded to float16" in (folder / "README.md").read_text()


def test_scores_and_settings_of_another_decoder_are_refused(scores: Path, training: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are of another decoder"):
        write_repository(tmp_path / "out", model_of(seed=1).decoder, "a/b", CardSources(scores))
    other = random_decoder(tiny_config(signal_scale=0.4))
    with pytest.raises(ConfigError, match="another config"):
        write_repository(tmp_path / "out", other, "a/b", CardSources(training=training))
    assert not (tmp_path / "out").exists()


def test_bad_files_and_names_are_refused(tmp_path: Path, training: Path) -> None:
    decoder = model_of().decoder
    (tmp_path / "bad.json").write_text('{"rows": [{"fold": 1}]}')
    (tmp_path / "card.md").write_text("# Mine")
    for options, named in (
        ({"sources": CardSources(tmp_path / "none.json")}, "there is no such file"),
        ({"sources": CardSources(training)}, "is no scores.json"),
        ({"sources": CardSources(tmp_path / "bad.json")}, "a row lacks"),
        ({"sources": CardSources(licence="MIT: yes")}, "licence='MIT: yes'"),
        ({"card": tmp_path / "none.md"}, "there is no such file"),
        ({"card": tmp_path / "card.md", "sources": CardSources(licence="mit")}, "taken as it is"),
    ):
        with pytest.raises(ConfigError, match=named):
            write_repository(tmp_path / "out", decoder, "a/b", **options)
    write_repository(tmp_path / "out", decoder, "a/b", card=tmp_path / "card.md")
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine"


def test_the_command_tells_errors(decoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(decoder_folder), "shapes"]) == 2
    assert "'user/repo'" in capsys.readouterr().err
    assert cli.main(["push", str(tmp_path / "nothing"), "a/b"]) == 2
    assert "FOLDER: there is no folder" in capsys.readouterr().err
