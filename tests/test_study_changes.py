"""Reports after a change, after failures, and of a grid, through the real command.

Notebooks are shortened where tests check only which of them run, so that each ends in a second.
"""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import CNN, FROZEN, STUDY, cbir, write_study
from studies import (
    BASELINE,
    BASELINES,
    DEEPER,
    QUERIES,
    change,
    check_pages,
    folders,
    leave_out_notebooks,
    make_study,
    page,
    ran,
    report,
    shorten_notebooks,
    snapshot,
)

pytestmark = pytest.mark.slow

NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
STEPS = ("training", "embeddings")


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> SimpleNamespace:
    """Reports of one study after changes: other depths, a trial, lost weights."""
    architectures = {"cnn": CNN | {"epochs": 2}, BASELINE: BASELINES}
    root = make_study(tmp_path_factory.mktemp("changed"), architectures)
    shorten_notebooks(root)
    first = report(root).done
    artifacts = folders(root, *STEPS)

    change(root, "study", ks=[1, 2])
    depths = report(root, "--architectures", "cnn")
    table = pd.read_csv(depths.reports / "metrics.csv")
    artifacts_after_depths = folders(root, *STEPS)

    before = snapshot(root / "reports" / "tiny")
    trial = report(root, "--set", "epochs=1 ks=[2]", "--architectures", BASELINE).done
    is_untouched = snapshot(root / "reports" / "tiny") == before

    change(root, "study", ks=STUDY["ks"])
    change(root, "cnn", weights="nowhere.weights.h5", head_epochs=1)
    return SimpleNamespace(
        root=root, first=first, artifacts=artifacts, depths=depths.done, table=table,
        artifacts_after_depths=artifacts_after_depths, trial=trial, is_untouched=is_untouched,
        broken=report(root).done, reports=root / "reports" / "tiny",
    )  # fmt: skip


def test_other_depths_neither_train_nor_embed(changed):
    assert changed.first.returncode == 0, changed.first.stderr
    assert changed.depths.returncode == 0, changed.depths.stderr
    assert ran(changed.depths) == ["cnn", "comparison"]
    assert "epoch" not in changed.depths.stdout
    assert changed.artifacts_after_depths == changed.artifacts
    # A depth of ten is always measured, since a report shows ten results.
    assert set(changed.table["k"].dropna()) == {1, 2, 10}


def test_results_of_architectures_left_out_are_not_mixed_with_new_results(changed):
    assert f"{BASELINE}: left out" in changed.depths.stdout
    assert set(changed.table["architecture"]) == {"cnn"}


def test_a_trial_has_its_own_report(changed):
    assert changed.trial.returncode == 0, changed.trial.stderr
    assert changed.is_untouched
    (reports,) = (changed.root / "reports").glob("tiny-trial-*")
    table = pd.read_csv(reports / "metrics.csv")
    assert set(table["study"]) == {reports.name}
    assert set(table["architecture"]) == {BASELINE}
    assert set(table["k"].dropna()) == {2, 10}
    manifest = json.loads((reports / "manifest.json").read_text())
    assert manifest["architectures"][BASELINE]["parameters"]["ks"] == [2]
    # Parameters of networks do not apply to a baseline.
    assert "epochs" not in manifest["architectures"][BASELINE]["parameters"]
    assert 'SET="epochs=1 ks=[2]"' in manifest["command"]


def test_a_page_shows_why_an_architecture_has_lost_its_results(changed):
    assert changed.broken.returncode == 1
    assert f"{BASELINE}: up to date" in changed.broken.stdout
    assert ran(changed.broken) == ["comparison"]
    for table in (
        pd.read_csv(changed.reports / "metrics.csv"), pd.read_parquet(changed.reports / QUERIES)
    ):  # fmt: skip
        assert set(table["architecture"]) == {BASELINE}
    assert "nowhere.weights.h5" in page(changed.reports, "cnn").text
    # The notebook has it as a parameter; the page of the shortened notebook does not show it.
    assert "nowhere.weights.h5" in (changed.reports / "comparison.ipynb").read_text("utf-8")
    assert "No results" not in page(changed.reports, BASELINE).text


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> SimpleNamespace:
    """A folder with a file that is no picture; weights missing, out of reach, or damaged."""
    root = make_study(tmp_path_factory.mktemp("failing"), {})
    (root / "data" / "shapes" / "circle" / "broken.png").write_bytes(b"no picture")
    (root / "data" / "damaged.weights.h5").write_bytes(b"no weights")
    shorten_notebooks(root, but=("comparison", "metrics"))
    frozen = CNN | FROZEN
    write_study(
        root,
        "folder",
        STUDY | {"dataset": "data/elsewhere"},
        {
            BASELINE: BASELINES,
            "cnn": CNN | {"weights": "study:elsewhere", "head_epochs": 1},
            "resnet50": frozen | {"backbone": "resnet50", "weights": "imagenet"},
            "vgg16": frozen | {"backbone": "vgg16", "weights": "data/damaged.weights.h5"},
        },
    )
    plan = cbir(root, "plan", "--data", "data/shapes")
    report_run = cbir(root, "report", "--data", "data/shapes", **NO_NETWORK)
    return SimpleNamespace(reports=root / "reports" / "shapes", done=report_run, plan=plan)


def test_a_plan_lists_downloads(failing):
    plan = failing.plan
    assert plan.returncode == 0, plan.stderr
    assert "reports/shapes/index.html" in plan.stdout
    assert "will download resnet50_weights" in plan.stdout
    assert "cannot run: weights: study:elsewhere: " in plan.stdout


def test_a_study_of_a_folder_has_the_name_of_the_folder(failing):
    assert "shapes: 36 gallery images, 12 queries, 3 classes" in failing.done.stdout
    table = pd.read_csv(failing.reports / "metrics.csv")
    assert set(table["study"]) == {"shapes"}
    manifest = json.loads((failing.reports / "manifest.json").read_text())
    assert manifest["architectures"][BASELINE]["parameters"]["dataset"] == "data/shapes"


def test_definitions_of_map_are_shown_on_a_baseline_if_no_network_has_results(failing):
    assert "metrics: running" in failing.done.stdout
    assert "metrics: failed" not in failing.done.stderr
    assert len(page(failing.reports, "metrics").of("table")) == 3


def test_one_failure_stops_no_other_architecture(failing):
    assert failing.done.returncode == 1
    assert f"{BASELINE}: done in" in failing.done.stdout
    assert "vgg16: running" in failing.done.stdout
    assert set(pd.read_csv(failing.reports / "metrics.csv")["architecture"]) == {BASELINE}


def test_each_failure_prints_one_line_on_stderr(failing):
    lines = failing.done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["cnn", "resnet50", "vgg16"]
    assert "run `make report DATA=path/to/folder` first" in lines[0]
    assert "could not be downloaded" in lines[1]
    assert "data/damaged.weights.h5 does not fit vgg16" in lines[2]
    assert lines[-1].startswith("failed: cnn, resnet50, vgg16")


def test_terminal_and_report_list_unreadable_files(failing):
    lines = failing.done.stdout.splitlines()
    row = lines[lines.index("49 files found, 48 used, 1 left out:") + 1]
    number, reason = row.strip().removesuffix(" (circle/broken.png)").split("  ")
    assert number == "1"
    assert f"left out: {reason}" in page(failing.reports, "index").text
    table = pd.read_csv(failing.reports / "files.csv")
    assert table.to_numpy().tolist() == [["circle/broken.png", "left out", reason, 1]]


def test_the_report_lists_failures_with_their_reasons(failing):
    reports = failing.reports
    index = page(reports, "index").text
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in index
    assert "data/damaged.weights.h5 does not fit vgg16" in index
    assert "study:elsewhere" in index
    assert "study:elsewhere" in (reports / "cnn.html").read_text("utf-8")
    assert "could not be downloaded" in (reports / "resnet50.html").read_text("utf-8")
    failures = json.loads((reports / "manifest.json").read_text())["failures"]
    assert sorted(failures) == ["cnn", "resnet50", "vgg16"]


def test_the_traceback_of_a_failed_notebook_is_in_its_log_and_page(failing):
    assert "Traceback" not in failing.done.stdout + failing.done.stderr
    log = (failing.reports / "vgg16.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "StudyError" in log
    assert "\x1b" not in log
    assert "StudyError" in (failing.reports / "vgg16.html").read_text("utf-8")


POOLINGS = ["avg", "gem"]
POINTS = [f"mobilenet-{pooling}" for pooling in POOLINGS]


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> SimpleNamespace:
    """Two poolings on the feature maps of one frozen backbone, run twice."""
    mobilenet = CNN | FROZEN | {"backbone": "mobilenet", "feature_maps": True}
    root = make_study(
        tmp_path_factory.mktemp("grid"), {"mobilenet": mobilenet}, grid={"pooling": POOLINGS}
    )
    leave_out_notebooks(root, *DEEPER)
    first = report(root)
    before = snapshot(root / "reports")
    again = report(root).done
    return SimpleNamespace(
        **vars(first),
        again=again,
        is_untouched=snapshot(root / "reports") == before,
        plan=cbir(root, "plan", "--study", "tiny", "--architectures", POINTS[1]),
    )


def test_a_grid_has_a_page_per_point_and_one_about_all_points(grid):
    assert grid.done.returncode == 0, grid.done.stderr
    assert grid.done.stderr == ""
    assert ran(grid.done) == ["architecture", "architecture", "grid"]
    check_pages(grid.reports, POINTS, figures={"index": 1, POINTS[0]: 2}, index="grid", deeper=[])
    assert "Every point" in page(grid.reports, "index").text
    assert not (grid.reports / "comparison.ipynb").exists()


def test_every_row_of_a_grid_has_its_point(grid):
    reports = grid.reports
    expected = {f"mobilenet-{pooling}": f"pooling={pooling}" for pooling in POOLINGS}
    for rows in (pd.read_csv(reports / "metrics.csv"), pd.read_parquet(reports / QUERIES)):
        assert rows["variant"].notna().all()
        pairs = rows[["architecture", "variant"]].drop_duplicates()
        assert dict(pairs.to_numpy()) == expected


def test_the_points_of_a_grid_share_features(grid):
    artifacts = folders(grid.root, "features", "training")
    assert {step: len(keys) for step, keys in artifacts.items()} == {"features": 1, "training": 2}


def test_a_finished_grid_is_not_run_again(grid):
    assert grid.again.returncode == 0, grid.again.stderr
    assert "nothing to do: reports/tiny/index.html is up to date" in grid.again.stdout
    assert ran(grid.again) == []
    assert grid.is_untouched
    assert grid.plan.returncode == 0, grid.plan.stderr
    assert f"\n{POINTS[0]}: notebooks/architecture.ipynb: left out\n" in grid.plan.stdout
    assert f"\n{POINTS[1]}: notebooks/architecture.ipynb: up to date\n" in grid.plan.stdout
