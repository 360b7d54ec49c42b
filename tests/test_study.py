"""Opening a study, and its plan."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from conftest import (
    CNN,
    FROZEN,
    ROOT,
    STUDY,
    cbir,
    load_shapes,
    write_study,
)
from studies import (
    BASELINE,
    BASELINES,
    PROTOCOLS,
    leave_out_notebooks,
    make_study,
    snapshot,
)

from cbir import StudyError
from cbir.networks import weights
from cbir.networks.backbones import BACKBONES
from cbir.studies import plan
from cbir.studies.study import open_study, run_key

RUNS = ["random", BASELINE]


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> SimpleNamespace:
    """The plan of a study of two baselines, and the files that it wrote."""
    architectures = {
        BASELINE: BASELINES | {"protocols": PROTOCOLS, "draws": 1},
        "random": BASELINES | {"baseline": "random"},
    }
    root = make_study(tmp_path_factory.mktemp("study"), architectures)
    leave_out_notebooks(root, "explanations", "failures", "feedback")
    before = snapshot(root)
    plan = cbir(root, "plan", "--study", "tiny")
    after = snapshot(root)
    changed_files = {path for path in after if after[path] != before.get(path)}
    return SimpleNamespace(root=root, plan=plan, changed_files=changed_files)


def test_folder_whose_name_is_not_utf8_is_an_error(project):
    with pytest.raises(StudyError, match=r"DATA: .*\\xe9 is not UTF-8"):
        open_study(project, "tiny", dataset=os.fsdecode(b"\xe9"))


@pytest.mark.parametrize("value", ["my folder", "dol$HOME", "it's", 'q"uote', "`id`", "a\\b!"])
def test_the_command_of_a_study_quotes_its_folder_for_the_shell(value, project):
    command = open_study(project, "tiny", dataset=value, overrides="epochs=1").command
    assert shlex.split(command)[2:] == ["STUDY=tiny", f"DATA={value}", "SET=epochs=1"]


def test_the_name_of_a_report_instead_of_a_study_gives_its_command(project):
    command = 'make report STUDY=tiny DATA="holiday"'
    (project / "reports" / "holiday").mkdir(parents=True)
    manifest = project / "reports" / "holiday" / "manifest.json"
    manifest.write_text(json.dumps({"command": command}))
    message = f"STUDY: holiday is a report, not a study in params/. `{command}` made it: "
    with pytest.raises(StudyError, match=re.escape(message)):
        open_study(project, "holiday")


def test_a_plan_lists_what_would_run_and_writes_no_results(planned):
    assert planned.plan.returncode == 0, planned.plan.stderr
    assert not [
        path for path in planned.changed_files if "/reports/" in path or "/artifacts/" in path
    ]
    for name in RUNS:
        assert f"{name}: notebooks/baseline.ipynb" in planned.plan.stdout
    counts = "48 pictures, not decoded yet, in 3 classes: circle (16), cross (16), square (16)"
    assert counts in planned.plan.stdout
    assert "GPU:" in planned.plan.stdout
    assert planned.plan.stdout.count("will run, about") == len(RUNS)
    assert re.search(r"about (\d+ h )?(\d+ min )?\d+ (s|min) in total", planned.plan.stdout)


def test_notebooks_without_a_network_do_not_import_keras():
    """The import takes seconds in every kernel that a report starts."""
    lines = []
    for name in ("baseline", "comparison", "grid", "failures", "feedback"):
        cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        lines += [cell.source for cell in cells if re.match("import |from ", cell.source)]
    code = "\n".join([*lines, "import sys", "assert 'keras' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_plan_of_decoded_images_downloads_nothing(project, monkeypatch):
    frozen = CNN | FROZEN | {"backbone": "vgg16", "weights": "imagenet"}
    write_study(project, "tiny", STUDY, {"cnn": CNN, "vgg16": frozen})
    (project / "params" / "tiny" / "resnet50.yaml").unlink()
    load_shapes()
    monkeypatch.setattr(weights, "_download", lambda name: pytest.fail(f"downloads {name}"))
    text = plan.plan_text(open_study(project, "tiny"))
    assert "data/shapes: cached" in text
    assert "will download vgg16_weights" in text


def test_a_plan_of_cached_images_writes_nothing(project):
    load_shapes()
    before = snapshot(project)
    text = plan.plan_text(open_study(project, "tiny"))
    assert "data/shapes: cached, 48 images" in text
    assert snapshot(project).keys() - before.keys() == set()


@pytest.mark.parametrize(
    ("changes", "is_changed"),
    [
        ({"arguments": {"alpha": 0.5}}, True),
        ({"blocks": ("conv1", "conv_dw_7")}, True),
        ({"preprocess": None}, True),
        ({"constructor": "MobileNetV2"}, True),
        ({"rates": (1, 1)}, False),
        ({"imagenet": None}, False),
    ],
)
def test_the_row_of_a_backbone_is_part_of_the_keys_of_its_runs(
    changes, is_changed, project, monkeypatch
):
    mobilenet = CNN | {"backbone": "mobilenet", "pooling": "avg"}
    write_study(project, "rows", STUDY, {"cnn": CNN, BASELINE: BASELINES, "mobilenet": mobilenet})
    study = open_study(project, "rows")

    def keys() -> dict[str, str]:
        return {run.architecture: run_key(study, run) for run in study.runs}

    before = keys()
    row = dataclasses.replace(BACKBONES["mobilenet"], **changes)
    monkeypatch.setitem(BACKBONES, "mobilenet", row)
    after = keys()
    assert len(set(before.values())) == len(before)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == ({"mobilenet"} if is_changed else set())


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("pictures", "data/pictures"),
        ("../shapes", "data/shapes"),
        ("../../../elsewhere", "../elsewhere"),
        ("{root}/data/shapes", "data/shapes"),
        ("/elsewhere", "/elsewhere"),
        # A folder with the name of scikit-learn's digits.
        ("{root}/digits", "{root}/digits"),
    ],
)
def test_a_folder_is_relative_to_the_working_directory(project, monkeypatch, argument, expected):
    (project / "data" / "below").mkdir()
    monkeypatch.chdir(project / "data" / "below")
    argument = argument.format(root=project)
    if argument == "pictures":
        monkeypatch.chdir(project / "data")
    dataset = open_study(project, "tiny", dataset=argument).data["dataset"]
    assert dataset == expected.format(root=project)


def test_folders_of_the_same_name_have_separate_reports(project):
    def report_of(dataset: str, **options) -> str:
        return open_study(project, "tiny", dataset=dataset, **options).name

    def finish(name: str, dataset: str) -> None:
        path = project / "reports" / name / "cnn" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"dataset": {"parameters": {"dataset": dataset}}}))

    assert report_of("A/images") == report_of("B/images") == "images"
    finish("images", "A/images")
    assert (report_of("A/images"), report_of("./A/../A/images")) == ("images", "images")
    assert report_of("B/images") == "B-images"
    assert report_of("B/images", overrides="epochs=1").startswith("images-trial-")
    finish("B-images", str(project / "B" / "images"))
    assert report_of("B/images") == "B-images"
    assert report_of("x/B/images") == "x-B-images"
    shutil.rmtree(project / "reports" / "images")
    assert report_of("B/images") == "B-images"
    assert report_of("A/labels.csv") == "labels"
