"""The notebooks as they are committed: no outputs, no functions, commented parameters that fit."""

import ast
import inspect
import tokenize

import nbformat
import pytest
from conftest import ROOT

from cbir.studies import params

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(name: str) -> str:
    (cell,) = (cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", ()))
    return cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_without_outputs(name):
    for cell in code_cells(name):
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_use_the_package_and_define_no_functions(name):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code_cells(name):
        nodes = ast.walk(ast.parse(cell.source))
        assert not any(isinstance(node, definitions) for node in nodes)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_line_of_the_parameters_cell_is_a_literal_with_a_comment(name):
    lines = parameters_cell(name).splitlines(keepends=True)
    tokens = tokenize.generate_tokens(iter(lines).__next__)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    statements = ast.parse("".join(lines)).body
    assert commented == {statement.lineno for statement in statements}
    for statement in statements:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_with_the_parameters_that_it_has(name):
    values = {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(parameters_cell(name)).body
    }
    if "data" in values:
        known = inspect.signature(params.complete).parameters
        params.complete(**{group: values[group] for group in known if group in values})
