"""The encoders that the page offers, each loaded when it is first chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from diffup.backbones.bundled import BUNDLES
from diffup.backbones.named import load_named, split_backbone
from diffup.errors import ConfigError
from diffup.model import DiffUp
from diffup.text import conse, sentences
from diffup.text.load import CONSE, text_tower


class Encoders:
    """One decoder behind several encoders.

    Nobody can name others on the page: that would let every visitor start downloads.

    Args:
        model: the decoder with its first encoder.
        others: further names, `NAME[=CHECKPOINT][@PIXELS]`.
        input_size: side that images are resized to for the others; each encoder's own if None.

    Raises:
        ConfigError: an empty name.
        BackboneError: from `get`: the encoder cannot be found or built.
    """

    def __init__(self, model: DiffUp, others: Sequence[str] = (), input_size: int | None = None) -> None:
        self._models = {model.backbone.name: model}
        self._others = {split_backbone(text)[0]: text for text in others}
        self._input_size = input_size
        self.first = model

    @property
    def names(self) -> list[str]:
        """In the order of the choice."""
        return list(dict.fromkeys([self.first.backbone.name, *self._others]))

    @property
    def reader(self) -> str | None:
        """Name of what reads words, behind every encoder; None where nothing does."""
        given = self.first.text_backbone
        if given is None:
            return None if text_tower(self.first.backbone) is None else self.first.backbone.name
        return given if isinstance(given, str) else given.name

    def get(self, name: str) -> DiffUp:
        """The decoder behind the encoder of this name."""
        if name not in self._models:
            if name not in self._others:
                raise ConfigError(f"encoder={name!r}: this page offers {', '.join(self.names)}")
            self._models[name] = self.first.upgrade(load_named(self._others[name], self._input_size))
        return self._models[name]


def installed_encoders() -> list[str]:
    """The bundled encoders whose weights are installed."""
    return [f"bundled:{name}" for name, bundle in BUNDLES.items() if importlib.util.find_spec(bundle.module)]


def installed_reader() -> str | None:
    """The text space that needs no download, if the extra `text` is installed."""
    needed = (BUNDLES[conse.DEFAULT_CLASSIFIER].module, sentences.MODULE)
    return f"{CONSE}:{conse.DEFAULT_CLASSIFIER}" if all(map(importlib.util.find_spec, needed)) else None
