"""Files of the results, for download."""

from __future__ import annotations

import json
from pathlib import Path

from diffup.demo.session import Session
from diffup.errors import ConfigError
from diffup.formats import coco_annotations, coco_document
from diffup.utils.files import numbered_name, replacing, write_text


def write_files(session: Session, folder: Path) -> list[Path]:
    """Write the results of the first chosen encoder to files.

    The files are `labels.png` (indexed), `overlay.png`, `coco.json` (run lengths), and for each class its own mask
    `NAME.png` and its prototypes `NAME.safetensors`.

    Args:
        session: session with results.
        folder: path of an empty folder.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: there are no results.
        MissingPackageError: pycocotools is not installed.
    """
    if not session.results:
        raise ConfigError("There are no results yet: press 'Mark' first.")
    result = session.results[0]
    height, width = result.labels.shape
    ids = range(1, len(result.names) + 1)
    scores = [item.score for item in result.results]
    document = coco_document(
        [{"id": 1, "file_name": session.query_name, "width": width, "height": height}],
        coco_annotations(result.labels, 1, ids, scores=scores),
        result.names,
    )
    files = [result.save(folder / "labels.png"), folder / "overlay.png", folder / "coco.json"]
    with replacing(files[1]) as unfinished:
        result.overlay().save(unfinished, format="PNG")
    write_text(files[2], json.dumps(document) + "\n")
    for number, name in enumerate(result.names, start=1):
        stem = numbered_name(number, name)
        files.append(result[name].save(folder / f"{stem}.png"))
        taught = session.taught.get((result.results[0].backbone, name))
        if taught is not None:
            files.append(taught.prototypes.save(folder / f"{stem}.safetensors"))
    return files
