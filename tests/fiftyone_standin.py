"""The few names of FiftyOne that the model uses, as its documentation states them, where FiftyOne is not installed.

FiftyOne is left out of the `dev` extra: it brings 69 packages and a database server, which it downloads from elsewhere,
and holds Starlette at 1.3, below the version that the demo and the server are tested with. Where it is installed the
tests use it; `examples/fiftyone_session.py` is run with it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INSTALLED = importlib.util.find_spec("fiftyone") is not None


class Model:
    """`fiftyone.core.models.Model`."""

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def predict_all(self, args: Any) -> list[Any]:
        return [self.predict(arg) for arg in args]  # type: ignore[attr-defined]


class Label:
    """A label keeps what it is given, also fields of one's own."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


class Detection(Label):
    """`fiftyone.core.labels.Detection`."""


class Detections(Label):
    """`fiftyone.core.labels.Detections`."""


class Segmentation(Label):
    """`fiftyone.core.labels.Segmentation`."""


@contextmanager
def provided() -> Iterator[types.ModuleType]:
    """`diffup.integrations.fiftyone` as it is with FiftyOne, which the stand-in is if it is not installed."""
    if INSTALLED:
        yield importlib.import_module("diffup.integrations.fiftyone")
        return
    names = ("fiftyone", "fiftyone.core", "fiftyone.core.models", "fiftyone.core.labels")
    modules = {name: types.ModuleType(name) for name in names}
    vars(modules["fiftyone.core.models"])["Model"] = Model
    for label in (Detection, Detections, Segmentation):
        vars(modules["fiftyone.core.labels"])[label.__name__] = label
    sys.modules.update(modules)
    integration = importlib.import_module("diffup.integrations.fiftyone")
    try:
        yield importlib.reload(integration)
    finally:
        for name in names:
            del sys.modules[name]
        importlib.reload(integration)
