"""Rankings against a brute-force reference, in the presence of ties and of identical rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cbir import metrics, retrieval

# Three blocks; the last one holds a single query, whose product is computed in another way.
MANY = 2 * retrieval.BLOCK + 1


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_unit(count: int, dimensions: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dimensions)))


def ranked(query, gallery, allowed=None) -> list[list[tuple[int, float]]]:
    """(position, similarity) of all that may be returned, nearest first, equals in order."""
    answers = []
    for row, vector in enumerate(query):
        similarity = [float(np.dot(vector, other)) for other in gallery]
        reachable = [at for at in range(len(gallery)) if allowed is None or allowed[row][at]]
        order = sorted(reachable, key=lambda at: (-similarity[at], at))
        answers.append([(at, similarity[at]) for at in order])
    return answers


# Whole numbers: their products are exact in float32, so that ties are ties in any implementation.
values = st.integers(-2, 2).map(float)


@st.composite
def problems(draw):
    """Queries and gallery with labels; few values, so that rows repeat and similarities tie."""
    dimensions = draw(st.integers(1, 3))
    sizes = draw(st.tuples(st.integers(1, 6), st.integers(1, 12)))
    query, gallery = (
        draw(arrays(np.float32, (size, dimensions), elements=values)) for size in sizes
    )
    labels = [np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))) for n in sizes]
    searched = np.array(draw(st.lists(st.integers(0, 3), min_size=sizes[0], max_size=sizes[0])))
    return query, gallery, *labels, draw(st.one_of(st.none(), st.just(searched)))


@settings(max_examples=150, deadline=None)
@given(problem=problems(), k=st.integers(1, 15))
def test_search_equals_brute_force(problem, k):
    query, gallery, _, gallery_labels, searched = problem
    allowed = None if searched is None else retrieval.within(searched, gallery_labels)
    mask = None if searched is None else searched[:, None] == gallery_labels
    rankings, similarities = retrieval.search(query, gallery, k, allowed)
    assert rankings.shape == similarities.shape == (len(query), min(k, len(gallery)))
    for row, answer in enumerate(ranked(query, gallery, mask)):
        missing = rankings.shape[1] - len(answer[:k])
        positions = [at for at, _ in answer[:k]] + [-1] * missing
        assert rankings[row].tolist() == positions
        expected = [similarity for _, similarity in answer[:k]] + [np.nan] * missing
        assert np.array_equal(similarities[row], expected, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_relevant_ranks_equal_brute_force(problem):
    query, gallery, labels, gallery_labels, searched = problem
    allowed = None if searched is None else retrieval.within(searched, gallery_labels)
    mask = None if searched is None else searched[:, None] == gallery_labels
    ranks = retrieval.relevant_ranks(query, labels, gallery, gallery_labels, allowed)
    n_relevant = [(gallery_labels == label).sum() for label in labels]
    assert ranks.shape == (len(query), max(n_relevant))
    for row, answer in enumerate(ranked(query, gallery, mask)):
        expected = [
            place
            for place, (at, _) in enumerate(answer, start=1)
            if gallery_labels[at] == labels[row]
        ]
        expected += [np.inf] * (n_relevant[row] - len(expected))
        expected += [np.nan] * (max(n_relevant) - n_relevant[row])
        assert np.array_equal(ranks[row], expected, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(0, 30), k=st.integers(1, 60))
def test_search_of_unit_vectors_with_duplicates_equals_brute_force(seed, copies, k):
    gallery = random_unit(40, 8, seed)
    random = np.random.default_rng(seed)
    gallery[random.integers(0, 40, copies)] = gallery[random.integers(0, 40, copies)]
    query = random_unit(5, 8, seed + 1)
    similarity = query.astype(np.float64) @ gallery.astype(np.float64).T
    # Rows that are not identical differ by far more than float32 rounds.
    order = np.argsort(-similarity.round(6), axis=1, kind="stable")[:, :k]
    rankings, similarities = retrieval.search(query, gallery, k)
    expected = np.take_along_axis(similarity, order, axis=1)
    assert np.allclose(similarities, expected, atol=1e-6)
    assert np.allclose(np.take_along_axis(similarity, rankings.astype(int), axis=1), expected)
    for row in similarities:
        assert (np.diff(row) <= 0).all()


def test_queries_of_every_block_get_their_own_answer():
    gallery = random_unit(50, 16, 0)
    asked = np.random.default_rng(1).integers(0, 50, MANY)
    rankings, similarities = retrieval.search(gallery[asked], gallery, 3)
    assert rankings[:, 0].tolist() == asked.tolist()
    assert similarities[:, 0] == pytest.approx(np.ones(MANY), abs=1e-5)
    labels = np.arange(50)
    ranks = retrieval.relevant_ranks(gallery[asked], labels[asked], gallery, labels)
    assert ranks.tolist() == [[1]] * MANY


def with_copies() -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Queries, a gallery whose row 5 is repeated at odd places, and where it stands.

    Without care a product gives these rows different last bits: at the places where it divides the
    gallery into pieces, in the middle and at the end, and most of all for a query alone.
    """
    gallery = random_unit(1003, 512, 2)
    copies = [5, 6, 77, 500, 501, 1000, 1001, 1002]
    gallery[copies] = gallery[5]
    queries = unit(gallery[5] + 0.3 * random_unit(MANY, 512, 3))
    return [queries, *np.split(queries[:20], 20)], gallery, copies


def test_identical_gallery_rows_stand_in_gallery_order():
    asked, gallery, copies = with_copies()
    for query in asked:
        rankings, similarities = retrieval.search(query, gallery, len(copies))
        assert (rankings == copies).all()
        assert (similarities == similarities[:, :1]).all()


def test_identical_gallery_rows_have_ranks_in_gallery_order():
    asked, gallery, copies = with_copies()
    labels = np.zeros(len(gallery), int)
    labels[copies[::2]], labels[copies[1::2]] = 1, 2
    for query in asked[1:]:
        odd, even = (
            retrieval.relevant_ranks(query, np.array([label]), gallery, labels) for label in (1, 2)
        )
        assert odd.tolist() == [[1, 3, 5, 7]]
        assert even.tolist() == [[2, 4, 6, 8]]


def test_copies_cut_off_at_k_are_the_last_ones():
    asked, gallery, copies = with_copies()
    for query in asked:
        rankings, _ = retrieval.search(query, gallery, 3)
        assert (rankings == copies[:3]).all()


def test_search_within_a_class_returns_nothing_else():
    gallery_labels = np.array([0, 1, 0, 2, 1, 0])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4], [1, 0.5]])
    searched = np.array([0, 1, 3])
    allowed = retrieval.within(searched, gallery_labels)
    rankings, similarities = retrieval.search(unit([[1, 0]] * 3), gallery, 4, allowed)
    # Class 0 has three images, class 1 two, class 3 none.
    assert rankings.tolist() == [[0, 2, 5, -1], [1, 4, -1, -1], [-1, -1, -1, -1]]
    assert np.isnan(similarities).tolist() == (rankings == -1).tolist()


def test_relevant_images_outside_the_searched_class_have_infinite_ranks():
    gallery_labels = np.array([0, 1, 0, 1, 1])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]])
    labels, searched = np.array([0, 0, 1]), np.array([0, 1, 1])
    allowed = retrieval.within(searched, gallery_labels)
    ranks = retrieval.relevant_ranks(unit([[1, 0]] * 3), labels, gallery, gallery_labels, allowed)
    # Two relevant images leave one of three places over.
    expected = [[1, 2, np.nan], [np.inf, np.inf, np.nan], [1, 2, 3]]
    assert np.array_equal(ranks, expected, equal_nan=True)


def test_within_takes_each_block_of_queries_by_its_own_labels():
    labels = np.arange(MANY) % 5
    gallery_labels = np.arange(20) % 5
    allowed = retrieval.within(labels, gallery_labels)
    rankings, _ = retrieval.search(random_unit(MANY, 8, 0), random_unit(20, 8, 1), 4, allowed)
    assert (gallery_labels[rankings] == labels[:, None]).all()


def test_k_larger_than_the_gallery_returns_all_of_it():
    rankings, similarities = retrieval.search(random_unit(3, 4, 0), random_unit(6, 4, 1), 100)
    assert rankings.shape == similarities.shape == (3, 6)
    assert (np.sort(rankings) == np.arange(6)).all()
    assert np.isfinite(similarities).all()


def test_answers_are_int32_and_float32():
    query, gallery = random_unit(3, 4, 0), random_unit(6, 4, 1)
    rankings, similarities = retrieval.search(query, gallery, 2)
    ranks = retrieval.relevant_ranks(query, np.zeros(3, int), gallery, np.zeros(6, int))
    types = rankings.dtype, similarities.dtype, ranks.dtype
    assert types == (np.int32, np.float32, np.float32)


def test_query_of_a_class_that_the_gallery_lacks_has_no_relevant_images():
    labels = np.array([0, 7])
    ranks = retrieval.relevant_ranks(
        random_unit(2, 4, 0), labels, random_unit(3, 4, 1), np.array([0, 1, 0])
    )
    assert np.isfinite(ranks[0]).all()
    assert np.isnan(ranks[1]).all()


def test_same_question_twice_is_answered_alike_bit_for_bit():
    query, gallery = random_unit(MANY, 65, 0), random_unit(700, 65, 1)
    labels = np.arange(MANY) % 7, np.arange(700) % 7
    first, second = (
        (
            *retrieval.search(query, gallery, 100),
            retrieval.relevant_ranks(query, labels[0], gallery, labels[1]),
        )
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert one.tobytes() == other.tobytes()


def test_search_and_relevant_ranks_agree_on_where_the_relevant_images_stand():
    query, gallery = random_unit(MANY, 33, 0), random_unit(300, 33, 1)
    labels, gallery_labels = np.arange(MANY) % 5, np.arange(300) % 5
    rankings, _ = retrieval.search(query, gallery, 300)
    ranks = retrieval.relevant_ranks(query, labels, gallery, gallery_labels)
    places = [
        np.flatnonzero(gallery_labels[ranking] == label) + 1
        for ranking, label in zip(rankings, labels, strict=True)
    ]
    assert (ranks == np.array(places)).all()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_within_the_predicted_class_precision_and_map_are_the_accuracy(k):
    random = np.random.default_rng(0)
    gallery_labels = np.repeat(np.arange(4), 20)
    labels = random.integers(0, 4, MANY)
    predicted = np.where(random.random(MANY) < 0.7, labels, (labels + 1) % 4)
    accuracy = (predicted == labels).mean()
    assert 0 < accuracy < 1
    ranks = retrieval.relevant_ranks(
        random_unit(MANY, 8, 1),
        labels,
        random_unit(80, 8, 2),
        gallery_labels,
        retrieval.within(predicted, gallery_labels),
    )
    means = metrics.per_query(ranks, [k]).mean()
    assert means[f"precision@{k}"] == pytest.approx(accuracy)
    assert means["average_precision"] == pytest.approx(accuracy)
    assert means[f"average_precision@{k}"] == pytest.approx(accuracy)
    assert means["r_precision"] == pytest.approx(accuracy)


def test_beyond_the_class_size_precision_within_the_predicted_class_falls_below_accuracy():
    gallery_labels = np.repeat(np.arange(2), 10)
    labels = np.array([0, 1, 1])
    ranks = retrieval.relevant_ranks(
        random_unit(3, 8, 1),
        labels,
        random_unit(20, 8, 2),
        gallery_labels,
        retrieval.within(labels, gallery_labels),
    )
    # All ten of the class are found: 10 of 40.
    assert metrics.precision_at_k(ranks, 40) == pytest.approx([10 / 40] * 3)
