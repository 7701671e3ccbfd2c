"""Run the notebook of the examples and store its outputs: `python docs/tour.py` writes examples/tour.ipynb.

Pictures are stored as JPEG, so that the file stays small. The notebook's metadata record the decoder of the outputs,
as `made_with.json` does for the pictures of the documentation.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import pprint
from pathlib import Path
from typing import Any

from PIL import Image

from diffup.decoder.weights import decoder_hash, load_decoder
from diffup.model import RELEASED
from diffup.utils.files import write_text

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "tour.ipynb"


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    """Read a notebook of format 4."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["nbformat"] != 4:
        raise SystemExit(f"{path}: a notebook of format {content['nbformat']}; save it in format 4")
    return content


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a notebook that hold code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(cell: dict[str, Any], names: dict[str, object]) -> object:
    """Run a cell as Jupyter does; the value of a last line that is an expression.

    Args:
        cell: the cell.
        names: variables of the notebook, which the cell reads and changes.
    """
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def outputs(value: object, number: int) -> list[dict[str, Any]]:
    """What a notebook stores of a value: text, and a JPEG file of a picture.

    Args:
        value: value of the cell.
        number: number of the cell among those with code, from 1.
    """
    if value is None:
        return []
    data: dict[str, Any] = {"text/plain": lines(pprint.pformat(value, sort_dicts=False))}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("RGB").save(file, "JPEG", quality=75, optimize=True)
        data["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
        data["text/plain"] = [f"<PIL.Image.Image image mode={value.mode} size={value.width}x{value.height}>"]
    return [{"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}]


def lines(text: str) -> list[str]:
    """The lines of a text with their ends, as notebooks store it."""
    return text.splitlines(keepends=True)


def main() -> None:
    notebook, names = read(), dict[str, object]()
    for number, cell in enumerate(code_cells(notebook), start=1):
        cell |= {"execution_count": number, "outputs": outputs(run_cell(cell, names), number)}
    notebook["metadata"]["diffup"] = {"decoder": decoder_hash(load_decoder(RELEASED))}
    write_text(NOTEBOOK, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
