"""Notebooks are committed without outputs and functions, and pages show what has results."""

import ast
import inspect
import re
import tokenize

import invented
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from conftest import ROOT, STUDY, load_shapes

from cbir.reporting import display, sentences, tables
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
def test_parameters_in_the_notebooks_are_valid(name):
    values = {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(parameters_cell(name)).body
    }
    if "data" in values:
        known = inspect.signature(params.complete).parameters
        params.complete(**{group: values[group] for group in known if group in values})


def outputs_of(name: str, monkeypatch, *, last: str = "", **parameters) -> str:
    """Run a notebook's cells in this process; return its texts, tables and figure captions.

    Args:
        last: a tag of the last cell to run; every cell runs by default.
    """
    outputs = []

    def record(content, metadata=None, raw=False):
        if raw:
            outputs.append(content["text/html"])
        else:
            outputs.append(next(iter(metadata.values()))["alt"] if metadata else content.data)

    monkeypatch.setattr(display, "display", record)
    names = {}
    for cell in code_cells(name):
        exec(compile(cell.source, name, "exec"), names)
        tags = cell.metadata.get("tags", ())
        if "parameters" in tags:
            names |= parameters
        if last in tags:
            break
    plt.close("all")
    return "\n".join(outputs)


def page_parameters(names: list[str], with_results: list[str]) -> dict:
    """The parameters of a page where only some runs have results."""
    missing = [f"{name}: not run" for name in names if name not in with_results]
    return {"study": "tiny", "architectures": names, "missing": missing}


def mean_ap(run) -> float:
    return tables.quality_and_cost({run.architecture: run})["value"].item()


def test_the_first_screen_reports_a_collapsed_network(runs, monkeypatch):
    flat = np.eye(8)[[0]]
    with monkeypatch.context() as patch:
        patch.setattr(
            invented, "blurred", lambda view, *arguments: flat.repeat(len(view.labels), 0)
        )
        invented.save_network("flat", 0.0, epochs=())
    monkeypatch.setattr(display, "show", lambda *arguments: None)
    names = ["raw_pixels", "flat", "vgg16"]
    text = outputs_of("comparison", monkeypatch, last="lead", **page_parameters(names, names))
    assert "**Collapsed:** flat gives all images nearly the same embedding" in text
    assert "**Collapsed:**" not in text.replace("**Collapsed:** flat gives", "")


CHOICES = pytest.mark.parametrize(
    "with_results",
    [
        ["cnn", "vgg16", "raw_pixels"],
        pytest.param(["vgg16"], marks=pytest.mark.slow),
        ["raw_pixels"],
    ],
    ids=" ".join,
)


@CHOICES
def test_comparison_shows_only_runs_with_results(with_results, runs, monkeypatch):
    text = outputs_of("comparison", monkeypatch, **page_parameters(list(runs), with_results))
    for name in runs:
        assert bool(re.search(rf"No results for .*\*\*{name}\*\*.*: not run", text)) == (
            name not in with_results
        )
    assert "nan" not in re.findall(r"\w+", text)
    # The runs have twelve queries, too few for a test.
    assert ("]: untested against " in text or "}: untested" in text) == (len(with_results) == 3)
    assert ("Of 1 pairs of architectures, 0 differ" in text) == (len(with_results) == 3)
    assert ("Only one architecture has results" in text) == (with_results == ["vgg16"])
    assert ("was not trained on; " in text) == ("cnn" in with_results)
    # An architecture without results is left out of every table.
    row_names = re.findall(r'<th scope="row"[^>]*>(?:<[^>]*>)?(\w+)', text)
    assert set(row_names) & set(runs) == {*with_results}


@CHOICES
def test_failures_page_shows_the_best_run(with_results, runs, monkeypatch):
    text = outputs_of("failures", monkeypatch, **page_parameters(list(runs), with_results))
    best = max(with_results, key=lambda name: mean_ap(runs[name]))
    assert f"Best, median and worst queries of {best}" in text
    assert "by chance" in text
    assert ("architectures disagree most on" in text) == (len(with_results) == 3)


def test_feedback_page_shows_every_run(runs, monkeypatch):
    text = outputs_of("feedback", monkeypatch, **page_parameters(list(runs), list(runs)))
    assert all(f">{name}</t" in text for name in runs)
    assert "mAP by round of feedback" in text


@pytest.fixture(scope="module")
def grid(measured_project):
    """Two points of a grid."""
    return {
        f"cnn-{size}": invented.save_network(
            f"cnn-{size}", blur, epochs=(), variant=f"input_size={size}"
        )
        for size, blur in ((32, 3.0), (64, 2.0))
    }


@pytest.mark.parametrize("with_results", [["cnn-32", "cnn-64"], ["cnn-64"]], ids=" ".join)
def test_grid_page_shows_only_points_with_results(with_results, grid, monkeypatch):
    text = outputs_of("grid", monkeypatch, **page_parameters(list(grid), with_results))
    best = mean_ap(grid["cnn-64"])
    assert best > mean_ap(grid["cnn-32"])
    assert f"The highest mAP of **cnn** is {best:.2f} [" in text
    assert "with `input_size 64`." in text
    assert ("No results for **cnn-32**: not run" in text) == (len(with_results) == 1)
    assert "All networks started from random weights." in text
    assert "Accuracy and mAP at each point" in text


def test_the_page_of_metrics_shows_every_definition_for_one_run(runs, monkeypatch):
    text = outputs_of("metrics", monkeypatch, study="tiny", architecture="vgg16")
    assert "The mAP of **vgg16** (first seed" in text
    assert text.count("<table") == 3
    assert f">{mean_ap(runs['vgg16']):.2f}" in text


@pytest.mark.parametrize("has_classifier", [True, False])
def test_page_of_vectors_shows_every_search_they_allow(
    has_classifier, measured_project, monkeypatch
):
    images = load_shapes()
    columns = {"path": np.array(images.names), "vector": np.random.default_rng(0).random((48, 4))}
    if has_classifier:
        columns["probabilities"] = np.eye(3)[images.labels]
    np.savez(measured_project / "data" / "four.npz", **columns)
    text = outputs_of(
        "baseline", monkeypatch, study="tiny", architecture="four", baseline="vectors",
        vectors="data/four.npz",
        data={name: STUDY[name] for name in params.DATA},
        measurement={name: STUDY[name] for name in params.MEASUREMENT},
    )  # fmt: skip
    assert sentences.BASELINE_TEXTS["vectors"] in text
    assert ("label_lookup" in text) == has_classifier
    assert ("classifies the queries with an accuracy of 1.00" in text) == has_classifier
