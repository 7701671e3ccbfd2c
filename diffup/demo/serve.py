"""The server of the page: by default on the loopback interface, offline, without storing anything."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from importlib import resources
from typing import Any

from diffup.demo.encoders import Encoders
from diffup.demo.page import build
from diffup.utils.optional import need
from diffup.utils.serving import cannot_listen, check_listening, free_port, images_limited, termination_interrupts

SESSIONS = 50
"""Maximum number of visitors whose work is in memory; the one idle for longest is dropped first."""

POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob: ws: wss:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy: the browser loads nothing from other hosts, whatever Gradio's pages refer to."""


@contextlib.contextmanager
def running(encoders: Encoders, host: str = "127.0.0.1", port: int = 7860, max_upload: int = 20) -> Iterator[str]:
    """Serve the page while the block runs.

    Uploads are stored in a private temporary folder and deleted after ten minutes; the folder is deleted when the block
    ends.

    Args:
        encoders: the encoders that the page offers.
        host: address to listen on; "0.0.0.0" for every interface.
        port: port to listen on; 0 for any free one.
        max_upload: maximum size of an upload, in MiB.

    Yields:
        URL of the page.

    Raises:
        ConfigError: the port is taken or the host cannot be listened on, or a number is out of range.
        MissingPackageError: Gradio is not installed.
    """
    check_listening(port, max_upload)
    with tempfile.TemporaryDirectory(prefix="diffup-demo-") as folder, _settings(folder), images_limited():
        gr = need("gradio", "the web page", extra="demo")
        page = build(encoders)
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        theme.set(block_info_text_color="*neutral_500")
        page.queue(max_size=64, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or free_port(host),
                max_file_size=f"{max_upload}mb",
                share=False,
                quiet=True,
                inbrowser=False,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                state_session_capacity=SESSIONS,
                app_kwargs={"middleware": [_policy()], "docs_url": None, "redoc_url": None, "openapi_url": None},
                theme=theme,
                css=resources.files("diffup.demo").joinpath("page.css").read_text(encoding="utf-8"),
            )
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def serve(encoders: Encoders, host: str, port: int, max_upload: int, ready: Callable[[str], object]) -> None:
    """Serve the page until the process is interrupted or terminated.

    Args:
        encoders: the encoders that the page offers.
        host: address to listen on; "0.0.0.0" for every interface.
        port: port to listen on; 0 for any free one.
        max_upload: maximum size of an upload, in MiB.
        ready: function called with the URL of the page once it is served.

    Raises:
        ConfigError: the port is taken or the host cannot be listened on, or a number is out of range.
        MissingPackageError: Gradio is not installed.
    """
    with termination_interrupts(), running(encoders, host, port, max_upload) as address:  # the uploads are removed too
        ready(address)
        while not threading.Event().wait(3600):
            pass


@contextlib.contextmanager
def _settings(folder: str) -> Iterator[None]:
    """Apply settings of the process while the page runs: folder of Gradio's files, no analytics."""
    changes = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _policy() -> Any:
    """Return the middleware that adds `POLICY` to every response."""
    middleware = need("starlette.middleware", "the web page", extra="demo")

    class Policy:
        """Pure ASGI middleware, so that streams are not buffered."""

        def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    added = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                    message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
                await send(message)

            await self.app(scope, receive, with_policy)

    return middleware.Middleware(Policy)
