"""Listening: by default on the loopback interface; elsewhere only with a token."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from diffup.errors import ConfigError
from diffup.utils.optional import need
from diffup.utils.serving import cannot_listen, images_limited, is_loopback, termination_interrupts

MIN_TOKEN = 16
"""Minimum number of characters of a token."""


def check_token(host: str, token: str | None) -> None:
    """Check that a server which others can reach has a token.

    Args:
        host: address to listen on.
        token: the token, or None.

    Raises:
        ConfigError: the host is not the loopback interface and there is no token, or the token is too short or not
            printable ASCII.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host={host!r}: others can reach it, so a token is needed; write one of {MIN_TOKEN} characters or more "
            "into a file and give it with --token-file"
        )
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(f"token: give {MIN_TOKEN} or more printable ASCII characters")


def serve(app: Any, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve an application until the process is interrupted or terminated.

    Args:
        app: the ASGI application.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        ready: function called with the server's URL once it listens.

    Raises:
        ConfigError: the port is taken, or the host cannot be listened on.
        MissingPackageError: uvicorn is not installed.
    """
    uvicorn = need("uvicorn", "the server", extra="serve")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise cannot_listen(host, port, error) from error
    with listening, termination_interrupts(), images_limited():
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listening])
