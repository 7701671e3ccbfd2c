"""The encoders that the page offers, each loaded on first use."""

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
    """One decoder with several encoders.

    Visitors cannot name other encoders, because that would let them start downloads.

    Args:
        model: the model with the decoder and the first encoder.
        others: names of further encoders, `NAME[=CHECKPOINT][@PIXELS]`.
        input_size: side in pixels of the other encoders' input images; None for each encoder's own.

    Raises:
        ConfigError: a name is empty.
    """

    def __init__(self, model: DiffUp, others: Sequence[str] = (), input_size: int | None = None) -> None:
        self._models = {model.backbone.name: model}
        self._others = {split_backbone(text)[0]: text for text in others}
        self._input_size = input_size
        self.first = model

    @property
    def names(self) -> list[str]:
        """Names of the encoders, in the order of the menu."""
        return list(dict.fromkeys([self.first.backbone.name, *self._others]))

    @property
    def reader(self) -> str | None:
        """Name of the text encoder, the same with every encoder; None if there is none."""
        given = self.first.text_backbone
        if given is None:
            return None if text_tower(self.first.backbone) is None else self.first.backbone.name
        return given if isinstance(given, str) else given.name

    def get(self, name: str) -> DiffUp:
        """Return the model with an encoder, loading the encoder on first use.

        Args:
            name: name of an encoder that the page offers.

        Raises:
            ConfigError: the page does not offer this encoder.
            BackboneError: the encoder cannot be found or built.
        """
        if name not in self._models:
            if name not in self._others:
                raise ConfigError(f"encoder={name!r}: this page offers {', '.join(self.names)}")
            self._models[name] = self.first.upgrade(load_named(self._others[name], self._input_size))
        return self._models[name]


def installed_encoders() -> list[str]:
    """Return the names of the bundled encoders whose weights are installed."""
    return [f"bundled:{name}" for name, bundle in BUNDLES.items() if importlib.util.find_spec(bundle.module)]


def installed_reader() -> str | None:
    """Return the name of the text encoder that needs no download, or None if the extra `text` is not installed."""
    needed = (BUNDLES[conse.DEFAULT_CLASSIFIER].module, sentences.MODULE)
    return f"{CONSE}:{conse.DEFAULT_CLASSIFIER}" if all(map(importlib.util.find_spec, needed)) else None
