"""Streaming segmentation of many queries: read ahead in threads, encode and decode in batches, bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from diffup.errors import ConfigError, ImageError
from diffup.inference import Query
from diffup.inputs.images import ImageLike, describe
from diffup.label_map import LabelMap
from diffup.result import Segmentation
from diffup.utils.options import whole_number


@dataclass(frozen=True)
class Failure:
    """A query that could not be read, in place of its result.

    Attributes:
        source: path of the image, or a short description of an image that has no path.
        error: the error that reading the image raised.
    """

    source: str
    error: ImageError

    @property
    def reason(self) -> str:
        """Message of the error, without the name of the argument."""
        return str(self.error).partition(": ")[2]


Outcome: TypeAlias = Segmentation | LabelMap | Failure


def stream(
    queries: Iterable[ImageLike],
    read: Callable[[ImageLike, str], Query],
    decode: Callable[[Sequence[Query]], list[list[Segmentation]]],
    finish: Callable[[Sequence[Segmentation]], Segmentation | LabelMap],
    *,
    batch_size: int,
    workers: int,
    record: bool,
) -> Iterator[Outcome]:
    """Segment queries in batches and yield their results in order.

    At most `2 * batch_size + workers` queries are in memory at a time, however many there are.

    Args:
        queries: iterable of the images to segment, consumed as they are needed.
        read: function that reads a query, given the image and its name in error messages; called in threads.
        decode: function that segments every class in a batch of queries.
        finish: function that makes a query's result from the segmentations of all classes.
        batch_size: number of queries decoded together.
        workers: number of threads that read images.
        record: whether to yield a `Failure` for an image that cannot be read, instead of raising.

    Raises:
        ImageError: an image cannot be read and `record` is false.
    """

    def attempt(source: ImageLike, number: int) -> Query | Failure:
        try:
            return read(source, f"queries[{number}]")
        except ImageError as error:
            return Failure(_called(source), error)
        except OSError as error:  # such as no permission for the folder, or a path that is too long
            reason = f"queries[{number}]: {describe(source)} cannot be read ({error}); make the file readable"
            return Failure(_called(source), ImageError(reason))

    numbered = enumerate(queries)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="diffup-read")
    ahead: deque[Future[Query | Failure]] = deque()

    def read_ahead() -> None:
        for number, source in islice(numbered, batch_size + workers - len(ahead)):
            ahead.append(pool.submit(attempt, source, number))

    try:
        read_ahead()
        while ahead:
            batch = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
            read_ahead()
            yield from _results(batch, decode, finish, record)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_stream(queries: Iterable[ImageLike], batch_size: int, workers: int, on_error: str) -> None:
    """Check the arguments of `DiffUp.segment_many`.

    Args:
        queries: iterable of images.
        batch_size: number of queries decoded together, 1 or more.
        workers: number of threads that read images, 1 or more.
        on_error: "record" or "raise".

    Raises:
        ConfigError: a number is below 1, `on_error` is unknown, or `queries` is a single image.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if whole_number(name, value) < 1:
            raise ConfigError(f"{name}={value}: it must be 1 or more")
    if on_error not in ("record", "raise"):
        raise ConfigError(f"on_error={on_error!r}: choose 'record' or 'raise'")
    if isinstance(queries, str | bytes | Image.Image | np.ndarray | Tensor) or not isinstance(queries, Iterable):
        raise ConfigError(
            f"queries: expected a list or another iterable of images, got {describe(queries)}; for the images of a "
            "folder give sorted(Path(folder).glob('*.jpg')), for a single image call segment"
        )


def _called(source: ImageLike) -> str:
    """Path or description of a query for its `Failure`."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else describe(source)


def _results(
    batch: Sequence[Query | Failure],
    decode: Callable[[Sequence[Query]], list[list[Segmentation]]],
    finish: Callable[[Sequence[Segmentation]], Segmentation | LabelMap],
    record: bool,
) -> Iterator[Outcome]:
    """Yield the results of one batch, one at a time, because those of large images are large."""
    good = [item for item in batch if isinstance(item, Query)]
    decoded = iter(decode(good) if good else [])
    for item in batch:
        if isinstance(item, Query):
            yield finish(next(decoded))
        elif record:
            yield item
        else:
            raise item.error
