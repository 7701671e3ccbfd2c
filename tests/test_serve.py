"""The server for labelling tools keeps the contracts of Label Studio and X-AnyLabeling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import teach, tiny_model
from labelling import (
    SIZE,
    ask,
    encoded,
    masks,
    predictions,
    question,
    region,
    saved,
    scene,
    server,
    small_model,
    version,
)
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from diffup import Box, Points
from diffup.decoder.options import SamplingOptions
from diffup.errors import FormatError
from diffup.formats.labelling_config import BrushTag, read_brush_tag
from diffup.inputs.annotations import rasterise
from diffup.serve.learner import Learner
from diffup.serve.shots import ShotFolder
from diffup.serve.shown import read_shown, shown_support
from diffup.serve.xanylabeling import XAnyLabeling

pytestmark = pytest.mark.usefixtures("one_thread")


# Label Studio


def test_health_and_set_up(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "healthy"
    assert version(client).startswith("0 shots ")


def test_without_a_shot_there_is_no_prediction(client: TestClient) -> None:
    """Label Studio would keep an empty one, and not ask again."""
    assert predictions(client, 0, 1) == [[], []]


def test_a_saved_annotation_is_a_shot_of_its_class(client: TestClient) -> None:
    """The prediction is what the library gives for the same support."""
    ask(client, "/webhook", saved(0))
    image, labels = scene(0)
    expected = small_model().segment(scene(1)[0], image, labels == 1, min_presence=0.0)
    (found,) = predictions(client, 1)
    assert (masks(found)["square"] == expected.mask).all() and set(masks(found)) == {"square"}
    assert found["score"] == pytest.approx(expected.score, abs=6e-5)  # in four digits
    assert found["model_version"] == version(client) and "1 shot " in version(client)


def test_each_label_is_a_class(client: TestClient) -> None:
    labels = scene(0)[1]
    both = [region(labels == 1, "square"), region(labels == 2, "disc")]
    answer = ask(client, "/webhook", saved(0, result=both))
    assert answer["learnt"] == {"1": ["square", "disc"]} and "2 shots" in answer["model_version"]
    model = small_model()
    classes = [model.prototypes(scene(0)[0], labels == index, name=str(index)) for index in (1, 2)]
    expected = model.segment(scene(1)[0], classes, min_presence=0.0)
    found = masks(predictions(client, 1)[0])
    for index, name in enumerate(("square", "disc"), start=1):
        assert (found.get(name, np.zeros(SIZE, bool)) == (expected.labels == index)).all()


def test_versions_follow_what_is_saved_changed_and_deleted(client: TestClient) -> None:
    empty = version(client)
    ask(client, "/webhook", saved(0))
    first = version(client)
    ask(client, "/webhook", saved(0))  # the same annotation again
    assert version(client) == first
    ask(client, "/webhook", saved(1))
    assert "2 shots" in version(client)
    ask(client, "/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 2}]})
    assert version(client) == first
    ask(client, "/webhook", saved(0, "disc", "ANNOTATION_UPDATED"))
    assert "1 shot " in version(client) and version(client) != first
    assert set(masks(predictions(client, 2)[0])) == {"disc"}
    ask(client, "/webhook", saved(0, result=[], action="ANNOTATION_UPDATED"))
    assert version(client) == empty


def test_a_cancelled_annotation_is_no_shot(client: TestClient) -> None:
    ask(client, "/webhook", saved(0, was_cancelled=True))
    assert "0 shots" in version(client)


def test_annotations_made_together(client: TestClient) -> None:
    one, two = saved(0), saved(1, "disc")
    lists = {name: [one[name], two[name]] for name in ("annotation", "task")}
    ask(client, "/webhook", one | lists | {"action": "ANNOTATIONS_CREATED"})
    assert "2 shots" in version(client)


def test_shots_go_with_their_task(client: TestClient, tmp_path: Path) -> None:
    ask(client, "/webhook", saved(0))
    ask(client, "/webhook", saved(1))
    ask(client, "/webhook", {"action": "TASKS_DELETED", "tasks": [{"id": 100}]})
    assert "1 shot " in version(client)
    assert [path.name for path in (tmp_path / "shots" / "annotations").iterdir()] == ["2.json"]
    assert len(list((tmp_path / "shots" / "photos").iterdir())) == 1


def test_other_news_change_nothing(client: TestClient) -> None:
    before = version(client)
    for action in ("PROJECT_UPDATED", "TASKS_CREATED", "START_TRAINING", "LABEL_LINK_CREATED"):
        assert ask(client, "/webhook", {"action": action, "project": {"id": 1}})["model_version"] == before


def test_shots_stay(tmp_path: Path, scenes: Path) -> None:
    """A server that starts again, without the photos, marks what the one before marked."""
    first = server(tmp_path / "shots", [scenes])
    for seed in (0, 1):
        ask(first, "/webhook", saved(seed))
    expected, before = masks(predictions(first, 2)[0])["square"], version(first)
    for seed in (0, 1):
        (scenes / f"{seed}.png").unlink()
    again = server(tmp_path / "shots", [scenes])
    assert version(again) == before
    assert (masks(predictions(again, 2)[0])["square"] == expected).all()


def test_the_folder_is_an_export_of_label_studio(client: TestClient, tmp_path: Path) -> None:
    from diffup.formats import read_supports

    ask(client, "/webhook", saved(0))
    shots = tmp_path / "shots"
    (photo,), (annotation,) = read_supports(shots / "annotations" / "1.json", "square", images=shots)
    assert Path(photo).read_bytes() == (tmp_path / "photos" / "0.png").read_bytes()
    assert (annotation.mask.numpy() == (scene(0)[1] == 1)).all()


def test_tasks_are_answered_one_by_one_and_in_order(client: TestClient, scenes: Path) -> None:
    ask(client, "/webhook", saved(0))
    (scenes / "2.png").write_bytes(b"no image")
    found = predictions(client, 1, 2, 3)
    assert [bool(item["result"]) for item in found] == [True, False, True]
    assert "cannot be read as an image" in found[1]["model_version"]  # the one text that the tool shows
    assert (masks(found[2])["square"] == masks(predictions(client, 3)[0])["square"]).all()


def test_an_absent_class_has_no_region(tmp_path: Path, scenes: Path) -> None:
    client = server(tmp_path / "shots", [scenes], model=tiny_model(min_presence=1.0))
    ask(client, "/webhook", saved(0))
    assert predictions(client, 1)[0]["result"] == []


def test_what_is_not_learnt_is_counted_in_the_version(client: TestClient, scenes: Path) -> None:
    content = (scenes / "0.png").read_bytes()
    (scenes / "0.png").unlink()
    answer = client.post("/webhook", json=saved(0))
    assert answer.status_code == 400 and "there is no such file below the folders of --files" in answer.json()["error"]
    assert version(client).endswith("1 annotations not read")
    (scenes / "0.png").write_bytes(content)
    ask(client, "/webhook", saved(0, action="ANNOTATION_UPDATED"))
    assert "not read" not in version(client) and "1 shot " in version(client)


def test_a_faulty_change_keeps_the_shot_of_before(client: TestClient) -> None:
    ask(client, "/webhook", saved(0))
    faulty = saved(0, result=[region(np.ones((9, 9), bool), "square")])
    answer = client.post("/webhook", json=faulty)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("annotation.result[0]: the record says 9 x 9 pixels")
    assert "1 shot " in version(client) and masks(predictions(client, 1)[0])


def test_clicks_beside_a_mask_are_no_part_of_the_shot(client: TestClient) -> None:
    """They are those of the smart tool, by which the mask was drawn."""
    mask = region(scene(0)[1] == 1, "square")
    ask(client, "/webhook", saved(0, result=[mask]))
    expected = masks(predictions(client, 1)[0])["square"]
    ask(client, "/webhook", saved(0, result=[CLICK, mask, ASIDE]))
    assert (masks(predictions(client, 1)[0])["square"] == expected).all()


# What a person shows


def shown(kind: str, label: str | None = "square", positive: bool = True, **value: Any) -> dict[str, Any]:
    labels = {} if label is None else {f"{kind}labels": [label]}
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"type": f"{kind}labels", "is_positive": positive, "value": labels | value} | size


CLICK = shown("keypoint", x=50.0, y=25.0, width=0.5)
ASIDE = shown("keypoint", positive=False, x=10.0, y=75.0, width=0.5)
FRAME = shown("rectangle", x=25.0, y=25.0, width=50.0, height=50.0, rotation=0)


@pytest.mark.parametrize(
    ("drawn", "same"),
    [
        ([CLICK], Points([(47.5, 19.5)])),
        ([FRAME], Box(24, 20, 72, 60)),
        ([FRAME, shown("rectangle", x=0.0, y=0.0, width=12.5, height=12.5)], Box([(24, 20, 72, 60), (0, 0, 12, 10)])),
    ],
)
def test_what_is_shown_is_an_annotation_of_the_image(drawn: list[dict[str, Any]], same: Any) -> None:
    image = tiny_image()
    support = shown_support(image, read_shown({"result": drawn}, ["square"]))
    expected = rasterise(same, SIZE)
    assert (support.regions.foreground == expected.foreground).all()
    assert (support.regions.background == expected.background * (1 - expected.foreground)).all()


def test_what_is_shown_beside_the_object_is_background() -> None:
    regions = shown_support(tiny_image(), read_shown({"result": [CLICK, ASIDE]}, ["square"])).regions
    assert (regions.foreground == rasterise(Points([(47.5, 19.5)]), SIZE).foreground).all()
    assert (regions.background == rasterise(Points([(9.1, 59.5)]), SIZE).foreground).all()


def test_a_stroke_says_nothing_of_the_rest() -> None:
    stroke = np.zeros(SIZE, bool)
    stroke[10:14, 20:50] = True
    drawn = region(stroke, "square") | {"is_positive": True}
    regions = shown_support(tiny_image(), read_shown({"result": [drawn]}, ["square"])).regions
    assert (regions.foreground.numpy() == stroke).all() and not regions.background.any()


def tiny_image() -> Any:
    from diffup.inputs.images import read_image

    return read_image(scene(0)[0])


def test_a_click_marks_the_class_before_there_is_a_shot(client: TestClient) -> None:
    (found,) = predictions(client, 0, context={"result": [shown("keypoint", "disc", x=50.0, y=25.0)]})
    assert set(masks(found)) == {"disc"} and "0 shots" in found["model_version"]


def test_shots_help_what_is_shown(client: TestClient) -> None:
    context = {"result": [CLICK]}
    alone = predictions(client, 0, context=context)[0]
    ask(client, "/webhook", saved(1))
    (helped,) = predictions(client, 0, context=context)
    assert (masks(alone)["square"] != masks(helped)["square"]).any()
    other = predictions(client, 0, context={"result": [FRAME]})[0]
    assert other["result"][0]["id"] != helped["result"][0]["id"]


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"result": [ASIDE]}, "nothing is shown of the object"),
        ({"result": [shown("keypoint", None, x=1.0, y=1.0)]}, "the region has no label"),
        ({"result": [shown("keypoint", "cat", x=1.0, y=1.0)]}, "no label of the labelling interface"),
        ({"result": [shown("keypoint", x=101.0, y=1.0)]}, "leave the image"),
        ({"result": [shown("keypoint", x="nan", y=1.0)]}, "expected a finite number"),
        ({"result": [CLICK] * 65}, "at most 64"),
        ({"result": "all"}, "at most 64"),
        ({"result": [shown("video", x=1)]}, "cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_said_in_the_version(client: TestClient, context: Any, message: str) -> None:
    (found,) = predictions(client, 0, context=context)
    assert found["result"] == [] and message in found["model_version"]


def test_a_labelling_interface_without_brush(client: TestClient) -> None:
    config = '<View><Image name="i" value="$image"/><RectangleLabels name="r" toName="i"/></View>'
    answer = ask(client, "/setup", {"project": "1.1", "schema": config})
    assert "no <BrushLabels" in answer["model_version"]
    (found,) = ask(client, "/predict", question(0) | {"label_config": config})["results"]
    assert found["result"] == [] and "no <BrushLabels" in found["model_version"]


def test_labelling_interfaces() -> None:
    config = """<View><Header value="Mark"/><Image value="$photo" name="img"/>
    <BrushLabels name="b" toName="img" smart="true"><Label value="dog"/><Label value="cat" alias="c"/></BrushLabels>
    <BrushLabels name="second" toName="img"><Label value="bird"/></BrushLabels></View>"""
    assert read_brush_tag(config) == BrushTag("b", "img", "photo", ("dog", "c"))
    for faulty, message in (
        (config.replace('name="img"', 'name="other"'), "which is no <Image"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View/>', "declares a document type"),
        ("<View>", "cannot be read as XML"),
    ):
        with pytest.raises(FormatError, match=message):
            read_brush_tag(faulty)


# X-AnyLabeling


def test_models(tmp_path: Path) -> None:
    model = small_model()
    client = server(tmp_path / "shots", [], known=teach(model, ["square", "disc"]))
    answer = client.get("/v1/models").json()
    assert answer["success"] and list(answer["data"]) == ["diffup"]
    description = answer["data"]["diffup"]
    assert description["display_name"] == "diffup: square, disc"
    assert {widget["name"]: widget["value"] for widget in description["widgets"]} == {
        "button_run": None,
        "edit_conf": model.config.min_presence,
        "toggle_preserve_existing_annotations": False,
    }
    info = client.get("/v1/models/diffup/info").json()
    assert info == {"success": True, "data": {"model_id": "diffup", **description}}
    assert client.get("/v1/models/yolo/info").json()["error"]["code"] == "MODEL_NOT_FOUND"


def test_the_confidence_shown_is_the_minimum_presence_of_the_server(tmp_path: Path) -> None:
    learner = Learner(small_model(), ShotFolder(tmp_path / "shots"), options=SamplingOptions(min_presence=0.6))
    widgets = XAnyLabeling(learner).models({})["data"]["diffup"]["widgets"]
    assert {"name": "edit_conf", "value": 0.6} in widgets


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_polygons(tmp_path: Path, prefix: str) -> None:
    """The polygons cover what the library marks, but for their tolerance of half a pixel."""
    model = small_model()
    classes = teach(model, ["square", "disc"])
    client = server(tmp_path / "shots", [], known=classes)
    image = scene(0)[0]
    request = {"model": "diffup", "image": encoded(image, prefix), "params": {"conf_threshold": 0.0}}
    answer = ask(client, "/v1/predict", request)
    expected = model.segment(image, classes, min_presence=0.0)
    assert answer["success"] and answer["data"]["description"] == ""
    for index, name in enumerate(("square", "disc"), start=1):
        canvas = Image.new("1", SIZE[::-1])
        for shape in answer["data"]["shapes"]:
            if shape["label"] == name:
                assert shape["shape_type"] == "polygon" and 0 <= shape["score"] <= 1
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], fill=1)
        mask = expected.labels == index
        assert (np.asarray(canvas) & mask).sum() >= 0.8 * mask.sum(), name
        assert mask.any(), name


def test_the_confidence_is_the_least_presence(tmp_path: Path) -> None:
    model = small_model()
    client = server(tmp_path / "shots", [], known=teach(model, ["square"]))
    request = {"model": "diffup", "image": encoded(scene(0)[0]), "params": {"conf_threshold": 1.0}}
    assert ask(client, "/v1/predict", request)["data"]["shapes"] == []


def test_the_tools_share_their_classes(client: TestClient) -> None:
    request = {"model": "diffup", "image": encoded(scene(1)[0])}
    assert ask(client, "/v1/predict", request)["data"] == {"shapes": [], "description": ""}
    ask(client, "/webhook", saved(0))
    shapes = ask(client, "/v1/predict", request)["data"]["shapes"]
    assert shapes and {shape["label"] for shape in shapes} == {"square"}
