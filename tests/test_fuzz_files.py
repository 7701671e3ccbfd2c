"""Configs, weights, records and other tools' files of every wrongness: read right, or an error of our own."""

from __future__ import annotations

import json
import os
import shutil
import struct
import unicodedata
import warnings
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import torch
from fakes import random_decoder, tiny_config
from fuzzing import ANYTHING, outcome
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.torch import load_file, save_file

from diffup.backbones.checkpoint import read_weights
from diffup.data.folder import LabelledFolder
from diffup.decoder.config import DecoderConfig
from diffup.decoder.weights import CONFIG, WEIGHTS, load_decoder, save_decoder
from diffup.errors import ConfigError, DiffUpError
from diffup.evaluation.record import EpisodeRecord
from diffup.formats import (
    coco_annotations,
    coco_document,
    decode_segmentation,
    encode_rle,
    read_coco,
    read_cvat,
    read_fiftyone,
    read_huggingface,
    read_label_studio,
    read_labelme,
    read_supports,
)
from diffup.formats.brush import decode_brush, encode_brush
from diffup.formats.rle import decode_rle
from diffup.inputs.recorded import Files, read_json
from diffup.training.checkpoint import load_checkpoint, save_checkpoint
from diffup.training.config import TrainConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 64),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, whole: dict[str, object]) -> dict[str, object]:
    """A JSON object with some of its fields, at any depth, replaced, removed or unknown."""
    fields = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place = fields
        while True:
            name = draw(st.sampled_from([*place, "unknown", ""]))
            if not isinstance(place.get(name), dict) or not place[name] or draw(st.booleans()):
                break
            place = place[name]
        action = draw(st.sampled_from(["replace", "remove", "number", "choice"]))
        if action == "remove":
            place.pop(name, None)
        elif action == "number":
            place[name] = draw(
                st.sampled_from([0, -1, 1, 7, 8, 10**6, 10**20, 10**400, 0.5, float("nan"), float("inf")])
            )
        elif action == "choice":
            place[name] = draw(st.sampled_from(["gan", "prior", "one_step", "epsilon", "mse", "l1", "own", ["match"]]))
        else:
            place[name] = draw(JSON)
    return fields


DECODER, TRAIN = json.loads(tiny_config().to_json()), json.loads(TrainConfig().to_json())


@given(changed(DECODER))
def test_decoder_configs(fields: dict[str, object]) -> None:
    config = outcome(lambda: DecoderConfig.from_json(json.dumps(fields)))
    if config is not None:
        assert DecoderConfig.from_json(config.to_json()) == config


@given(changed(TRAIN))
def test_training_configs(fields: dict[str, object]) -> None:
    config = outcome(lambda: TrainConfig.from_json(json.dumps(fields)))
    if config is not None:
        assert TrainConfig.from_json(config.to_json()) == config


@given(JSON | st.text(max_size=30) | st.sampled_from(["", "[" * 100_000, "{" * 50, "9" * 10_000, '{"a":' * 9_999]))
def test_any_json(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    for config in (DecoderConfig, TrainConfig):
        outcome(lambda config=config: config.from_json(text))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder folder, and a training checkpoint beside it."""
    folder = tmp_path_factory.mktemp("good")
    config = tiny_config()
    state = random_decoder(config).state_dict()
    save_decoder(folder, state, config)
    save_checkpoint(folder / "checkpoint", {"model": dict(state)}, 3, '{"a": 1}')
    return folder


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file cut off, with changed bytes or with another header."""
    damage = draw(st.sampled_from(["cut", "bytes", "header", "length", "rubbish"]))
    if damage == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if damage == "rubbish":
        return draw(st.binary(max_size=200))
    length = struct.unpack("<Q", content[:8])[0]
    if damage == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]
    if damage == "header":
        header = json.loads(content[8 : 8 + length])
        name = draw(st.sampled_from(sorted(header)))
        header[draw(st.sampled_from([name, "other", ""]))] = draw(
            st.sampled_from([{"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}, header[name], {}, 5])
        )
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(0, min(len(changed), 4000) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@given(st.data())
def test_damaged_weights(good: Path, data: st.DataObject) -> None:
    folder = good / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text((good / CONFIG).read_text())
    (folder / WEIGHTS).write_bytes(data.draw(damaged((good / WEIGHTS).read_bytes())))
    decoder = outcome(lambda: load_decoder(folder))
    if decoder is not None:
        assert all(value.isfinite().all() for value in decoder.state_dict().values())
    outcome(lambda: read_weights(folder / WEIGHTS, "test"))
    (folder / "weights.pt").write_bytes((folder / WEIGHTS).read_bytes())
    outcome(lambda: read_weights(folder / "weights.pt", "test"))


TYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]


@given(st.data())
def test_weights_of_other_keys_shapes_and_types(good: Path, data: st.DataObject) -> None:
    tensors = load_file(good / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    change = data.draw(st.sampled_from(["missing", "renamed", "shape", "type", "nan", "inf", "empty", "same"]))
    if change == "renamed":
        tensors[data.draw(st.text(max_size=5))] = value
    elif change == "shape":
        tensors[name] = value[None]
    elif change == "type":
        tensors[name] = value.to(data.draw(st.sampled_from(TYPES)))
    elif change in ("nan", "inf"):
        tensors[name] = torch.full_like(value, float(change))
    elif change == "empty":
        tensors[name] = value.flatten()[:0]
    elif change == "same":
        tensors[name] = value
    folder = good / "changed"
    save_decoder(folder, {}, tiny_config())
    save_file(tensors, folder / WEIGHTS)
    decoder = outcome(lambda: load_decoder(folder))
    if decoder is None:
        assert change != "same"
    else:
        assert change in ("same", "type")
        assert all(v.isfinite().all() and v.dtype == torch.float32 for v in decoder.state_dict().values())


@given(st.data())
def test_damaged_checkpoints(good: Path, data: st.DataObject) -> None:
    path = good / "damaged_checkpoint"
    path.write_bytes(data.draw(damaged((good / "checkpoint").read_bytes())))
    outcome(lambda: load_checkpoint(path, '{"a": 1}'))


@given(
    step=st.text(max_size=4), config=st.text(max_size=6) | st.sampled_from(["[]", "5", '{"a": 1}', "{" * 9_999, "null"])
)
def test_checkpoints_of_other_facts(good: Path, step: str, config: str) -> None:
    path = good / "facts_checkpoint"
    save_file({"model/a": torch.zeros(1)}, path, metadata={"step": step, "config": config})
    outcome(lambda: load_checkpoint(path, '{"a": 1}'))


@given(st.lists(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20) | st.just(b"[" * 99_999), max_size=3))
def test_records(good: Path, lines: list[bytes]) -> None:
    path = good / "record.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    outcome(lambda: EpisodeRecord(path))


@given(changed({"setting": "a", "episode": "b", "index": 1, "class": 1, "pixels": 1, "mask": [1, 1], "quality": 0.5}))
def test_record_lines(good: Path, line: dict[str, object]) -> None:
    path = good / "line.jsonl"
    path.write_text(json.dumps({**line, "decoder": [[0, 0]] * 19, "prior": [[0, 0]] * 19}) + "\n")
    outcome(lambda: EpisodeRecord(path))


@given(ANYTHING)
def test_names_of_decoders(value: object) -> None:
    from diffup.decoder.weights import fetch_decoder

    if not isinstance(value, str) or "/" not in value:
        outcome(lambda: fetch_decoder(value))


def test_sizes_that_no_memory_holds_are_refused_at_once() -> None:
    for fields in ({"channels": [8, 8, 8, 2**30]}, {"timesteps": 2**40}, {"priors": {"extra_priors": 2**30}}):
        with pytest.raises(ConfigError, match=r"or less|must be 0 to"):
            DecoderConfig.from_json(json.dumps(fields))
    assert issubclass(ConfigError, DiffUpError)


# --- other tools' files ----------------------------------------------------------------------------------------------

SMALL_MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20)))


@given(st.data())
def test_run_lengths(data: st.DataObject) -> None:
    """What is decoded are exactly the runs; whatever is cut off, longer or changed is refused or is another mask."""
    pytest.importorskip("pycocotools")
    mask = data.draw(SMALL_MASKS)
    counts = encode_rle(mask)["counts"]
    np.testing.assert_array_equal(decode_rle({"size": list(mask.shape), "counts": counts}, mask.shape, "it"), mask)
    damage = data.draw(st.sampled_from(["cut", "longer", "changed", "any", "size", "plain"]))
    if damage == "cut":
        counts = counts[: data.draw(st.integers(0, len(counts) - 1))]
    elif damage == "longer":
        counts += data.draw(st.text(min_size=1, max_size=3))
    elif damage == "changed":
        place = data.draw(st.integers(0, len(counts) - 1))
        counts = counts[:place] + data.draw(st.characters()) + counts[place + 1 :]
    elif damage == "any":
        counts = data.draw(st.text(max_size=12) | st.binary(max_size=12) | ANYTHING)
    elif damage == "plain":
        counts = data.draw(st.lists(st.integers(-5, 400) | st.floats() | ANYTHING, max_size=5))
    size = data.draw(ANYTHING) if damage == "size" else list(mask.shape)
    if data.draw(st.booleans()) and isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    found = outcome(lambda: decode_segmentation({"size": size, "counts": counts}, mask.shape))
    if damage == "cut":  # a run of length 0 may be missing at the end
        assert found is None or np.array_equal(found, mask)
    if found is not None:
        assert found.shape == mask.shape and found.dtype == np.bool_


FILE_NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 100)
"""Names in every script; a back-slash within a name is a separator to whoever records it on Windows."""


def recorded_forms(folder: str, name: str) -> dict[str, str]:
    """The path of `folder`/`name` as programs on three systems record it."""
    return {
        "as it is": f"{folder}/{name}",
        "Windows": f"{folder}\\{name}",
        "drive": f"C:\\data\\{folder}\\{name}",
        "share": f"\\\\server\\share\\{folder}\\{name}",
        "Linux": f"/home/me/data/{folder}/{name}",
        "NFD": unicodedata.normalize("NFD", f"/Users/me/{folder}/{name}"),
        "NFC": unicodedata.normalize("NFC", f"{folder}/{name}"),
        "URL": f"file:///Users/me/{quote(folder)}/{quote(name)}",
        "Windows URL": f"file:///C:/data/{quote(folder)}/{quote(name)}",
        "percent": quote(f"{folder}/{name}"),
        "Label Studio": f"/data/local-files/?d={quote(f'{folder}/{name}')}",
    }


@given(FILE_NAMES, FILE_NAMES)
def test_recorded_paths_of_three_systems(good: Path, folder: str, name: str) -> None:
    root, name = good / "recorded", f"{name}.png"
    shutil.rmtree(root, ignore_errors=True)
    (root / folder).mkdir(parents=True)
    (root / folder / name).touch()
    for form, recorded in recorded_forms(folder, name).items():
        plain = not set("%:?") & set(folder + name)  # else a form may be read in another way, and be refused
        found = outcome(lambda recorded=recorded: Files(root).find(recorded, "it"))
        assert found is not None or not plain, form
        assert found is None or found.samefile(root / folder / name), form


@given(st.text(max_size=30) | st.sampled_from(["/" * 5000, "..\\" * 99, "file://", "C:", "\\\\", "?d=", "%00", "a\0b"]))
def test_any_recorded_path(good: Path, recorded: str) -> None:
    found = outcome(lambda: Files(good).find(recorded, "it"))
    assert found is None or found.is_file()


@given(st.binary(max_size=40) | JSON.map(json.dumps).flatmap(lambda text: st.sampled_from(ENCODINGS).map(text.encode)))
def test_any_json_file(good: Path, content: bytes) -> None:
    (good / "any.json").write_bytes(content)
    outcome(lambda: read_json(good / "any.json"))


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pycocotools")
    path = tmp_path_factory.mktemp("photos") / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    return path


BOX, RUNS = [3, 4, 10, 8], {"size": [20, 30], "counts": [90, 10, 500]}
COCO = {
    "images": {"0": {"id": 1, "file_name": "a.png", "width": 30, "height": 20}},
    "categories": {"0": {"id": 1, "name": "x"}},
    "annotations": {
        "0": {"image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": [[3, 4, 13, 4, 13, 12]], "iscrowd": 0},
        "1": {
            "image_id": 1,
            "category_id": 1,
            "bbox": BOX,
            "segmentation": {"size": [20, 30], "counts": [90, 10, 500]},
        },
    },
}
SHAPES = {
    "0": {"label": "x", "shape_type": "polygon", "points": [[3, 4], [13, 4], [13, 12]]},
    "1": {"label": "x", "shape_type": "polygon", "points": [[1, 1], [9, 9]]},
}
LABELME = {"imagePath": "a.png", "imageData": None, "imageHeight": 20, "imageWidth": 30, "shapes": SHAPES}
OBJECT = {"label": "x", "bounding_box": [0.1, 0.2, 0.4, 0.4], "bbox": BOX, "category": 1}


def listed(value: object) -> object:
    """Objects of "0", "1", ... as lists, so that `changed` reaches into them."""
    if not isinstance(value, dict):
        return value
    if "0" in value or "1" in value:
        return [listed(one) for one in value.values()]
    return {key: listed(one) for key, one in value.items()}


@given(changed(COCO), st.booleans(), st.sampled_from(["raise", "skip"]))
def test_coco_files(photo: Path, content: dict[str, object], boxes: bool, on_error: str) -> None:
    (photo.parent / "c.json").write_text(json.dumps(listed(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(lambda: read_coco(photo.parent / "c.json", photo.parent, "x", boxes=boxes, on_error=on_error))
    if found is not None:
        assert [os.fspath(path) for path in found.support] == [str(photo)] and len(found.annotation) == 1


@given(changed(LABELME))
def test_labelme_files(photo: Path, content: dict[str, object]) -> None:
    (photo.parent / "l.json").write_text(json.dumps(listed(content)))
    found = outcome(lambda: read_labelme(photo.parent / "l.json", "x"))
    assert found is None or len(found.support) == len(found.annotation) == 1


@given(st.data())
def test_brushes(data: st.DataObject) -> None:
    """Damaged run lengths of Label Studio are refused, or are a mask of the image's size."""
    mask = data.draw(SMALL_MASKS)
    rle: object = encode_brush(mask)
    damage = data.draw(st.sampled_from(["cut", "longer", "changed", "any", "size", "bytes"]))
    size = mask.shape
    if damage == "cut":
        rle = rle[: data.draw(st.integers(0, len(rle)))]
    elif damage == "longer":
        rle = rle + data.draw(st.lists(st.integers(0, 255), max_size=3))
    elif damage == "changed":
        rle[data.draw(st.integers(0, len(rle) - 1))] = data.draw(st.integers(-1, 256) | ANYTHING)
    elif damage == "any":
        rle = data.draw(ANYTHING)
    elif damage == "bytes":  # whatever follows a header that is right
        rle = rle[:7] + data.draw(st.lists(st.integers(0, 255), max_size=40))
    else:
        size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    found = outcome(lambda: decode_brush(rle, size))
    assert found is None or (found.shape == size and found.dtype == np.bool_)
    if damage == "longer":
        np.testing.assert_array_equal(found, mask)
    if damage == "cut":  # the last bytes may be padding
        assert found is None or np.array_equal(found, mask)


def ls_region(kind: str, **value: object) -> dict[str, object]:
    size = {"original_width": 30, "original_height": 20, "image_rotation": 0}
    return {"type": kind, **size, "value": {**value, kind: {"0": "x"}}}


TASK = {
    "0": {
        "data": {"image": "/data/upload/1/0123abcd-a.png"},
        "annotations": {
            "0": {
                "was_cancelled": False,
                "ground_truth": False,
                "updated_at": "2026-01-01",
                "result": {
                    "0": ls_region("rectanglelabels", x=10, y=20, width=30, height=40, rotation=0),
                    "1": ls_region("ellipselabels", x=50, y=50, radiusX=20, radiusY=9.5, rotation=45),
                    "2": ls_region("polygonlabels", points={"0": [10, 10], "1": [50, 10], "2": [50, 60]}),
                    "3": ls_region("brushlabels", rle=encode_brush(np.eye(20, 30) > 0)),
                    "4": ls_region("keypointlabels", x=10, y=20, width=1),
                },
            }
        },
    }
}
KINDS = st.sampled_from([None, "mask", "box", "points", "scribble"])


@given(changed(TASK), KINDS, st.sampled_from(["raise", "skip"]))
def test_label_studio_files(photo: Path, content: dict[str, object], kind: object, on_error: str) -> None:
    path = photo.parent / "s.json"
    path.write_text(json.dumps(listed(content)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = outcome(lambda: read_label_studio(path, "x", on_error=on_error))
        outcome(lambda: read_supports(path, "x", kind=kind, on_error=on_error))
    assert found is None or [os.fspath(support) for support in found.support] == [str(photo)]


@st.composite
def cvat_files(draw: st.DrawFn) -> str:
    """Files of CVAT with any values in the attributes of one image and one or two shapes."""
    whole = {
        "box": {"xtl": "3", "ytl": "4", "xbr": "13", "ybr": "12", "rotation": "10"},
        "polygon": {"points": "3,4;13,4;13,12"},
        "points": {"points": "3,4;13,4"},
        "polyline": {"points": "3,4;13,4"},
        "ellipse": {"cx": "9", "cy": "9", "rx": "4", "ry": "3", "rotation": "5"},
        "mask": {"rle": "1, 2, 3", "left": "2", "top": "3", "width": "3", "height": "2"},
        "cuboid": {"xtl1": "2"},
    }
    odd = st.sampled_from(["", "-1", "1e400", "nan", "9" * 30, "0", ",", ";", "1,2", "0.5", "<&>", "x"]) | st.text(
        max_size=6
    )

    def shown(tag: str, fields: dict[str, str], inner: str = "") -> str:
        for name in list(fields):
            change = draw(st.integers(0, 9))
            if change < 2:
                fields = {**fields, name: draw(odd)}
            elif change == 2:
                fields = {key: value for key, value in fields.items() if key != name}
        return f"<{tag}{''.join(f' {key}={quoteattr(value)}' for key, value in fields.items())}>{inner}</{tag}>"

    shapes = [
        shown(tag, {"label": "x", **whole[tag]}) for tag in draw(st.lists(st.sampled_from(list(whole)), max_size=2))
    ]
    fields = {"name": "a.png", "width": "30", "height": "20"}
    return f"<annotations>{shown('image', fields, ''.join(shapes))}</annotations>"


@given(cvat_files(), KINDS, st.data())
def test_cvat_files(photo: Path, text: str, kind: object, data: st.DataObject) -> None:
    path = photo.parent / "v.xml"
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = outcome(lambda: read_cvat(path, "x"))
    assert found is None or [os.fspath(support) for support in found.support] == [str(photo)]
    outcome(lambda: read_supports(path, "x", kind=kind))


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: f"<{text}>".encode("utf-8", "surrogatepass")))
def test_files_of_any_format(photo: Path, content: bytes) -> None:
    path = photo.parent / "any"
    path.write_bytes(content)
    assert outcome(lambda: read_supports(path, "x")) is None
    assert outcome(lambda: read_cvat(path, "x")) is None


@given(
    changed({"filepath": "a.png", "gt": {"detections": {"0": OBJECT, "1": OBJECT}}}),
    changed({"objects": {"0": OBJECT}}),
)
def test_records_in_memory(photo: Path, sample: dict[str, object], row: dict[str, object]) -> None:
    outcome(lambda: read_fiftyone(listed(sample), "x", "gt", images=photo.parent))
    outcome(lambda: read_huggingface({"image": Image.open(photo), **listed(row)}, 1))


@given(FILE_NAMES, st.text(max_size=12))
def test_names_in_every_script(photo: Path, file: str, category: str) -> None:
    folder = photo.parent / "names"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(photo, folder / f"{file}.png")
    image = {"id": 1, "file_name": f"{file}.png", "width": 30, "height": 20}
    document = coco_document([image], coco_annotations([np.eye(20, 30) > 0], 1, [1]), [category])
    (folder / "c.json").write_text(json.dumps(document))
    assert read_coco(folder / "c.json", folder, category).support == [folder / f"{file}.png"]


@given(st.lists(FILE_NAMES, min_size=1, max_size=3, unique=True), st.sampled_from(["NFC", "NFD"]), st.booleans())
def test_lists_of_names_in_every_script(photo: Path, names: list[str], form: str, endings: bool) -> None:
    root = photo.parent / "lists"
    shutil.rmtree(root, ignore_errors=True)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name in names:
        shutil.copy(photo, root / "images" / f"{name}.PNG")
        Image.fromarray(np.ones((20, 30), np.uint8)).save(root / "masks" / f"{name}.png")
    shown = [unicodedata.normalize(form, name) + (".jpg" if endings else "") for name in names]
    content = {"classes": {"1": "x"}, "folds": {}, "images": {"test": shown}}
    (root / "splits.json").write_text(json.dumps(content))
    data = outcome(lambda: LabelledFolder.open(root))
    if data is not None:
        found = [outcome(lambda name=name: data.image_path(name)) for name in shown]
        for name, path in zip(names, found, strict=True):
            assert path is None or path.samefile(root / "images" / f"{name}.PNG")
