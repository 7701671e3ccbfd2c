"""The Label Studio that the user named: the one host that files are fetched from."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from diffup.errors import ConfigError, ImageError

_ADDRESS = re.compile(r"https?://[^/?#@\s]+(/[^?#\s]*)?")
_PATIENCE = 20.0  # seconds
_LASTS = 200.0  # seconds for which an access token is used; Label Studio's last five minutes
_MOST_TOKEN = 2**16  # bytes of an answer that holds an access token


class LabelStudioHost:
    """Fetches files from one Label Studio; redirects are refused, so that it leads nowhere else.

    Args:
        url: its address, such as "http://localhost:8080".
        key: a personal access token or a legacy token of an account there; None for none.

    Raises:
        ConfigError: the address is no http or https URL.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        if not _ADDRESS.fullmatch(self.url):
            raise ConfigError(f"label_studio={url!r}: give its address, such as http://localhost:8080")
        self._key = key
        self._access: tuple[str, float] | None = None
        self._lock = threading.Lock()

    def relative(self, recorded: str) -> str:
        """The path and query of a URL of this host, from the slash on; any other text as it is.

        Args:
            recorded: the URL, or another text.
        """
        return recorded[len(self.url) :] if recorded.startswith(f"{self.url}/") else recorded

    def get(self, path: str, most: int) -> bytes:
        """Fetch a file.

        Args:
            path: path and query, from the slash on.
            most: number of bytes after which reading ends.

        Returns:
            The first `most` + 1 bytes of the file.

        Raises:
            ImageError: the host cannot be reached or refuses.
        """
        headers = {} if self._key is None else {"Authorization": self._authorization(self._key)}
        return self._ask(Request(self.url + path, headers=headers), most)

    def _authorization(self, key: str) -> str:
        """Header with a legacy token, or with an access token, for which a personal one is exchanged."""
        if key.count(".") != 2:  # only a personal access token, a JSON web token, has three parts
            return f"Token {key}"
        with self._lock:
            if self._access is None or self._access[1] < time.monotonic():
                body = json.dumps({"refresh": key}).encode()
                request = Request(
                    f"{self.url}/api/token/refresh", data=body, headers={"Content-Type": "application/json"}
                )
                self._access = _access_token(self._ask(request, _MOST_TOKEN)), time.monotonic() + _LASTS
            return f"Bearer {self._access[0]}"

    def _ask(self, request: Request, most: int) -> bytes:
        try:
            with _OPENER.open(request, timeout=_PATIENCE) as answer:
                content: bytes = answer.read(most + 1)
                return content
        except HTTPError as error:
            hint = "; check the key that --api-key-file holds" if error.code in (401, 403) else ""
            raise ImageError(f"image: Label Studio answers {error.code} {error.reason}{hint}") from error
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            raise ImageError(f"image: Label Studio at {self.url} cannot be reached ({error})") from error


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow no redirect; the answer is an error then."""


_OPENER: OpenerDirector = build_opener(_NoRedirect, ProxyHandler({}))


def _access_token(content: bytes) -> str:
    try:
        return str(json.loads(content)["access"])
    except (ValueError, LookupError, TypeError) as error:
        raise ImageError("image: Label Studio gives no access token for the key that --api-key-file holds") from error
