"""Notebooks: no outputs, no functions, commented parameters; pages run on whatever has results."""

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
def test_a_notebook_runs_with_the_parameters_that_it_has(name):
    values = {
        statement.target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(parameters_cell(name)).body
    }
    if "data" in values:
        known = inspect.signature(params.complete).parameters
        params.complete(**{group: values[group] for group in known if group in values})


def outputs_of(name: str, monkeypatch, *, last: str = "", **parameters) -> str:
    """Run a notebook's cells in this process; its texts, its tables, its figures' captions.

    Args:
        last: a tag of the last cell to run; all run by default.
    """
    outputs = []

    def record(shown, metadata=None, raw=False):
        if raw:
            outputs.append(shown["text/html"])
        else:
            outputs.append(next(iter(metadata.values()))["alt"] if metadata else shown.data)
        if not raw and not metadata and name in PAGES:
            assert not crowded(shown.data)

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


# The pages about all runs of a study.
PAGES = ["comparison", "failures", "explanations", "feedback", "metrics", "grid"]
NUMBER = re.compile(r"(?<![\w.-])[-+]?\.?\d[\d.,]*(?!\w)")


def crowded(text: str) -> list[str]:
    """The paragraphs and the items of lists that hold more than three numbers."""
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|^\|.*", "", text, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"\n\s*\n|\n(?=- )", text.partition("## References")[0])
    return [part for part in parts if len(NUMBER.findall(part)) > 3]


def chosen_of(names: list[str], chosen: list[str]) -> dict:
    """The parameters of a page where only some runs have results."""
    missing = [f"{name}: not run" for name in names if name not in chosen]
    return {"study": "tiny", "architectures": names, "missing": missing}


def mean_ap(run) -> float:
    return tables.quality_and_cost({run.architecture: run})["value"].item()


def test_a_collapsed_network_is_said_on_the_first_screen(runs, monkeypatch):
    flat = np.eye(8)[[0]]
    with monkeypatch.context() as patch:
        patch.setattr(invented, "blurred", lambda view, *given: flat.repeat(len(view.labels), 0))
        invented.save_network("flat", 0.0, epochs=())
    monkeypatch.setattr(display, "show", lambda *given: None)
    names = ["raw_pixels", "flat", "vgg16"]
    shown = outputs_of("comparison", monkeypatch, last="lead", **chosen_of(names, names))
    assert "**Collapsed:** flat embeds all images alike" in shown
    assert "**Collapsed:**" not in shown.replace("**Collapsed:** flat embeds", "")


CHOICES = pytest.mark.parametrize(
    "chosen",
    [
        ["cnn", "vgg16", "raw_pixels"],
        pytest.param(["vgg16"], marks=pytest.mark.slow),
        ["raw_pixels"],
    ],
    ids=" ".join,
)


@CHOICES
def test_the_comparison_shows_whatever_has_results(chosen, runs, monkeypatch):
    shown = outputs_of("comparison", monkeypatch, **chosen_of(list(runs), chosen))
    for name in runs:
        assert bool(re.search(rf"No results for .*\*\*{name}\*\*.*: not run", shown)) == (
            name not in chosen
        )
    assert "nan" not in re.findall(r"\w+", shown)
    # The runs have twelve queries, too few for a test.
    assert ("]: untested against " in shown or "}: untested" in shown) == (len(chosen) == 3)
    assert ("Of 1 pairs of architectures, 0 differ" in shown) == (len(chosen) == 3)
    assert ("Only one architecture has results" in shown) == (chosen == ["vgg16"])
    assert ("was not trained on; " in shown) == ("cnn" in chosen)
    # An architecture without results is left out of every table.
    rows_of = re.findall(r'<th scope="row"[^>]*>(?:<[^>]*>)?(\w+)', shown)
    assert set(rows_of) & set(runs) == {*chosen}


@CHOICES
def test_the_page_of_failures_shows_the_best_run(chosen, runs, monkeypatch):
    shown = outputs_of("failures", monkeypatch, **chosen_of(list(runs), chosen))
    best = max(chosen, key=lambda name: mean_ap(runs[name]))
    assert f"Best, median and worst queries of {best}" in shown
    assert "by chance" in shown
    assert ("architectures disagree most on" in shown) == (len(chosen) == 3)


def test_the_page_of_feedback_shows_every_run(runs, monkeypatch):
    shown = outputs_of("feedback", monkeypatch, **chosen_of(list(runs), list(runs)))
    assert all(f">{name}</t" in shown for name in runs)
    assert "mAP by round of feedback" in shown


@pytest.fixture(scope="module")
def grid(measured_project):
    """Two points of a grid."""
    return {
        f"cnn-{size}": invented.save_network(
            f"cnn-{size}", blur, epochs=(), variant=f"input_size={size}"
        )
        for size, blur in ((32, 3.0), (64, 2.0))
    }


@pytest.mark.parametrize("chosen", [["cnn-32", "cnn-64"], ["cnn-64"]], ids=" ".join)
def test_the_grid_shows_whatever_has_results(chosen, grid, monkeypatch):
    shown = outputs_of("grid", monkeypatch, **chosen_of(list(grid), chosen))
    best = mean_ap(grid["cnn-64"])
    assert best > mean_ap(grid["cnn-32"])
    assert f"**cnn** has the highest mAP, {best:.2f} [" in shown
    assert "with `input_size 64`." in shown
    assert ("No results for **cnn-32**: not run" in shown) == (len(chosen) == 1)
    assert "All networks started from random weights." in shown
    assert "Accuracy and mAP at each point" in shown


def test_every_definition_is_shown_of_one_run(runs, monkeypatch):
    shown = outputs_of("metrics", monkeypatch, study="tiny", architecture="vgg16")
    assert "The mAP of **vgg16** (first seed" in shown
    assert shown.count("<table") == 3
    assert f">{mean_ap(runs['vgg16']):.2f}" in shown


@pytest.mark.parametrize("has_classifier", [True, False])
def test_the_page_of_vectors_shows_every_search_that_they_allow(
    has_classifier, measured_project, monkeypatch
):
    images = load_shapes()
    columns = {"path": np.array(images.names), "vector": np.random.default_rng(0).random((48, 4))}
    if has_classifier:
        columns["probabilities"] = np.eye(3)[images.labels]
    np.savez(measured_project / "data" / "four.npz", **columns)
    shown = outputs_of(
        "baseline", monkeypatch, study="tiny", architecture="four", baseline="vectors",
        vectors="data/four.npz",
        data={name: STUDY[name] for name in params.DATA},
        measurement={name: STUDY[name] for name in params.MEASUREMENT},
    )  # fmt: skip
    assert sentences.BASELINE_TEXTS["vectors"] in shown
    assert ("label_lookup" in shown) == has_classifier
    assert ("classifies the queries with an accuracy of 1.00" in shown) == has_classifier


def test_crowded_paragraphs_are_found():
    assert crowded("- 0.9 [0.8,\u00a01.0], p = 0.02\n- 1 of 2 (50 %)") == [
        "- 0.9 [0.8,\u00a01.0], p = 0.02"
    ]
    assert crowded("`1 2 3 4` resnet50 vgg16 SHA-256 p@10\n\n1 2\n\n3, 4") == []


@pytest.mark.parametrize("name", PAGES)
def test_no_paragraph_of_prose_holds_more_than_three_numbers(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert [part for source in prose for part in crowded(source)] == []
