"""What all events of the page have in common: their errors are messages, and what they made comes into view."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from diffup.errors import DiffUpError

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How events are connected that do no work."""


def connect(
    gr: Any, event: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], **options: Any
) -> Any:
    """Call a function at an event, one at a time over all events, and show its errors as messages.

    Progress is hidden because Gradio shows an event's error where its progress would be: as a plate over every output,
    which may be the image that somebody is drawing on.

    Args:
        gr: Gradio.
        event: method of a component that takes an event's function.
        function: the function, or a generator function whose values are shown one after the other.
        inputs: components whose values it takes.
        outputs: components whose values it gives.
        **options: further arguments of the event.

    Returns:
        The event, for what follows it.
    """

    @contextlib.contextmanager
    def telling() -> Iterator[None]:
        try:
            yield
        except DiffUpError as error:
            raise gr.Error(plain(error), print_exception=False) from error
        except Exception as error:
            message = f"{type(error).__name__}: {error}. This is a fault of the page; its terminal has the details."
            raise gr.Error(plain(message)) from error

    @functools.wraps(function)
    def told(*values: Any) -> Any:
        with telling():
            return function(*values)

    @functools.wraps(function)
    def told_in_turn(*values: Any) -> Iterator[Any]:
        with telling():
            yield from function(*values)

    return event(
        told_in_turn if inspect.isgeneratorfunction(function) else told,
        inputs,
        outputs,
        show_progress="hidden",
        concurrency_id="work",
        concurrency_limit=1,
        api_visibility="private",
        **options,
    )


def work(gr: Any, button: Any, label: str, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Call a function that may take long at the click of a button, which says so meanwhile; else as `connect`."""
    began = button.click(lambda: gr.Button(label, interactive=False), None, button, **QUIET)
    event = connect(gr, began.then, function, inputs, outputs)
    for ended in (event.success, event.failure):  # Gradio 6 does not call `then` after a failure
        ended(lambda: gr.Button(button.value, interactive=True), None, button, **QUIET)
    return event


def plain(message: object) -> str:
    """Text for Gradio's messages, which are HTML."""
    return html.escape(str(message), quote=False)


def reveal(event: Any, selector: str, block: str) -> None:
    """Scroll to what an event made, if it succeeds; again while pictures above it or in it still take their place.

    Args:
        event: as `connect` gives it.
        selector: CSS selector of the element to show.
        block: where in the window, as of JavaScript's `scrollIntoView`.
    """
    event.success(None, js=_REVEAL % {"selector": selector, "block": block}, api_visibility="private")


_REVEAL = """async () => {
    let place = "", left = 100;
    const stop = () => { left = 0; };  // somebody scrolls or goes on
    const acts = ["wheel", "touchstart", "pointerdown", "keydown"];
    acts.forEach((act) => window.addEventListener(act, stop, { once: true, passive: true }));
    for (; left > 0; left--) {
        await new Promise((done) => setTimeout(done, 50));
        const element = document.querySelector("%(selector)s");
        const box = element?.getBoundingClientRect();
        const now = box && `${Math.round(box.top + window.scrollY)} ${Math.round(box.height)}`;
        if (!box?.height || now === place) continue;
        place = now;
        element.scrollIntoView({ behavior: "smooth", block: "%(block)s" });
    }
    acts.forEach((act) => window.removeEventListener(act, stop));
}"""
