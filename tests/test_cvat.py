"""CVAT's detection function, called by CVAT's own packages; their server is played by `cvat_server`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_cli._internal.common import FunctionLoader
from cvat_cli._internal.parsers import parse_function_parameter
from cvat_sdk.core.client import AccessTokenCredentials, Client, Config
from cvat_sdk.masks import decode_mask
from cvat_server import TASK, Task, serve
from fakes import save_tiny_decoder, shape_image, teach

from diffup import DiffUp, LabelMap, Prototypes
from diffup.decoder.options import SamplingOptions
from diffup.errors import ConfigError, MissingPackageError, PrototypesError
from diffup.formats import decode_segmentation
from diffup.integrations.cvat import DetectionFunction, create

SIZES = ((80, 96), (60, 150), (72, 72))
IMAGES = [shape_image((1, 2), size, seed) for seed, size in enumerate(SIZES)]
NAMES = ("square", "disc")
EVERYTHING = SamplingOptions(min_presence=0.0)


@pytest.fixture(scope="module")
def expected(model: DiffUp, classes: list[Prototypes]) -> list[LabelMap]:
    return [model.segment(image, classes, options=EVERYTHING) for image, _ in IMAGES]


@pytest.fixture
def annotate(tmp_path: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """`annotate(function, ...)`: what CVAT's driver uploads to a task of three photos."""

    def call(function: Any, labels: tuple[str, ...] = NAMES, kind: str = "any", **options: Any) -> list[dict[str, Any]]:
        task = Task([image for image, _ in IMAGES], labels, kind)
        with serve(task) as url, Client(url, config=Config(cache_dir=tmp_path / "cache")) as client:
            client.login(AccessTokenCredentials("a-token"))
            cvataa.annotate_task(client, TASK, function, **options)
        (uploaded,) = task.uploaded
        assert uploaded["tags"] == []
        return uploaded["shapes"]

    yield call


def decoded(shape: dict[str, Any]) -> np.ndarray:
    height, width = SIZES[shape["frame"]]
    return decode_mask(shape["points"], image_width=width, image_height=height)


def test_masks_are_those_of_the_label_map(
    model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], annotate: Callable[..., Any]
) -> None:
    function = DetectionFunction(model, classes, EVERYTHING)
    assert [(label.name, label.id, label.type) for label in function.spec.labels] == [
        ("square", 1, "mask"),
        ("disc", 2, "mask"),
    ]
    shapes = annotate(function, labels=("cat", "disc", "square"), kind="mask")  # matched by name, whatever their order
    wanted = [
        (frame, {1: 103, 2: 102}[label], found.labels == label)
        for frame, found in enumerate(expected)
        for label in (1, 2)
        if (found.labels == label).any()
    ]
    assert len(wanted) >= 4
    assert [(shape["frame"], shape["label_id"]) for shape in shapes] == [item[:2] for item in wanted]
    for shape, (_, _, mask) in zip(shapes, wanted, strict=True):
        assert (shape["type"], shape["source"]) == ("mask", "auto")
        np.testing.assert_array_equal(decoded(shape), mask)


def test_polygons_where_cvat_asks_for_them(
    model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], annotate: Callable[..., Any]
) -> None:
    exact = DetectionFunction(model, classes, EVERYTHING, tolerance=0.0)
    shapes = annotate(exact, kind="polygon", conv_mask_to_poly=True)
    assert {shape["type"] for shape in shapes} == {"polygon"}
    for frame, found in enumerate(expected):
        for label in (1, 2):
            own = [s["points"] for s in shapes if (s["frame"], s["label_id"]) == (frame, 100 + label)]
            mask = decode_segmentation(own, SIZES[frame]) if own else np.zeros(SIZES[frame], bool)
            np.testing.assert_array_equal(mask, found.labels == label)
    rough = annotate(DetectionFunction(model, classes, EVERYTHING), kind="polygon", conv_mask_to_poly=True)
    assert len(rough) == len(shapes)
    assert sum(len(shape["points"]) for shape in rough) < sum(len(shape["points"]) for shape in shapes)


def test_objects(
    model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], annotate: Callable[..., Any]
) -> None:
    shapes = annotate(DetectionFunction(model, classes, EVERYTHING, instances=True))
    wanted = [(frame, item) for frame, found in enumerate(expected) for item in found.marked(instances=True)]
    assert len(wanted) == sum(len(list(found.instances())) for found in expected) > 0
    for shape, (frame, item) in zip(shapes, wanted, strict=True):
        assert (shape["frame"], shape["label_id"]) == (frame, 100 + item.label)
        np.testing.assert_array_equal(decoded(shape), item.mask)


def test_the_confidence_threshold_is_the_least_presence(
    model: DiffUp, classes: list[Prototypes], expected: list[LabelMap], annotate: Callable[..., Any]
) -> None:
    presences = sorted({p for found in expected for p in found.presence.values()})
    least = presences[len(presences) // 2]
    kept = {
        (frame, 101 + index)
        for frame, found in enumerate(expected)
        for index, presence in enumerate(found.presence.values())
        if presence >= least
    }
    shapes = annotate(DetectionFunction(model, classes, EVERYTHING), conf_threshold=least)
    assert 0 < len(kept) < 6
    assert {(shape["frame"], shape["label_id"]) for shape in shapes} <= kept
    assert any(shape["frame"] == frame for shape in shapes for frame, _ in kept)
    assert annotate(DetectionFunction(model, classes, EVERYTHING), conf_threshold=1.0) == []
    strict = DetectionFunction(model, classes, SamplingOptions(min_presence=1.0))
    assert annotate(strict) == []  # an absent class has no shape
    assert annotate(strict, conf_threshold=0.0) == annotate(DetectionFunction(model, classes, EVERYTHING))


def test_cvat_matches_the_names_of_labels(
    model: DiffUp, classes: list[Prototypes], annotate: Callable[..., Any]
) -> None:
    function = DetectionFunction(model, classes, EVERYTHING)
    with pytest.raises(cvataa.BadFunctionError, match="label 'disc' is not in dataset"):
        annotate(function, labels=("square",))
    shapes = annotate(function, labels=("square",), allow_unmatched_labels=True)
    assert {shape["label_id"] for shape in shapes} == {101}
    with pytest.raises(cvataa.BadFunctionError, match="type 'mask' in the function, but 'rectangle'"):
        annotate(function, kind="rectangle")


# --- loaded by cvat-cli ----------------------------------------------------------------------------------------------


def load(*parameters: str) -> Any:
    """What `cvat-cli ... --function-module diffup.integrations.cvat -p ... -p ...` loads."""
    given = dict(map(parse_function_parameter, parameters))
    return FunctionLoader("diffup.integrations.cvat", None, given).load()


@pytest.fixture
def files(tmp_path: Path, tiny_release: None, fake_encoders: None) -> list[Path]:
    """Prototypes of two classes, made with the released model."""
    made = teach(DiffUp.from_pretrained(device="cpu"), NAMES)
    return [item.save(tmp_path / f"{item.name}.safetensors") for item in made]


def names_of(function: Any) -> list[str]:
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    return [label.name for label in function.spec.labels]


def test_parameters_of_the_command_line(files: list[Path], tmp_path: Path, annotate: Callable[..., Any]) -> None:
    both = f"prototypes=str:{files[1]}, {files[0]}"
    assert names_of(load(f"prototypes=str:{files[0]}")) == ["square"]
    assert names_of(create([files[0], Prototypes.load(files[1])])) == ["square", "disc"]
    comma = files[0].rename(tmp_path / "a,b.safetensors")
    assert names_of(load(f"prototypes=str:{comma}")) == ["square"]
    comma.rename(files[0])
    function = load(both, "min_presence=float:0", "steps=int:2", "instances=bool:true", "device=str:cpu", "seed=int:3")
    assert names_of(function) == ["disc", "square"]
    model = DiffUp.from_pretrained(device="cpu")
    options = SamplingOptions(min_presence=0.0, steps=2, seed=3)
    same = DetectionFunction(model, [files[1], files[0]], options, instances=True)
    assert annotate(function) == annotate(same) != []


def test_names_of_files_that_together_are_longer_than_a_path(
    model: DiffUp, classes: list[Prototypes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [dataclasses.replace(classes[0], name=f"class {number}") for number in range(20)]
    paths = [item.save(f"class_number_{number}.safetensors") for number, item in enumerate(given)]
    text = ",".join(map(str, paths))
    assert len(text) > 255
    assert names_of(DetectionFunction(model, text)) == [item.name for item in given]


def test_another_decoder_and_encoder(files: list[Path], tmp_path: Path) -> None:
    other = save_tiny_decoder(tmp_path / "other", seed=1)
    assert names_of(load(f"prototypes=str:{files[0]}", f"decoder=str:{other}")) == ["square"]
    with pytest.raises(PrototypesError, match="'square' were made with"):
        load(f"prototypes=str:{files[0]}", "input_size=int:64")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (["prototypes=str:gone.safetensors"], PrototypesError, "there is no file 'gone.safetensors'"),
        (["prototypes=str:{0},{0}"], PrototypesError, "square"),
        (["prototypes=str:{0}", "min_presence=float:2"], ConfigError, "min_presence=2.0: it must be 0 to 1"),
        (["prototypes=str:{0}", "tolerance=float:-1"], ConfigError, "tolerance=-1.0"),
        (["prototypes=str:{0}", "treshold=float:0.5"], TypeError, "treshold.*threshold"),
        ([], TypeError, "prototypes"),
    ],
)
def test_wrong_parameters(files: list[Path], parameters: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(*(text.format(*files) for text in parameters))


def test_names_that_are_too_long_for_cvat(model: DiffUp, classes: list[Prototypes]) -> None:
    long = dataclasses.replace(classes[0], name="x" * 65)
    with pytest.raises(ConfigError, match="has 65 characters, CVAT takes 64"):
        DetectionFunction(model, long)
    assert names_of(DetectionFunction(model, dataclasses.replace(long, name="x" * 64))) == ["x" * 64]


def test_cvat_is_optional(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(MissingPackageError, match='pip install "cvat-cli>='):
        create(files[0])


@pytest.mark.slow
def test_the_command_line_of_cvat(tmp_path: Path) -> None:
    """`cvat-cli task auto-annotate` with the released decoder: the cat is marked, a page of text is not."""
    data = pytest.importorskip("skimage.data")
    cat = data.chelsea()
    rows, columns = np.mgrid[: cat.shape[0], : cat.shape[1]]
    mask = ((columns - 225) / 125) ** 2 + ((rows - 150) / 130) ** 2 < 1
    DiffUp.from_pretrained(device="cpu").prototypes(cat, mask, name="cat").save(tmp_path / "cat.safetensors")
    page = np.repeat(data.page()[..., None], 3, axis=2)
    task = Task([np.ascontiguousarray(cat[:, ::-1]), page], ["dog", "cat"])
    options = ["--function-module", "diffup.integrations.cvat", "-p", "prototypes=str:cat.safetensors"]
    environment = {**os.environ, "CVAT_ACCESS_TOKEN": "a-token", "XDG_CACHE_HOME": str(tmp_path)}
    with serve(task) as url:
        command = [sys.executable, "-m", "cvat_cli", "--server-host", url, "task", "auto-annotate", str(TASK), *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    ((shape,),) = [uploaded["shapes"] for uploaded in task.uploaded]
    assert (shape["frame"], shape["label_id"], shape["type"]) == (0, 102, "mask")
    found, truth = decode_mask(shape["points"], image_width=cat.shape[1], image_height=cat.shape[0]), mask[:, ::-1]
    assert (found & truth).sum() / (found | truth).sum() > 0.6  # 0.71 when this was written
