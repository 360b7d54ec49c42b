"""Marking: the refined query by hand, and the simulated user against a slow and obvious one."""

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
NOBODY = np.empty((0, 2), np.float32)
MEASURED = ["average_precision", "average_precision_without"]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """A project to keep what is simulated in, made the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty_project(tmp_path_factory.mktemp("project")))
        yield


@pytest.fixture
def dataset():
    return toy_dataset()


def unit(n, d=3):
    """(n, d) float32 vectors of unit length, from any numbers."""
    return arrays(np.float32, (n, d), elements=st.floats(-5, 5, width=32)).map(normalise)


def classes_with_ties(dataset, spread=1.0, seed=0) -> np.ndarray:
    """Vectors around their class, every third image the same as the one before it."""
    random = np.random.default_rng(seed)
    centres = np.eye(len(dataset.classes), 6)
    vectors = centres[dataset.labels] + spread * random.normal(size=(len(dataset.labels), 6))
    vectors[2::3] = vectors[1::3][: len(vectors[2::3])]
    return vectors


def slowly(embeddings, weights, rounds, marked) -> pd.DataFrame:
    """The simulation, one query at a time, every image sorted as a person would do it."""
    dataset, rows = embeddings.dataset, []
    gallery, labels = np.asarray(embeddings.gallery, float), dataset.gallery_labels
    for place, label, itself in zip(
        dataset.queries, dataset.query_labels, dataset.exclude, strict=True
    ):
        original = np.asarray(embeddings.vectors[place], float)
        marks, query = [], original
        for number in range(rounds + 1):
            hidden = {itself, *marks}
            rest = [position for position in range(len(gallery)) if position not in hidden]
            refined, unrefined = (sorted_by(gallery, by, rest) for by in (query, original))
            scores = [
                precision_by_hand(labels[positions] == label) for positions in (refined, unrefined)
            ]
            n_relevant = sum(labels[position] == label for position in rest)
            n_positive = sum(labels[position] == label for position in marks)
            rows.append((place, label, number, *scores, n_relevant, len(marks), n_positive))
            marks += refined[:marked]
            positive = [position for position in marks if labels[position] == label]
            negative = [position for position in marks if labels[position] != label]
            query = weights.query * original
            query = query + (weights.positive * gallery[positive].mean(axis=0) if positive else 0)
            query = query - (weights.negative * gallery[negative].mean(axis=0) if negative else 0)
            query = query / np.linalg.norm(query)
    names = ["query", "label", "round", *MEASURED, "n_relevant", "n_marked", "n_positive"]
    return pd.DataFrame(rows, columns=names)


def sorted_by(gallery, query, places) -> list[int]:
    return sorted(places, key=lambda place: (-(gallery[place] * query).sum(), place))


def precision_by_hand(is_relevant) -> float:
    n_hits, precisions = 0, []
    for rank, hit in enumerate(is_relevant, start=1):
        if hit:
            n_hits += 1
            precisions.append(n_hits / rank)
    return np.mean(precisions) if precisions else np.nan


# refine


def test_refining_by_hand():
    positive, negative = np.array([[0.0, 1.0]]), np.array([[0.6, 0.8]])
    query = np.array([1.0, 0.0])
    refined = refine(query, positive, NOBODY, EVEN)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined, np.array([1, 1]) / np.sqrt(2), rtol=1e-6)
    # [1, 0] + [0, 1] - [0.6, 0.8] = [0.4, 0.2]
    refined = refine(query, positive, negative, EVEN)
    np.testing.assert_allclose(refined, np.array([0.4, 0.2]) / np.sqrt(0.2), rtol=1e-6)
    # Two images count by their mean: [1, 0] + 2 ([0, 1] + [0.6, 0.8]) / 2 = [1.6, 1.8].
    refined = refine(query, np.vstack([positive, negative]), NOBODY, Rocchio(1, 2, 5))
    np.testing.assert_allclose(refined, np.array([1.6, 1.8]) / np.sqrt(5.8), rtol=1e-6)
    # 2 [1, 0] - 0.5 [0.6, 0.8] = [1.7, -0.4]
    refined = refine(query, NOBODY, negative, Rocchio(2, 7, 0.5))
    np.testing.assert_allclose(refined, np.array([1.7, -0.4]) / np.sqrt(3.05), rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(query=unit(1), weights=st.tuples(*[st.floats(0, 5)] * 3))
def test_without_marks_the_query_stays_to_the_last_bit(query, weights):
    nobody = np.empty((0, 3), np.float32)
    assert (refine(query[0], nobody, nobody, Rocchio(*weights)) == query[0]).all()
    # Empty without a width, as a list of nothing is, does as well.
    assert (refine(query[0], [], [], Rocchio(*weights)) == query[0]).all()


def test_where_all_cancels_out_the_query_is_left():
    query = normalise(np.array([[0.3, 0.5, 0.7]]))[0]
    nobody = np.empty((0, 3), np.float32)
    assert (refine(query, -query[None], nobody, EVEN) == query).all()
    assert (refine(query, nobody, query[None], EVEN) == query).all()
    assert (refine(query, query[None], -query[None], Rocchio(0, 0, 0)) == query).all()


@settings(max_examples=50, deadline=None)
@given(query=unit(1), marked=unit(5), n_positive=st.integers(0, 5))
def test_what_is_refined_is_of_unit_length_and_nearer_to_the_positive_examples(
    query, marked, n_positive
):
    weights = Rocchio(1, 0.5, 0.25)
    positive, negative = marked[:n_positive], marked[n_positive:]
    refined = refine(query[0], positive, negative, weights)
    assert np.linalg.norm(refined) == pytest.approx(1, abs=1e-5)
    pull = 0.5 * positive.mean(axis=0) if n_positive else 0
    pull = pull - (0.25 * negative.mean(axis=0) if n_positive < 5 else 0)
    # What is added to a vector, the sum lies nearer to than the vector did.
    length = np.linalg.norm(pull)
    if length > 1e-3:
        assert refined @ pull / length >= query[0] @ pull / length - 1e-5


def test_many_queries_are_refined_as_each_alone():
    random = np.random.default_rng(0)
    query, marked = normalise(random.normal(size=(4, 5))), random.normal(size=(4, 6, 5))
    marked = normalise(marked.reshape(-1, 5)).reshape(4, 6, 5)
    kinds = np.array([[1, 1, 0, 2, 2, 2], [0] * 6, [1] * 6, [2, 0, 0, 0, 0, 0]])
    refined = refine_queries(query, marked, kinds == 1, kinds == 2, Rocchio(1, 0.5, 0.3))
    for row in range(4):
        alone = refine(
            query[row], marked[row][kinds[row] == 1], marked[row][kinds[row] == 2],
            Rocchio(1, 0.5, 0.3),
        )  # fmt: skip
        np.testing.assert_allclose(refined[row], alone, rtol=1e-6)
    assert (refined[1] == query[1]).all()


def test_wrong_shapes_and_weights_are_told():
    query = np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="query: expected a single vector"):
        refine(query[None], NOBODY, NOBODY, EVEN)
    with pytest.raises(ValueError, match="negative: .* does not fit a query of 2 dimensions"):
        refine(query, NOBODY, np.ones((1, 3)), EVEN)
    with pytest.raises(ValueError, match="positive: .* does not fit"):
        refine(query, query, NOBODY, EVEN)
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive: a weight"):
            Rocchio(positive=wrong)


# simulate


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
@pytest.mark.parametrize("marked", [1, 3, 10])
def test_the_simulated_user_is_the_slow_one(dataset, protocol, marked):
    view = protocols.view(dataset, protocol)
    embeddings = toy_embeddings(view, classes_with_ties(dataset))
    weights = Rocchio(1, 0.5, 0.5)
    table = feedback.simulate_feedback(embeddings, weights, marked=marked)
    expected = slowly(embeddings, weights, 3, marked)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert (view.exclude >= 0).all() == (protocol == "held_out_gallery")
    # Marking has moved something, and images that are equal were among them.
    assert (table[MEASURED[0]] != table[MEASURED[1]])[table["round"] > 0].any()
    assert len(np.unique(embeddings.gallery, axis=0)) < len(embeddings.gallery)


def test_blocks_make_no_difference(dataset, monkeypatch):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    whole = feedback.simulate_feedback(embeddings, EVEN, seed=1)
    monkeypatch.setattr(feedback, "BLOCK", 5)
    parts = feedback.simulate_feedback(
        embeddings, EVEN, seed=2
    )  # under another key, all queries as well
    pd.testing.assert_frame_equal(whole, parts)


def test_what_is_marked_is_never_scored(dataset):
    # What a query has marked as positive is missing among what is relevant to it.
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    table = feedback.simulate_feedback(embeddings, EVEN, rounds=5, marked=7)
    in_gallery = np.bincount(dataset.gallery_labels)[table["label"]]
    assert (table["n_relevant"] == in_gallery - table["n_positive"]).all()
    assert (table["n_marked"] == 7 * table["round"]).all()
    assert table.groupby("query")["n_positive"].is_monotonic_increasing.all()


def test_a_gallery_is_marked_to_its_end(dataset):
    embeddings = toy_embeddings(dataset)
    n_gallery = len(dataset.gallery)
    table = feedback.simulate_feedback(embeddings, EVEN, rounds=2, marked=n_gallery - 3)
    assert table.groupby("round")["n_marked"].unique().map(list).to_list() == [
        [0], [n_gallery - 3], [n_gallery],
    ]  # fmt: skip
    last = table[table["round"] == 2]
    assert last[MEASURED].isna().all(axis=None)
    assert (last["n_relevant"] == 0).all()
    # With three images left, a query whose class is among them has a score, no other has.
    middle = table[table["round"] == 1]
    assert (middle[MEASURED].notna().all(axis=1) == (middle["n_relevant"] > 0)).all()
    assert middle["n_relevant"].between(0, 3).all()


def test_weights_of_nothing_bring_nothing(dataset):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    table = feedback.simulate_feedback(embeddings, Rocchio(1, 0, 0))
    assert (table[MEASURED[0]] == table[MEASURED[1]]).all()
    # Round 0 is the search as it is measured elsewhere, whatever the weights.
    first = feedback.simulate_feedback(embeddings, EVEN, rounds=0)
    whole = metrics.evaluate_retrieval(
        embeddings.query, dataset.query_labels, embeddings.gallery, dataset.gallery_labels
    )
    np.testing.assert_allclose(first[MEASURED[0]], whole["average_precision"], rtol=1e-9)
    np.testing.assert_allclose(first[MEASURED[1]], whole["average_precision"], rtol=1e-9)


def test_a_perfect_embedding_stays_perfect(dataset):
    embeddings = toy_embeddings(dataset, np.eye(4)[dataset.labels])
    table = feedback.measure_feedback(embeddings)
    scored = table[table["n_relevant"] > 0]
    assert (scored[MEASURED] == 1).all(axis=None)
    assert set(scored["round"]) == {0, 1}  # Of fourteen relevant images, ten a round are marked.
    # All weights do equally well.
    assert set(table["weight_positive"]) == {min(feedback.POSITIVE)}
    assert set(table["weight_negative"]) == {min(feedback.POSITIVE) * min(feedback.NEGATIVE_SHARES)}


def test_marks_help_where_a_class_has_a_direction_and_not_where_there_is_none():
    dataset = toy_dataset(n_train=100, n_test=40)
    gains = {}
    for name, spread in (("blurred", 0.6), ("chance", 1e9)):
        embeddings = toy_embeddings(dataset, classes_with_ties(dataset, spread))
        table = feedback.measure_feedback(embeddings)
        table = table[table["round"] == 3]
        gains[name] = (table[MEASURED[0]] - table[MEASURED[1]]).mean()
    assert gains["blurred"] > 0.1
    assert abs(gains["chance"]) < 0.03


def test_queries_are_drawn_from_all_classes_by_the_seed():
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
    everyone = feedback.simulate_feedback(embeddings, EVEN, rounds=0, max_queries=0)
    assert everyone["query"].to_list() == dataset.queries.tolist()


def test_nonsense_is_refused(dataset):
    embeddings = toy_embeddings(dataset)
    for wrong in ({"rounds": -1}, {"marked": 0}):
        with pytest.raises(ValueError, match="rounds must be 0 or more and marked 1 or more"):
            feedback.simulate_feedback(embeddings, EVEN, **wrong)


# choose_weights


def test_weights_are_chosen_on_validation_images_alone(dataset):
    vectors = classes_with_ties(dataset)
    scores = feedback.score_weights(toy_embeddings(dataset, vectors))
    others = vectors.copy()
    others[dataset.queries] = np.random.default_rng(1).normal(size=(len(dataset.queries), 6))
    pd.testing.assert_frame_equal(feedback.score_weights(toy_embeddings(dataset, others)), scores)
    # A change of what they are chosen on is seen: the scores are of something.
    others = vectors.copy()
    others[dataset.validation] = others[dataset.validation][::-1]
    changed = feedback.score_weights(toy_embeddings(dataset, others))
    assert not changed.equals(scores)


def test_the_scores_of_weights_are_those_of_one_round(dataset):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset))
    as_asked = replace(dataset, gallery=dataset.train, queries=dataset.validation)
    scores = feedback.score_weights(embeddings)
    assert len(scores) == len(feedback.POSITIVE) * len(feedback.NEGATIVE_SHARES)
    for row in scores.iloc[[0, 7, -1]].itertuples():
        weights = Rocchio(positive=row.positive, negative=row.negative)
        slow = slowly(replace(embeddings, dataset=as_asked), weights, 1, feedback.MARKED)
        mean = slow.loc[slow["round"] == 1, "average_precision"].mean()
        assert row.mean_average_precision == pytest.approx(mean)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.5, 0.2, 0.4], (0.5, 1.0)),
        ([0.5, 0.1, 0.5, 0.5], (0.5, 0.1)),  # the smallest of equals, whatever the order
        ([0.1, 0.1, 0.7, 0.7], (2.0, 0.1)),
        ([0.1, 0.699, 0.697, 0.7], (0.5, 1.0)),  # hardly worse than the best, and smaller
        ([np.nan] * 4, (0.5, 0.1)),
    ],
)
def test_of_the_best_weights_the_smallest_are_chosen(monkeypatch, scores, expected):
    pairs = {"positive": [0.5, 0.5, 2.0, 2.0], "negative": [0.1, 1.0, 0.1, 1.0]}
    frame = pd.DataFrame(pairs | {"mean_average_precision": scores}).iloc[::-1]
    monkeypatch.setattr(feedback, "score_weights", lambda embeddings: frame)
    assert feedback.choose_weights(None) == Rocchio(1, *expected)


def test_a_training_set_that_is_all_marked_leaves_the_smallest_weights():
    dataset = toy_dataset(n_classes=2, n_train=4, n_test=3)
    assert len(dataset.train) <= feedback.MARKED
    embeddings = toy_embeddings(dataset)
    assert feedback.score_weights(embeddings)["mean_average_precision"].isna().all()
    positive = min(feedback.POSITIVE)
    smallest = positive, positive * min(feedback.NEGATIVE_SHARES)
    assert feedback.choose_weights(embeddings) == Rocchio(1, *smallest)


# kept


def test_what_is_measured_once_is_kept(dataset, monkeypatch):
    embeddings = toy_embeddings(dataset, classes_with_ties(dataset, seed=5))
    first = feedback.measure_feedback(embeddings)

    def refuse(*_, **__):
        raise AssertionError("ranked again")

    monkeypatch.setattr(ranking, "search", refuse)
    pd.testing.assert_frame_equal(feedback.measure_feedback(embeddings), first)
    # Other weights, or another gallery, are another question.
    with pytest.raises(AssertionError, match="ranked again"):
        feedback.simulate_feedback(embeddings, Rocchio(1, 3, 3))
    view = protocols.view(dataset, "held_out_gallery")
    with pytest.raises(AssertionError, match="ranked again"):
        feedback.measure_feedback(replace(embeddings, dataset=view))


def test_a_baseline_without_a_classifier_is_measured_too(dataset):
    embeddings = replace(toy_embeddings(dataset, seed=3), probabilities=None)
    table = feedback.measure_feedback(embeddings)
    assert table["round"].value_counts().to_dict() == dict.fromkeys(range(4), len(dataset.queries))
