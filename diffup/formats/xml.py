"""Reading the elements of an XML document, and nothing else of it: no entity, and no other file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from diffup.errors import FormatError

Visit = Callable[[list[str], str, dict[str, str]], None]


def visit_elements(content: bytes | str, name: str, visit: Visit) -> None:
    """Call a function for every element of an XML document, in its order.

    Args:
        content: the document.
        name: name of the document in error messages.
        visit: function that takes the tags above an element, outermost first, its own tag, and its attributes.

    Raises:
        FormatError: the document is not XML, or it declares a document type, whose entities could grow without limit.
    """
    above: list[str] = []

    def refuse(*declaration: Any) -> None:
        raise FormatError(f"{name}: declares a document type, which is not read; remove the <!DOCTYPE ...>")

    def start(tag: str, fields: dict[str, str]) -> None:
        visit(above, tag, fields)
        above.append(tag)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: above.pop()
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{name}: cannot be read as XML ({error})") from error
