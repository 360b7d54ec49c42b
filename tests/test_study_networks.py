"""A whole study of networks through the real command, then the same study killed and resumed.

The pictures are so small that each network trains in seconds; all tests read the files of one run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import CNN, FROZEN, ROOT, STUDY, cbir
from studies import (
    BASELINE,
    BASELINES,
    DEEPER,
    PROTOCOLS,
    QUERIES,
    check_pages,
    check_values,
    make_study,
    ran,
    report,
    shorten_notebooks,
    snapshot,
)

pytestmark = pytest.mark.slow

NETWORKS = ["cnn", "resnet50"]
RUNS = [*NETWORKS, BASELINE]
EPOCHS = 9


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    """The CNN under all protocols with two seeds, a baseline and a frozen ResNet-50, run twice."""
    protocols = {"protocols": PROTOCOLS, "draws": 1}
    architectures = {
        "cnn": CNN | protocols | {"epochs": EPOCHS, "seeds": [0, 1]},
        BASELINE: BASELINES | protocols,
        "resnet50": CNN | FROZEN | {"backbone": "resnet50"},
    }
    root = make_study(tmp_path_factory.mktemp("study"), architectures)
    plan = cbir(root, "plan", "--study", "tiny")
    report_run = report(root)
    finished = snapshot(root / "reports", root / "artifacts")
    return SimpleNamespace(
        plan=plan,
        **vars(report_run),
        again=report(root).done,
        plan_again=cbir(root, "plan", "--study", "tiny"),
        is_untouched=snapshot(root / "reports", root / "artifacts") == finished,
    )


@pytest.fixture(scope="module")
def table(study):
    return pd.read_csv(study.reports / "metrics.csv")


@pytest.fixture(scope="module")
def manifest(study):
    return json.loads((study.reports / "manifest.json").read_text())


@pytest.fixture(scope="module")
def queries(study):
    return pd.read_parquet(study.reports / QUERIES)


def test_a_plan_lists_the_networks_that_would_run(study):
    assert study.plan.returncode == 0, study.plan.stderr
    for name in NETWORKS:
        assert f"{name}: notebooks/{name}.ipynb" in study.plan.stdout
    assert study.plan.stdout.count("will run, about") == len(RUNS)
    assert "download" not in study.plan.stdout


def test_a_study_succeeds_and_prints_nothing_on_stderr(study):
    assert study.done.returncode == 0, study.done.stderr
    assert study.done.stderr == ""
    assert "WARNING" not in study.done.stdout
    assert "reports/tiny/index.html written in" in study.done.stdout
    for name in RUNS:
        assert f"{name}: done in" in study.done.stdout


def test_leaks_are_reported_before_anything_runs(study):
    lines = study.done.stdout.splitlines()
    (leak_line,) = [number for number, line in enumerate(lines) if "in the gallery" in line]
    assert lines[leak_line] == "No copy of a query was found in the gallery (12 queries)."
    assert leak_line < next(number for number, line in enumerate(lines) if "running" in line)


def test_the_notebooks_of_the_project_are_unchanged(study):
    for path in (study.root / "notebooks").glob("*.ipynb"):
        assert path.read_bytes() == (ROOT / "notebooks" / path.name).read_bytes()


def test_a_second_run_has_nothing_to_do(study):
    assert study.again.returncode == 0, study.again.stderr
    assert "nothing to do: reports/tiny/index.html is up to date" in study.again.stdout
    assert ran(study.again) == []
    assert study.is_untouched
    assert study.plan_again.returncode == 0, study.plan_again.stderr
    assert study.plan_again.stdout.count("up to date") == len([*RUNS, "comparison", *DEEPER])
    assert study.plan_again.stdout.rstrip().endswith("nothing to run")


def test_pages_have_figures_with_texts_and_load_nothing(study):
    check_pages(
        study.reports,
        RUNS,
        figures=dict.fromkeys([*NETWORKS, "index", "failures", "explanations"], 2),
    )


def test_the_table_has_every_run_and_the_measured_state(table):
    assert sorted(set(table["architecture"])) == sorted(RUNS)
    assert set(table.loc[table["architecture"] == "cnn", "epoch"].dropna()) == {1}
    assert table.loc[table["architecture"] != "cnn", "epoch"].isna().all()
    assert set(table["class"].dropna()) == {"circle", "cross", "square"}
    assert set(table["k"].dropna()) == set(STUDY["ks"])
    check_values(table)


def test_each_run_has_its_seeds_and_protocols(table):
    measurements = table[["architecture", "seed", "protocol", "draw"]].drop_duplicates()
    measured = {name: set() for name in RUNS}
    for name, *measurement in (
        measurements.astype(object).where(measurements.notna(), None).to_numpy()
    ):
        measured[name].add(tuple(measurement))
    first_seed = {(0, "closed", None), (0, "held_out_gallery", None)}
    draws = {(0, "unseen_classes", 0)}
    second_seed = {(1, "closed", None), (1, "held_out_gallery", None)}
    assert measured["cnn"] == first_seed | draws | second_seed
    assert measured[BASELINE] == first_seed | draws
    assert measured["resnet50"] == {(0, "closed", None)}


def test_networks_have_every_search_and_baselines_only_the_unrestricted_one(table):
    def searches(chosen: pd.Series) -> set[str]:
        return set(table.loc[chosen, "search"].dropna())

    is_taught = table["protocol"] != "unseen_classes"
    is_baseline = table["architecture"] == BASELINE
    assert searches(is_taught & ~is_baseline) == {
        "unrestricted", "predicted_class", "soft", "label_lookup", "oracle_class"
    }  # fmt: skip
    assert searches(~is_taught) == searches(is_baseline) == {"unrestricted"}
    assert (table["metric"] == "accuracy").groupby(table["architecture"]).any().to_dict() == {
        "cnn": True, "resnet50": True, BASELINE: False
    }  # fmt: skip


def value(table: pd.DataFrame, **wanted) -> float:
    """The value over all queries in the row whose further columns are empty."""
    wanted = {"seed": 0, "protocol": "closed"} | wanted
    chosen = table[table["class"].isna()]
    for column in ("seed", "draw", "epoch", "protocol", "search", "k"):
        is_wanted = (
            chosen[column].isna() if column not in wanted else chosen[column] == wanted[column]
        )
        chosen = chosen[is_wanted]
    chosen = chosen[chosen["metric"] == wanted["metric"]]
    return chosen.loc[chosen["architecture"] == wanted["architecture"], "value"].item()


def mean_average_precision(arrays: dict, search: str, labels, gallery, queries) -> float:
    """The mean average precision, computed from the embeddings one query at a time."""
    predicted = arrays["probabilities"].argmax(axis=1) if "probabilities" in arrays else None
    vectors, precisions = arrays["vectors"], []
    for query in queries:
        candidates = gallery[gallery != query]
        order = candidates[np.argsort(-(vectors[candidates] @ vectors[query]), kind="stable")]
        if search == "predicted_class":
            order = order[labels[order] == predicted[query]]
        hits = labels[order] == labels[query]
        at_hits = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]
        precisions.append(at_hits.sum() / (labels[candidates] == labels[query]).sum())
    return float(np.mean(precisions))


@pytest.mark.parametrize("name", RUNS)
def test_accuracy_and_map_agree_with_the_embeddings(name, study, table, queries, manifest):
    folder = study.root / manifest["architectures"][name]["artifacts"]["embeddings"]
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    (path,) = (study.root / "artifacts" / "images").glob("*/labels.npy")
    labels = np.load(path)
    query_positions = queries.loc[queries["protocol"] == "closed", "query"].unique()
    assert len(query_positions) == 12
    gallery = np.setdiff1d(np.arange(len(labels)), query_positions)
    searches = [("unrestricted", "closed", gallery)]
    if name in ("cnn", BASELINE):
        searches.append(("unrestricted", "held_out_gallery", query_positions))
    if name != BASELINE:
        searches.append(("predicted_class", "closed", gallery))
        right = (
            arrays["probabilities"][query_positions].argmax(axis=1) == labels[query_positions]
        ).mean()
        assert value(table, architecture=name, metric="accuracy") == pytest.approx(right, rel=1e-5)
    for search, protocol, searched in searches:
        wanted = {"metric": "mean_average_precision", "search": search, "protocol": protocol}
        expected = mean_average_precision(arrays, search, labels, searched, query_positions)
        # Ties of unequal last bits may swap.
        assert value(table, architecture=name, **wanted) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_within_the_predicted_class_are_the_accuracy(name, table):
    states = table[(table["architecture"] == name) & (table["metric"] == "accuracy")]
    states = states[states["class"].isna()]
    assert len(states) == (6 if name == "cnn" else 1)
    for state in states.itertuples():
        state_columns = {"architecture": name, "seed": state.seed, "protocol": state.protocol}
        if not np.isnan(state.epoch):
            state_columns["epoch"] = state.epoch
        for metric, cutoff in (
            ("mean_average_precision", {}), ("precision", {"k": 1}), ("ndcg", {"k": 1}),
        ):  # fmt: skip
            wanted = state_columns | cutoff | {"metric": metric}
            assert value(table, search="predicted_class", **wanted) == state.value
            assert value(table, search="oracle_class", **wanted) == 1


def test_the_number_of_relevant_images_follows_the_protocol(queries):
    relevant = queries.groupby("protocol")["n_relevant"].unique().map(list)
    # 12 of each class are in the gallery; among 4 queries per class, 3 are not the query itself.
    assert relevant.to_dict() == {"closed": [12], "held_out_gallery": [3], "unseen_classes": [12]}
    unseen = queries[queries["protocol"] == "unseen_classes"]
    per_draw = unseen.groupby(["architecture", "draw"])["label"].agg(["nunique", "count"])
    assert (per_draw == [1, 4]).all(axis=None)


def test_the_table_of_queries_agrees_with_the_table_of_metrics(queries, table):
    columns = ["architecture", "seed", "draw", "epoch", "protocol", "search"]
    assert not queries.duplicated([*columns, "query"]).any()
    means = queries.groupby(columns, dropna=False).mean(numeric_only=True).reset_index()
    whole = table[table["class"].isna()]
    for metric, k, column in (
        ("mean_average_precision", None, "average_precision"), ("recall", 5, "recall@5"),
        ("gallery_searched", None, "searched"),
    ):  # fmt: skip
        rows = whole[whole["metric"] == metric]
        rows = rows[rows["k"].isna() if k is None else rows["k"] == k]
        merged = rows.merge(
            means.astype(dict.fromkeys(("seed", "draw", "epoch"), "float")), on=columns
        )
        assert len(rows) == len(merged) == len(means)
        assert merged["value"].to_numpy() == pytest.approx(merged[column].to_numpy(), rel=1e-5)
    counts = whole.groupby("protocol")["n_queries"].unique().map(list).to_dict()
    assert counts == {"closed": [12], "held_out_gallery": [12], "unseen_classes": [4]}


def test_the_manifest_records_data_parameters_versions_and_machine(manifest, study):
    assert manifest["study"] == "tiny"
    assert manifest["command"] == "make report STUDY=tiny"
    assert {"python", "backend", "keras", "numpy", "tensorflow"} <= set(manifest["versions"])
    assert set(manifest["git"]) == {"commit", "clean"}
    assert {"cpu", "cores", "gpus", "system"} <= set(manifest["machine"])
    assert re.fullmatch("[0-9a-f]{64}", manifest["data"]["fingerprint"])
    assert (manifest["data"]["gallery"], manifest["data"]["queries"]) == (36, 12)
    assert manifest["failures"] == {}
    assert list(manifest["architectures"]) == [*NETWORKS, BASELINE]
    baseline = manifest["architectures"][BASELINE]
    assert baseline["weights"] is None
    assert baseline["parameters"]["baseline"] == BASELINE
    for name in NETWORKS:
        run = manifest["architectures"][name]
        assert run["parameters"]["backbone"] == name
        assert run["parameters"]["dataset"] == "data/shapes"
        assert re.fullmatch("[0-9a-f]{64}", run["weights"]["trained"])
        assert run["weights"]["started from"] == "random"
        steps = {"training", "embeddings", "unrestricted", "predicted_class", "notebook"}
        assert steps <= set(run["seconds"])
        assert all(seconds > 0 for seconds in run["seconds"].values())
        assert run["peak_memory_bytes"] > 50e6
        assert all((study.root / path).is_dir() for path in run["artifacts"].values())


def children(process: int) -> list[int]:
    """All descendants of a process: a notebook's kernel is in another session."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    below, waiting = [], [process]
    while waiting:
        waiting = [pid for pid, parent in parents.items() if parent in waiting]
        below += waiting
    return below


def stop_at(root: Path, beginning: str, how: signal.Signals) -> SimpleNamespace:
    """Start the command and stop it when it prints a line with this beginning."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cbir", "report", "--study", "tiny"],
        cwd=root,
        env={**os.environ, "KERAS_HOME": str(root / "keras")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background ignores SIGINT, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(beginning):
            break
    below = children(process.pid)
    os.killpg(process.pid, how)
    if how == signal.SIGKILL:  # like a loss of power: no process goes on
        for pid in below:
            os.kill(pid, how)
    rest, errors = process.communicate(timeout=60)
    end = time.monotonic() + 15
    while (left := [pid for pid in below if Path(f"/proc/{pid}").exists()]) and (
        time.monotonic() < end
    ):
        time.sleep(0.2)
    return SimpleNamespace(
        returncode=process.returncode, stdout=printed + rest, stderr=errors, left=left
    )


@pytest.fixture(scope="module")
def interrupted(study, tmp_path_factory) -> SimpleNamespace:
    """Train the CNN again in a copy of the study: killed, interrupted, then left to finish."""
    root = tmp_path_factory.mktemp("interrupted") / "project"
    shutil.copytree(study.root, root)
    shorten_notebooks(root, but=("baseline", "resnet50"))
    reports = root / "reports" / "tiny"
    summary = json.loads((reports / "cnn" / "summary.json").read_text())
    for artifact in summary["artifacts"].values():
        shutil.rmtree(root / artifact)
    shutil.rmtree(root / "artifacts" / "images")
    for path in reports.glob("cnn*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return SimpleNamespace(
        killed=stop_at(root, "epoch 2/", signal.SIGKILL),
        stopped=stop_at(root, "epoch 4/", signal.SIGINT),
        **vars(report(root)),
    )


def test_a_killed_run_resumes_after_its_last_saved_epoch(interrupted):
    assert interrupted.killed.returncode == -signal.SIGKILL
    resumed = re.search(r"resuming after epoch (\d+)", interrupted.stopped.stdout)
    assert resumed
    assert 1 <= int(resumed[1]) < EPOCHS  # a line is printed before the epoch is saved
    assert "epoch 1/" not in interrupted.stopped.stdout


def test_an_interruption_prints_one_line_and_leaves_no_process(interrupted):
    stopped = interrupted.stopped
    assert stopped.stderr == "interrupted: run the same command again to continue\n"
    assert stopped.returncode == 130
    assert stopped.left == []
    assert "resnet50" not in stopped.stdout


def test_an_interrupted_study_ends_with_the_bytes_of_an_uninterrupted_one(
    interrupted, study, manifest
):
    """A CNN that was killed, interrupted and resumed equals one that was not."""
    assert interrupted.done.returncode == 0, interrupted.done.stderr
    assert "resuming after epoch" in interrupted.done.stdout
    both = (interrupted.reports, study.reports)
    tables = [(folder / "metrics.csv").read_bytes() for folder in both]
    assert tables[0] == tables[1]
    histories = [pd.read_csv(folder / "cnn" / "history.csv") for folder in both]
    assert histories[0].drop(columns="seconds").equals(histories[1].drop(columns="seconds"))
    repeated = json.loads((interrupted.reports / "manifest.json").read_text())
    assert repeated["data"]["fingerprint"] == manifest["data"]["fingerprint"]
    assert (
        repeated["architectures"]["cnn"]["weights"] == manifest["architectures"]["cnn"]["weights"]
    )
