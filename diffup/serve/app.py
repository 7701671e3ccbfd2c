"""The server's application: routes, the token, limits, and errors as JSON."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffup.errors import DiffUpError, FormatError
from diffup.inputs.recorded import parse_json
from diffup.serve.xanylabeling import CODES, failure
from diffup.utils.optional import need
from diffup.utils.serving import is_loopback

log = logging.getLogger("diffup.serve")

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A function that answers a request: it takes the request's JSON object and the path's parameters as one mapping."""


@dataclass(frozen=True)
class Guard:
    """Who may ask, and how much.

    Attributes:
        token: what a request must bring; None if everybody on this machine may ask.
        max_upload: maximum size of a request, in MiB.
    """

    token: str | None = None
    max_upload: int = 20

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings the token: as a bearer, as the password of basic authentication, or in `Token`.

        Args:
            headers: headers of the request, by name in lower case.
        """
        if self.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = {"basic": _password(value), "bearer": value}.get(kind.lower()) or headers.get("token", "")
        return hmac.compare_digest(given.strip().encode(), self.token.encode())

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and text of the answer to a request that is refused whatever it asks for; None for others.

        Args:
            headers: headers of the request, by name in lower case.
        """
        host = re.sub(r":[0-9]+$", "", headers.get("host", ""))
        if self.token is None and not is_loopback(host):  # a web page reaches this machine by a name of its own
            return 403, f"the host {host[:60]!r} is not this machine; ask for 127.0.0.1"
        if not self.admits(headers):
            return 401, "the token is missing or wrong; give it as the password of basic authentication"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:12]) > self.max_upload * 2**20:
            return 413, f"the request has more than {self.max_upload} MiB (--max-upload)"
        return None


def build_app(gets: Mapping[str, Answer], posts: Mapping[str, Answer], guard: Guard) -> Any:
    """Build the ASGI application.

    Args:
        gets: answers to GET requests, by path; a part in braces is a parameter.
        posts: answers to POST requests, whose body is a JSON object, by path.
        guard: who may ask, and how much.

    Raises:
        MissingPackageError: Starlette is not installed.
    """
    routing = need("starlette.routing", "the server", extra="serve")
    applications = need("starlette.applications", "the server", extra="serve")
    responses = need("starlette.responses", "the server", extra="serve")
    run_in_threadpool = need("starlette.concurrency", "the server", extra="serve").run_in_threadpool
    http_error = need("starlette.exceptions", "the server", extra="serve").HTTPException

    def failed(request: Any, status: int, text: str) -> Any:
        if request.url.path.startswith("/v1/"):  # whose clients read errors from the body alone
            return responses.JSONResponse(failure(CODES.get(status, "INVALID_REQUEST"), text))
        challenge = {"WWW-Authenticate": "Basic"} if status == 401 else None
        return responses.JSONResponse({"error": text}, status, challenge)

    def endpoint(answer: Answer, has_body: bool) -> Callable[[Any], Awaitable[Any]]:
        async def respond(request: Any) -> Any:
            refusal = guard.refusal(request.headers)
            if refusal is not None:
                return failed(request, *refusal)
            try:
                given = _parsed(await _body(request, guard.max_upload), request) if has_body else {}
                content = await run_in_threadpool(answer, {**given, **request.path_params})
                return responses.JSONResponse(dict(content))
            except _TooLargeError:
                return failed(request, 413, f"the request has more than {guard.max_upload} MiB (--max-upload)")
            except DiffUpError as error:
                return failed(request, 400, str(error))
            except Exception:
                log.exception("%s", request.url.path)
                return failed(request, 500, "the server has failed; its terminal tells why")

        return respond

    async def refused(request: Any, error: Any) -> Any:
        return responses.JSONResponse({"error": str(error.detail)}, error.status_code)

    routes = [routing.Route(path, endpoint(answer, False), methods=["GET"]) for path, answer in gets.items()]
    routes += [routing.Route(path, endpoint(answer, True), methods=["POST"]) for path, answer in posts.items()]
    return applications.Starlette(routes=routes, exception_handlers={http_error: refused})


class _TooLargeError(Exception):
    """A body is larger than its header says, or has no header."""


async def _body(request: Any, max_upload: int) -> bytes:
    """The body of a request, of which no more is read than is allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_upload * 2**20:
            raise _TooLargeError
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes, request: Any) -> dict[str, Any]:
    """The JSON object of a request.

    Only JSON is taken, which a web page cannot send to another host unasked.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise FormatError("request: expected the content type application/json")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"request: not UTF-8 ({error.reason})") from error
    given = parse_json(text, "request")
    if not isinstance(given, dict):
        raise FormatError("request: expected a JSON object")
    return given


def _password(value: str) -> str:
    """The password of basic authentication; empty if there is none."""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
