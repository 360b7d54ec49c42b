"""Export of runs to tables, and their use as vectors in a study."""

import io
import json
from dataclasses import replace

import invented
import numpy as np
import pandas as pd
import pytest
from conftest import CNN, STUDY, load_shapes, write_study
from PIL import Image

from cbir import StudyError
from cbir.__main__ import main
from cbir.networks import embeddings
from cbir.reporting import export, measurements
from cbir.reporting.runs import run_folder
from cbir.retrieval import evaluation
from cbir.retrieval.projections import project

PROTOCOLS = ["closed", "unseen_classes"]


@pytest.fixture(scope="module")
def runs(shared_project):
    """A finished report of the study `tiny`: a network with two seeds and a baseline."""
    runs = {
        "cnn": invented.save_network("cnn", 2.0, epochs=[1], seeds=[1, 0], protocols=PROTOCOLS),
        "raw_pixels": invented.save_baseline("raw_pixels", seeds=[1, 0], protocols=PROTOCOLS),
    }
    manifest = {"architectures": dict.fromkeys(runs, {})}
    (run_folder("tiny") / "manifest.json").write_text(json.dumps(manifest))
    return runs


@pytest.fixture(scope="module")
def files(runs):
    """The exported table of each run, read by pandas."""
    paths = export.export_study("tiny")
    assert [path.parent for path in paths] == [run_folder("tiny") / "export"] * 2
    return {path.stem: pd.read_parquet(path) for path in paths}


def test_every_image_has_a_row_with_its_class_and_split(runs, files):
    images, table = runs["cnn"].dataset, files["cnn"]
    assert [*table] == [
        "path", "image", "class", "split", "average_precision", "predicted_class", "x", "y",
        "neighbours", "vector", "probabilities",
    ]  # fmt: skip
    assert [*table["path"]] == [f"data/shapes/{name}" for name in images.names]
    assert all((run_folder("tiny").parent.parent / path).is_file() for path in table["path"])
    assert [*table["class"]] == [name.partition("/")[0] for name in images.names]
    for split, positions in {
        "training": images.train, "validation": images.validation, "query": images.queries,
    }.items():  # fmt: skip
        assert np.flatnonzero(table["split"] == split).tolist() == positions.tolist()
    picture = np.asarray(Image.open(io.BytesIO(table["image"][3])))
    assert np.abs(picture - images.images[3].astype(float)).mean() < 10


def test_values_are_from_the_first_seed_and_protocol(runs, files):
    run, table = runs["cnn"], files["cnn"]
    vectors = run.embeddings.vectors
    scores = measurements.select(run.per_query, seed=1, search="unrestricted", protocol="closed")
    expected = pd.Series(np.nan, table.index, name="average_precision")
    expected[scores["query"]] = scores["average_precision"].to_numpy()
    pd.testing.assert_series_equal(table["average_precision"], expected)
    assert expected.notna().sum() == len(run.dataset.queries)
    np.testing.assert_array_equal(np.stack(table["vector"]), vectors)
    np.testing.assert_array_equal(np.stack(table["probabilities"]), run.embeddings.probabilities)
    predicted = np.array(run.dataset.classes)[run.embeddings.probabilities.argmax(axis=1)]
    assert [*table["predicted_class"]] == [*predicted]
    np.testing.assert_array_equal(table[["x", "y"]], project(vectors)[0])


def test_neighbours_are_the_most_similar_images_of_the_gallery(runs, files):
    run, table = runs["cnn"], files["cnn"]
    images, vectors = run.dataset, run.embeddings.vectors.astype(np.float64)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    similarity[:, images.queries] = -np.inf
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :10]
    neighbours = pd.DataFrame([*table["neighbours"]])
    np.testing.assert_array_equal(np.stack(neighbours["ids"]), expected)
    distances = 1 - np.take_along_axis(similarity, expected, axis=1)
    np.testing.assert_allclose(np.stack(neighbours["distances"]), distances, atol=1e-6)
    query_neighbours = np.stack(neighbours["ids"][images.queries])
    np.testing.assert_array_equal(query_neighbours, images.gallery[run.rankings["unrestricted"]])


def test_runs_without_a_classifier_have_no_predictions(files):
    columns = [*files["cnn"].columns.drop(["predicted_class", "probabilities"])]
    assert [*files["raw_pixels"]] == columns


def test_neighbours_in_a_small_gallery_exclude_the_image_itself(runs):
    images = evaluation.first_view(load_shapes(), {"protocols": ["held_out_gallery"]})
    vectors = np.random.default_rng(0).normal(size=(len(images.labels), 4)).astype(np.float32)
    gallery = images.gallery[:5]
    rows = export.neighbours(replace(images, gallery=gallery), vectors)
    for position, row in enumerate(rows):
        assert sorted(row["ids"]) == [image for image in gallery if image != position]
        assert row["distances"] == sorted(row["distances"])
    assert {*export.splits(images)} == {"training", "validation", "query"}


def test_images_only_in_the_gallery_have_the_split_gallery(runs):
    images = load_shapes()
    split = export.splits(replace(images, train=images.train[3:]))
    assert np.flatnonzero(split == "gallery").tolist() == images.train[:3].tolist()


@pytest.mark.parametrize("name", ["cnn", "raw_pixels"])
def test_an_exported_file_can_be_the_vectors_of_another_study(name, runs, files):
    path, run = f"reports/tiny/export/{name}.parquet", runs[name]
    reimported = embeddings.embed_baseline("vectors", load_shapes(), 0, path)
    np.testing.assert_allclose(reimported.vectors, run.embeddings.vectors, atol=1e-6)
    searches = ["unrestricted", "label_lookup"] if name == "cnn" else ["unrestricted"]
    for search in searches:
        scores = evaluation.evaluate(reimported, search, [1, 10]).per_query
        first = measurements.select(run.per_query, seed=1, search=search, protocol="closed")
        expected = first[scores.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(scores, expected, check_dtype=False)


def test_the_command_replaces_the_files_of_earlier_exports(runs, capsys):
    stale = run_folder("tiny") / "export" / "gone.parquet"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    assert main(["export", "--study", "tiny"]) == 0
    assert "reports/tiny/export/cnn.parquet written\n" in capsys.readouterr().out
    assert not stale.exists()
    names = [path.name for path in sorted(stale.parent.iterdir())]
    assert names == ["cnn.parquet", "raw_pixels.parquet"]


def test_a_study_without_a_report_is_refused_with_the_command(shared_project):
    write_study(shared_project, "other", STUDY, {"cnn": CNN})
    with pytest.raises(StudyError, match="no results in .*: run `make report STUDY=other` first"):
        export.export_study("other")
