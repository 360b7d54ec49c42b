"""Projections keep like near like, say what they keep, and are computed once."""

from types import SimpleNamespace

import invented
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from cbir.reporting import charts, sentences
from cbir.retrieval import projections

pytestmark = pytest.mark.usefixtures("closed_figures")


def groups(n_each=60, d=12, apart=8.0) -> tuple[np.ndarray, np.ndarray]:
    """Two groups of points that lie apart in many dimensions, and which is which."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], n_each)
    vectors = random.normal(size=(2 * n_each, d))
    vectors[:, 3] += apart * labels
    return vectors, labels


@pytest.mark.parametrize("method", projections.METHODS)
def test_groups_that_lie_apart_lie_apart_on_the_map(method):
    vectors, labels = groups()
    points, _ = projections.project(vectors, method)
    assert points.shape == (120, 2)
    assert points.dtype == np.float32
    centres = np.array([points[labels == label].mean(axis=0) for label in (0, 1)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.98


def test_points_do_not_depend_on_the_number_of_threads():
    vectors = np.random.default_rng(0).normal(size=(1000, 256))
    points = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            points.append(projections.project(vectors)[0])
    np.testing.assert_array_equal(*points)


def test_pca_keeps_the_directions_of_most_variance():
    random = np.random.default_rng(0)
    plane = random.normal(size=(50, 2)) * [5, 2]
    turned, _ = np.linalg.qr(random.normal(size=(6, 6)))
    points, share = projections.project(plane @ turned[:2])
    assert share == pytest.approx(1)
    # In a plane all distances are kept.
    wanted, distances = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (plane, points))
    assert distances == pytest.approx(wanted, abs=1e-4)
    assert projections.project(random.normal(size=(400, 10)))[1] < 0.35


@pytest.mark.parametrize("method", projections.METHODS)
@pytest.mark.parametrize("normalised", [False, True])
def test_vectors_of_one_dimension_lie_on_a_line(method, normalised):
    # An embedding of one dimension and of unit length is 1 or -1.
    vectors = np.random.default_rng(0).normal(size=(120, 1))
    vectors = np.sign(vectors) if normalised else vectors
    points, share = projections.project(vectors, method)
    assert points.shape == (120, 2)
    assert np.isfinite(points).all()
    assert np.ptp(points[:, 1]) == 0
    if method == "pca":
        assert share == pytest.approx(1)
        # Which end of the line is left is nobody's choice.
        assert np.abs(points[:, 0]) == pytest.approx(np.abs(vectors - vectors.mean())[:, 0])


def test_vectors_that_are_all_equal_have_a_map_of_one_point():
    points, share = projections.project(np.ones((5, 3)))
    assert share == 0
    assert np.ptp(points, axis=0) == pytest.approx([0, 0])


@pytest.mark.parametrize("method", projections.METHODS)
def test_the_same_seed_draws_the_same_map(method):
    vectors, _ = groups()
    assert np.array_equal(
        projections.project(vectors, method)[0], projections.project(vectors, method)[0]
    )


def test_t_sne_pays_from_a_hundred_points_on():
    with pytest.raises(ValueError, match="99 points are too few"):
        projections.project(groups()[0][:99], "tsne")
    with pytest.raises(ValueError, match="unknown method 'umap'"):
        projections.project(groups()[0], "umap")


def test_the_points_shown_are_spread_over_the_classes():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    shown = projections.spread(labels, 100)
    assert len(np.unique(shown)) == 100
    assert (np.diff(shown) > 0).all()
    assert np.bincount(labels[shown]) == pytest.approx([60, 30, 10], abs=1)
    assert projections.spread(labels, 1000).tolist() == list(range(1000))


@pytest.fixture(scope="module")
def project(shared_project):
    return shared_project


@pytest.fixture(scope="module")
def saved(project):
    return invented.save_network("cnn", 0.5, epochs=())


def test_a_map_is_of_the_queries_and_drawn_once(saved, monkeypatch):
    images = saved.dataset
    first = projections.project_queries(saved.embeddings)
    assert first.queries.tolist() == list(range(len(images.queries)))
    assert first.points.shape == (len(images.queries), 2)
    assert 0.5 < first.kept <= 1
    assert 0.5 < first.variance <= 1
    vectors = np.load(saved.summary["artifacts"]["embeddings"] + "/vectors.npy")
    assert np.array_equal(first.points, projections.project(vectors[images.queries])[0])
    monkeypatch.setattr(projections, "project", None)
    assert np.array_equal(projections.project_queries(saved.embeddings).points, first.points)


def test_trustworthiness_tells_a_map_that_keeps_neighbours_from_one_that_does_not(
    saved, monkeypatch
):
    images = saved.dataset
    by_chance = np.random.default_rng(0).normal(size=(len(images.queries), 2)).astype(np.float32)
    kept = projections.project_queries(saved.embeddings).kept
    monkeypatch.setattr(projections, "project", lambda *_: (by_chance, 0.0))
    assert projections.project_queries(saved.embeddings, "tsne").kept < kept - 0.1


def test_all_runs_have_a_map_by_a_method_with_enough_queries(saved):
    assert list(projections.project_all({"cnn": saved})) == ["cnn"]
    # A dozen queries are too few for t-SNE.
    assert projections.project_all({"cnn": saved}, "tsne") == {}
    assert charts.query_maps(saved.dataset, {}, {}) is None


@pytest.fixture
def dataset():
    """Three queries, of three classes."""
    return SimpleNamespace(classes=["circle", "cross", "square"], query_labels=np.arange(3))


def map_of(labels, method="pca", **changes) -> projections.Projection:
    """A map whose points lie where their labels are."""
    shown = np.arange(len(labels))
    points = np.stack([labels, shown], axis=1).astype(np.float32)
    given = {"queries": shown, "points": points, "kept": 0.5, "variance": 0.25} | changes
    return projections.Projection(method, **given)


def points_of(axis) -> list[list]:
    return [np.asarray(points.get_offsets()).tolist() for points in axis.collections]


def test_a_map_has_a_colour_and_a_marker_a_class_and_rings_the_wrong(dataset):
    labels = dataset.query_labels = np.array([2, 0, 1, 1])
    predicted = {"cnn": np.array([2, 1, 1, 0]), "random": np.full(4, -1)}
    drawn = {"cnn": map_of(labels), "random": map_of(labels, "tsne", variance=np.nan)}
    figure = charts.query_maps(dataset, drawn, predicted)
    one, other = figure.axes
    # Others (none), the three classes, then the rings.
    assert points_of(one) == [[], [[0, 1]], [[1, 2], [1, 3]], [[2, 0]], [[0, 1], [1, 3]]]
    assert points_of(other)[-1] == []
    assert (one.get_title(), one.get_xlabel()) == (
        "cnn, PCA", "25 % of the variance, trustworthiness 0.50",
    )  # fmt: skip
    assert (other.get_title(), other.get_xlabel()) == ("random, t-SNE", "trustworthiness 0.50")
    handles = figure.legends[0].legend_handles
    assert [entry.get_label() for entry in handles] == [*dataset.classes, "classified wrongly"]
    assert len({str(entry.get_facecolor()) for entry in handles[:3]}) == 3
    assert len({str(entry.get_paths()[0]) for entry in handles[:3]}) == 3


def test_a_map_shows_a_part_of_the_queries_with_their_own_classes(dataset):
    dataset.query_labels = np.array([0, 1, 2, 0, 1, 2])
    part = map_of(np.array([1, 2]), queries=np.array([1, 5]))
    predicted = {"cnn": np.array([0, 0, 0, 0, 0, 2])}
    (axis,) = charts.query_maps(dataset, {"cnn": part}, predicted).axes
    assert points_of(axis) == [[], [], [[1, 0]], [[2, 1]], [[1, 0]]]


def test_of_many_classes_the_most_confused_are_coloured(dataset):
    dataset.classes = [f"class {label}" for label in range(14)]
    labels = dataset.query_labels = np.tile(np.arange(14), 3)
    wrong = np.isin(labels, [3, 13])
    predicted = {"cnn": np.where(wrong, 0, labels)}
    figure = charts.query_maps(dataset, {"cnn": map_of(labels)}, predicted)
    named = [entry.get_label() for entry in figure.legends[0].legend_handles]
    assert (named[0], named[-1]) == ("other classes", "classified wrongly")
    assert len(named) == len(charts.CLASS_COLOURS) + 2
    assert {"class 3", "class 13"} < {*named}
    others = figure.axes[0].collections[0]
    assert len(others.get_offsets()) == 4 * 3


def test_ten_classes_differ_in_colour_and_in_marker():
    assert len({*charts.CLASS_COLOURS}) == len({*charts.CLASS_MARKERS}) == 10


def test_the_map_with_the_highest_trustworthiness_is_named():
    kept = {"cnn": 0.8, "vgg16": 0.9, "few": np.nan}
    maps = {name: SimpleNamespace(kept=value) for name, value in kept.items()}
    assert sentences.describe_projections(maps).startswith(
        "The map of vgg16 has the highest trustworthiness, 0.90 (at most 1)"
    )
    assert (
        sentences.describe_projections({"few": maps["few"]})
        == sentences.describe_projections({})
        == ""
    )
