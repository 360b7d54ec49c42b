"""What the notebooks and modules look like: committed clean, alike in structure, short in code."""

import ast
import re
import shutil
import subprocess
import sys
import tokenize

import nbformat
import pytest
from conftest import CNN, ROOT, STUDY, write_study

from cbir.networks import controls
from cbir.networks.backbones import BACKBONES
from cbir.retrieval import searches
from cbir.studies import limits, params, report
from cbir.studies.params import ASKED, DATA, PLACED

# A row of the table may have a notebook of its own, or be run by that of another.
OWN = [name for name in BACKBONES if (ROOT / "notebooks" / f"{name}.ipynb").exists()]
ARCHITECTURES = sorted(OWN, key=lambda name: (name != "cnn", name))
RUNS = [*ARCHITECTURES, "control"]
# They read what all runs left.
PAGES = ["comparison", "grid", "metrics"]
# It asks what a run left, and is no page of a report.
EXPLORE = "explore"
NOTEBOOKS = [*RUNS, *PAGES, EXPLORE]
PACKAGE = ROOT / "src" / "cbir"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
# What a network is made of and what trains it: all else can be used without Keras.
KERAS = {
    f"networks.{name}"
    for name in (
        "models", "cnns", "pooling", "optimisers", "precision", "training", "checkpoints",
        "inference", "batches", "recipe", "gradients",
    )
} | {"explain", "asking.likeness"}  # fmt: skip
each_run = pytest.mark.parametrize("name", RUNS)
each_module = pytest.mark.parametrize("name", MODULES)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def is_parameters(cell: nbformat.NotebookNode) -> bool:
    return "parameters" in cell.metadata.get("tags", ())


def parameters_cell(name: str) -> str:
    (cell,) = [cell for cell in read(name).cells if is_parameters(cell)]
    assert cell.cell_type == "code"
    return cell.source


def headings(name: str) -> list[str]:
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    return re.findall(r"^(#+ .+)$", text, re.MULTILINE)


def source_of(module: str) -> str:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")


def speaks_tensorflow(tree: ast.AST) -> list[str]:
    """What in a piece of code names TensorFlow itself: its imports, and the name tf."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("tensorflow")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorflow"):
            found.append(node.module)
        elif isinstance(node, ast.Name) and node.id in ("tf", "tensorflow"):
            found.append(node.id)
    return found


def test_every_notebook_is_of_a_backbone_or_of_controls_or_a_page():
    assert {"cnn", "cnn_strong", "mobilenet", "resnet50", "vgg16"} <= {*ARCHITECTURES}
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NOTEBOOKS)


@each_notebook
def test_notebook_is_committed_without_outputs(name):
    nbformat.validate(read(name))
    for cell in code_cells(name):
        assert cell.outputs == []
        assert cell.execution_count is None


@each_notebook
def test_notebook_says_nothing_of_the_machine_it_was_written_on(name):
    metadata = read(name).metadata
    assert metadata.kernelspec.name == "python3"
    assert "version" not in metadata.get("language_info", {})
    assert {key for cell in read(name).cells for key in cell.metadata} <= {"tags"}


@each_notebook
def test_parameters_cell_holds_one_commented_annotated_literal_a_line(name):
    source = parameters_cell(name)
    statements = ast.parse(source).body
    lines = source.splitlines()
    assert len(statements) == len(lines)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
        if token.type == tokenize.COMMENT
    }
    for number, statement in enumerate(statements, start=1):
        assert isinstance(statement, ast.AnnAssign), lines[number - 1]
        ast.literal_eval(statement.value)
        assert len(comments.get(number, "")) > 5, lines[number - 1]


@each_notebook
def test_default_of_each_parameter_is_of_its_type(name):
    for statement in ast.parse(parameters_cell(name)).body:
        kind, default = ast.unparse(statement.annotation), ast.literal_eval(statement.value)
        if kind.startswith("list["):
            assert type(default) is list
            assert all(type(each).__name__ == kind[5:-1] for each in default)
        else:
            assert type(default).__name__ == kind


def parameters(name: str) -> dict[str, tuple[str, object]]:
    return {
        line.target.id: (ast.unparse(line.annotation), ast.literal_eval(line.value))
        for line in ast.parse(parameters_cell(name)).body
    }


@pytest.mark.parametrize("name", ARCHITECTURES[1:])
def test_architecture_notebooks_share_their_sections(name):
    def sections(each: str) -> list[str]:
        return [heading for heading in headings(each) if heading.startswith("## ")]

    assert len(sections("cnn")) > 5
    assert sections(name) == sections("cnn")


@pytest.mark.parametrize("name", ARCHITECTURES[1:])
def test_architecture_notebooks_share_their_parameters_and_types(name):
    known = [[(key, kind) for key, (kind, _) in parameters(each).items()] for each in (name, "cnn")]
    assert known[0] == known[1]


def test_a_control_has_the_sections_of_an_architecture_but_those_of_a_network():
    def sections(each: str) -> list[str]:
        return [heading for heading in headings(each) if heading.startswith("## ")]

    shared = [each for each in sections("cnn") if each in sections("control")]
    assert shared == [each for each in sections("control") if each in shared]
    assert {"## Data set", "## Retrieval", "## Metrics", "## Summary"} <= set(shared)
    apart = {"## The network", "## Training", "## Classification"}
    assert not apart & set(sections("control"))


def test_all_runs_share_what_decides_the_images_and_what_is_measured():
    known = [
        {key: given for key, given in parameters(name).items() if key in (*DATA, *ASKED)}
        for name in RUNS
    ]
    assert known[0].keys() == {*DATA, *ASKED}
    assert all(each == known[0] for each in known)


def test_a_control_has_no_parameter_of_a_network():
    assert parameters("control").keys() == {*PLACED, *DATA, *ASKED, "control"}


def test_pages_on_all_runs_share_their_parameters():
    assert list(parameters("comparison")) == ["study", "architectures", "missing"]
    assert parameters("grid").keys() == parameters("comparison").keys()
    assert list(parameters("metrics")) == ["study", "architecture"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_notebook_runs_its_own_architecture_by_hand_into_a_folder_of_its_own(name):
    found = parameters(name)
    assert found["architecture"][1] == found["backbone"][1] == name
    assert found["study"][1] == "lab"
    assert found["dataset"][1] == "digits"
    assert found["weights"][1] == "none"


def test_there_is_a_page_for_every_other_notebook():
    assert sorted(PAGES) == sorted(report.PAGES) == sorted(report.TITLES)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_what_its_networks_started_from(name):
    source = "\n".join(cell.source for cell in code_cells(name))
    assert "plots.say(origins.label(" in source


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_notebook_of_a_network_runs_any_backbone(name, backbone, tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    given = CNN | {"notebook": name, "backbone": backbone, "pooling": "avg"}
    write_study(tmp_path, "tiny", STUDY, {"another": given})
    (run,) = params.load(tmp_path, "tiny")
    assert (run.architecture, run.notebook.stem) == ("another", name)
    assert run.parameters["backbone"] == backbone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_run_by_hand_contradicts_nothing(name):
    assert limits.conflict({key: value for key, (_, value) in parameters(name).items()}) == ""


def test_the_control_run_by_hand_is_one_that_there_is():
    found = parameters("control")
    assert found["architecture"][1] == found["control"][1]
    assert found["control"][1] in controls.CONTROLS
    assert found["study"][1] == "lab"


@each_run
def test_default_of_each_parameter_is_within_its_bounds(name):
    found = parameters(name)
    bounded = found.keys() & limits.LIMITS.keys()
    assert len(bounded) > 8
    for key in bounded:
        assert limits.LIMITS[key][0](found[key][1]), key


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_is_used_in_a_later_cell(name):
    cells = [cell for cell in code_cells(name) if not is_parameters(cell)]
    tree = ast.parse("\n".join(cell.source for cell in cells))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert parameters(name).keys() <= used


@each_notebook
def test_notebook_has_one_title_and_then_sections(name):
    found = headings(name)
    assert found[0].startswith("# ")
    assert all(heading.startswith("## ") for heading in found[1:])
    assert len(set(found)) == len(found)


@each_notebook
def test_cells_use_the_package_and_define_nothing(name):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for cell in code_cells(name):
        tree = ast.parse(cell.source)
        found = [node for node in ast.walk(tree) if isinstance(node, (*definitions, *loops))]
        assert not found, cell.source
        assert speaks_tensorflow(tree) == []


@each_notebook
def test_cells_are_short(name):
    for cell in code_cells(name):
        if not is_parameters(cell):
            assert len(cell.source.splitlines()) <= 15, cell.source


@each_notebook
def test_code_is_introduced_in_prose(name):
    cells = read(name).cells
    assert cells[0].cell_type == "markdown"
    kinds = "".join("c" if cell.cell_type == "code" else " " for cell in cells)
    # Up to two more cells may show further tables of what the first one shows.
    assert max(len(run) for run in kinds.split()) <= 3
    assert kinds.count("c") < 2 * kinds.count(" ")


@pytest.mark.parametrize("name", [*ARCHITECTURES, "comparison"])
def test_every_way_of_searching_is_explained_before_its_numbers_are_shown(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    assert {each for each in searches.SEARCHES if f"`{each}`" in text} == {*searches.SEARCHES}


def test_the_ways_of_searching_are_counted_rightly():
    assert len(searches.SEARCHES) == 5
    for name in ARCHITECTURES:
        assert any("searched in five ways" in cell.source for cell in read(name).cells)


@each_run
def test_every_protocol_that_a_run_shows_is_explained(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    assert "`held_out_gallery`" in text
    assert "`unseen_classes`" in text


@each_notebook
def test_prose_is_not_empty(name):
    for cell in read(name).cells:
        assert cell.source.strip()


@each_module
def test_no_module_but_that_of_gradients_names_tensorflow_in_code(name):
    # Keras has no call of its own for gradients.
    wanted = ["tensorflow", "tf"] if name == "networks.gradients" else []
    assert sorted(set(speaks_tensorflow(ast.parse(source_of(name))))) == wanted


def test_naming_tensorflow_would_be_noticed():
    for code in ("import tensorflow as tf", "from tensorflow.keras import layers", "tf.zeros(3)"):
        assert speaks_tensorflow(ast.parse(code))


@each_module
def test_module_says_what_it_is_for(name):
    assert len(ast.get_docstring(ast.parse(source_of(name))) or "") > 30


@each_module
def test_module_is_no_longer_than_300_lines(name):
    assert len(source_of(name).splitlines()) <= 300


def test_what_needs_no_network_can_be_imported_without_keras():
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'cbir.{name}')\n"
        "    if found := {'keras', 'tensorflow', 'torch', 'jax'} & sys.modules.keys():\n"
        "        sys.exit(f'{name} imports {found}')\n"
    )
    names = [name for name in MODULES if name not in KERAS]
    for package in ("images", "retrieval", "reporting", "studies"):
        assert sum(name.startswith(f"{package}.") for name in names) > 4
    assert {"networks.backbones", "networks.embeddings", "networks.weights"} <= {*names}
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_makes_a_network_is_all_that_imports_keras():
    # These import it through the others.
    through = {"networks.recipe", "networks.training", "explain", "asking.likeness"}
    for name in KERAS - through:
        assert re.search(r"^(import|from) keras", source_of(name), re.MULTILINE)
