"""A cache of image features with bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

from diffup.errors import ConfigError

CACHE_BYTES = 2**31
"""Default size of the cache in bytes: 2 GiB."""


class FeatureCache:
    """A least-recently-used cache of image features.

    Features are stored in float32, so results do not depend on whether features come from the cache.

    Args:
        cache_bytes: maximum size of the cache in bytes; 0 stores nothing.

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
        """Return the features of a key, computing them if they are not in the cache.

        Args:
            key: key of the features.
            compute: function that computes the features.
        """
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
