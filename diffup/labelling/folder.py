"""Label all images of a folder, resumably, and write files for labelling tools and training frameworks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from diffup.errors import DataError, StorageError
from diffup.formats.coco import coco_annotations
from diffup.formats.label_studio import label_studio_prediction
from diffup.label_map import LabelMap
from diffup.labelling.files import (
    PLACES,
    facts_of,
    file_of,
    names_of,
    own_files_of,
    remove_files,
    stem_of,
    write_files,
)
from diffup.labelling.hashes import PhotoFacts
from diffup.labelling.listing import list_images
from diffup.labelling.outputs import Output, Place, open_output
from diffup.labelling.photos import Photos, open_photos
from diffup.labelling.plan import LabelPlan, compare_settings, need_packages, settings_of
from diffup.labelling.summaries import SUMMARIES, write_summaries
from diffup.model import DiffUp
from diffup.prototypes import Prototypes, check_classes
from diffup.stream import Failure
from diffup.utils.journal import Journal
from diffup.utils.remote_journal import RemoteJournal
from diffup.utils.storage import located

RECORD = "record.jsonl"
_OF_A_NAME = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
"""Error numbers that the name of a single file can cause; other errors would occur again with the next file."""


@dataclass(frozen=True)
class LabelReport:
    """The outcome of a run of `label_folder`.

    Attributes:
        labelled: number of images labelled in this run.
        known: number of images labelled in earlier runs.
        failed: reasons why images could not be read or labelled, by image name.
        files: paths or URLs of the folders and files with the results.
        left_out: reasons why files and folders were skipped, by name.
        gone: names of images labelled in earlier runs that are no longer in the folder.
        kept: label files of such images that were not removed, because they were changed after they were written.
    """

    labelled: int
    known: int
    failed: dict[str, str]
    files: tuple[Place, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    kept: tuple[Place, ...] = ()


def label_folder(
    model: DiffUp,
    folder: str | os.PathLike[str],
    prototypes: Prototypes | Sequence[Prototypes],
    output: str | os.PathLike[str],
    plan: LabelPlan | None = None,
    *,
    batch_size: int = 8,
    workers: int = 4,
    progress: bool = False,
) -> LabelReport:
    """Label every image in a folder and its subfolders.

    After the files of an image are written, the image is recorded in `record.jsonl`. The same call resumes an
    interrupted run: it labels the images that are not recorded, retries those that could not be read, and gives the
    same files as an uninterrupted run, bit for bit if the batch size is the same.

    Results follow the current content of the folder: an image that was changed, or whose label files are missing, is
    labelled again, and files of an image that is no longer there are removed. A label file that was changed after it
    was written is neither removed nor replaced. Only one process at a time may write to an output folder.

    Args:
        model: the model.
        folder: folder of the images, a path or a URL that fsspec opens (`s3://bucket/photos`). Images are found by
            their endings (all formats that Pillow reads). Links to folders are followed, and names that begin with a
            dot are skipped.
        prototypes: prototypes of one class, or a list with those of several.
        output: folder for the results, outside of `folder`, a path or a URL; created if needed.
        plan: files to write, and sampling options; by default `LabelPlan()`.
        batch_size: number of images encoded and decoded together.
        workers: number of threads that read images.
        progress: whether to show a progress bar.

    Raises:
        DataError: the folder does not exist or holds no image, the record is damaged, or the output holds results of
            other settings or files that `label_folder` did not write.
        StorageError: another process writes to the output, the output cannot be written to, or a URL cannot be opened.
        ConfigError: an option is out of range, or the output lies within the folder.
        MissingPackageError: a format or a URL needs a package that is not installed.
        PrototypesError: prototypes do not fit the model or each other.
    """
    plan, place = LabelPlan() if plan is None else plan, located(output)
    photos, written = open_photos(located(folder)), open_output(place)
    listing = photos.listing
    photos.refuse_within(place)
    classes = check_classes(prototypes, model)
    need_packages(plan)
    settings = settings_of(model, classes, plan)
    journal = written.journal(RECORD)
    with journal.alone("diffup label"):
        written.begin()
        state = _compare(photos, written, _open_record(journal, settings, written, listing.images, plan))
        for image in state.forgotten:
            journal.append([{"image": image, "gone": True}])
        failed = {**listing.failed, **state.failed}
        images = [image for image in listing.images if image not in state.failed]
        left = {image for image in images if image not in state.done}
        # A batch with any image left is decoded as a whole, so that rounding equals that of an uninterrupted run.
        batches = [images[start : start + batch_size] for start in range(0, len(images), max(1, batch_size))]
        listed = [image for batch in batches if not left.isdisjoint(batch) for image in batch]
        facts: dict[str, PhotoFacts | None] = {}

        def sources() -> Iterator[Place]:
            for image in listed:  # facts before reading: the next run notices a change in between
                facts[image] = photos.facts(image)
                yield photos.source(image)

        results = model.segment_many(
            sources(),
            classes,
            batch_size=batch_size,
            workers=workers,
            options=plan,
        )
        names = names_of(images, state.names)
        with tqdm(total=len(images), initial=len(images) - len(left), desc="images", disable=not progress) as bar:
            for image, result in zip(listed, results, strict=True):
                if image in state.done:
                    continue
                seen_from = partial(photos.seen_from, place, image=image)
                entry = _label(image, names[image], seen_from, result, facts.pop(image), written, plan)
                if "error" in entry:
                    failed[image] = entry["error"]
                if "error" not in entry or state.errors.get(image) != entry["error"]:
                    journal.append([entry])
                bar.update(1)
        files = write_summaries(journal, photos, written, images, failed, [item.name for item in classes], plan)
    labelled = len(left) - sum(image in failed for image in left)
    return LabelReport(labelled, len(state.done), failed, files, listing.left_out, state.gone, state.kept)


def find_images(folder: Path) -> list[str]:
    """Return the sorted names of the images in a folder and its subfolders, relative to it, with forward slashes.

    Args:
        folder: path of the folder.

    Raises:
        DataError: the folder does not exist or holds no image.
    """
    return list_images(folder).images


@dataclass(frozen=True)
class _State:
    """The state of each image at the start of a run.

    Attributes:
        done: images whose labels are up to date.
        names: base names of the files of images that are done or whose files stay, by image name.
        errors: reasons why images could not be read in an earlier run, by image name.
        failed: reasons why images cannot be labelled without overwriting a user's change, by image name.
        forgotten: images whose entries in the record are no longer valid.
        gone: recorded images that are no longer in the folder.
        kept: files of such images that were not removed, because they were changed after they were written.
    """

    done: frozenset[str]
    names: dict[str, str]
    errors: dict[str, str]
    failed: dict[str, str]
    forgotten: tuple[str, ...]
    gone: tuple[str, ...]
    kept: tuple[Place, ...]


def _compare(photos: Photos, output: Output, known: dict[str, dict[str, Any]]) -> _State:
    """Compare the record with the folder, and remove the files of images that are gone or have changed."""
    there = set(photos.listing.images)
    errors = {image: entry["error"] for image, entry in known.items() if "error" in entry}
    labelled = {image: entry for image, entry in known.items() if "error" not in entry}
    with ThreadPoolExecutor() as pool:
        same = pool.map(lambda item: item[0] in there and _still(photos, output, *item), labelled.items())
        done = {image for image, still in zip(labelled, same, strict=True) if still}
    failed, kept, forgotten = {}, list[Place](), list[str]()
    for image, entry in labelled.items():
        if image in done:
            continue
        edited = remove_files(output, _files_of(entry, image, image in there))
        if not edited:
            forgotten.append(image)
        elif image in there:
            failed[image] = (
                f"{', '.join(map(str, edited))} was changed since it was written, and so was the photo; move or delete "
                "the label file to have the photo labelled again"
            )
        else:
            kept += edited
    stay = {image: entry.get("name", stem_of(image)) for image, entry in labelled.items() if image not in forgotten}
    gone = tuple(sorted(known.keys() - there - photos.listing.failed.keys()))
    forgotten += [image for image in errors if image not in there]
    return _State(frozenset(done), stay, errors, failed, tuple(forgotten), gone, tuple(kept))


def _files_of(entry: dict[str, Any], image: str, there: bool) -> dict[str, str]:
    """Hashes of the files written for an image, by name.

    Records of older versions do not list them. If the image is there, its files are replaced; if it is gone, the files
    that may belong to it count as changed, so that they are not removed.
    """
    if "files" in entry or there:
        return dict(entry.get("files", {}))
    return {file_of(written, stem_of(image)): "" for written in PLACES}


def _still(photos: Photos, output: Output, image: str, entry: dict[str, Any]) -> bool:
    """Whether an image is unchanged since it was labelled, and all its files exist."""
    facts = facts_of(entry)
    return facts is not None and photos.still(image, facts) and all(output.has(file) for file in entry["files"])


def _open_record(
    journal: Journal | RemoteJournal, settings: dict[str, Any], output: Output, images: Sequence[str], plan: LabelPlan
) -> dict[str, dict[str, Any]]:
    """Read the recorded images with their files or errors; create the record if there is none.

    Raises:
        DataError: the record has other settings or is damaged; or there is no record, but a file of other origin that
            would be overwritten.
    """
    known: dict[str, dict[str, Any]] = {}
    begun = False
    for number, entry in journal.read():
        if not begun or "settings" in entry:  # again where a remote journal was joined, and the process killed then
            compare_settings(journal.path, entry.get("settings", {}), settings)
            begun = True
        elif not isinstance(entry.get("image"), str):
            raise journal.damaged(number, KeyError("image"))
        elif "gone" in entry:
            known.pop(entry["image"], None)
        else:
            try:
                facts_of(entry)
            except (TypeError, KeyError) as error:
                raise journal.damaged(number, error) from error
            known[entry["image"]] = {key: entry[key] for key in ("error", "photo", "name", "files") if key in entry}
    if not begun:
        _refuse_strangers(output, images, settings["classes"], plan)
        journal.append([{"settings": settings}])
    return known


def _refuse_strangers(output: Output, images: Sequence[str], classes: Sequence[str], plan: LabelPlan) -> None:
    """Check that a new run overwrites no file of other origin.

    Raises:
        DataError: such a file exists.
    """
    names = names_of(images, {}).values()
    ours = [SUMMARIES[written] for written in plan.formats if written in SUMMARIES]
    ours += [file_of(written, name) for written in plan.formats if written in PLACES for name in names]
    ours += [file for name in names if plan.overlap for file in own_files_of(classes, name)]
    stranger = next((file for file in ours if output.has(file)), None)
    if stranger is not None:
        raise DataError(
            f"output: {output.at(stranger)} would be replaced, and {output.at()} has no {RECORD} that says it was "
            "written by `diffup label`; move it away or choose another output folder"
        )


def _coco_of(result: LabelMap, own: npt.NDArray[np.bool_] | None, plan: LabelPlan) -> list[dict[str, Any]]:
    """COCO annotations of one image, whose image id is set when all images are known."""
    if plan.instances:
        objects = result.instances(plan.overlap, smallest=0)
        each = (coco_annotations([o.mask], 0, [n], encoding=plan.encoding, scores=[o.score]) for n, o in objects)
        return [annotation for annotations in each for annotation in annotations]
    ids, scores = range(1, len(result.names) + 1), list(result.score.values())
    masks = result.labels if own is None else own
    return coco_annotations(masks, 0, ids, encoding=plan.encoding, scores=scores)


def _label(
    image: str,
    name: str,
    seen_from: Callable[[str], str],
    result: object,
    photo: PhotoFacts | None,
    output: Output,
    plan: LabelPlan,
) -> dict[str, Any]:
    """Write the files of one image and return its entry for the record, which has the error if there is one."""
    if isinstance(result, Failure):
        return {"image": image, "error": result.reason}
    if not isinstance(result, LabelMap):
        raise TypeError(f"a list of prototypes gives label maps, not {type(result).__name__}")
    own = result.masks if plan.overlap else None
    try:
        files = write_files(name, seen_from, result, output, plan.formats, own, plan.instances)
    except DataError as error:
        return {"image": image, "error": str(error)}
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in _OF_A_NAME:
            raise
        return {"image": image, "error": f"its name does not do for label files ({error.__cause__}); rename it"}
    photo_facts = None if photo is None else astuple(photo)
    entry = {"image": image, "photo": photo_facts, "name": name, "files": files, **result.summary()}
    if "coco" in plan.formats:
        entry["coco"] = _coco_of(result, own, plan)
    if "label-studio" in plan.formats:
        entry["label_studio"] = label_studio_prediction(
            result.labels,
            result.names,
            scores=list(result.score.values()),
            model_version=f"diffup {result.results[0].backbone}",
        )
    return entry
