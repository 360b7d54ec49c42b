"""Generated galleries, what engines cost in them, shorter embeddings, and the page of all this."""

import invented
import numpy as np
import pytest

from cbir.reporting import scale as report
from cbir.retrieval import engines, scale


@pytest.fixture
def run(project, monkeypatch):
    """A run whose embeddings are stored in a project of its own."""
    monkeypatch.setattr(scale, "QUERIES", 60)
    monkeypatch.setattr(scale, "TIMED", 10)
    return invented.save_network("cnn", 2.0, epochs=())


def test_generated_embeddings_have_the_means_and_the_spread_of_the_real_ones(run):
    real, labels = run.embeddings.gallery, run.embeddings.dataset.gallery_labels
    made = scale.generate(run.embeddings, 30_000, 500)
    assert made.gallery.shape == (30_000, real.shape[1])
    np.testing.assert_allclose(np.linalg.norm(made.gallery[:100], axis=1), 1, rtol=1e-5)
    for label in np.unique(labels):
        # Principal components are a rotation, so lengths and products stay.
        of_real = real[labels == label].mean(axis=0)
        of_made = made.gallery[made.labels == label].mean(axis=0)
        assert of_made @ of_made == pytest.approx(of_real @ of_real, abs=0.05)
    shares = np.bincount(made.labels) / len(made.labels)
    np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.02)


def test_a_larger_gallery_begins_with_the_smaller_one(run, monkeypatch):
    monkeypatch.setattr(scale, "BLOCK", 100)
    small, large = (scale.generate(run.embeddings, size, 4) for size in (150, 350))
    np.testing.assert_array_equal(small.gallery, large.gallery[:150])
    np.testing.assert_array_equal(small.queries, large.queries)


def test_exact_finds_everything_and_its_map_is_that_of_the_ranking(run):
    made = scale.generate(run.embeddings, 400, 4)
    costs, rows = scale.measure_engine("exact", made)
    assert scale.recall(rows, rows) == 1
    order = np.argsort(-(made.queries @ made.gallery.T), axis=1, kind="stable")[:, :100]
    precisions = []
    for found, label in zip(order, made.query_labels, strict=True):
        is_hit = made.labels[found] == label
        hits = 1 + np.flatnonzero(is_hit)
        most = min(100, (made.labels == label).sum())
        precisions.append((np.arange(1, len(hits) + 1) / hits).sum() / most)
    assert costs["map"] == pytest.approx(np.mean(precisions), abs=1e-3)
    assert costs["bytes"] == 2 * 4 * 4


def test_recall_counts_the_nearest_images_that_were_found():
    nearest = np.arange(20).reshape(2, 10)
    found = nearest.copy()
    found[0, :3] = [100, 101, -1]
    assert scale.recall(found, nearest) == pytest.approx((0.7 + 1) / 2)


def test_the_page_names_the_fastest_engine_that_finds_enough_and_what_could_not_run(
    run, monkeypatch
):
    class Half(engines.Exact):
        """Finds every second image."""

        def search(self, queries, k, restrict_to=None):
            rows, similarities = super().search(queries, k, restrict_to)
            rows[:, ::2] = -1
            return rows, similarities

    real = engines.open_engine
    monkeypatch.setattr(
        scale,
        "open_engine",
        lambda text, *given, **named: Half() if text == "half" else real(text, *given, **named),
    )
    chosen = {"exact": 1000, "half": 300, "nosuch": 1000}
    costs, missing = report.measure_engines(run.study, run, [200, 400], chosen, 4)
    assert costs[["engine", "size"]].to_numpy().tolist() == [
        ["exact", 200], ["half", 200], ["exact", 400],
    ]  # fmt: skip
    assert costs["recall"].tolist() == [1, 0.5, 1]
    assert "With 200 images, **exact** answers fastest" in report.describe(costs, missing)
    assert "'nosuch' is unknown" in report.describe(costs, missing)
    assert len(report.engines_table(costs)) == 3
    fast = costs.assign(recall=1.0, p50=[2.0, 1.0, 2.0])
    assert "With 200 images, **half** answers fastest: 1 ms per query instead of 2 ms" in (
        report.describe(fast, [])
    )


def test_larger_galleries_are_computed_in_proportion(run):
    costs, _ = report.measure_engines(run.study, run, [400], {"exact": 1000}, 4)
    table = report.paper_table(costs.assign(build=0.4), 1000.0)
    assert table["memory (GB)"].tolist() == ["3", "32"]
    assert table["embedding (hours, one machine)"].tolist() == ["28", "278"]
    assert table["build (hours, one machine)"].tolist() == ["27.8", "277.8"]


def test_all_components_lose_nothing_and_bits_are_counted(run, monkeypatch):
    width = run.embeddings.gallery.shape[1]
    monkeypatch.setattr(scale, "COMPONENTS", (width - 1, width))
    rows = scale.measure_reductions(run.embeddings)
    assert rows["reduction"].unique().tolist() == [f"PCA {width - 1}", "sign bits"]
    assert rows["bytes"].unique().tolist() == [4 * (width - 1), -(-width // 8)]
    saved = report.measure_reductions(run.study, {"cnn": run})
    assert len(report.effects_table(saved)) == 2
    assert report.describe_effects(saved).count("\n") == 1
