"""The parameters cell of a notebook: what it knows, and of which type."""

import ast
import json
from pathlib import Path

from cbir import StudyError


def known(notebook: Path) -> dict[str, str]:
    """The parameters that a notebook knows, with their types, from its parameters cell.

    Raises:
        StudyError: there is no such cell, or a line in it is not `name: type = literal`.
    """
    # nbformat would take longer to import than this takes to read.
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    found = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    if len(found) != 1:
        raise StudyError(f"{notebook.name}: needs exactly one cell with the tag `parameters`")
    try:
        lines = ast.parse("".join(found[0]["source"])).body
    except SyntaxError as error:
        raise StudyError(
            f"{notebook.name}: each line of the parameters cell must be `name: type = literal`; "
            f"line {error.lineno}: {error.msg}"
        ) from None
    types = {}
    for line in lines:
        try:
            assert isinstance(line, ast.AnnAssign)
            ast.literal_eval(line.value)
        except (AssertionError, ValueError):
            raise StudyError(
                f"{notebook.name}: each line of the parameters cell must be "
                f"`name: type = literal`, not `{ast.unparse(line)}`"
            ) from None
        types[line.target.id] = ast.unparse(line.annotation)
    return types
