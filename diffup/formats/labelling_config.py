"""Reading the labelling interface of a Label Studio project: the tag whose regions are brush masks."""

from __future__ import annotations

from typing import NamedTuple

from diffup.errors import FormatError
from diffup.formats.xml import visit_elements


class BrushTag(NamedTuple):
    """The tag `BrushLabels` of a labelling interface and the image that it marks.

    Attributes:
        name: name of the tag, `from_name` in regions.
        image: name of the tag `Image`, `to_name` in regions.
        key: name of the field of a task's data that holds the image.
        labels: the labels that the tag offers.
    """

    name: str
    image: str
    key: str
    labels: tuple[str, ...]


def read_brush_tag(config: str, where: str = "label_config") -> BrushTag:
    """Find the first tag `BrushLabels` of a labelling interface, its labels, and the image that it marks.

    Args:
        config: the labelling interface, XML.
        where: name of the interface in error messages.

    Raises:
        FormatError: it is not XML, or it has no `BrushLabels` with labels that mark an `Image` of the task's data.
    """
    images: dict[str, str] = {}
    tags: list[dict[str, str]] = []
    labels: list[str] = []

    def visit(above: list[str], tag: str, fields: dict[str, str]) -> None:
        if tag == "Image":
            images[fields.get("name", "")] = fields.get("value", "")
        elif tag == "BrushLabels":
            tags.append(fields)
        elif tag == "Label" and above[-1:] == ["BrushLabels"] and len(tags) == 1:
            labels.append(fields.get("alias") or fields.get("value", ""))

    visit_elements(config, where, visit)
    if not tags or not labels:
        raise FormatError(
            f'{where}: the labelling interface has no <BrushLabels name="tag" toName="image"> with a <Label> in it, '
            "and masks are drawn by that tag alone"
        )
    name, image = tags[0].get("name", ""), tags[0].get("toName", "")
    value = images.get(image, "")
    if not value.startswith("$") or len(value) < 2:
        raise FormatError(
            f'{where}: the tag BrushLabels marks {image!r}, which is no <Image name="{image}" value="$image">'
        )
    return BrushTag(name, image, value[1:], tuple(dict.fromkeys(labels)))
