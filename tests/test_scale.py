"""Generated galleries, the costs of engines in them, shorter embeddings, and their sentences."""

from types import SimpleNamespace

import invented
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from cbir.reporting import charts, gains, sentences, tables
from cbir.retrieval import engines, reranking, scale


@pytest.fixture
def run(project, monkeypatch):
    """A run in a project that has no other."""
    monkeypatch.setattr(scale, "QUERIES", 60)
    monkeypatch.setattr(scale, "TIMED", 10)
    return invented.save_network("cnn", 2.0, epochs=())


@pytest.mark.parametrize("rank", [2, 100])
def test_generated_embeddings_have_the_means_and_the_spread_of_the_real_ones(
    run, rank, monkeypatch
):
    monkeypatch.setattr(scale, "RANK", rank)
    real, labels = run.embeddings.gallery, run.embeddings.dataset.gallery_labels
    generated = scale.generate(scale.describe_embeddings(run.embeddings), 30_000)
    assert generated.gallery.shape == (30_000, real.shape[1])
    np.testing.assert_allclose(np.linalg.norm(generated.gallery[:100], axis=1), 1, rtol=1e-5)
    for label in np.unique(labels):
        # The directions are rotated, so lengths and products stay.
        mean_real = real[labels == label].mean(axis=0)
        mean_generated = generated.gallery[generated.labels == label].mean(axis=0)
        assert mean_generated @ mean_generated == pytest.approx(mean_real @ mean_real, abs=0.05)
    shares = np.bincount(generated.labels) / len(generated.labels)
    np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.02)


def test_descriptions_do_not_depend_on_the_number_of_threads():
    vectors, labels = np.random.default_rng(0).normal(size=(1000, 256)), np.arange(1000) % 5
    dataset = SimpleNamespace(gallery_labels=labels, query_labels=labels[:50])
    embeddings = SimpleNamespace(gallery=vectors, query=vectors[:50], dataset=dataset)
    descriptions = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            descriptions.append(scale.describe_embeddings(embeddings))
    for name in descriptions[0]:
        np.testing.assert_array_equal(descriptions[0][name], descriptions[1][name], err_msg=name)


def test_a_larger_gallery_begins_with_the_smaller_one(run, monkeypatch):
    monkeypatch.setattr(scale, "BLOCK", 100)
    description = scale.describe_embeddings(run.embeddings)
    small, large = (scale.generate(description, size) for size in (150, 350))
    np.testing.assert_array_equal(small.gallery, large.gallery[:150])
    np.testing.assert_array_equal(small.queries, large.queries)


def test_stored_description_makes_separate_classes_with_queries_farther_than_images(
    project, monkeypatch
):
    monkeypatch.setattr(scale, "QUERIES", 100)
    monkeypatch.setattr(scale, "BLOCK", 1000)
    generated = scale.generate(scale.stored_description(), 1000)
    assert generated.gallery.shape == (1000, 256)
    similarities = generated.queries @ generated.gallery.T
    accuracy = (generated.labels[similarities.argmax(axis=1)] == generated.query_labels).mean()
    assert accuracy > 0.95
    within = generated.gallery @ generated.gallery.T - 2 * np.eye(1000)
    assert np.median(within.max(axis=1)) > np.median(similarities.max(axis=1))


def test_exact_has_full_recall_and_the_map_of_the_ranking(run):
    description = scale.describe_embeddings(run.embeddings)
    costs, _ = scale.measure_engines(description, [400], {"exact": 1000})
    generated = scale.generate(description, 400)
    (row,) = costs.to_dict("records")
    assert (row["recall"], row["mean_average_precision_change"]) == (1, 0)
    order = np.argsort(-(generated.queries @ generated.gallery.T), axis=1, kind="stable")[:, :100]
    precisions = []
    for positions, label in zip(order, generated.query_labels, strict=True):
        is_hit = generated.labels[positions] == label
        hits = 1 + np.flatnonzero(is_hit)
        n_relevant = min(100, (generated.labels == label).sum())
        precisions.append((np.arange(1, len(hits) + 1) / hits).sum() / n_relevant)
    assert row["mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-3)
    assert row["bytes"] == 2 * 4 * generated.gallery.shape[1]


def test_recall_counts_the_nearest_images_that_were_found():
    nearest = np.arange(20).reshape(2, 10)
    results = nearest.copy()
    results[0, :3] = [100, 101, -1]
    assert scale.recall(results, nearest).tolist() == pytest.approx([0.7, 1])


def test_the_page_reports_the_fastest_accurate_engine_and_engines_that_could_not_run(
    run, monkeypatch
):
    class Half(engines.Exact):
        """Finds only every second image."""

        def search(self, queries, k, restrict_to=None):
            rows, similarities = super().search(queries, k, restrict_to)
            rows[:, ::2] = -1
            return rows, similarities

    open_engine = engines.open_engine
    monkeypatch.setattr(
        scale,
        "open_engine",
        lambda text, *arguments, **options: (
            Half() if text == "half" else open_engine(text, *arguments, **options)
        ),
    )
    embeddings = run.embeddings
    n_gallery = len(embeddings.gallery)
    largest_sizes = {"exact": 1000, "half": n_gallery, "nosuch": 1000}
    costs, missing = scale.measure_engines(
        scale.describe_embeddings(embeddings), [n_gallery + 1, n_gallery], largest_sizes, embeddings
    )
    assert costs[["engine", "size", "is_real"]].to_numpy().tolist() == [
        ["exact", n_gallery, True], ["half", n_gallery, True], ["exact", n_gallery + 1, False],
    ]  # fmt: skip
    assert costs["recall"].tolist() == [1, 0.5, 1]
    assert costs["mean_average_precision_change_ci_high"][1] < 0
    text = sentences.engines(costs, missing)
    assert text.startswith("The fastest engine at every size: **exact**.")
    assert "'nosuch' is unknown" in text
    assert len(tables.engines(costs)) == 3
    faster = costs.assign(recall=1.0, p50=[2.0, 1.0, 200.0])
    text = sentences.engines(faster, [])
    changes = f"**half**; from {n_gallery + 1} images on: **exact**."
    assert text.startswith(f"The fastest engine in the smallest gallery: {changes}")
    assert f"With {n_gallery + 1} images, exact takes 200 ms per query." in text
    one_size = sentences.engines(faster[:2], [])
    assert "half takes 1 ms per query instead of 2 ms with exact, and its recall@10 is 1.0" in (
        one_size
    )
    # Neither `exact` nor an accurate engine has to be measured at every size.
    without_exact = sentences.engines(faster.assign(engine=["a", "half", "half"]), [])
    assert without_exact.startswith("The fastest engine at every size: **half**.")
    assert "half takes 200 ms per query, and its recall@10 is 1.0" in without_exact
    too_few = sentences.engines(faster.assign(recall=[1, 1, 0.9]), [])
    assert f": **half**; from {n_gallery + 1} images on: none." in too_few
    assert f"With {n_gallery} images, half takes 1 ms" in too_few


def test_engines_have_different_colours_and_markers():
    rows = {"size": [10, 100] * 18, "p50": 1.0, "recall": 1.0, "engine": np.repeat(range(18), 2)}
    figure = charts.engines(pd.DataFrame(rows))
    for axis in figure.axes:
        for attribute in ("color", "marker"):
            styles = {(plt.getp(line, attribute), line.get_linestyle()) for line in axis.lines}
            assert len(styles) == len(axis.lines) == 18


def test_recall_is_measured_on_the_timed_search(run, monkeypatch):
    class Deeper(engines.Exact):
        """Finds something only if k is above 10."""

        def search(self, queries, k, restrict_to=None):
            rows, similarities = super().search(queries, k, restrict_to)
            return (rows if k > 10 else np.full_like(rows, -1)), similarities

    opened_engines = iter([engines.Exact(), Deeper()])
    monkeypatch.setattr(scale, "open_engine", lambda *_, **__: next(opened_engines))
    description = scale.describe_embeddings(run.embeddings)
    costs, _ = scale.measure_engines(description, [400], {"faiss:Flat": 400})
    assert costs[["recall", "mean_average_precision_change"]].to_numpy().tolist() == [[0, 0]]


def test_an_interrupted_measurement_starts_with_an_empty_folder(run, monkeypatch):
    generated, folder_exists = scale.generate(scale.describe_embeddings(run.embeddings), 400), []

    def open_one(*_, folder, **__):
        folder_exists.append(folder.exists())
        folder.mkdir()
        if len(folder_exists) == 1:
            raise KeyboardInterrupt
        return engines.Exact()

    monkeypatch.setattr(scale, "open_engine", open_one)
    with pytest.raises(KeyboardInterrupt):
        scale.measure_engine("exact", generated)
    scale.measure_engine("exact", generated)
    assert folder_exists == [False, False]


def test_another_version_of_an_engine_is_measured_again(run, monkeypatch):
    generated, measurements = scale.generate(scale.describe_embeddings(run.embeddings), 100), []
    monkeypatch.setattr(
        scale, "open_engine", lambda *_, **__: measurements.append(1) or engines.Exact()
    )
    for number, again in (("1", 1), ("1", 1), ("2", 2)):
        monkeypatch.setattr("importlib.metadata.version", lambda name, number=number: number)
        assert engines.versions("milvus:x") == [f"pymilvus {number}", f"milvus-lite {number}"]
        scale.measure_engine("faiss:Flat", generated)
        assert len(measurements) == again


@pytest.mark.slow
def test_milvus_lite_is_measured_at_every_size_and_leaves_no_files(run, project):
    pytest.importorskip("milvus_lite")
    largest_sizes = {"exact": 1000, "milvus:lite": 1000}
    costs, missing = scale.measure_engines(
        scale.describe_embeddings(run.embeddings), [200, 400], largest_sizes
    )
    assert missing == []
    assert costs["recall"].tolist() == [1, 1, 1, 1]
    assert not list(project.rglob("lite*"))


def test_engines_are_measured_in_the_galleries_of_a_run_or_in_generated_ones(run):
    size = len(run.embeddings.gallery)
    costs, missing = scale.measure_engines_like(run, [size, size + 1], {"exact": 1000})
    assert costs["is_real"].tolist() == [True, False]
    generated, _ = scale.measure_engines_like(None, [size], {"exact": 1000})
    assert generated["is_real"].tolist() == [False]
    # Those of the stored description have more dimensions.
    assert generated["bytes"].item() > costs["bytes"].max()
    assert missing == []


def test_real_galleries_are_drawn_without_replacement(run):
    embeddings = run.embeddings
    drawn = scale.draw_real(embeddings, 30)
    positions = [
        np.flatnonzero((embeddings.gallery == vector).all(axis=1)) for vector in drawn.gallery
    ]
    assert all(len(matches) == 1 for matches in positions)
    assert len(np.unique(positions)) == 30
    labels = embeddings.dataset.gallery_labels[np.ravel(positions)]
    np.testing.assert_array_equal(labels, drawn.labels)


def test_costs_of_larger_galleries_are_extrapolated_in_proportion(run):
    costs, _ = scale.measure_engines(
        scale.describe_embeddings(run.embeddings), [400], {"exact": 1000}
    )
    (row,) = tables.larger_galleries(costs.assign(build=0.4, bytes=320)).to_dict("records")
    assert list(row.values()) == ["exact", "32", "1", "27.8", "320", "2", "277.8"]


def test_time_to_embed_larger_galleries_is_that_of_the_first_network():
    def summary(speed):
        return SimpleNamespace(summary={"speed": {"images_per_second": speed}})

    # Vectors of other programs have no speed.
    runs = {"dinov2": summary(None), "cnn": summary(1000.0), "vgg16": summary(10.0)}
    text = "At the speed of cnn on this machine, embedding them would take 28 and 278 hours."
    assert sentences.larger_galleries(runs) == text
    assert sentences.larger_galleries({"dinov2": summary(None)}) == ""


def test_reductions_skip_all_components_and_count_the_bytes_of_bits(run, monkeypatch):
    width = run.embeddings.gallery.shape[1]
    monkeypatch.setattr(scale, "COMPONENTS", (width - 1, width))
    rows = scale.measure_reductions(run.embeddings)
    assert rows["reduction"].unique().tolist() == [f"PCA {width - 1}", "sign bits"]
    assert rows["bytes"].unique().tolist() == [4 * (width - 1), -(-width // 8)]
    saved = gains.measure_gains(run.study, {"cnn": run}, scale.measure_reductions, "reduction")
    assert len(gains.measured_table(saved, "reduction")) == 2
    assert gains.gain_sentences(saved, "reduction").count("\n") == 1
    untested = saved.assign(verdict="untested")
    for line in gains.gain_sentences(untested, "reduction").splitlines():
        assert "too few queries for a test (fewer than 30)" in line
        assert "significantly" not in line


def test_rerankings_are_described_with_their_gains(run, monkeypatch):
    few = {"query expansion": [{"neighbours": 2, "alpha": 0}]}
    monkeypatch.setattr(reranking, "SETTINGS", few)
    saved = gains.measure_gains(run.study, {"cnn": run}, reranking.measure_rerankings, "reranking")
    (row,) = saved.to_dict("records")
    assert row["gain"] == pytest.approx(row["with"] - row["without"])
    table = gains.measured_table(saved, "reranking")
    assert table["settings"].tolist() == ["neighbours 2, alpha 0"]
