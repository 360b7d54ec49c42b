"""The notebooks as they are committed: no outputs, no functions, commented parameters that fit."""

import ast
import tokenize

import nbformat
import pytest
from conftest import ROOT

from cbir.studies import params

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_parameters(cell: nbformat.NotebookNode) -> bool:
    return "parameters" in cell.metadata.get("tags", ())


def parameters_cell(name: str) -> str:
    (cell,) = (cell for cell in code_cells(name) if is_parameters(cell))
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
        assert not [each for each in ast.walk(ast.parse(cell.source)) if type(each) in definitions]


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
def test_default_of_each_parameter_is_within_its_bounds(name):
    given = {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(parameters_cell(name)).body
    }
    if "data" in given:
        params.complete(**{key: given[key] for key in given if key not in params.PLACED})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_is_used_in_a_later_cell(name):
    cells = [cell for cell in code_cells(name) if not is_parameters(cell)]
    tree = ast.parse("\n".join(cell.source for cell in cells))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    parameters = {each.target.id for each in ast.parse(parameters_cell(name)).body}
    assert parameters <= used
