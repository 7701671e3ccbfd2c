"""URLs: images, prototypes and label runs in fsspec's file systems; what is never fetched; one writer at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import build_fake, save_mask, save_tiny_decoder, shape_image, teach, tiny_model
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from PIL import Image
from test_labelling import EVERYTHING, GOOD, IMAGES, NAMES, contents, photos  # noqa: F401 - photos is a fixture

from diffup import DiffUp, Mask, Prototypes, Scribble, cli
from diffup.errors import (
    AnnotationError,
    ConfigError,
    DataError,
    FormatError,
    ImageError,
    MissingPackageError,
    PrototypesError,
    StorageError,
)
from diffup.formats import read_fiftyone, read_huggingface, read_labelme
from diffup.formats.supports import Gathering
from diffup.inputs.images import open_image, read_image, upright_size
from diffup.inputs.masks import read_mask
from diffup.labelling.folder import RECORD, label_folder
from diffup.labelling.plan import LabelPlan
from diffup.labelling.ray import label_into
from diffup.serve.photos import Photos
from diffup.stream import Failure
from diffup.utils import remote_journal
from diffup.utils.files import write_text
from diffup.utils.journal import Journal
from diffup.utils.remote_journal import RemoteJournal
from diffup.utils.storage import RemoteFolder, is_url, located, read_url, without_password

BUCKET = "memory://bucket"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty store, whose locks grow old soon."""
    monkeypatch.setattr(remote_journal, "LEASE", 0.4)
    monkeypatch.setattr(remote_journal, "RENEWAL", 0.05)
    system = MemoryFileSystem()
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(steps=1)


def label(
    model: DiffUp, classes: list[Prototypes], folder: object, output: object, plan: LabelPlan = EVERYTHING
) -> Any:
    return label_folder(model, folder, classes, output, plan, batch_size=4, workers=2)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(
    model: DiffUp,
    classes: list[Prototypes],
    photos: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The files of a run from disk to disk."""
    out = tmp_path_factory.mktemp("whole") / "out"
    label(model, classes, photos, out)
    return contents(out)


@pytest.fixture
def uploaded(store: MemoryFileSystem, photos: Path) -> str:  # noqa: F811
    for name, content in contents(photos).items():
        store.pipe_file(f"/bucket/photos/{name}", content)
    return f"{BUCKET}/photos"


def written(store: MemoryFileSystem, folder: str = "/bucket/labels") -> dict[str, bytes]:
    return {path.removeprefix(f"{folder}/"): store.cat_file(path) for path in store.find(folder)}


WITH_PLACES = {RECORD, "label_studio.json"}
"""Files that say where the photos are; LabelMe's do too."""


def check(found: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """The same files as of a run from disk to disk, byte by byte; no part, no lock."""
    assert found.keys() == whole.keys()
    for name, content in whole.items():
        if name.startswith("labelme/"):
            ours, theirs = json.loads(found[name]), json.loads(content)
            assert ours.pop("imagePath") != "" and theirs.pop("imagePath") and ours == theirs
        elif name == "quality.csv":  # the error of the broken image names its place
            assert [line.rpartition("cannot be read")[2] for line in found[name].decode().splitlines()] == [
                line.rpartition("cannot be read")[2] for line in content.decode().splitlines()
            ]
        elif name not in WITH_PLACES:
            assert found[name] == content, name


# --- single files ----------------------------------------------------------------------------------------------------


def test_what_is_a_url() -> None:
    for url in ("s3://bucket/a.jpg", "memory://a", "simplecache::s3://b/a", "zip://a.png::s3://b/a.zip", "file:///a"):
        assert is_url(url)
    for other in ("a.jpg", "/a::b/c.png", "C://a.jpg", "s3:/a.jpg", Path("s3://a"), b"s3://a", None, "https:a"):
        assert not is_url(other)


def test_segment_by_url(model: DiffUp, store: MemoryFileSystem, tmp_path: Path) -> None:
    query, _ = shape_image((1, 2), seed=5)
    support, labels = shape_image((1,), seed=1)
    Image.fromarray(query).save(tmp_path / "query.png")
    Image.fromarray(support).save(tmp_path / "support.png")
    save_mask(tmp_path / "mask.png", labels == 1)
    for path in tmp_path.iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    expected = model.segment(tmp_path / "query.png", tmp_path / "support.png", tmp_path / "mask.png").probability
    for place in (BUCKET, tmp_path.as_uri()):
        at = f"{place}/query.png", f"{place}/support.png", f"{place}/mask.png"
        assert np.array_equal(model.segment(*at).probability, expected)
        assert np.array_equal(model.segment(*at[:2], Mask(at[2])).probability, expected)
        assert Scribble(at[2]).strokes.sum() == (labels == 1).sum()  # type: ignore[union-attr]
    known = model.prototypes(f"{BUCKET}/support.png", f"{BUCKET}/mask.png")
    store.pipe_file("/bucket/broken.png", b"no image")
    queries = [f"{BUCKET}/broken.png", f"{BUCKET}/query.png", f"{BUCKET}/none.png", tmp_path / "query.png"]
    broken, good, none, local = model.segment_many(queries, known)
    assert isinstance(broken, Failure) and broken.source == queries[0]
    assert f"{queries[0]!r} cannot be read as an image" in broken.reason
    assert isinstance(none, Failure) and none.reason == f"there is no file {queries[2]!r}; check the URL"
    # Rows of a batch may be rounded differently, so the URL is compared with the file in the same row.
    in_other_order = model.segment_many([queries[3], queries[1]], known)
    for mine, theirs in zip((good, local), in_other_order, strict=True):
        assert np.array_equal(mine.probability, theirs.probability)  # type: ignore[union-attr]
    with pytest.raises(AnnotationError, match=r"^annotation: there is no file 'memory://bucket/n\.png'"):
        model.segment(queries[1], queries[1], f"{BUCKET}/n.png")
    with pytest.raises(ImageError, match=r"^support\[0\]: there is no file"):
        model.segment(queries[1], [f"{BUCKET}/n.png"], None)


def test_prototypes_by_url(classes: list[Prototypes], store: MemoryFileSystem, tmp_path: Path) -> None:
    path = classes[0].save(tmp_path / "a.safetensors")
    store.pipe_file("/bucket/a.safetensors", path.read_bytes())
    store.pipe_file("/bucket/b.safetensors", b"torn")
    for url in (f"{BUCKET}/a.safetensors", path.as_uri()):
        loaded = Prototypes.load(url)
        assert loaded.name == NAMES[0]
        assert loaded.features is not None and Prototypes.load(path).features is not None
        for ours, theirs in zip(loaded.features.levels, Prototypes.load(path).features.levels, strict=True):  # type: ignore[union-attr]
            assert ours.equal(theirs)
    with pytest.raises(PrototypesError, match="there is no file 'memory://bucket/c"):
        Prototypes.load(f"{BUCKET}/c.safetensors")
    with pytest.raises(PrototypesError, match=r"^memory://bucket/b\.safetensors is damaged"):
        Prototypes.load(f"{BUCKET}/b.safetensors")


def test_refused_urls(store: MemoryFileSystem, model: DiffUp, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe_file("/bucket/a.png", bytes(100))
    assert len(read_url(f"{BUCKET}/a.png", 100)) == 100
    for url, message in (
        (f"{BUCKET}/a.png", "more than 99 bytes"),
        ("https://example.org/a.png", "web addresses are not fetched"),
        ("simplecache::s3://bucket/a.png", "chains of file systems"),
        ("zip://a.png::memory://bucket/a.zip", "chains of file systems"),
        ("nothing://bucket/a.png", "Protocol not known: nothing"),
        (f"{BUCKET}/b.png", "there is no file"),
    ):
        with pytest.raises(StorageError, match=message):
            read_url(url, 99)
        with pytest.raises(ImageError, match=r"^query: "):
            model.segment(url, shape_image((1,))[0])
    monkeypatch.setitem(known_implementations, "absent", {"class": "absentfs.FS", "err": "Install absentfs to read it"})
    for read in (read_url, located, Prototypes.load, lambda url: list(model.segment_many([url], teach(model, "a")))):
        with pytest.raises(MissingPackageError, match=r"'absent://b/a\.png' needs a package.*Install absentfs"):
            read("absent://b/a.png")


def test_a_file_of_unknown_size_is_read_up_to_the_limit(store: MemoryFileSystem, monkeypatch: Any) -> None:
    """Such as one that a server compresses: no more than the limit is taken, whatever the header says."""
    asked = []

    class Endless:
        size = None

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read(self, count: int) -> bytes:
            asked.append(count)
            return bytes(count)

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Endless())
    with pytest.raises(StorageError, match="more than 10 bytes"):
        read_url(f"{BUCKET}/a.png", 10)
    assert asked == [11]


# --- passwords in URLs -----------------------------------------------------------------------------------------------


class Vault(MemoryFileSystem):
    """A file system whose URLs hold a password, such as that of an FTP server."""

    protocol = "vault"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        _, found, rest = path.partition("://")
        if found and not rest.startswith("user:secret@host/"):
            raise PermissionError(f"{path} is refused")  # some errors repeat the URL
        return f"/{rest.partition('/')[2] if found else path.strip('/')}".rstrip("/")


def test_what_is_a_password() -> None:
    for url, shown in (
        ("ftp://user:secret@host/a.png", "ftp://user:***@host/a.png"),
        ("'s3://key:se/cr@et@bucket/a@b.png' cannot be read", "'s3://key:***@bucket/a@b.png' cannot be read"),
        ("s3:/key:secret@bucket/a", "s3:/key:***@bucket/a"),
        ("ftp://:secret@host ftp://u:1234@host", "ftp://:***@host ftp://u:***@host"),
    ):
        assert without_password(url) == shown
    for other in ("sftp://host:22/a@b.png", "abfs://box@account/a:b.png", "s3://bucket/a:b@c.png", "C:/a:b@c", "a:b@c"):
        assert without_password(other) == other


def test_passwords_are_neither_printed_nor_written(
    model: DiffUp,
    classes: list[Prototypes],
    uploaded: str,
    store: MemoryFileSystem,
    families: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register_implementation("vault", Vault, clobber=True)
    vault, other = "vault://user:secret@host/bucket", "vault://user:secret@elsewhere/bucket"
    report = label(model, classes, f"{vault}/photos", tmp_path / "disk")
    assert report.labelled == 6 and len(report.failed) == 1
    report = label(model, classes, f"{vault}/photos", f"{BUCKET}/vault")
    label(model, classes, uploaded, f"{vault}/labels")
    tasks = json.loads((tmp_path / "disk/label_studio.json").read_text())
    assert tasks[0]["data"]["image"].startswith("vault://user:***@host/bucket/photos/")
    texts = [content for name, content in contents(tmp_path / "disk").items() if not name.endswith((".png", ".jpg"))]
    texts += [store.cat_file(path) for path in store.find("/bucket") if not path.endswith((".png", ".jpg", ".PNG"))]
    assert len(texts) > 30 and not any(b"secret" in text for text in texts)
    assert "secret" not in f"{report} {label(model, classes, uploaded, f'{vault}/labels')}"
    with pytest.raises(ConfigError) as refused:
        label(model, classes, f"{vault}/photos", f"{vault}/photos/out")
    said = [str(refused.value)]
    for act in (
        lambda: label(model, classes, f"{vault}/none", f"{vault}/out"),
        lambda: label(model, classes, f"{other}/none", f"{vault}/out"),
        lambda: label(model, classes, f"{vault}/photos", f"{vault}/labels", LabelPlan(seed=3)),
        lambda: Prototypes.load(f"{vault}/none"),
        lambda: Prototypes.load(f"{vault}/photos/0.jpg"),
        lambda: read_url(f"{vault}/photos/0.jpg", 1),
        lambda: read_url("https://user:secret@host/a"),
        lambda: read_url("vault://user:secret@host/a::b"),
        lambda: read_url("absent://user:secret@host/a"),
        lambda: model.segment(f"{vault}/photos/{IMAGES[-1]}", classes[0]),
        lambda: read_image(f"{vault}/photos/0.jpg"),
    ):
        with pytest.raises((DataError, ImageError, PrototypesError, StorageError)) as caught:
            act()
        said.append(str(caught.value))
    assert not [text for text in said if "secret" in text or "user:***@" not in text]
    monkeypatch.chdir(tmp_path)
    families(fake=build_fake)
    chosen = ("--decoder", str(save_tiny_decoder(Path("decoder"), steps=1, backbone="fake")), "--device", "cpu")
    photos_there = f"{vault}/photos/0.jpg", "--support", f"{vault}/photos/1.jpg"
    assert cli.main(["segment", *photos_there, "-o", "out", *chosen]) == 0
    assert cli.main(["segment", *photos_there, "-o", "ftp://user:secret@host/out", *chosen]) == cli.FAILED
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err and "secret" not in Path("out/result.json").read_text()
    assert "user:***@host" in printed.out and "user:***@host" in printed.err


# --- what comes from others is never fetched -------------------------------------------------------------------------


class Trap(MemoryFileSystem):
    """A file system that notes its use."""

    protocol = "trap"
    cachable = False
    used = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        Trap.used += 1
        super().__init__(*args, **options)


URL = "trap://host/a.png"


def test_paths_in_files_of_others_are_not_fetched(tmp_path: Path) -> None:
    register_implementation("trap", Trap, clobber=True)
    located(URL)
    assert Trap.used == 1  # the trap works
    shape = {"label": "dog", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": URL, "imageData": None, "shapes": [shape]}))
    detections = {"detections": [{"label": "dog", "bounding_box": [0.1, 0.1, 0.5, 0.5]}]}
    row = {"image": URL, "mask": np.eye(4, dtype=bool)}
    mask = {"filepath": URL, "ground_truth": detections}
    for read in (
        lambda: read_labelme(tmp_path / "a.json", "dog"),
        lambda: read_fiftyone([mask], "dog", images=tmp_path),
        lambda: read_huggingface(row, images=tmp_path),
        lambda: read_huggingface({"image": np.zeros((4, 4, 3), np.uint8), "mask": URL}, images=tmp_path),
        lambda: Gathering("raise").add(URL, None),
    ):
        with pytest.raises(FormatError, match="is a URL, and URLs are not fetched"):
            read()
    for read in (
        lambda: open_image(URL, "image"),
        lambda: read_image(URL),
        lambda: upright_size(URL, "image"),
        lambda: Photos([tmp_path]).find(URL),
    ):
        with pytest.raises(ImageError, match="URLs are not fetched"):
            read()
    with pytest.raises(AnnotationError, match="URLs are not fetched"):
        read_mask(URL)
    assert Trap.used == 1


def test_only_labels_are_written_to_urls(
    model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda: write_text("s3://bucket/a.txt", ""),
        lambda: teach(model, "a")[0].save("s3://b/a.safetensors"),
        lambda: Journal("s3://bucket/record.jsonl").append([{}]),
    ):
        with pytest.raises(StorageError, match=r"^s3://.* only `diffup label` writes to URLs"):
            write()
    for folder, output in (("photos", Path("s3://bucket/out")), (Path("s3://bucket/photos"), "out")):
        with pytest.raises(
            StorageError, match=r"s3:/bucket/\w+ was a URL before it became a Path.*give the URL as text"
        ):
            label(model, teach(model, "a"), folder, output)
    with pytest.raises(ConfigError, match=r"Ray's own write_parquet"):
        label_into(None, "s3://bucket/out", teach(model, "a"))  # type: ignore[arg-type]
    for command, url in (
        ("segment a.png --support b.png", "s3://bucket/out"),
        ("teach --support b.png --name b", "s3://bucket/b.safetensors"),
        ("teach --support b.png --name b", "file:///b.safetensors"),
    ):
        assert cli.main([*command.split(), "-o", url]) == cli.FAILED
        assert f"--output: '{url}' is a URL" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_do_not_overwrite_an_input_by_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(shape_image((1,))[0]).save(tmp_path / "mask.png")
    photo = (tmp_path / "mask.png").as_uri()
    assert cli.main(["segment", photo, "--support", photo, "-o", str(tmp_path)]) == cli.FAILED
    assert "the results would overwrite file:///" in capsys.readouterr().err


# --- label runs ------------------------------------------------------------------------------------------------------


def test_the_same_bytes(
    model: DiffUp,
    classes: list[Prototypes],
    whole: dict[str, bytes],
    uploaded: str,
    store: MemoryFileSystem,
    photos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    report = label(model, classes, uploaded, f"{BUCKET}/labels")
    assert (report.labelled, report.known, list(report.failed)) == (6, 0, [IMAGES[-1]])
    assert report.files[0] == f"{BUCKET}/labels/labels"
    assert report.left_out == {
        "notes.txt": "no image by its ending",
        ".hidden.png": "hidden",
        "more/.hidden/": "hidden",
    }
    found = written(store)
    check(found, whole)
    assert json.loads(found["labelme/more/0.json"])["imagePath"] == "../../../photos/more/0.PNG"
    tasks = json.loads(found["label_studio.json"])
    assert [task["data"]["image"] for task in tasks] == [f"{uploaded}/{image}" for image in GOOD]
    again = label(model, classes, f"{uploaded}/", f"{BUCKET}/labels/")
    assert (again.labelled, again.known, list(again.failed)) == (0, 6, [IMAGES[-1]])
    assert written(store) == found
    label(model, classes, photos, f"{BUCKET}/of disk")
    check(written(store, "/bucket/of disk"), whole)
    label(model, classes, uploaded, tmp_path / "out")
    check(contents(tmp_path / "out"), whole)
    label(model, classes, photos.as_uri(), (tmp_path / "as_url").as_uri())
    on_disk = contents(tmp_path / "as_url")
    check(on_disk, whole)
    assert on_disk["label_studio.json"] == whole["label_studio.json"]
    with pytest.raises(DataError, match="seed: 0 there, 3 here"):
        label(model, classes, uploaded, f"{BUCKET}/labels", LabelPlan(formats=EVERYTHING.formats, seed=3))


class Disk(LocalFileSystem):
    """A file system that has folders, which must be made before their files, as SFTP, FTP and SMB need it."""

    protocol = "disk"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("disk://")))


def test_file_systems_with_folders(
    model: DiffUp,
    classes: list[Prototypes],
    whole: dict[str, bytes],
    photos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    register_implementation("disk", Disk, clobber=True)
    report = label(model, classes, f"disk://{photos}", f"disk://{tmp_path}/new/out")
    assert (report.labelled, report.known) == (6, 0)
    check(contents(tmp_path / "new/out"), whole)
    (tmp_path / "new/out/labels/0.png").unlink()
    report = label(model, classes, f"disk://{photos}", f"disk://{tmp_path}/new/out")
    assert (report.labelled, report.known) == (1, 5)
    check(contents(tmp_path / "new/out"), whole)


def failing(monkeypatch: pytest.MonkeyPatch, after: int, record: bool) -> None:
    """Let the store break down after so many label files, for the record too or not."""
    write, count = MemoryFileSystem.pipe_file, [0]

    def pipe_file(self: MemoryFileSystem, path: str, value: bytes, **options: Any) -> None:
        count[0] += RECORD not in path
        if count[0] > after and (record or RECORD not in path):
            raise OSError("the store is out of order")
        write(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)


@pytest.mark.parametrize(("after", "record"), [(0, True), (9, True), (1, False), (9, False)])
def test_interrupted_and_continued(
    after: int,
    record: bool,
    model: DiffUp,
    classes: list[Prototypes],
    whole: dict[str, bytes],
    uploaded: str,
    store: MemoryFileSystem,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        failing(patched, after, record)
        with pytest.raises(StorageError, match=r"cannot be written.*the store is out of order"):
            label(model, classes, uploaded, f"{BUCKET}/labels")
    before = written(store)
    assert len([name for name in before if not name.startswith(RECORD)]) == after and f"{RECORD}.lock" not in before
    report = label(model, classes, uploaded, f"{BUCKET}/labels")
    assert report.labelled + report.known == 6 and report.known == (0 if record else after // 4)  # four files an image
    check(written(store), whole)


def test_killed_and_continued(
    model: DiffUp, classes: list[Prototypes], whole: dict[str, bytes], uploaded: str, store: MemoryFileSystem
) -> None:
    """A killed process leaves its lock, and labels that are not recorded yet."""
    label(model, classes, uploaded, f"{BUCKET}/labels")
    lines = store.cat_file(f"/bucket/labels/{RECORD}").splitlines(keepends=True)
    store.rm_file(f"/bucket/labels/{RECORD}")
    store.pipe_file(f"/bucket/labels/{RECORD}.parts/000000001-00.jsonl", b"".join(lines[:3]))
    store.pipe_file(f"/bucket/labels/{RECORD}.lock", b'{"token": "of the dead"}')
    report = label(model, classes, uploaded, f"{BUCKET}/labels")
    assert (report.labelled, report.known) == (4, 2)
    check(written(store), whole)


def test_one_process_at_a_time(
    model: DiffUp, classes: list[Prototypes], uploaded: str, store: MemoryFileSystem
) -> None:
    folder = located(f"{BUCKET}/labels")
    assert isinstance(folder, RemoteFolder)
    with RemoteJournal(folder, RECORD).alone("another task"), pytest.raises(StorageError, match="by another task"):
        label(model, classes, uploaded, f"{BUCKET}/labels")
    assert not written(store)
    journal = RemoteJournal(folder, RECORD)
    with pytest.raises(StorageError, match="another process has taken over"), journal.alone("the first"):
        store.pipe_file(f"/bucket/labels/{RECORD}.lock", b'{"token": "of another"}')
        time.sleep(0.5)  # several renewals
        journal.append([{"image": str(number)} for number in range(remote_journal.ENTRIES)])
    assert store.exists(f"/bucket/labels/{RECORD}.lock"), "it is the other's"


def test_a_journal_joined_twice(store: MemoryFileSystem) -> None:
    """A process is killed after it has joined the parts and before it has removed them."""
    folder = located(f"{BUCKET}/j")
    assert isinstance(folder, RemoteFolder)
    entries = [{"settings": {"seed": 0}}, *({"image": str(number)} for number in range(200))]
    journal = RemoteJournal(folder, RECORD)
    with suppress(KeyboardInterrupt), journal.alone("test"):
        for entry in entries:
            journal.append([entry])
        assert len(store.find(f"/bucket/j/{RECORD}.parts")) == 1 + (len(entries) - 1) // remote_journal.ENTRIES
        assert [entry for _, entry in journal.read()] == entries
        raise KeyboardInterrupt
    parts = {path: store.cat_file(path) for path in store.find(f"/bucket/j/{RECORD}.parts")}
    assert len(parts) == 5 and not store.exists(f"/bucket/j/{RECORD}")
    with RemoteJournal(folder, RECORD).alone("test"):
        assert not store.find(f"/bucket/j/{RECORD}.parts")
        assert [entry for _, entry in RemoteJournal(folder, RECORD).read()] == entries
    for path, content in parts.items():
        store.pipe_file(path, content)
    assert [entry for _, entry in RemoteJournal(folder, RECORD).read()] == entries * 2
    whole = store.cat_file(f"/bucket/j/{RECORD}")  # half an upload of what the parts hold, and half a part
    store.pipe_file(f"/bucket/j/{RECORD}", whole[: len(whole) // 2])
    last = max(parts)
    store.pipe_file(last, parts[last][:-5])
    store.pipe_file(f"{last}-later", b'{"image": "later"}\n')
    found = [entry for _, entry in RemoteJournal(folder, RECORD).read()]
    assert found[-1] == {"image": "later"} and all(entry in found for entry in entries[:-1])
    store.pipe_file(f"/bucket/j/{RECORD}", b"{}\n[1]\n")
    with pytest.raises(DataError, match=r"memory://bucket/j/record\.jsonl, line 2 is damaged"):
        list(RemoteJournal(folder, RECORD).read())


def test_photos_that_change(
    model: DiffUp, classes: list[Prototypes], whole: dict[str, bytes], uploaded: str, store: MemoryFileSystem
) -> None:
    label(model, classes, uploaded, f"{BUCKET}/labels")
    photo = store.cat_file("/bucket/photos/1.jpg")
    store.pipe_file("/bucket/photos/0.jpg", photo)
    store.rm_file("/bucket/photos/2.jpg")
    store.pipe_file("/bucket/labels/labels/more/1.png", b"by hand")
    store.rm_file("/bucket/photos/more/1.PNG")
    store.rm_file("/bucket/labels/labels/more/0.png")
    report = label(model, classes, uploaded, f"{BUCKET}/labels")
    assert (report.labelled, report.known, report.gone) == (2, 2, ("2.jpg", "more/1.PNG"))
    assert report.kept == (f"{BUCKET}/labels/labels/more/1.png",)
    found = written(store)
    assert found["labels/0.png"] == found["labels/1.png"] == whole["labels/1.png"]
    assert found["labels/more/0.png"] == whole["labels/more/0.png"]
    assert "labels/2.png" not in found and "overlays/more/1.jpg" in found


def test_an_object_that_cannot_be_read(
    model: DiffUp,
    classes: list[Prototypes],
    whole: dict[str, bytes],
    uploaded: str,
    store: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: MemoryFileSystem, path: str, *args: Any, **options: Any) -> Any:
            if path.endswith("photos/1.jpg"):
                raise RuntimeError("expired token")  # stores have errors of their own
            return method(self, path, *args, **options)

        return call

    monkeypatch.setattr(MemoryFileSystem, "open", refusing(MemoryFileSystem.open))
    report = label(model, classes, uploaded, f"{BUCKET}/labels", LabelPlan())
    assert report.labelled == 5 and list(report.failed) == ["1.jpg", IMAGES[-1]]
    assert report.failed["1.jpg"] == f"'{uploaded}/1.jpg' cannot be read (RuntimeError: expired token)"
    monkeypatch.undo()
    report = label(model, classes, uploaded, f"{BUCKET}/labels", LabelPlan())
    assert (report.labelled, report.known) == (1, 5)
    assert written(store)["labels/1.png"] == whole["labels/1.png"]


def test_names_that_only_objects_may_have(
    model: DiffUp, classes: list[Prototypes], uploaded: str, store: MemoryFileSystem, tmp_path: Path
) -> None:
    """A run fails for these photos alone, and nothing is written outside of its folder.

    Objects that stand for folders are none of the photos.
    """
    photo = store.store["/bucket/photos/0.jpg"]
    store.store |= {
        f"/bucket/photos/{name}": photo for name in ("a\0b.png", "\udc80.png", "b\\..\\..\\c.png", "../d.png")
    }
    store.store |= {
        f"/bucket/photos/{name}": photo for name in ("", "sub/", "more/sub/", "e f%20#?*[1].png", "e::f.png")
    }
    for output in (tmp_path / "out", f"{BUCKET}/labels"):
        report = label(model, classes, uploaded, output)
        assert report.labelled == 7
        assert set(report.failed) == {"a\0b.png", "\\udc80.png", "b\\..\\..\\c.png", IMAGES[-1], "e::f.png"}
        assert set(report.left_out) == {"notes.txt", ".hidden.png", "more/.hidden/", "../"}
        again = label(model, classes, uploaded, output)
        assert (again.labelled, again.known, again.failed) == (0, 7, report.failed)
    assert (tmp_path / "out/labels/e f%20#?*[1].png").is_file() and [path.name for path in tmp_path.iterdir()] == [
        "out"
    ]


def test_refused_folders(model: DiffUp, classes: list[Prototypes], uploaded: str, store: MemoryFileSystem) -> None:
    for output in (uploaded, f"{uploaded}/labels"):
        with pytest.raises(ConfigError, match="lies within memory://bucket/photos"):
            label(model, classes, uploaded, output)
    with pytest.raises(DataError, match="holds no image"):
        label(model, classes, f"{BUCKET}/none", f"{BUCKET}/labels")
    store.pipe_file("/bucket/photos labels/labels/0.png", b"of a stranger")  # begins like the folder, and is another
    with pytest.raises(DataError, match=r"memory://bucket/photos labels/labels/0\.png would be replaced"):
        label(model, classes, uploaded, f"{uploaded} labels")


def test_command(
    uploaded: str,
    store: MemoryFileSystem,
    families: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    families(fake=build_fake)
    decoder = save_tiny_decoder(Path("decoder"), steps=1, backbone="fake")
    model = DiffUp.from_pretrained(decoder, device="cpu")
    teach(model, ["square"])[0].save("square.safetensors")
    store.pipe_file("/bucket/square.safetensors", Path("square.safetensors").read_bytes())
    chosen = ("--decoder", "decoder", "--device", "cpu")
    known = ("--prototypes", f"{BUCKET}/square.safetensors")
    assert cli.main(["label", uploaded, *known, "-o", f"{BUCKET}/labels", *chosen]) == 0
    printed = capsys.readouterr()
    assert "6 labelled, 0 on record, 1 could not be read" in printed.out
    assert f"{BUCKET}/labels/quality.csv" in printed.out and "labels/0.png" in written(store)
    assert cli.main(["segment", f"{uploaded}/0.jpg", "--support", f"{uploaded}/1.jpg", "-o", "out", *chosen]) == 0
    assert Path("out/mask.png").exists() and {path.name for path in tmp_path.iterdir()} == {
        "decoder",
        "out",
        "square.safetensors",
    }
    assert cli.main(["label", "https://a.org/photos", *known, "-o", "labels", *chosen]) == cli.FAILED
    assert "web addresses are not fetched" in capsys.readouterr().err
