"""Projections preserve neighbourhoods, report how well, and are computed once."""

from types import SimpleNamespace

import invented
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from cbir.reporting import charts, sentences
from cbir.retrieval import projections

pytestmark = pytest.mark.usefixtures("closed_figures")


def groups(size=60, d=12, apart=8.0) -> tuple[np.ndarray, np.ndarray]:
    """Two groups of points, `apart` in one of many dimensions, and their labels."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], size)
    vectors = random.normal(size=(2 * size, d))
    vectors[:, 3] += apart * labels
    return vectors, labels


@pytest.mark.parametrize("method", projections.METHODS)
def test_separate_groups_are_separate_on_the_map(method):
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
    # A projection of a plane preserves all distances.
    expected, distances = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (plane, points))
    assert distances == pytest.approx(expected, abs=1e-4)
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
        # The direction of the line is arbitrary.
        assert np.abs(points[:, 0]) == pytest.approx(np.abs(vectors - vectors.mean())[:, 0])


def test_vectors_that_are_all_equal_have_a_map_of_one_point():
    points, share = projections.project(np.ones((5, 3)))
    assert share == 0
    assert np.ptp(points, axis=0) == pytest.approx([0, 0])


@pytest.mark.parametrize("method", projections.METHODS)
def test_maps_are_reproducible(method):
    vectors, _ = groups()
    assert np.array_equal(
        projections.project(vectors, method)[0], projections.project(vectors, method)[0]
    )


def test_too_few_points_and_unknown_methods_are_rejected():
    with pytest.raises(ValueError, match="99 points are too few"):
        projections.project(groups()[0][:99], "tsne")
    with pytest.raises(ValueError, match="unknown method 'umap'"):
        projections.project(groups()[0], "umap")


def test_selected_points_are_spread_over_the_classes():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    indices = projections.spread(labels, 100)
    assert len(np.unique(indices)) == 100
    assert (np.diff(indices) > 0).all()
    assert np.bincount(labels[indices]) == pytest.approx([60, 30, 10], abs=1)
    assert projections.spread(labels, 1000).tolist() == list(range(1000))


@pytest.fixture(scope="module")
def project(shared_project):
    return shared_project


@pytest.fixture(scope="module")
def saved(project):
    return invented.save_network("cnn", 0.5, epochs=())


def test_the_map_of_queries_is_computed_once(saved, monkeypatch):
    images = saved.dataset
    projection = projections.project_queries(saved.embeddings)
    assert projection.queries.tolist() == list(range(len(images.queries)))
    assert projection.points.shape == (len(images.queries), 2)
    assert 0.5 < projection.trustworthiness <= 1
    assert 0.5 < projection.variance <= 1
    vectors = np.load(saved.summary["artifacts"]["embeddings"] + "/vectors.npy")
    assert np.array_equal(projection.points, projections.project(vectors[images.queries])[0])
    monkeypatch.setattr(projections, "project", None)
    assert np.array_equal(projections.project_queries(saved.embeddings).points, projection.points)


def test_trustworthiness_is_lower_for_a_random_map(saved, monkeypatch):
    images = saved.dataset
    random_points = (
        np.random.default_rng(0).normal(size=(len(images.queries), 2)).astype(np.float32)
    )
    trustworthiness = projections.project_queries(saved.embeddings).trustworthiness
    monkeypatch.setattr(projections, "project", lambda *_: (random_points, 0.0))
    assert (
        projections.project_queries(saved.embeddings, "tsne").trustworthiness
        < trustworthiness - 0.1
    )


def test_every_run_has_a_map_by_pca_if_its_queries_are_too_few_for_tsne(saved, monkeypatch):
    n_queries = len(saved.dataset.queries)
    methods = []
    for fewest in (n_queries + 1, n_queries):
        monkeypatch.setattr(projections, "TSNE_FROM", fewest)
        with monkeypatch.context() as patch:
            patch.setattr(projections, "project_queries", lambda _, method: methods.append(method))
            assert list(projections.project_all({"cnn": saved})) == ["cnn"]
    assert methods == ["pca", "tsne"]
    assert charts.query_maps(saved.dataset, {}, {}) is None


@pytest.fixture
def dataset():
    """Three queries, of three classes."""
    return SimpleNamespace(classes=["circle", "cross", "square"], query_labels=np.arange(3))


def map_of(labels, method="pca", **changes) -> projections.Projection:
    """A map whose horizontal coordinates are the labels."""
    queries = np.arange(len(labels))
    points = np.stack([labels, queries], axis=1).astype(np.float32)
    fields = {
        "queries": queries,
        "points": points,
        "trustworthiness": 0.5,
        "variance": 0.25,
    } | changes
    return projections.Projection(method, **fields)


def points_of(axis) -> list[list]:
    return [np.asarray(points.get_offsets()).tolist() for points in axis.collections]


def test_a_map_marks_classes_and_wrong_predictions(dataset):
    labels = dataset.query_labels = np.array([2, 0, 1, 1])
    predicted = {"cnn": np.array([2, 1, 1, 0]), "random": np.full(4, -1)}
    projections_by_run = {"cnn": map_of(labels), "random": map_of(labels, "tsne", variance=np.nan)}
    figure = charts.query_maps(dataset, projections_by_run, predicted)
    axis, other_axis = figure.axes
    # Others (none), the three classes, then the rings.
    assert points_of(axis) == [[], [[0, 1]], [[1, 2], [1, 3]], [[2, 0]], [[0, 1], [1, 3]]]
    assert points_of(other_axis)[-1] == []
    assert (axis.get_title(), axis.get_xlabel()) == (
        "cnn, PCA", "25 % of the variance, trustworthiness 0.50",
    )  # fmt: skip
    assert (other_axis.get_title(), other_axis.get_xlabel()) == (
        "random, t-SNE",
        "trustworthiness 0.50",
    )
    handles = figure.legends[0].legend_handles
    assert [entry.get_label() for entry in handles] == [*dataset.classes, "classified wrongly"]
    assert len({str(entry.get_facecolor()) for entry in handles[:3]}) == 3
    assert len({str(entry.get_paths()[0]) for entry in handles[:3]}) == 3


def test_a_map_of_some_queries_shows_their_classes(dataset):
    dataset.query_labels = np.array([0, 1, 2, 0, 1, 2])
    projection = map_of(np.array([1, 2]), queries=np.array([1, 5]))
    predicted = {"cnn": np.array([0, 0, 0, 0, 0, 2])}
    (axis,) = charts.query_maps(dataset, {"cnn": projection}, predicted).axes
    assert points_of(axis) == [[], [], [[1, 0]], [[2, 1]], [[1, 0]]]


def test_the_most_confused_of_many_classes_are_coloured(dataset):
    dataset.classes = [f"class {label}" for label in range(14)]
    labels = dataset.query_labels = np.tile(np.arange(14), 3)
    is_wrong = np.isin(labels, [3, 13])
    predicted = {"cnn": np.where(is_wrong, 0, labels)}
    figure = charts.query_maps(dataset, {"cnn": map_of(labels)}, predicted)
    labels_of_legend = [entry.get_label() for entry in figure.legends[0].legend_handles]
    assert (labels_of_legend[0], labels_of_legend[-1]) == ("other classes", "classified wrongly")
    assert len(labels_of_legend) == len(charts.CLASS_COLOURS) + 2
    assert {"class 3", "class 13"} < {*labels_of_legend}
    others = figure.axes[0].collections[0]
    assert len(others.get_offsets()) == 4 * 3


def test_ten_classes_differ_in_colour_and_in_marker():
    assert len({*charts.CLASS_COLOURS}) == len({*charts.CLASS_MARKERS}) == 10


def test_the_map_with_the_highest_trustworthiness_is_named():
    trustworthiness = {"cnn": 0.8, "vgg16": 0.9, "few": np.nan}
    maps = {name: SimpleNamespace(trustworthiness=value) for name, value in trustworthiness.items()}
    assert sentences.describe_projections(maps).startswith(
        "The map of vgg16 has the highest trustworthiness, 0.90 (at most 1)"
    )
    assert (
        sentences.describe_projections({"few": maps["few"]})
        == sentences.describe_projections({})
        == ""
    )
