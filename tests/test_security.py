"""No file that a user names runs code: pickles are read as plain weights or not at all."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import diffup
from diffup import load_backbone
from diffup.errors import ImageError, WeightsError
from diffup.inputs.images import read_image

SOURCES = sorted(Path(diffup.__file__).parent.rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if path.name != "coco20i.py":  # HSNet's lists are pickles; its reader refuses whatever needs an import
            assert not {name.split(".")[0] for name in names} & PICKLING
    for name, call in calls(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN, f"{name} in line {call.lineno}"
        assert options.get("allow_pickle", "False") == "False", f"line {call.lineno}"
        assert options.get("trust_remote_code", "False") == "False", f"line {call.lineno}"
        assert options.get("shell", "False") == "False", f"line {call.lineno}"
        if name == "torch.load":
            assert options.get("weights_only") == "True", f"torch.load in line {call.lineno}"
        assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen", "yaml.load"), (
            f"line {call.lineno}"
        )


class Poison:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy", "nested"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_poisoned_checkpoint_is_refused_and_does_nothing(tmp_path: Path, kind: str, suffix: str) -> None:
    path, mark = tmp_path / f"weights{suffix}", tmp_path / "ran"
    content = {"state_dict": {"a": torch.zeros(1), "b": Poison(mark)}} if kind == "nested" else Poison(mark)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(WeightsError, match="cannot be read as"):
        load_backbone("bundled:efficientnet_lite0", checkpoint_path=str(path))
    assert not mark.exists()


def test_a_poisoned_array_is_no_image(tmp_path: Path) -> None:
    path, mark = tmp_path / "image.npy", tmp_path / "ran"
    np.save(path, np.array([Poison(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError):
        read_image(path)
    assert not mark.exists()
