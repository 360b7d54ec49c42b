"""Relevance feedback, compared with values by hand and with a slow and obvious simulation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, toy_dataset, toy_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cbir.images import protocols
from cbir.networks.embeddings import normalise
from cbir.retrieval import feedback, metrics, ranking
from cbir.retrieval.feedback import Rocchio, refine, refine_queries

EVEN = Rocchio(1, 1, 1)
NO_EXAMPLES = np.empty((0, 2), np.float32)
MEASURED = ["average_precision", "average_precision_without"]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """A project for cached simulations as working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty_project(tmp_path_factory.mktemp("project")))
        yield


@pytest.fixture
def dataset():
    return toy_dataset()


def unit(n, d=3):
    """(n, d) float32 vectors of unit length."""
    return arrays(np.float32, (n, d), elements=st.floats(-5, 5, width=32)).map(normalise)


def classes_with_ties(dataset, spread=1.0, seed=0) -> np.ndarray:
    """Vectors around the centres of their classes; every third equals its predecessor."""
    random = np.random.default_rng(seed)
    centres = np.eye(len(dataset.classes), 6)
    vectors = centres[dataset.labels] + spread * random.normal(size=(len(dataset.labels), 6))
    vectors[2::3] = vectors[1::3][: len(vectors[2::3])]
    return vectors


def slow_simulation(embeddings, weights, rounds, marked) -> pd.DataFrame:
    """The simulation, one query at a time, with all images sorted."""
    dataset, rows = embeddings.dataset, []
    gallery, labels = np.asarray(embeddings.gallery, float), dataset.gallery_labels
    for position_of_query, label, excluded in zip(
        dataset.queries, dataset.query_labels, dataset.exclude, strict=True
    ):
        original = np.asarray(embeddings.vectors[position_of_query], float)
        marks, query = [], original
        for number in range(rounds + 1):
            hidden = {excluded, *marks}
            rest = [position for position in range(len(gallery)) if position not in hidden]
            refined, unrefined = (sorted_by(gallery, vector, rest) for vector in (query, original))
            scores = [
                precision_by_hand(labels[positions] == label) for positions in (refined, unrefined)
            ]
            n_relevant = sum(labels[position] == label for position in rest)
            n_positive = sum(labels[position] == label for position in marks)
            rows.append(
                (position_of_query, label, number, *scores, n_relevant, len(marks), n_positive)
            )
            marks += refined[:marked]
            positive = [position for position in marks if labels[position] == label]
            negative = [position for position in marks if labels[position] != label]
            query = weights.query * original
            query = query + (weights.positive * gallery[positive].mean(axis=0) if positive else 0)
            query = query - (weights.negative * gallery[negative].mean(axis=0) if negative else 0)
            query = query / np.linalg.norm(query)
    names = ["query", "label", "round", *MEASURED, "n_relevant", "n_marked", "n_positive"]
    return pd.DataFrame(rows, columns=names)


def sorted_by(gallery, query, positions) -> list[int]:
    return sorted(positions, key=lambda position: (-(gallery[position] * query).sum(), position))


def precision_by_hand(is_relevant) -> float:
    n_hits, precisions = 0, []
    for rank, hit in enumerate(is_relevant, start=1):
        if hit:
            n_hits += 1
            precisions.append(n_hits / rank)
    return np.mean(precisions) if precisions else np.nan


# refine


def test_refined_queries_equal_values_by_hand():
    positive, negative = np.array([[0.0, 1.0]]), np.array([[0.6, 0.8]])
    query = np.array([1.0, 0.0])
    refined = refine(query, positive, NO_EXAMPLES, EVEN)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined, np.array([1, 1]) / np.sqrt(2), rtol=1e-6)
    # [1, 0] + [0, 1] - [0.6, 0.8] = [0.4, 0.2]
    refined = refine(query, positive, negative, EVEN)
    np.testing.assert_allclose(refined, np.array([0.4, 0.2]) / np.sqrt(0.2), rtol=1e-6)
    # Two images count by their mean: [1, 0] + 2 ([0, 1] + [0.6, 0.8]) / 2 = [1.6, 1.8].
    refined = refine(query, np.vstack([positive, negative]), NO_EXAMPLES, Rocchio(1, 2, 5))
    np.testing.assert_allclose(refined, np.array([1.6, 1.8]) / np.sqrt(5.8), rtol=1e-6)
    # 2 [1, 0] - 0.5 [0.6, 0.8] = [1.7, -0.4]
    refined = refine(query, NO_EXAMPLES, negative, Rocchio(2, 7, 0.5))
    np.testing.assert_allclose(refined, np.array([1.7, -0.4]) / np.sqrt(3.05), rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(query=unit(1), weights=st.tuples(*[st.floats(0, 5)] * 3))
def test_a_query_without_marks_is_not_changed(query, weights):
    no_examples = np.empty((0, 3), np.float32)
    assert (refine(query[0], no_examples, no_examples, Rocchio(*weights)) == query[0]).all()
    # Empty lists, which have no width, are accepted too.
    assert (refine(query[0], [], [], Rocchio(*weights)) == query[0]).all()


def test_a_query_is_not_changed_if_all_terms_cancel():
    query = normalise(np.array([[0.3, 0.5, 0.7]]))[0]
    no_examples = np.empty((0, 3), np.float32)
    assert (refine(query, -query[None], no_examples, EVEN) == query).all()
    assert (refine(query, no_examples, query[None], EVEN) == query).all()
    assert (refine(query, query[None], -query[None], Rocchio(0, 0, 0)) == query).all()


@settings(max_examples=50, deadline=None)
@given(query=unit(1), marked=unit(5), n_positive=st.integers(0, 5))
def test_a_refined_query_has_unit_length_and_is_nearer_to_positive_examples(
    query, marked, n_positive
):
    weights = Rocchio(1, 0.5, 0.25)
    positive, negative = marked[:n_positive], marked[n_positive:]
    refined = refine(query[0], positive, negative, weights)
    assert np.linalg.norm(refined) == pytest.approx(1, abs=1e-5)
    pull = 0.5 * positive.mean(axis=0) if n_positive else 0
    pull = pull - (0.25 * negative.mean(axis=0) if n_positive < 5 else 0)
    # A sum is nearer to an added vector than the original vector is.
    length = np.linalg.norm(pull)
    if length > 1e-3:
        assert refined @ pull / length >= query[0] @ pull / length - 1e-5


def test_queries_are_refined_together_as_separately():
    random = np.random.default_rng(0)
    query, marked = normalise(random.normal(size=(4, 5))), random.normal(size=(4, 6, 5))
    marked = normalise(marked.reshape(-1, 5)).reshape(4, 6, 5)
    kinds = np.array([[1, 1, 0, 2, 2, 2], [0] * 6, [1] * 6, [2, 0, 0, 0, 0, 0]])
    refined = refine_queries(query, marked, kinds == 1, kinds == 2, Rocchio(1, 0.5, 0.3))
    for row in range(4):
        expected = refine(
            query[row], marked[row][kinds[row] == 1], marked[row][kinds[row] == 2],
            Rocchio(1, 0.5, 0.3),
        )  # fmt: skip
        np.testing.assert_allclose(refined[row], expected, rtol=1e-6)
    assert (refined[1] == query[1]).all()


def test_wrong_shapes_and_weights_are_rejected():
    query = np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="query: expected a single vector"):
        refine(query[None], NO_EXAMPLES, NO_EXAMPLES, EVEN)
    with pytest.raises(ValueError, match="negative: .* does not fit a query of 2 dimensions"):
        refine(query, NO_EXAMPLES, np.ones((1, 3)), EVEN)
    with pytest.raises(ValueError, match="positive: .* does not fit"):
        refine(query, query, NO_EXAMPLES, EVEN)
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive: a weight"):
            Rocchio(positive=wrong)


# simulate


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
@pytest.mark.parametrize("marked", [1, 3, 10])
def test_the_simulation_equals_the_slow_simulation(dataset, protocol, marked):
    view = protocols.view(dataset, protocol)
    embeddings = toy_embeddings(view, classes_with_ties(dataset))
    weights = Rocchio(1, 0.5, 0.5)
    table = feedback.simulate_feedback(embeddings, weights, marked=marked)
    expected = slow_simulation(embeddings, weights, 3, marked)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert (view.exclude >= 0).all() == (protocol == "held_out_gallery")
    # Marking has an effect, and the gallery contains equal images.
    assert (table[MEASURED[0]] != table[MEASURED[1]])[table["round"] > 0].any()
    assert len(np.unique(embeddings.gallery, axis=0)) < len(embeddings.gallery)


def test_results_do_not_depend_on_the_size_of_blocks(dataset, monkeypatch):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    table = feedback.simulate_feedback(embeddings, EVEN, seed=1)
    monkeypatch.setattr(feedback, "BLOCK", 5)
    table_by_blocks = feedback.simulate_feedback(
        embeddings, EVEN, seed=2
    )  # another key, but also all queries
    pd.testing.assert_frame_equal(table, table_by_blocks)


def test_marked_images_are_not_scored(dataset):
    # Images marked as positive do not count as relevant any more.
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    table = feedback.simulate_feedback(embeddings, EVEN, rounds=5, marked=7)
    in_gallery = np.bincount(dataset.gallery_labels)[table["label"]]
    assert (table["n_relevant"] == in_gallery - table["n_positive"]).all()
    assert (table["n_marked"] == 7 * table["round"]).all()
    assert table.groupby("query")["n_positive"].is_monotonic_increasing.all()


def test_all_images_of_a_gallery_can_be_marked(dataset):
    embeddings = toy_embeddings(dataset)
    n_gallery = len(dataset.gallery)
    table = feedback.simulate_feedback(embeddings, EVEN, rounds=2, marked=n_gallery - 3)
    assert table.groupby("round")["n_marked"].unique().map(list).to_list() == [
        [0], [n_gallery - 3], [n_gallery],
    ]  # fmt: skip
    last = table[table["round"] == 2]
    assert last[MEASURED].isna().all(axis=None)
    assert (last["n_relevant"] == 0).all()
    # With three images left, only queries whose class is among them have a score.
    middle = table[table["round"] == 1]
    assert (middle[MEASURED].notna().all(axis=1) == (middle["n_relevant"] > 0)).all()
    assert middle["n_relevant"].between(0, 3).all()


def test_weights_of_zero_have_no_effect(dataset):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    table = feedback.simulate_feedback(embeddings, Rocchio(1, 0, 0))
    assert (table[MEASURED[0]] == table[MEASURED[1]]).all()
    # Round 0 is the search without feedback, for any weights.
    first = feedback.simulate_feedback(embeddings, EVEN, rounds=0)
    expected = metrics.evaluate_retrieval(
        embeddings.query, dataset.query_labels, embeddings.gallery, dataset.gallery_labels
    )
    np.testing.assert_allclose(first[MEASURED[0]], expected["average_precision"], rtol=1e-9)
    np.testing.assert_allclose(first[MEASURED[1]], expected["average_precision"], rtol=1e-9)


def test_feedback_leaves_a_perfect_embedding_perfect(dataset):
    embeddings = toy_embeddings(dataset, np.eye(4)[dataset.labels])
    table = feedback.measure_feedback(embeddings)
    scored = table[table["n_relevant"] > 0]
    assert (scored[MEASURED] == 1).all(axis=None)
    assert set(scored["round"]) == {0, 1}  # ten of fourteen relevant images are marked per round
    # All weights do equally well.
    assert set(table["weight_positive"]) == {min(feedback.POSITIVE)}
    assert set(table["weight_negative"]) == {min(feedback.POSITIVE) * min(feedback.NEGATIVE_SHARES)}


def test_feedback_helps_only_if_classes_have_a_direction():
    dataset = toy_dataset(n_train=100, n_test=40)
    gains = {}
    for name, spread in (("blurred", 0.6), ("chance", 1e9)):
        embeddings = toy_embeddings(dataset, classes_with_ties(dataset, spread))
        table = feedback.measure_feedback(embeddings)
        table = table[table["round"] == 3]
        gains[name] = (table[MEASURED[0]] - table[MEASURED[1]]).mean()
    assert gains["blurred"] > 0.1
    assert abs(gains["chance"]) < 0.03


def test_queries_are_drawn_from_all_classes_with_the_seed():
    dataset = toy_dataset(n_classes=5, n_train=6, n_test=20)
    embeddings = toy_embeddings(dataset)
    draws = []
    for seed in (0, 0, 1):
        table = feedback.simulate_feedback(embeddings, EVEN, rounds=0, max_queries=15, seed=seed)
        assert table["label"].value_counts().to_dict() == dict.fromkeys(range(5), 3)
        assert (dataset.labels[table["query"]] == table["label"]).all()
        assert table["query"].isin(dataset.queries).all()
        draws.append(table["query"].to_list())
    assert draws[0] == draws[1] != draws[2]
    table_of_all = feedback.simulate_feedback(embeddings, EVEN, rounds=0, max_queries=0)
    assert table_of_all["query"].to_list() == dataset.queries.tolist()


def test_invalid_rounds_and_marks_are_rejected(dataset):
    embeddings = toy_embeddings(dataset)
    for arguments in ({"rounds": -1}, {"marked": 0}):
        with pytest.raises(ValueError, match="rounds must be 0 or more and marked 1 or more"):
            feedback.simulate_feedback(embeddings, EVEN, **arguments)


# choose_weights


def test_weights_are_chosen_only_on_validation_images(dataset):
    vectors = classes_with_ties(dataset)
    scores = feedback.score_weights(toy_embeddings(dataset, vectors))
    changed_vectors = vectors.copy()
    changed_vectors[dataset.queries] = np.random.default_rng(1).normal(
        size=(len(dataset.queries), 6)
    )
    pd.testing.assert_frame_equal(
        feedback.score_weights(toy_embeddings(dataset, changed_vectors)), scores
    )
    # Changed validation images change the scores.
    changed_vectors = vectors.copy()
    changed_vectors[dataset.validation] = changed_vectors[dataset.validation][::-1]
    changed = feedback.score_weights(toy_embeddings(dataset, changed_vectors))
    assert not changed.equals(scores)


def test_weights_are_scored_after_one_round(dataset):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    validation_view = replace(dataset, gallery=dataset.train, queries=dataset.validation)
    scores = feedback.score_weights(embeddings)
    assert len(scores) == len(feedback.POSITIVE) * len(feedback.NEGATIVE_SHARES)
    for row in scores.iloc[[0, 7, -1]].itertuples():
        weights = Rocchio(positive=row.positive, negative=row.negative)
        table = slow_simulation(
            replace(embeddings, dataset=validation_view), weights, 1, feedback.MARKED
        )
        mean = table.loc[table["round"] == 1, "average_precision"].mean()
        assert row.mean_average_precision == pytest.approx(mean)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.5, 0.2, 0.4], (0.5, 1.0)),
        ([0.5, 0.1, 0.5, 0.5], (0.5, 0.1)),  # the smallest of equals, in any order
        ([0.1, 0.1, 0.7, 0.7], (2.0, 0.1)),
        ([0.1, 0.699, 0.697, 0.7], (0.5, 1.0)),  # hardly worse than the best, but smaller
        ([np.nan] * 4, (0.5, 0.1)),
    ],
)
def test_the_smallest_of_the_best_weights_are_chosen(monkeypatch, scores, expected):
    pairs = {"positive": [0.5, 0.5, 2.0, 2.0], "negative": [0.1, 1.0, 0.1, 1.0]}
    frame = pd.DataFrame(pairs | {"mean_average_precision": scores}).iloc[::-1]
    monkeypatch.setattr(feedback, "score_weights", lambda embeddings: frame)
    assert feedback.choose_weights(None) == Rocchio(1, *expected)


def test_a_small_training_set_gives_the_smallest_weights():
    dataset = toy_dataset(n_classes=2, n_train=4, n_test=3)
    assert len(dataset.train) <= feedback.MARKED
    embeddings = toy_embeddings(dataset)
    assert feedback.score_weights(embeddings)["mean_average_precision"].isna().all()
    positive = min(feedback.POSITIVE)
    smallest = positive, positive * min(feedback.NEGATIVE_SHARES)
    assert feedback.choose_weights(embeddings) == Rocchio(1, *smallest)


# Cached results


def test_measurements_are_cached(dataset, monkeypatch):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset, seed=5))
    first = feedback.measure_feedback(embeddings)

    def fail(*_, **__):
        raise AssertionError("ranked again")

    monkeypatch.setattr(ranking, "search", fail)
    pd.testing.assert_frame_equal(feedback.measure_feedback(embeddings), first)
    # Other weights or another gallery need another simulation.
    with pytest.raises(AssertionError, match="ranked again"):
        feedback.simulate_feedback(embeddings, Rocchio(1, 3, 3))
    view = protocols.view(dataset, "held_out_gallery")
    with pytest.raises(AssertionError, match="ranked again"):
        feedback.measure_feedback(replace(embeddings, dataset=view))


def test_feedback_is_also_measured_without_a_classifier(dataset):
    embeddings = replace(toy_embeddings(dataset, seed=3), probabilities=None)
    table = feedback.measure_feedback(embeddings)
    assert table["round"].value_counts().to_dict() == dict.fromkeys(range(4), len(dataset.queries))
