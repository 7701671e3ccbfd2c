"""The feature cache of training: views and their encoded features, computed once, stored on disk and memory-mapped.

A bank is filled in chunks. A run that is killed while filling continues where it stopped; if several runs need the same
bank, one fills it while the others wait. The name of its folder is a hash of everything that its content depends on: a
changed setting or file makes a new bank, and a copy of the data elsewhere uses the bank of the original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from diffup.backbones import Backbone, check_pyramid
from diffup.data.folder import square_mask
from diffup.errors import BackboneError
from diffup.inputs.images import resize_image
from diffup.priors.condition import EDGE_SIDE
from diffup.priors.edges import edge_maps
from diffup.priors.level import pool_to_grid
from diffup.priors.text import text_similarity
from diffup.priors.views import View, warp
from diffup.text.space import TextSpace
from diffup.training.render import Rendered
from diffup.utils.files import write_text

_FILLED = "filled.json"
CHUNK = 100
"""Number of views computed between two progress entries of a bank."""
_BATCH = 10  # images encoded at once; larger batches are slower on a CPU

REVISION = 1
"""Revision of the code that fills banks, a part of their names. Raise it by one whenever a change makes other views or
features of the same files and settings: in `training.render`, `priors.views`, `priors.edges`, or in how images are
resized and features pooled. `tests/test_bank.py` pins figures of the views and fails when they change."""

Render = Callable[[int], Rendered]
T = TypeVar("T")


class Bank:
    """Arrays on disk that are filled once, in order, chunk by chunk.

    Args:
        folder: folder of the arrays, created if needed.
        length: number of entries.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self.folder = folder
        self.length = length
        self.arrays: dict[str, npt.NDArray[Any]] = {}

    def fill(self, compute: Callable[[range], dict[str, npt.NDArray[Any]]], description: str, progress: bool) -> None:
        """Compute missing entries, and open the arrays for reading.

        Args:
            compute: function that returns the entries of a range, by array name.
            description: label of the progress bar.
            progress: whether to show a progress bar.
        """
        if self._facts()["filled"] < self.length:  # a filled bank may be read-only, so nothing is written there
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):  # released by the system if the process dies
                self._fill(compute, description, progress)
        self.arrays = {name: self._open(name, "r") for name in self._facts()["arrays"]}

    def _fill(self, compute: Callable[[range], dict[str, npt.NDArray[Any]]], description: str, progress: bool) -> None:
        facts = self._facts()  # another run may have filled it while this one waited
        arrays: dict[str, Any] = {name: self._open(name, "r+") for name in facts["arrays"]}
        with tqdm(total=self.length, initial=facts["filled"], desc=description, disable=not progress) as bar:
            while facts["filled"] < self.length:
                chunk = range(facts["filled"], min(facts["filled"] + CHUNK, self.length))
                for name, values in compute(chunk).items():
                    if name not in arrays:
                        shape = (self.length, *values.shape[1:])
                        arrays[name] = np.lib.format.open_memmap(
                            self.folder / f"{name}.npy", mode="w+", dtype=values.dtype, shape=shape
                        )
                    arrays[name][chunk.start : chunk.stop] = values
                for array in arrays.values():
                    array.flush()
                facts = {"filled": chunk.stop, "arrays": sorted(arrays)}
                write_text(self.folder / _FILLED, json.dumps(facts))
                bar.update(len(chunk))

    @property
    def filled(self) -> int:
        """Number of entries that have been filled."""
        return int(self._facts()["filled"])

    def _facts(self) -> dict[str, Any]:
        """Read the number of filled entries and the names of the arrays."""
        state = self.folder / _FILLED
        facts: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"filled": 0, "arrays": []}
        return facts

    def _open(self, name: str, mode: Any) -> Any:
        return np.load(self.folder / f"{name}.npy", mmap_mode=mode)


def bank_name(group: str, facts: dict[str, Any]) -> str:
    """Return the folder name of a bank: its group and a hash of what its content depends on.

    Args:
        group: name of the group of views.
        facts: everything that the content depends on, ready for JSON.
    """
    facts = {**facts, "revision": REVISION}
    return f"{group}-{hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def file_facts(paths: Sequence[Path]) -> str:
    """Hash the names and contents of files, so that the hash survives copying and changed modification times.

    All files are read, in threads: 3,300 photos and masks (71 MB) take 0.2 s of computing time.

    Args:
        paths: paths of the files.
    """
    with ThreadPoolExecutor() as pool:
        facts = [(path.name, digest) for path, digest in zip(paths, pool.map(_content, paths), strict=True)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def image_bank(folder: Path, length: int, render: Render, views: Sequence[View], progress: bool) -> Bank:
    """Fill or open the bank of training images: small images, edges, masks and sources of all views.

    Args:
        folder: folder of the bank.
        length: number of rendered views.
        render: function that renders a view by number.
        views: geometric views that are made of each rendered view.
        progress: whether to show a progress bar.

    Returns:
        A bank with `image` (N, 3, 128, 128) uint8, `edges` (N, 2, 128, 128) uint8, `mask` (N, 128, 128) uint8 and
        `source` (N,) int32, N = length * number of views, the views of one image side by side.
    """

    def compute(entries: range) -> dict[str, npt.NDArray[Any]]:
        images, edges, masks, sources = [], [], [], []
        for rendered, view in _each_view(entries, views, render):
            image = warp(resize_image(rendered.image, (EDGE_SIDE, EDGE_SIDE))[None], view)[0]
            images.append((image * 255).round().to(torch.uint8).numpy())
            edges.append((edge_maps(image[None])[0] * 255).round().to(torch.uint8).numpy())
            mask = square_mask(rendered.mask, EDGE_SIDE)
            masks.append(_warp_labels(mask, view).numpy())
            sources.append(rendered.source)
        return {
            "image": np.stack(images),
            "edges": np.stack(edges),
            "mask": np.stack(masks),
            "source": np.array(sources, dtype=np.int32),
        }

    bank = Bank(folder, length * len(views))
    bank.fill(compute, f"rendering {folder.name}", progress)
    return bank


def feature_bank(
    folder: Path,
    length: int,
    render: Render,
    views: Sequence[View],
    backbone: Backbone,
    grids: Sequence[int],
    bf16: bool,
    progress: bool,
) -> Bank:
    """Fill or open the bank of features: those of all views under one encoder.

    Args:
        folder: folder of the bank.
        length: number of rendered views.
        render: function that renders a view by number.
        views: geometric views that are made of each rendered view.
        backbone: the encoder.
        grids: maximum side of the stored features, for each of the four levels.
        bf16: whether to encode under bfloat16 autocast.
        progress: whether to show a progress bar.

    Returns:
        A bank with `level0` .. `level3`, each (N, C_l, h_l, w_l) float16 with at most `grids[l]` positions a side.

    Raises:
        BackboneError: the encoder breaks the protocol, or its features are too large for float16.
    """

    def compute(entries: range) -> dict[str, npt.NDArray[Any]]:
        encoded = []
        images = _each_view(entries, views, lambda index: resize_image(render(index).image, backbone.input_size)[None])
        while some := [warp(image, view) for image, view in islice(images, _BATCH)]:
            batch = torch.cat(some).to(backbone.device, memory_format=torch.channels_last)
            with torch.autocast(backbone.device.type, torch.bfloat16, enabled=bf16):
                levels = [level.float() for level in backbone.pyramid(batch)]  # features may be bfloat16 under autocast
            levels = check_pyramid(levels, backbone.name, len(batch))
            pooled = [pool_to_grid(level, grid).half() for level, grid in zip(levels, grids, strict=True)]
            if not all(bool(level.isfinite().all()) for level in pooled):
                raise BackboneError(
                    f"backbone '{backbone.name}' gives features beyond {torch.finfo(torch.half).max:.0f}, which do not "
                    "fit the cache of a training run (float16); divide them by a constant in `pyramid`; priors stay"
                )
            encoded.append([level.cpu().numpy() for level in pooled])
        return {f"level{i}": np.concatenate(parts) for i, parts in enumerate(zip(*encoded, strict=True))}

    bank = Bank(folder, length * len(views))
    bank.fill(compute, f"{backbone.name}: {folder.name}", progress)
    return bank


def text_bank(
    folder: Path,
    length: int,
    render: Render,
    views: Sequence[View],
    space: TextSpace,
    embeddings: Tensor,
    progress: bool,
) -> Bank:
    """Fill or open the bank of text similarities: those of all views to the name of every training class.

    Args:
        folder: folder of the bank.
        length: number of rendered views.
        render: function that renders a view by number.
        views: geometric views that are made of each rendered view.
        space: the text space.
        embeddings: (C, D), embeddings of the names of C classes.
        progress: whether to show a progress bar.

    Returns:
        A bank with `similar` (N, C, h, w) float16, results of `text_similarity`.
    """

    def compute(entries: range) -> dict[str, npt.NDArray[Any]]:
        found = []
        images = _each_view(entries, views, lambda index: resize_image(render(index).image, space.input_size)[None])
        for image, view in images:
            dense = space.dense(warp(image, view).to(space.device))
            similar = text_similarity(dense, embeddings.to(space.device), space.vocabulary_mean())
            found.append(similar[0].half().cpu().numpy())
        return {"similar": np.stack(found)}

    bank = Bank(folder, length * len(views))
    bank.fill(compute, f"{space.name}: {folder.name}", progress)
    return bank


def _each_view(entries: range, views: Sequence[View], make: Callable[[int], T]) -> Iterator[tuple[T, View]]:
    """What is made of each entry's image, once for all of its successive views, and the geometric view."""
    made: T | None = None
    for entry in entries:
        index, view = divmod(entry, len(views))
        if made is None or view == 0:
            made = make(index)
        yield made, views[view]


def _warp_labels(mask: Tensor, view: View) -> Tensor:
    """Warp class ids: each pixel gets the class with the largest bilinear weight."""
    labels: Tensor = torch.unique(mask)
    layers = torch.stack([warp((mask == label).float()[None, None], view)[0, 0] for label in labels])
    return labels.index_select(0, layers.argmax(dim=0).flatten()).view_as(mask)
