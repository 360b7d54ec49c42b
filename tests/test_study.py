"""Whole studies through the real command, on pictures so small that each takes seconds.

One project is run for all three architectures; what happens next is tried on copies of it. The
runs are started two at a time by the fixture `runs`, and the tests read what they left.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import (
    CNN,
    FROZEN,
    ROOT,
    STUDY,
    cbir,
    load_shapes,
    make_project,
    write_pictures,
    write_study,
)
from test_pages import Tags

from cbir.networks import weights
from cbir.networks.backbones import BACKBONES
from cbir.studies import plan
from cbir.studies.study import open_study, run_key

pytestmark = pytest.mark.study

ARCHITECTURES = ["cnn", "resnet50", "vgg16"]
BASELINE = "raw_pixels"
BASELINES = {"notebook": "baseline", "baseline": BASELINE}
RUNS = [*ARCHITECTURES, BASELINE]
# The pages about all runs, beside index.html.
DEEPER = ["failures", "explanations", "feedback", "metrics"]
PROTOCOLS = ["closed", "held_out_gallery", "unseen_classes"]
EPOCHS = 9
QUERIES = "per_query.parquet"
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def folders(root: Path, step: str) -> dict[str, int]:
    """The finished results of a step, and when each was made."""
    found = (root / "artifacts" / step).glob("*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with what it holds."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def change(root: Path, name: str, **values) -> None:
    """Change values in a file of the study `tiny`."""
    path = root / "params" / "tiny" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def run_of_all(root: Path) -> SimpleNamespace:
    """The study `tiny` from nothing, with its plan before: the CNN in full, and a baseline."""
    make_project(root)
    more = {"protocols": PROTOCOLS, "draws": 1}
    cnn = CNN | more | {"epochs": EPOCHS, "seeds": [0, 1]}
    write_study(root, "tiny", STUDY, {"cnn": cnn, BASELINE: BASELINES | more})
    before = snapshot(root)
    plan = cbir(root, "plan", "--study", "tiny")
    planned = snapshot(root)
    return SimpleNamespace(
        root=root,
        reports=root / "reports" / "tiny",
        new={path for path in planned if planned[path] != before.get(path)},
        plan=plan,
        done=cbir(root, "report", "--study", "tiny"),
    )


def run_again(root: Path) -> SimpleNamespace:
    before = snapshot(root / "reports") | snapshot(root / "artifacts")
    done = cbir(root, "report", "--study", "tiny")
    after = snapshot(root / "reports") | snapshot(root / "artifacts")
    plan = cbir(root, "plan", "--study", "tiny")
    return SimpleNamespace(plan=plan, done=done, before=before, after=after)


def run_with_changes(root: Path) -> SimpleNamespace:
    """Other depths for the CNN; another CNN; then weights for ResNet-50 that are not there."""
    made = {step: folders(root, step) for step in ("training", "embeddings", "features")}
    change(root, "study", ks=[1, 2])
    depths = cbir(root, "report", "--study", "tiny", "--architectures", "cnn")
    table = pd.read_csv(root / "reports" / "tiny" / "metrics.csv")
    made_for_depths = {step: folders(root, step) for step in made}
    change(root, "study", ks=STUDY["ks"])
    change(root, "cnn", epochs=2, seeds=[0], protocols=["closed"])
    done = cbir(root, "report", "--study", "tiny")
    pages = snapshot(root / "reports" / "tiny")
    after = {step: folders(root, step) for step in made}
    change(root, "resnet50", weights="nowhere.weights.h5")
    broken = cbir(root, "report", "--study", "tiny")
    return SimpleNamespace(
        root=root, made=made, depths=depths, table=table, done=done, pages=pages,
        made_for_depths=made_for_depths, after=after, broken=broken,
    )  # fmt: skip


def run_trial(root: Path) -> SimpleNamespace:
    before = snapshot(root / "reports" / "tiny")
    # A trial of the baseline, since it is run in no time.
    arguments = ("--study", "tiny", "--set", "epochs=1 ks=[2]", "--architectures", BASELINE)
    done = cbir(root, "report", *arguments)
    after = snapshot(root / "reports" / "tiny")
    return SimpleNamespace(root=root, done=done, before=before, after=after)


def run_with_failures(root: Path) -> SimpleNamespace:
    """A folder of pictures, one of them none; weights not learnt, out of reach, or damaged."""
    make_project(root)
    (root / "data" / "shapes" / "circle" / "broken.png").write_bytes(b"no picture")
    (root / "data" / "damaged.weights.h5").write_bytes(b"no weights")
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
    done = cbir(root, "report", "--data", "data/shapes", **NO_NETWORK)
    return SimpleNamespace(reports=root / "reports" / "shapes", done=done, plan=plan)


POOLINGS = ["avg", "gem"]
POINTS = [f"mobilenet-{pooling}" for pooling in POOLINGS]


def run_of_grid(root: Path) -> SimpleNamespace:
    """Two ways of pooling on what one frozen backbone makes of the pictures; the same again."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    write_pictures(root / "data" / "shapes")
    mobilenet = CNN | FROZEN | {"backbone": "mobilenet", "feature_maps": True}
    write_study(root, "tiny", STUDY | {"grid": {"pooling": POOLINGS}}, {"mobilenet": mobilenet})
    done = cbir(root, "report", "--study", "tiny")
    before = snapshot(root / "reports")
    again = cbir(root, "report", "--study", "tiny")
    return SimpleNamespace(
        root=root,
        reports=root / "reports" / "tiny",
        done=done,
        again=again,
        is_untouched=snapshot(root / "reports") == before,
        plan=cbir(root, "plan", "--study", "tiny", "--architectures", POINTS[1]),
    )


def children(process: int) -> list[int]:
    """Every process below a process: a notebook's kernel has a session of its own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, waiting = [], [process]
    while waiting:
        below = [pid for pid, parent in parents.items() if parent in waiting]
        found, waiting = found + below, below
    return found


def stop_at(root: Path, line: str, how: signal.Signals) -> SimpleNamespace:
    """Start the command and stop it when it prints a line that begins so."""
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
    for each in process.stdout:
        printed += each
        if each.startswith(line):
            break
    below = children(process.pid)
    os.killpg(process.pid, how)
    if how == signal.SIGKILL:  # as a loss of power: nothing of it goes on
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


def run_with_interruptions(root: Path) -> SimpleNamespace:
    """The CNN anew, from nothing: killed, then interrupted, then left alone."""
    summary = json.loads((root / "reports" / "tiny" / "cnn" / "summary.json").read_text())
    for artifact in summary["artifacts"].values():
        shutil.rmtree(root / artifact)
    shutil.rmtree(root / "artifacts" / "images")
    for path in (root / "reports" / "tiny").glob("cnn*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    killed = stop_at(root, "epoch 2/", signal.SIGKILL)
    stopped = stop_at(root, "epoch 4/", signal.SIGINT)
    done = cbir(root, "report", "--study", "tiny")
    return SimpleNamespace(root=root, killed=killed, stopped=stopped, done=done)


AFTERWARDS = {
    "interrupted": run_with_interruptions,
    "changed": run_with_changes,
    "trial": run_trial,
    "again": run_again,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a run -> what it left; those of `AFTERWARDS` go on from copies of `tiny`."""
    with ThreadPoolExecutor(2) as pool:
        tiny = pool.submit(run_of_all, tmp_path_factory.mktemp("tiny"))
        failing = pool.submit(run_with_failures, tmp_path_factory.mktemp("failing"))
        grid = pool.submit(run_of_grid, tmp_path_factory.mktemp("grid"))

        def after(name):
            root = tmp_path_factory.mktemp(name) / "project"
            shutil.copytree(tiny.result().root, root)
            return AFTERWARDS[name](root)

        others = {name: pool.submit(after, name) for name in AFTERWARDS}
        futures = {"tiny": tiny, "failing": failing, "grid": grid, **others}
        yield lambda name: futures[name].result()


@pytest.fixture(scope="module")
def tiny(runs):
    return runs("tiny")


@pytest.fixture(scope="module")
def table(tiny):
    return pd.read_csv(tiny.reports / "metrics.csv")


@pytest.fixture(scope="module")
def manifest(tiny):
    return json.loads((tiny.reports / "manifest.json").read_text())


@pytest.fixture(scope="module")
def queries(tiny):
    return pd.read_parquet(tiny.reports / QUERIES)


def value(table: pd.DataFrame, **wanted) -> float:
    """The one value over all queries; what is not asked for does not apply."""
    wanted = {"seed": 0, "protocol": "closed"} | wanted
    chosen = table[table["class"].isna()]
    for column in ("seed", "draw", "epoch", "protocol", "search", "k"):
        is_it = chosen[column].isna() if column not in wanted else chosen[column] == wanted[column]
        chosen = chosen[is_it]
    chosen = chosen[chosen["metric"] == wanted["metric"]]
    return chosen.loc[chosen["architecture"] == wanted["architecture"], "value"].item()


def test_a_plan_says_what_would_run_and_makes_nothing(tiny):
    assert tiny.plan.returncode == 0, tiny.plan.stderr
    assert not {path for path in tiny.new if path.startswith(("reports", "artifacts"))}
    for expected in (
        "notebooks/cnn.ipynb", "notebooks/resnet50.ipynb", "notebooks/vgg16.ipynb",
        f"{BASELINE}: notebooks/baseline.ipynb", "embedding_dim=16", "48 pictures, 3 classes",
        "GPU:",
    ):  # fmt: skip
        assert expected in tiny.plan.stdout
    assert re.search(r"about (\d+ h )?(\d+ min )?\d+ (s|min) in all", tiny.plan.stdout)
    assert "download" not in tiny.plan.stdout
    assert tiny.plan.stdout.count("will run, about") == len(RUNS)


def test_a_study_ends_well_and_says_nothing_on_stderr(tiny):
    assert tiny.done.returncode == 0, tiny.done.stderr
    assert tiny.done.stderr == ""
    assert "reports/tiny/index.html written in" in tiny.done.stdout
    for name in RUNS:
        assert f"{name}: done in" in tiny.done.stdout


def test_leaks_are_told_before_anything_is_trained(tiny):
    lines = tiny.done.stdout.splitlines()
    (told,) = [place for place, line in enumerate(lines) if "also stand" in line]
    assert lines[told].startswith("None of 12 queries is in the gallery, too.")
    assert told < next(place for place, line in enumerate(lines) if "running" in line)
    assert told < next(place for place, line in enumerate(lines) if line.startswith("epoch"))


def test_the_terminal_shows_no_warnings_of_libraries(tiny):
    assert "WARNING" not in tiny.done.stdout


def links_between_pages(html):
    """The pages that the navigation at the top of a page leads to, in its order."""
    (navigation,) = re.findall('<nav[^>]*class="pages".*?</nav>', html, re.DOTALL)
    return [link["href"].removesuffix(".html") for link in Tags(navigation).of("a")]


@pytest.mark.parametrize("page", ["index", *DEEPER, *RUNS])
def test_pages_show_figures_with_texts_and_fetch_nothing(page, tiny):
    html = (tiny.reports / f"{page}.html").read_text("utf-8")
    tags = Tags(html)
    assert len(tags.of("img")) >= {BASELINE: 1, "metrics": 0, "feedback": 1}.get(page, 2)
    assert "No results" not in html
    assert all(image.get("alt", "").strip() for image in tags.of("img"))
    assert all(image["src"].startswith("data:image/") for image in tags.of("img"))
    assert not tags.of("script")
    assert all(link["href"].startswith("data:") for link in tags.of("link"))
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", html)
    assert links_between_pages(html) == ["index", *RUNS, *DEEPER]
    links = [link["href"] for link in tags.of("a")]
    # The provenance stands on the comparison alone, so an architecture's page leads there.
    assert links.count("index.html") == (2 if page in RUNS else 1)
    here = [link for link in links if re.fullmatch(r"[\w.]+", link)]
    assert all((tiny.reports / link).exists() for link in here)


@pytest.mark.parametrize("name", [*RUNS, "comparison", *DEEPER])
def test_executed_notebooks_are_kept_with_their_parameters(name, tiny):
    executed = nbformat.read(tiny.reports / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    assert len(injected) == 1
    assert 'study = "tiny"' in injected[0].source
    assert (tiny.reports / f"{name}.log").exists()


def test_the_notebooks_of_the_project_are_left_as_they_were(tiny):
    for path in (tiny.root / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells)


def test_the_table_has_every_run_and_the_measured_state(table):
    assert sorted(set(table["architecture"])) == sorted(RUNS)
    assert set(table.loc[table["architecture"] == "cnn", "epoch"].dropna()) == {1}
    assert table.loc[table["architecture"] != "cnn", "epoch"].isna().all()
    assert set(table["class"].dropna()) == {"circle", "cross", "square"}
    assert set(table["k"].dropna()) == set(STUDY["ks"])
    assert table["value"].between(0, 1).all()
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()


def test_each_run_was_measured_under_what_it_was_asked_for(table):
    places = table[["architecture", "seed", "protocol", "draw"]].drop_duplicates()
    found = {name: set() for name in RUNS}
    for name, *place in places.astype(object).where(places.notna(), None).to_numpy():
        found[name].add(tuple(place))
    once = {(0, "closed", None), (0, "held_out_gallery", None)}
    draws = {(0, "unseen_classes", 0)}
    again = {(1, "closed", None), (1, "held_out_gallery", None)}
    assert found["cnn"] == once | draws | again
    assert found[BASELINE] == once | draws
    assert found["resnet50"] == found["vgg16"] == {(0, "closed", None)}


def test_a_classifier_is_searched_with_in_all_ways_and_a_baseline_in_one(table):
    def searches(chosen: pd.Series) -> set[str]:
        return set(table.loc[chosen, "search"].dropna())

    is_taught = table["protocol"] != "unseen_classes"
    is_baseline = table["architecture"] == BASELINE
    assert searches(is_taught & ~is_baseline) == {
        "unrestricted", "predicted_class", "soft", "label_lookup", "oracle_class"
    }  # fmt: skip
    assert searches(~is_taught) == searches(is_baseline) == {"unrestricted"}
    assert (table["metric"] == "accuracy").groupby(table["architecture"]).any().to_dict() == {
        "cnn": True, "resnet50": True, "vgg16": True, BASELINE: False
    }  # fmt: skip


def mean_average_precision(load: dict, name: str, labels, gallery, queries) -> float:
    """From the embeddings alone, a query at a time."""
    predicted = load["probabilities"].argmax(axis=1) if "probabilities" in load else None
    precisions = []
    for query in queries:
        kept = gallery[gallery != query]
        order = kept[np.argsort(-(load["vectors"][kept] @ load["vectors"][query]), kind="stable")]
        if name == "predicted_class":
            order = order[labels[order] == predicted[query]]
        hits = labels[order] == labels[query]
        at_hits = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]
        precisions.append(at_hits.sum() / (labels[kept] == labels[query]).sum())
    return float(np.mean(precisions))


@pytest.mark.parametrize("name", RUNS)
def test_accuracy_and_map_are_those_recomputed_from_the_embeddings(
    name, tiny, table, queries, manifest
):
    folder = tiny.root / manifest["architectures"][name]["artifacts"]["embeddings"]
    load = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    (images,) = (tiny.root / "artifacts" / "images").glob("*/labels.npy")
    labels = np.load(images)
    asked = queries.loc[queries["protocol"] == "closed", "query"].unique()
    assert len(asked) == 12
    gallery = np.setdiff1d(np.arange(len(labels)), asked)
    ways = [("unrestricted", "closed", gallery)]
    if name in ("cnn", BASELINE):
        ways.append(("unrestricted", "held_out_gallery", asked))
    if name != BASELINE:
        ways.append(("predicted_class", "closed", gallery))
        right = (load["probabilities"][asked].argmax(axis=1) == labels[asked]).mean()
        assert value(table, architecture=name, metric="accuracy") == pytest.approx(right, rel=1e-5)
    for search, protocol, searched in ways:
        wanted = {"metric": "mean_average_precision", "search": search, "protocol": protocol}
        found = value(table, architecture=name, **wanted)
        expected = mean_average_precision(load, search, labels, searched, asked)
        assert found == pytest.approx(expected, abs=2e-3)  # ties of unequal last bits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_the_predicted_class_the_scores_are_the_accuracy(name, table):
    states = table[(table["architecture"] == name) & (table["metric"] == "accuracy")]
    states = states[states["class"].isna()]
    assert len(states) == (6 if name == "cnn" else 1)
    for state in states.itertuples():
        place = {"architecture": name, "seed": state.seed, "protocol": state.protocol}
        if not np.isnan(state.epoch):
            place["epoch"] = state.epoch
        for metric, more in (
            ("mean_average_precision", {}), ("precision", {"k": 1}), ("ndcg", {"k": 1}),
        ):  # fmt: skip
            given = place | more | {"metric": metric}
            assert value(table, search="predicted_class", **given) == state.value
            assert value(table, search="oracle_class", **given) == 1


def test_what_is_relevant_is_what_the_protocol_says(queries):
    relevant = queries.groupby("protocol")["n_relevant"].unique().map(list)
    # 12 of each class in the gallery; of 4 queries a class, those that are not the query itself.
    assert relevant.to_dict() == {"closed": [12], "held_out_gallery": [3], "unseen_classes": [12]}
    unseen = queries[queries["protocol"] == "unseen_classes"]
    per_draw = unseen.groupby(["architecture", "draw"])["label"].agg(["nunique", "count"])
    assert (per_draw == [1, 4]).all(axis=None)


def test_the_table_of_queries_agrees_with_the_table_of_metrics(queries, table):
    place = ["architecture", "seed", "draw", "epoch", "protocol", "search"]
    assert not queries.duplicated([*place, "query"]).any()
    means = queries.groupby(place, dropna=False).mean(numeric_only=True).reset_index()
    whole = table[table["class"].isna()]
    for metric, k, column in (
        ("mean_average_precision", None, "average_precision"), ("recall", 5, "recall@5"),
        ("gallery_searched", None, "searched"),
    ):  # fmt: skip
        own = whole[whole["metric"] == metric]
        own = own[own["k"].isna() if k is None else own["k"] == k]
        both = own.merge(means.astype(dict.fromkeys(("seed", "draw", "epoch"), "float")), on=place)
        assert len(own) == len(both) == len(means)
        assert both["value"].to_numpy() == pytest.approx(both[column].to_numpy(), rel=1e-5)
    counts = whole.groupby("protocol")["n_queries"].unique().map(list).to_dict()
    assert counts == {"closed": [12], "held_out_gallery": [12], "unseen_classes": [4]}


def test_the_manifest_says_what_the_numbers_were_made_from(manifest, tiny):
    assert manifest["study"] == "tiny"
    assert manifest["command"] == "make report STUDY=tiny"
    assert {"python", "backend", "keras", "numpy", "tensorflow"} <= set(manifest["versions"])
    assert set(manifest["git"]) == {"commit", "clean"}
    assert {"cpu", "cores", "gpus", "system"} <= set(manifest["machine"])
    assert re.fullmatch("[0-9a-f]{64}", manifest["data"]["fingerprint"])
    assert manifest["data"]["gallery"] == 36
    assert manifest["data"]["queries"] == 12
    assert manifest["failures"] == {}
    assert list(manifest["architectures"]) == RUNS
    baseline = manifest["architectures"][BASELINE]
    assert baseline["weights"] is None
    assert baseline["parameters"]["baseline"] == BASELINE
    for name in ARCHITECTURES:
        run = manifest["architectures"][name]
        assert run["parameters"]["backbone"] == name
        assert run["parameters"]["dataset"] == "data/shapes"
        assert re.fullmatch("[0-9a-f]{64}", run["weights"]["trained"])
        assert run["weights"]["started from"] == "random"
        steps = {"training", "embeddings", "unrestricted", "predicted_class", "notebook"}
        assert steps <= set(run["seconds"])
        assert all(seconds > 0 for seconds in run["seconds"].values())
        assert run["peak_memory_bytes"] > 50e6
        assert all((tiny.root / path).is_dir() for path in run["artifacts"].values())


def test_a_second_run_has_nothing_to_do(runs):
    again = runs("again")
    assert again.done.returncode == 0
    assert "nothing to do: reports/tiny/index.html is up to date" in again.done.stdout
    assert "running" not in again.done.stdout
    assert "epoch" not in again.done.stdout
    # The copy stands elsewhere, so its pictures are decoded anew; all that stood stays as it was.
    assert {path: again.after.get(path) for path in again.before} == again.before
    assert {path.partition("/")[0] for path in again.after.keys() - again.before} <= {"images"}


def test_a_plan_of_a_finished_study_takes_no_time(runs):
    plan = runs("again").plan
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.count("up to date") == len(RUNS)
    assert plan.stdout.rstrip().endswith("about 0 s in all")


def test_other_depths_train_and_embed_nothing(runs):
    changed = runs("changed")
    assert changed.depths.returncode == 0, changed.depths.stderr
    assert "cnn: running notebooks/cnn.ipynb" in changed.depths.stdout
    assert "epoch" not in changed.depths.stdout
    assert changed.made_for_depths == changed.made
    # Ten are always measured, since a report shows ten.
    assert set(changed.table["k"].dropna()) == {1, 2, 10}


def test_what_was_left_out_is_not_mixed_with_new_results(runs):
    changed = runs("changed")
    assert "resnet50: left out" in changed.depths.stdout
    assert set(changed.table["architecture"]) == {"cnn"}


def test_what_is_up_to_date_again_has_its_page_again(runs):
    changed = runs("changed")
    assert "resnet50: up to date" in changed.done.stdout
    html = changed.pages["resnet50.html"].decode("utf-8")
    assert "No results" not in html
    assert len(Tags(html).of("img")) >= 2


def test_a_change_to_one_architecture_runs_it_and_the_comparison_alone(runs):
    changed = runs("changed")
    assert changed.done.returncode == 0, changed.done.stderr
    running = re.findall(r"running notebooks/(\w+)\.ipynb", changed.done.stdout)
    assert running == ["cnn", "comparison", *DEEPER]
    assert "resnet50: up to date" in changed.done.stdout
    assert "vgg16: up to date" in changed.done.stdout
    for step in ("training", "embeddings"):
        assert changed.made[step].items() < changed.after[step].items()
    # The CNN's three, one of each other network, and the new one.
    assert len(changed.after["training"]) == 3 + 2 + 1


def test_a_page_shows_why_an_architecture_has_no_results_any_more(runs):
    changed = runs("changed")
    assert changed.broken.returncode == 1
    reports = changed.root / "reports" / "tiny"
    for table in (pd.read_csv(reports / "metrics.csv"), pd.read_parquet(reports / QUERIES)):
        assert set(table["architecture"]) == {"cnn", "vgg16", BASELINE}
    for page in ("index.html", "resnet50.html"):
        assert "nowhere.weights.h5" in (reports / page).read_text("utf-8")


def test_a_trial_has_a_report_of_its_own(runs):
    trial = runs("trial")
    assert trial.done.returncode == 0, trial.done.stderr
    assert trial.after == trial.before
    reports = trial.root / "reports" / "tiny-trial"
    table = pd.read_csv(reports / "metrics.csv")
    assert set(table["study"]) == {"tiny-trial"}
    assert set(table["architecture"]) == {BASELINE}
    assert set(table["k"].dropna()) == {2, 10}
    manifest = json.loads((reports / "manifest.json").read_text())
    assert manifest["architectures"][BASELINE]["parameters"]["ks"] == [2]
    # What is for networks alone is not for a baseline.
    assert "epochs" not in manifest["architectures"][BASELINE]["parameters"]
    assert 'SET="epochs=1 ks=[2]"' in manifest["command"]
    assert "No architecture has results" in (reports / "index.html").read_text("utf-8")
    assert "vgg16" in (reports / "index.html").read_text("utf-8")


def test_a_killed_run_goes_on_after_its_last_epoch(runs):
    interrupted = runs("interrupted")
    assert interrupted.killed.returncode == -signal.SIGKILL
    resumed = re.search(r"resuming after epoch (\d+)", interrupted.stopped.stdout)
    assert resumed
    assert 1 <= int(resumed[1]) < EPOCHS  # a line is printed before the epoch is saved
    assert "epoch 1/" not in interrupted.stopped.stdout


def test_an_interruption_is_one_line_and_leaves_nothing_running(runs):
    stopped = runs("interrupted").stopped
    assert stopped.stderr == "interrupted: run the same command again to go on from here\n"
    assert stopped.returncode == 130
    assert stopped.left == []
    assert "resnet50" not in stopped.stdout


def test_an_interrupted_study_ends_with_the_bytes_of_an_undisturbed_one(runs, tiny, manifest):
    """Made anew, killed, interrupted and resumed, the CNN is what it was when made at once."""
    interrupted = runs("interrupted")
    assert interrupted.done.returncode == 0, interrupted.done.stderr
    assert "resuming after epoch" in interrupted.done.stdout
    reports = interrupted.root / "reports" / "tiny"
    assert (reports / "metrics.csv").read_bytes() == (tiny.reports / "metrics.csv").read_bytes()
    histories = [pd.read_csv(folder / "cnn" / "history.csv") for folder in (reports, tiny.reports)]
    assert histories[0].drop(columns="seconds").equals(histories[1].drop(columns="seconds"))
    repeated = json.loads((reports / "manifest.json").read_text())
    for given in (repeated, manifest):
        assert given["data"]["fingerprint"] == manifest["data"]["fingerprint"]
    weights = [each["architectures"]["cnn"]["weights"] for each in (repeated, manifest)]
    assert weights[0] == weights[1]


def test_a_plan_names_what_would_be_downloaded(runs):
    plan = runs("failing").plan
    assert plan.returncode == 0, plan.stderr
    assert "reports/shapes/index.html" in plan.stdout
    assert "will download resnet50_weights" in plan.stdout
    assert "cannot run: weights: study:elsewhere: " in plan.stdout


def test_a_plan_downloads_nothing_where_the_images_are_decoded(project, monkeypatch):
    frozen = CNN | FROZEN | {"backbone": "vgg16", "weights": "imagenet"}
    write_study(project, "tiny", STUDY, {"cnn": CNN, "vgg16": frozen})
    (project / "params" / "tiny" / "resnet50.yaml").unlink()
    load_shapes()
    monkeypatch.setattr(weights, "_downloaded", lambda name: pytest.fail(f"downloads {name}"))
    text = plan.describe(open_study(project, "tiny"))
    assert "data/shapes: cached" in text
    assert "will download vgg16_weights" in text


@pytest.mark.parametrize("is_split", [True, False])
def test_a_plan_splits_no_images(is_split, project):
    load_shapes()
    if not is_split:
        write_study(project, "tiny", STUDY | {"validation_fraction": 0.4}, {})
    before = snapshot(project)
    text = plan.describe(open_study(project, "tiny"))
    assert ("data/shapes: cached" in text) == is_split
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
def test_a_backbone_s_row_is_part_of_the_key_of_its_own_runs(
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


def test_a_folder_of_pictures_is_studied_under_its_own_name(runs):
    failing = runs("failing")
    assert "shapes: 36 gallery images, 12 queries, 3 classes" in failing.done.stdout
    table = pd.read_csv(failing.reports / "metrics.csv")
    assert set(table["study"]) == {"shapes"}
    manifest = json.loads((failing.reports / "manifest.json").read_text())
    assert manifest["architectures"][BASELINE]["parameters"]["dataset"] == "data/shapes"


def test_one_failure_stops_no_other_architecture(runs):
    failing = runs("failing")
    assert failing.done.returncode == 1
    assert f"{BASELINE}: done in" in failing.done.stdout
    assert "vgg16: running" in failing.done.stdout
    assert set(pd.read_csv(failing.reports / "metrics.csv")["architecture"]) == {BASELINE}


def test_each_failure_is_one_line_on_stderr(runs):
    lines = runs("failing").done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["cnn", "resnet50", "vgg16"]
    assert "run `make report STUDY=elsewhere` first" in lines[0]
    assert "could not be downloaded" in lines[1]
    assert "data/damaged.weights.h5 does not fit vgg16" in lines[2]
    assert lines[-1].startswith("failed: cnn, resnet50, vgg16")


def test_terminal_and_report_name_what_could_not_be_read(runs):
    failing = runs("failing")
    lines = failing.done.stdout.splitlines()
    named = lines[lines.index("skipped 1 that could not be read:") + 1].strip()
    assert named.startswith("circle/broken.png: ")
    index = Tags((failing.reports / "index.html").read_text("utf-8")).text
    assert "Skipped 1 unreadable file" in index
    assert named in index


def test_the_report_names_failures_with_their_reasons(runs):
    reports = runs("failing").reports
    index = Tags((reports / "index.html").read_text("utf-8")).text
    assert "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5" in index
    assert "data/damaged.weights.h5 does not fit vgg16" in index
    assert "study:elsewhere" in index
    assert "study:elsewhere" in (reports / "cnn.html").read_text("utf-8")
    assert "could not be downloaded" in (reports / "resnet50.html").read_text("utf-8")
    failures = json.loads((reports / "manifest.json").read_text())["failures"]
    assert sorted(failures) == ["cnn", "resnet50", "vgg16"]


def test_the_traceback_of_a_failed_notebook_is_in_its_log_and_page(runs):
    failing = runs("failing")
    assert "Traceback" not in failing.done.stdout + failing.done.stderr
    log = (failing.reports / "vgg16.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "StudyError" in log
    assert "\x1b" not in log
    assert "StudyError" in (failing.reports / "vgg16.html").read_text("utf-8")


def test_a_grid_has_a_page_for_every_point_and_one_for_them_all(runs):
    grid = runs("grid")
    assert grid.done.returncode == 0, grid.done.stderr
    assert grid.done.stderr == ""
    running = re.findall(r"running notebooks/(\w+)\.ipynb", grid.done.stdout)
    assert running[2:] == ["grid", *DEEPER]
    pages = ["index", *POINTS, *DEEPER]
    for page in pages:
        html = (grid.reports / f"{page}.html").read_text("utf-8")
        assert "No results" not in Tags(html).text
        assert links_between_pages(html) == pages
    index = Tags((grid.reports / "index.html").read_text("utf-8"))
    assert "Every point" in index.text
    assert index.of("img")
    assert not (grid.reports / "comparison.ipynb").exists()


def test_every_row_of_a_grid_says_which_point_it_is_of(runs):
    reports = runs("grid").reports
    expected = {f"mobilenet-{pooling}": f"pooling={pooling}" for pooling in POOLINGS}
    for found in (pd.read_csv(reports / "metrics.csv"), pd.read_parquet(reports / QUERIES)):
        assert found["variant"].notna().all()
        pairs = found[["architecture", "variant"]].drop_duplicates()
        assert dict(pairs.to_numpy()) == expected


def test_the_points_of_a_grid_share_the_features_that_they_pool(runs):
    grid = runs("grid")
    assert len(folders(grid.root, "features")) == 1
    assert len(folders(grid.root, "training")) == 2


def test_a_grid_that_is_done_is_not_done_again(runs):
    grid = runs("grid")
    assert grid.again.returncode == 0, grid.again.stderr
    assert "nothing to do: reports/tiny/index.html is up to date" in grid.again.stdout
    assert "running" not in grid.again.stdout
    assert grid.is_untouched
    assert grid.plan.returncode == 0, grid.plan.stderr
    # Of a point, what is not the default; no empty line where that is nothing.
    assert re.search(rf"\n{POINTS[0]}: notebooks/architecture.ipynb\n(  \S.*\n)?  left out\n",
                     grid.plan.stdout)  # fmt: skip
    own = f"{POINTS[1]}: notebooks/architecture.ipynb\n  pooling=gem\n  up to date"
    assert own in grid.plan.stdout
