"""Features of images kept in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

from diffup.errors import ConfigError

CACHE_BYTES = 2**31
"""Memory for features unless the caller says otherwise: two gibibytes."""


class FeatureCache:
    """Computes each image's features once, as long as there is room; the least recently used ones go first.

    Features stay in float32, so that a figure never depends on whether they were computed or remembered.

    Args:
        cache_bytes: room for them; 0 keeps none.

    Raises:
        ConfigError: `cache_bytes` is negative.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        if cache_bytes < 0:
            raise ConfigError(f"cache_bytes={cache_bytes}: it must be 0 or more")
        self.cache_bytes = cache_bytes
        self.used = 0
        self._entries: OrderedDict[Hashable, list[Tensor]] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The features under a key, computed if they are not here."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        levels = compute()
        self._entries[key] = levels
        self.used += _size(levels)
        while self.used > self.cache_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.used -= _size(dropped)
        return levels


def _size(levels: list[Tensor]) -> int:
    return sum(level.untyped_storage().nbytes() for level in levels)
