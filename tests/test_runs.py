"""Files of a run and of a study: they are read as they were written, and none is out of date."""

import json
from pathlib import Path

import invented
import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, load_shapes, make_project, toy_dataset, toy_embeddings

from cbir import StudyError, cache, project_root, report_command
from cbir.cache import Artifact, write_text
from cbir.networks.training import Training
from cbir.reporting import measurements, provenance, runs
from cbir.reporting.runs import find_runs, is_whole, read_run, read_runs, write_study
from cbir.retrieval import evaluation, uncertainty

CLASSES = ["circle", "cross"]


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """reports/tiny of an empty project, which is the working directory."""
    monkeypatch.chdir(empty_project(tmp_path / "project"))
    folder = tmp_path / "project" / "reports" / "tiny"
    folder.mkdir(parents=True)
    return folder


def scores(architecture="cnn") -> pd.DataFrame:
    parts = [
        invented.rows(values, architecture=architecture, seed=seed, search=search, labels=[0, 1, 1])
        for seed, search, values in (
            (0, "unrestricted", [0.2, 0.4, 0.9]),
            (0, "predicted_class", [0.0, 1.0, 1.0]),
            (1, "unrestricted", [0.4, 0.4, 0.7]),
        )
    ]
    return pd.concat(parts, ignore_index=True)


def write_run(folder, *, baseline=False):
    """Write the files of a run that the comparison and the study read."""
    folder.mkdir()
    table = scores(folder.name)
    measurements.write_parquet(table, folder / "per_query.parquet")
    measurements.write_csv(measurements.metrics(table, CLASSES), folder / "metrics.csv")
    artifact = f"artifacts/rankings/{folder.name}"
    artifact_folder = folder.parent.parent.parent / artifact
    artifact_folder.mkdir(parents=True)
    np.save(artifact_folder / "rankings.npy", np.array([[1, 0], [0, -1]]))
    np.save(artifact_folder / "similarities.npy", np.array([[0.5, 0.25], [0.75, np.nan]]))
    cache.write_manifest(
        artifact_folder, artifact_folder.glob("*.npy"), key=folder.name, seconds=2.0
    )
    summary = {"searches": ["unrestricted"], "artifacts": {"unrestricted": artifact}}
    summary |= {"measurement": {"seeds": [0, 1], "protocols": ["closed"]}, "machine": {"cpu": "a"}}
    summary |= {"dataset": {"classes": CLASSES}, "seconds": {"unrestricted": 2.0}}
    summary |= {"peak_memory_bytes": 5, "variant": "", "speed": {"images_per_second": 9.0}}
    if not baseline:
        (folder / "history.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
        summary |= {"weights": {"trained": "abc"}, "epochs": 2, "size": {"total": 7}}
        summary |= {"training_accuracy": {"value": 0.5}, "training_seconds": 70.0}
        summary["variant"] = "dropout=0.1"
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "manifest.json").write_text(json.dumps({"parameters": {"a": 1}, "seconds": 3.0}))


def test_a_run_is_read_as_it_was_written(reports):
    write_run(reports / "cnn")
    run = read_run("tiny", "cnn")
    pd.testing.assert_frame_equal(run.per_query, scores())
    assert run.history["loss"].to_dict() == {1: 0.5, 2: 0.25}
    assert run.rankings["unrestricted"].tolist() == [[1, 0], [0, -1]]
    assert run.similarities["unrestricted"][0].tolist() == [0.5, 0.25]
    assert run.protocol == "closed"
    assert not run.is_baseline


def test_a_run_without_a_training_is_a_baseline(reports):
    write_run(reports / "random", baseline=True)
    # A file that a network of the same name may have written.
    (reports / "random" / "history.csv").write_text("epoch,loss\n1,0.5\n")
    run = read_run("tiny", "random")
    assert run.is_baseline
    assert run.history is None


def test_a_page_uses_the_first_seed_and_the_comparison_the_mean_over_seeds(reports):
    write_run(reports / "cnn")
    run = read_run("tiny", "cnn")
    wanted = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
    assert measurements.select(run.first_rows(), **wanted)["value"].item() == 0.5
    averaged = measurements.select(run.averaged, **wanted)
    assert averaged["value"].item() == pytest.approx((0.3 + 0.4 + 0.8) / 3)
    assert averaged["n_queries"].item() == 3


def test_a_missing_result_is_reported_with_the_command_that_makes_it(reports):
    with pytest.raises(StudyError, match="no results in .*make report DATA=path/to/folder"):
        read_run("tiny", "cnn")
    (project_root() / "params" / "tiny").mkdir()
    with pytest.raises(StudyError, match="no results in .*make report STUDY=tiny"):
        read_run("tiny", "cnn")
    command = 'make report STUDY=folder DATA="some/tiny" SET="epochs=3"'
    write_text(reports / "manifest.json", json.dumps({"command": f'{command} ARCHITECTURES="cnn"'}))
    assert report_command("tiny", "vgg16") == f'{command} ARCHITECTURES="vgg16"'
    assert not is_whole("tiny", "cnn")


def test_results_with_missing_artifacts_are_reported(reports):
    write_run(reports / "cnn")
    assert is_whole("tiny", "cnn")
    folder = reports.parent.parent / "artifacts" / "rankings"
    (folder / "cnn").rename(folder / "elsewhere")
    with pytest.raises(StudyError, match="rankings/cnn is missing or damaged: run `make report"):
        read_run("tiny", "cnn")
    assert not is_whole("tiny", "cnn")


@pytest.mark.parametrize("content", [b"", b"null", b"3", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_summary_is_reported(reports, content):
    write_run(reports / "cnn")
    (reports / "cnn" / "summary.json").write_bytes(content)
    for read_it in (lambda: read_run("tiny", "cnn"), runs.trained_runs):
        with pytest.raises(StudyError, match="cnn/summary.json is damaged: run `make report"):
            read_it()
    assert not is_whole("tiny", "cnn")


def test_architectures_without_results_are_left_out(reports):
    write_run(reports / "cnn")
    missing = ["resnet50: not run", "vgg16: a: b"]
    assert list(read_runs("tiny", ["cnn", "resnet50", "vgg16"], missing)) == ["cnn"]
    assert read_runs("tiny", ["vgg16"], missing) == {}
    assert list(find_runs(["tiny/vgg16", "tiny/cnn", "other/cnn"])) == ["tiny/cnn"]


DIFFERENCES = {
    "images": {"dataset": {"fingerprint": "other", "parameters": {"split_seed": 0}}},
    "splits": {"dataset": {"fingerprint": "same", "parameters": {"split_seed": 1}}},
    "first protocol": {"measurement": {"seeds": [0, 1], "protocols": ["held_out_gallery"]}},
    "code": {"code": "other"},
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_runs_on_different_images_splits_protocols_or_code_are_not_compared(reports, what):
    same = {"dataset": {"fingerprint": "same", "parameters": {"split_seed": 0}}, "code": "same"}
    for name, change in (("cnn", {}), ("vgg16", {}), ("resnet50", DIFFERENCES[what])):
        write_run(reports / name)
        path = reports / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | same | change))
    assert list(read_runs("tiny", ["cnn", "vgg16"], [])) == ["cnn", "vgg16"]
    message = (
        f"resnet50 and vgg16 in reports/tiny have different {what} and cannot be compared: run"
    )
    with pytest.raises(StudyError, match=message):
        read_runs("tiny", ["cnn", "vgg16", "resnet50"], [])


def test_the_study_has_the_rows_of_all_its_architectures(reports):
    write_run(reports / "cnn")
    write_run(reports / "random", baseline=True)
    write_study(reports, ["random", "cnn"], {"study": "tiny"})
    table = (reports / "metrics.csv").read_text().splitlines()
    parts = [(reports / name / "metrics.csv").read_text() for name in ("cnn", "random")]
    assert table == parts[0].splitlines() + parts[1].splitlines()[1:]
    queries = pd.read_parquet(reports / "per_query.parquet")
    expected = pd.concat([scores("random"), scores("cnn")], ignore_index=True)
    pd.testing.assert_frame_equal(queries, expected)
    manifest = json.loads((reports / "manifest.json").read_text())
    assert manifest["study"] == "tiny"
    of_cnn = manifest["architectures"]["cnn"]
    assert of_cnn["seconds"] == {"unrestricted": 2.0, "notebook": 3.0}
    assert of_cnn["weights"] == {"trained": "abc"}
    expected_entries = {
        "variant": "dropout=0.1",
        "size": {"total": 7},
        "epochs": 2,
        "training_seconds": 70.0,
    }
    expected_entries |= {"training_accuracy": {"value": 0.5}, "speed": {"images_per_second": 9.0}}
    assert {name: of_cnn[name] for name in expected_entries} == expected_entries
    of_random = manifest["architectures"]["random"]
    assert (of_random["weights"], of_random["variant"], of_random["epochs"]) == (None, "", None)
    assert manifest["machine"] == {"cpu": "a"}


def test_a_study_without_results_has_an_empty_table(reports):
    write_study(reports, [], {"study": "tiny"})
    assert (reports / "metrics.csv").read_text() == ",".join(measurements.COLUMNS) + "\n"


def test_queries_of_removed_results_are_removed_from_the_study(reports):
    write_run(reports / "cnn")
    write_study(reports, ["cnn"], {})
    write_study(reports, [], {})
    path = reports / "per_query.parquet"
    assert not path.exists() or pd.read_parquet(path).empty


def test_a_saved_baseline_has_what_was_measured(tmp_path, monkeypatch):
    root = make_project(tmp_path)
    monkeypatch.chdir(root)
    folder = root / "reports" / "tiny" / "random"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    run = invented.save_baseline("random", seeds=[4, 2], protocols=["held_out_gallery", "closed"])
    # The notebook was run by hand, so that the report no longer counts as finished.
    assert not (folder / "manifest.json").exists()
    summary = run.summary
    assert summary["searches"] == ["unrestricted"]
    assert summary["measurement"]["seeds"] == [4, 2]
    assert run.protocol == "held_out_gallery"
    # The gallery is that of the first protocol: the test images.
    assert summary["dataset"]["gallery"] == summary["dataset"]["queries"] == 12
    assert (summary["embedding_dim"], summary["index_bytes"]) == (128, 12 * 128 * 4)
    assert not {"weights", "size", "epochs", "calibrations"} & summary.keys()
    assert not {"training_accuracy", "training_seconds"} & summary.keys()
    assert summary["variant"] == ""
    assert run.per_query["variant"].isna().all()
    assert set(run.first_rows()["seed"]) == {4}
    assert set(run.first_rows()["protocol"]) == {"held_out_gallery"}
    assert run.rankings["unrestricted"].shape == (12, 10)
    group_sizes = run.per_query.groupby(["seed", "protocol"]).size()
    assert group_sizes.to_dict() == {
        (seed, protocol): 12 for seed in (2, 4) for protocol in ("closed", "held_out_gallery")
    }
    assert all((root / path).is_dir() for path in summary["artifacts"].values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["the class probabilities", "precision@1 of the search soft"])
def test_a_value_that_is_not_finite_stops_a_run_before_it_is_written(reports, what, value):
    dataset = toy_dataset()
    probabilities, scores = np.full((len(dataset.labels), 4), 0.25), [0.5, 1.0]
    (probabilities[-1] if "class" in what else scores)[-1] = value
    embeddings = toy_embeddings(dataset, probabilities=probabilities)
    per_query = pd.DataFrame({"correct": np.nan, "n_relevant": 3, "precision@1": scores})
    measured = evaluation.Evaluation(embeddings.artifact, "soft", None, None, per_query)
    states = [evaluation.State(7, 2, embeddings, [measured])]
    message = rf"NaN or infinite values in {what} after epoch 2 \(protocol closed, seed 7\)"
    with pytest.raises(StudyError, match=message):
        runs.save_run("tiny", "cnn", measurement={}, states=states, speed=None)
    assert not (reports / "cnn").exists()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of two seeds and two protocols, at a point of a grid."""
    root = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield invented.save_network(
            "vgg16-64",
            3.0,
            variant="input_size=64",
            weights={"source": "imagenet", "sha256": "a" * 64},
            seeds=[3, 1],
            protocols=["closed", "held_out_gallery"],
        )


def test_a_network_records_the_origin_of_its_weights(network):
    assert network.summary["weights"] == {
        "source": "imagenet",
        "started from": "a" * 64,
        "trained": "f" * 64,
    }
    assert network.summary["parameters"]["backbone"] == "vgg16-64"
    assert network.summary["parameters"]["training"]["batch_size"] == 8


def test_a_training_on_this_machine_is_not_recorded_as_one_on_another(network):
    run = invented.save_network("cnn", 2.0, epochs=(), elsewhere={"machine": cache.machine()})
    assert run.summary["trained_on"] == network.summary["trained_on"]
    assert network.summary["trained_on"] == {"machine": None, "versions": {}, "commit": None}
    assert runs.training_place(network.summary) == ""
    assert "trained on" not in provenance.networks_table({"vgg16-64": network})


@pytest.mark.parametrize(
    ("machine", "versions", "text", "trained_on"),
    [
        (
            {"cpu": "a processor", "cores": 16, "gpus": ["A GPU", "A GPU"]},
            {"backend": "jax", "jax": "0.7"},
            " (on A GPU)",
            "A GPU, backend jax, jax 0.7",
        ),
        ({"cpu": "a processor", "cores": 16, "gpus": []}, {}, " (on a processor)", "a processor"),
        # Manifests of earlier versions do not name the machine.
        (None, {"keras": "3.99"}, "", "keras 3.99"),
    ],
)
def test_a_training_on_another_machine_is_recorded_with_its_differences(
    machine, versions, text, trained_on, network
):
    manifest = {"versions": cache.versions() | versions}
    manifest |= {"machine": machine} if machine else {}
    run = invented.save_network("cnn", 2.0, epochs=(), elsewhere=manifest)
    assert run.summary["trained_on"] == {"machine": machine, "versions": versions, "commit": None}
    assert runs.training_place(run.summary) == text
    table = provenance.networks_table({"cnn": run, "vgg16-64": network})
    assert table["trained on"].tolist() == [trained_on, "–"]


def test_the_page_of_a_run_lists_the_machine_and_packages_of_its_training(network):
    """The manifest of the training counts, since the training may be older than the run."""
    folder = cache.project_root() / network.summary["artifacts"]["training"]
    manifest = json.loads((folder / "manifest.json").read_text())
    machine = {"cpu": "a processor", "cores": 16, "gpus": ["A GPU"]}
    content = manifest | {"machine": machine, "versions": {"keras": "3.99"}, "sha256": ""}
    content["git"] = {"commit": "fed", "clean": False}
    content["sha256"] = cache.digest(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    assert provenance.training_table(network)["value"].to_dict() == {
        "commit": "fed (with uncommitted changes)",
        "processor": "a processor, 16 cores",
        "GPU": "A GPU",
        "packages": "keras 3.99",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_row_and_the_summary_have_the_point_of_the_grid(network):
    assert network.summary["variant"] == "input_size=64"
    for rows in (network.per_query, network.metrics, network.averaged):
        assert set(rows["variant"]) == {"input_size=64"}


def test_training_accuracy_is_that_of_the_final_state_on_the_training_images(network):
    view = evaluation.first_view(load_shapes(), network.summary["measurement"])
    labels = view.labels[view.train]
    right = [
        invented.blurred(view, 3.0, seed)[view.train, :3].argmax(axis=1) == labels
        for seed in (3, 1)
    ]
    by_image = np.mean(right, axis=0)[:, None]
    low, high = uncertainty.confidence_bounds(by_image)
    assert network.summary["training_accuracy"] == pytest.approx(
        {"value": by_image.mean(), "ci_low": low.item(), "ci_high": high.item()}
    )
    assert low < by_image.mean() < high
    # The history's accuracy is another one: it is measured during the epoch.
    assert network.summary["training_accuracy"]["value"] != network.history["accuracy"].iloc[-1]


def test_the_history_of_a_network_has_its_stages_and_seconds(network):
    assert network.history.index.tolist() == [1, 2, 3]
    assert set(network.history["stage"]) == {"backbone and head"}
    assert network.summary["epochs"] == 3
    assert network.summary["seconds"]["training"] == 6.0
    assert network.summary["training_seconds"] == 6.0


def test_artifacts_of_a_training_include_the_steps_before_it(network):
    """The steps are the features of a frozen backbone and the head trained on them."""

    features, head, last = (Artifact(Path(name), {}) for name in ("a", "b", "c"))
    of_head = Training(head, None, 1, features, None)
    whole = Training(last, None, 1, None, of_head)
    assert list(whole.artifacts.items()) == [
        ("features", features),
        ("head", head),
        ("training", last),
    ]
    assert list(of_head.artifacts.items()) == [("features", features), ("training", head)]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"source": "imagenet", "started from": "abc"}, "ImageNet, SHA-256 abc"),
        ({"source": "study:a/b", "started from": "abc"}, "study:a/b, SHA-256 abc"),
        ({"source": "none", "started from": "random"}, "random"),
    ],
)
def test_provenance_lists_the_weights_that_each_network_started_from(weights, text, reports):
    run = {"weights": weights | {"trained": "def"}, "seconds": {}, "peak_memory_bytes": 1}
    this_machine = {"machine": None, "versions": {}, "commit": "abc"}
    other_machine = {"machine": None, "versions": {"jax": "0.7"}, "commit": "fed"}
    manifest = {"command": "make", "git": {"commit": "abc", "clean": True}, "versions": {}}
    manifest |= {"machine": {"cpu": "a", "cores": 2, "gpus": []}, "data": {"fingerprint": "abc"}}
    architectures = {"cnn": run, "same": run | {"trained_on": this_machine}}
    architectures["other"] = run | {"trained_on": other_machine}
    manifest |= {"architectures": architectures}
    (reports / "manifest.json").write_text(json.dumps(manifest))
    table = provenance.provenance_table("tiny")["value"]
    is_trained_on = table.index.str.endswith(", trained on")
    assert table[is_trained_on].to_dict() == {"other, trained on": "commit fed, jax 0.7"}
    assert table["cnn, started from"] == text
    assert table["cnn, weights, SHA-256"] == "def"
