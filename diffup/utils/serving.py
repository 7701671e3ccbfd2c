"""What the servers share: limits of requests and images, where they listen, and how they end."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Iterator

from PIL import Image

from diffup.errors import ConfigError

MAX_PIXELS = 2**24
"""Maximum number of pixels of an image that a visitor or a tool sends: 4096 x 4096."""


def check_listening(port: int, max_upload: int) -> None:
    """Check the numbers with which a server starts.

    Args:
        port: port to listen on; 0 for any free one.
        max_upload: maximum size of an upload, in MiB.

    Raises:
        ConfigError: a number is out of range.
    """
    if max_upload < 1 or not 0 <= port <= 65535:
        raise ConfigError(f"port={port}, max_upload={max_upload}: give a port up to 65535 and at least 1 MiB")


def is_loopback(host: str) -> bool:
    """Whether an address or name is that of the loopback interface, which this machine alone can reach.

    Args:
        host: address or name, without a port.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def cannot_listen(host: str, port: int, reason: object) -> ConfigError:
    """The error that a server cannot listen at an address.

    Args:
        host: address to listen on.
        port: port to listen on.
        reason: what the system says.
    """
    return ConfigError(f"host={host!r}, port={port}: cannot listen there ({reason}); try another")


def free_port(host: str) -> int:
    """A port that nothing listens on.

    Args:
        host: address to listen on.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def images_limited() -> Iterator[None]:
    """Let Pillow refuse images of more than `MAX_PIXELS` while the block runs, whoever opens them."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above it and refuses above twice as much
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` if the process is terminated while the block runs, so that blocks around it end too."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
