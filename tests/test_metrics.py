"""Every metric against values computed by hand, a slow reference, and scikit-learn."""

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, ndcg_score

from cbir.retrieval import metrics, ranking

NAN, INF = np.nan, np.inf
# Of metrics.py's docstring: a gallery of ten or more, relevant images at ranks 1, 3, 6 and 10.
EXAMPLE = np.array([[1, 3, 6, 10]], np.float32)
AT_K = [
    metrics.precision_at_k,
    metrics.recall_at_k,
    metrics.hit_rate_at_k,
    metrics.average_precision,
    metrics.ndcg_at_k,
]
WHOLE = [
    metrics.average_precision,
    metrics.average_precision_at_r,
    metrics.r_precision,
    metrics.reciprocal_rank,
]


def ranks(*rows) -> np.ndarray:
    """Rows of different lengths as relevant_ranks gives them."""
    table = np.full((len(rows), max(map(len, rows), default=0)), NAN, np.float32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def ranks_of(hits: list[bool], n_unreachable: int = 0) -> list[float]:
    """Ranks of the relevant images in a ranking given as hits and misses."""
    return [rank for rank, hit in enumerate(hits, start=1) if hit] + [INF] * n_unreachable


@pytest.mark.parametrize("metric", WHOLE)
def test_perfect_ranking_is_one(metric):
    assert metric(ranks([1, 2, 3])) == [1.0]


@pytest.mark.parametrize("metric", AT_K)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_perfect_ranking_is_one_up_to_the_number_of_relevant_images(metric, k):
    # Recall is the exception: k of 3 relevant images can be among the first k.
    expected = k / 3 if metric is metrics.recall_at_k else 1
    assert metric(ranks([1, 2, 3]), k) == pytest.approx([expected])


@pytest.mark.parametrize("metric", WHOLE)
def test_ranking_without_hits_is_zero(metric):
    assert metric(ranks([INF, INF])) == [0.0]


@pytest.mark.parametrize("metric", AT_K)
def test_no_hit_among_the_first_k_is_zero(metric):
    assert metric(ranks([6, 7, INF]), 5) == [0.0]


def test_relevant_images_are_counted_with_the_unreachable_ones():
    # Two finite and one infinite rank; one rank and two NaN; only NaN.
    assert metrics.n_relevant(ranks([1, 4, INF], [2], [])).tolist() == [3, 1, 0]


def test_mixed_precision_of_the_worked_example():
    # Ranks <= 3: {1, 3}, 2 of 3. Ranks <= 5: the same two of 5. Ranks <= 10: all four of 10.
    assert metrics.precision_at_k(EXAMPLE, 3) == pytest.approx([2 / 3])
    assert metrics.precision_at_k(EXAMPLE, 5) == pytest.approx([2 / 5])
    assert metrics.precision_at_k(EXAMPLE, 10) == pytest.approx([4 / 10])


def test_recall_of_the_worked_example():
    # {1, 3} of 4 relevant images; {1, 3, 6} of 4; all of them.
    assert metrics.recall_at_k(EXAMPLE, 3) == pytest.approx([2 / 4])
    assert metrics.recall_at_k(EXAMPLE, 6) == pytest.approx([3 / 4])
    assert metrics.recall_at_k(EXAMPLE, 10) == pytest.approx([1])


def test_hit_rate_of_the_worked_example_and_of_a_late_hit():
    # The first query has a hit at rank 1, the second has its first at rank 4.
    two_queries = ranks([1, 3, 6, 10], [4])
    assert metrics.hit_rate_at_k(two_queries, 3).tolist() == [1, 0]
    assert metrics.hit_rate_at_k(two_queries, 4).tolist() == [1, 1]


def test_average_precision_of_the_worked_example():
    # 1st hit at 1: 1/1; 2nd at 3: 2/3; 3rd at 6: 3/6; 4th at 10: 4/10.
    # (1 + 0.66667 + 0.5 + 0.4) / 4 = 2.56667 / 4 = 0.64167
    assert metrics.average_precision(EXAMPLE) == pytest.approx([(1 + 2 / 3 + 3 / 6 + 4 / 10) / 4])
    assert metrics.average_precision(EXAMPLE).round(3) == [0.642]


def test_average_precision_at_k_divides_by_the_smaller_of_k_and_the_relevant():
    # k = 3: hits at 1 and 3, (1/1 + 2/3) / min(4, 3) = 1.66667 / 3 = 0.55556
    assert metrics.average_precision(EXAMPLE, 3) == pytest.approx([(1 + 2 / 3) / 3])
    assert metrics.average_precision(EXAMPLE, 3).round(3) == [0.556]
    # k = 8: hits at 1, 3 and 6, (1 + 2/3 + 3/6) / min(4, 8) = 2.16667 / 4 = 0.54167
    assert metrics.average_precision(EXAMPLE, 8) == pytest.approx([(1 + 2 / 3 + 3 / 6) / 4])


def test_average_precision_at_r_of_the_worked_example():
    # R = 4; hits at 1 and 3 of the first four: (1/1 + 2/3) / 4 = 0.41667
    assert metrics.average_precision_at_r(EXAMPLE) == pytest.approx([(1 + 2 / 3) / 4])
    assert metrics.average_precision_at_r(EXAMPLE).round(3) == [0.417]


def test_average_precision_at_r_uses_the_number_of_relevant_images_per_query():
    # R = 1, rank 2 > 1: 0. R = 3, ranks 2 and 3: (1/2 + 2/3) / 3. R = 3, one of them reachable.
    scores = metrics.average_precision_at_r(ranks([2], [2, 3, 9], [1, INF, INF]))
    assert scores == pytest.approx([0, (1 / 2 + 2 / 3) / 3, 1 / 3])


def test_ndcg_of_the_worked_example():
    # k = 3: hits at 1 and 3, 1/log2(2) + 1/log2(4) = 1.5;
    # ideal at 1, 2 and 3, 1/log2(2) + 1/log2(3) + 1/log2(4) = 2.13093; 1.5 / 2.13093 = 0.70392
    assert metrics.ndcg_at_k(EXAMPLE, 3).round(3) == [0.704]
    # k = 6: another hit at 6, 1/log2(7) = 0.35621; ideal of min(4, 6) = 4 hits: another at 4,
    # 1/log2(5) = 0.43068; 1.85621 / 2.56161 = 0.72463
    assert metrics.ndcg_at_k(EXAMPLE, 6).round(5) == [0.72463]


def test_ndcg_divides_by_the_smaller_of_k_and_the_relevant():
    two_queries = ranks([1, 2], [2])
    # R = 2 and k = 5: the ideal is two hits. R = 1: 1/log2(3) of an ideal 1.
    assert metrics.ndcg_at_k(two_queries, 5) == pytest.approx([1, 1 / math.log2(3)])
    assert metrics.ndcg_at_k(two_queries, 1).tolist() == [1, 0]


def test_r_precision_of_the_worked_example():
    # R = 4; ranks <= 4 are {1, 3}: 2 of 4.
    assert metrics.r_precision(EXAMPLE) == pytest.approx([2 / 4])


def test_r_precision_uses_the_number_of_relevant_images_per_query():
    # R = 1, rank 2 > 1: 0 of 1. R = 3, ranks <= 3 are {2, 3}: 2 of 3.
    assert metrics.r_precision(ranks([2], [2, 3, 9])) == pytest.approx([0, 2 / 3])


def test_reciprocal_rank_uses_the_first_relevant_image():
    assert metrics.reciprocal_rank(EXAMPLE) == [1]
    assert metrics.reciprocal_rank(ranks([4, 5], [3], [INF])) == pytest.approx([1 / 4, 1 / 3, 0])


def test_unreachable_relevant_image_counts_as_missed():
    query_ranks = ranks([1, 2, INF, INF])
    # Two of four relevant images stand at ranks 1 and 2; the others are never returned.
    assert metrics.precision_at_k(query_ranks, 4) == pytest.approx([2 / 4])
    assert metrics.recall_at_k(query_ranks, 1000) == pytest.approx([2 / 4])
    # (1/1 + 2/2 + 0 + 0) / 4
    assert metrics.average_precision(query_ranks) == pytest.approx([2 / 4])
    # (1/1 + 2/2) / min(4, 2), and (1/1 + 2/2) / min(4, 3)
    assert metrics.average_precision(query_ranks, 2) == pytest.approx([1])
    assert metrics.average_precision(query_ranks, 3) == pytest.approx([2 / 3])
    assert metrics.r_precision(query_ranks) == pytest.approx([2 / 4])


def test_only_queries_without_relevant_images_are_nan():
    table = metrics.per_query(ranks([], [1, 2]), [1, 5])
    assert table["n_relevant"].tolist() == [0, 2]
    scores = table.drop(columns="n_relevant")
    assert scores.loc[0].isna().all()
    assert scores.loc[1].notna().all()


def test_all_queries_may_lack_relevant_images():
    table = metrics.per_query(np.empty((3, 0), np.float32), [1])
    assert len(table) == 3
    assert table.drop(columns="n_relevant").isna().all(axis=None)


def test_k_beyond_the_gallery_divides_by_k():
    # A gallery of three, all found: 3 of 100.
    everything = ranks([1, 2, 3])
    assert metrics.precision_at_k(everything, 100) == pytest.approx([3 / 100])
    assert metrics.recall_at_k(everything, 100) == [1]
    assert metrics.average_precision(everything, 100) == [1]
    assert metrics.ndcg_at_k(everything, 100) == [1]


def test_per_query_keeps_the_order_of_queries_and_names_each_k():
    table = metrics.per_query(ranks([1], [2]), [1, 2])
    assert list(table) == [
        "n_relevant", "average_precision", "r_precision", "average_precision_at_r",
        "reciprocal_rank",
        "precision@1", "recall@1", "hit_rate@1", "average_precision@1", "ndcg@1",
        "precision@2", "recall@2", "hit_rate@2", "average_precision@2", "ndcg@2",
    ]  # fmt: skip
    assert table["reciprocal_rank"].tolist() == [1, 0.5]
    assert table["precision@1"].tolist() == [1, 0]
    assert table["precision@2"].tolist() == [0.5, 0.5]
    assert table["average_precision@1"].tolist() == [1, 0]
    assert table["ndcg@1"].tolist() == [1, 0]


def test_scores_are_float64_and_silent_about_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = metrics.per_query(ranks([1, 3], [], [INF]), [1, 10])
    assert set(table.drop(columns="n_relevant").dtypes) == {np.dtype(np.float64)}


def test_ranks_of_a_large_gallery_are_not_rounded():
    # 3 / 16,000,001 in float32 would be off from the eighth digit on.
    query_ranks = ranks([1, 2, 16_000_001])
    assert metrics.average_precision(query_ranks)[0] == pytest.approx(
        (2 + 3 / 16_000_001) / 3, rel=1e-14
    )


def reference(hits: list[bool], n_relevant: int, k: int) -> dict[str, float]:
    """Every metric, slowly, from hits and misses; other relevant images are never returned."""
    names = ["average_precision", "r_precision", "average_precision_at_r", "reciprocal_rank"]
    at_k = ("precision", "recall", "hit_rate", "average_precision", "ndcg")
    names += [f"{name}@{k}" for name in at_k]
    if n_relevant == 0:
        return dict.fromkeys(names, NAN)

    def precision(depth: int) -> float:
        return sum(hits[:depth]) / depth

    def precisions(depth: int) -> float:
        return sum(precision(position + 1) for position, hit in enumerate(hits[:depth]) if hit)

    def gain(hits: list[bool]) -> float:
        return sum(1 / math.log2(position + 1) for position, hit in enumerate(hits, start=1) if hit)

    values = [
        precisions(len(hits)) / n_relevant,
        precision(n_relevant),
        precisions(n_relevant) / n_relevant,
        1 / (hits.index(True) + 1) if any(hits) else 0,
        precision(k),
        sum(hits[:k]) / n_relevant,
        float(any(hits[:k])),
        precisions(k) / min(n_relevant, k),
        gain(hits[:k]) / gain([True] * min(n_relevant, k)),
    ]
    return dict(zip(names, values, strict=True))


rankings = st.lists(
    st.tuples(st.lists(st.booleans(), max_size=12), st.integers(0, 3)), min_size=1, max_size=6
)


@settings(max_examples=50, deadline=None)
@given(queries=rankings, k=st.integers(1, 15))
def test_all_metrics_equal_the_slow_reference(queries, k):
    table = metrics.per_query(ranks(*(ranks_of(*query) for query in queries)), [k])
    for row, (hits, n_unreachable) in enumerate(queries):
        n_relevant = sum(hits) + n_unreachable
        assert table.loc[row, "n_relevant"] == n_relevant
        expected = reference(hits, n_relevant, k)
        assert table.loc[row, list(expected)].tolist() == pytest.approx(
            list(expected.values()), nan_ok=True
        )


@settings(max_examples=50, deadline=None)
@given(hits=st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_average_precision_equals_that_of_scikit_learn_without_ties(hits):
    falling = -np.arange(len(hits))
    expected = average_precision_score(hits, falling)
    assert metrics.average_precision(ranks(ranks_of(hits))) == pytest.approx([expected])


@settings(max_examples=50, deadline=None)
@given(hits=st.lists(st.booleans(), min_size=2, max_size=40).filter(any), k=st.integers(1, 50))
def test_ndcg_equals_that_of_scikit_learn_without_ties(hits, k):
    expected = ndcg_score([hits], [-np.arange(len(hits))], k=k)
    assert metrics.ndcg_at_k(ranks(ranks_of(hits)), k) == pytest.approx([expected])


# A slow and obvious version of evaluate_retrieval, from embeddings to scores.


def cosines(query: np.ndarray, gallery: np.ndarray) -> list[list[float]]:
    """Cosines of queries and images; products of equal rows are summed in the same order."""

    def cosine(query_row: list[float], gallery_row: list[float]) -> float:
        product = math.fsum(a * b for a, b in zip(query_row, gallery_row, strict=True))
        return product / math.hypot(*query_row) / math.hypot(*gallery_row)

    return [
        [cosine(query_row, gallery_row) for gallery_row in gallery.tolist()]
        for query_row in query.tolist()
    ]


def slow_evaluation(query, labels, gallery, gallery_labels, *, k, restrict_to=None, exclude=None):
    """One row per query. Cosines within 1e-9, which float64 may round apart, are ties."""
    rows = []
    for row, similarity in enumerate(cosines(query, gallery)):
        excluded = -1 if exclude is None else exclude[row]
        candidates = [position for position in range(len(gallery)) if position != excluded]
        n_relevant = sum(gallery_labels[position] == labels[row] for position in candidates)
        if restrict_to is not None:
            searched = restrict_to[row]
            candidates = [
                position
                for position in candidates
                if (
                    searched[gallery_labels[position]]
                    if restrict_to.ndim == 2
                    else searched == gallery_labels[position]
                )
            ]
        candidates.sort(key=lambda position: (-round(similarity[position], 9), position))
        hits = [bool(gallery_labels[position] == labels[row]) for position in candidates]
        rows.append({"n_relevant": n_relevant} | reference(hits, int(n_relevant), k))
    return pd.DataFrame(rows)


def assert_distinct_or_equal(similarities: list[list[float]]) -> None:
    """Discard examples with cosines that rounding may order either way."""
    for row in similarities:
        gaps = [larger - smaller for smaller, larger in itertools.pairwise(sorted(row))]
        assume(all(gap < 1e-9 or gap > 1e-5 for gap in gaps))


@st.composite
def questions(draw):
    """Few directions with several lengths, which are powers of two and therefore exact.

    Opposites make similarities negative; with one direction or one class everything ties.
    """
    dimensions, n_directions = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    n_queries, n_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 14))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    directions = random.normal(size=(n_directions, dimensions)).astype(dtype)

    def ids(size: int, least: int, most: int) -> np.ndarray:
        return draw(arrays(np.int64, size, elements=st.integers(least, most)))

    scale = 2.0 ** ids(n_gallery, -2, 2) * (2 * ids(n_gallery, 0, 1) - 1)
    gallery = directions[ids(n_gallery, 0, n_directions - 1)] * scale[:, None].astype(dtype)
    query = random.normal(size=(n_queries, dimensions)).astype(dtype)
    classes = draw(st.integers(1, 4))
    labels, gallery_labels = ids(n_queries, 0, classes), ids(n_gallery, 0, classes - 1)
    limits = {}
    kind = draw(st.sampled_from(["all", "one", "some"]))
    if kind == "one":
        limits["restrict_to"] = ids(n_queries, 0, classes)
    elif kind == "some":
        limits["restrict_to"] = draw(arrays(bool, (n_queries, classes)))
    if draw(st.booleans()):
        limits["exclude"] = ids(n_queries, -1, n_gallery - 1)
    return (query, labels, gallery, gallery_labels), limits


@settings(max_examples=300, deadline=None)
@given(question=questions(), k=st.integers(1, 20))
def test_evaluation_equals_the_slow_reference(question, k):
    arguments, limits = question
    assert_distinct_or_equal(cosines(arguments[0], arguments[2]))
    table = metrics.evaluate_retrieval(*arguments, ks=[k], **limits)
    expected = slow_evaluation(*arguments, k=k, **limits)
    assert list(table) == list(expected)
    np.testing.assert_allclose(table, expected, rtol=1e-12)


def question(n_queries=40, n_gallery=90, classes=4, seed=0):
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(n_queries, 6)),
        random.integers(0, classes, n_queries),
        random.normal(size=(n_gallery, 6)),
        random.integers(0, classes, n_gallery),
    )


def test_evaluation_of_many_blocks_keeps_the_order_of_queries():
    query, labels, gallery, gallery_labels = question(2 * ranking.BLOCK + 1)
    table = metrics.evaluate_retrieval(query, labels, gallery, gallery_labels)
    assert table.index.tolist() == list(range(len(query)))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery)]
    similarity = unit[0] @ unit[1].T
    expected = [
        average_precision_score(gallery_labels == label, row)
        for label, row in zip(labels, similarity, strict=True)
    ]
    assert table["average_precision"].tolist() == pytest.approx(expected)


def test_evaluation_has_a_column_for_each_metric_and_k():
    table = metrics.evaluate_retrieval(*question())
    assert len(table.columns) == 5 + 5 * 5
    assert [name for name in table if name.endswith("@1000")] == [
        "precision@1000", "recall@1000", "hit_rate@1000", "average_precision@1000", "ndcg@1000",
    ]  # fmt: skip
    whole = ["n_relevant", "average_precision", "r_precision", "average_precision_at_r",
             "reciprocal_rank"]  # fmt: skip
    assert list(metrics.evaluate_retrieval(*question(), ks=())) == whole
    twice = metrics.evaluate_retrieval(*question(), ks=np.array([5, 5]))
    assert list(twice) == list(metrics.evaluate_retrieval(*question(), ks=[5]))


def test_the_example_of_the_docstring():
    table = metrics.evaluate_retrieval([[1, 0]], [0], [[2, 0], [1, 1], [0, 3]], [0, 1, 0])
    assert table["average_precision"].tolist() == pytest.approx([(1 + 2 / 3) / 2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_lengths_of_vectors_do_not_matter(dtype):
    query, labels, gallery, gallery_labels = question()
    query, gallery = query.astype(dtype), gallery.astype(dtype)
    table = metrics.evaluate_retrieval(query, labels, gallery, gallery_labels)
    scaled = gallery * np.array([[0.5], [4]], dtype)[np.arange(len(gallery)) % 2]
    assert table.equals(metrics.evaluate_retrieval(query * 8, labels, scaled, gallery_labels))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_vectors_may_exceed_the_range_of_float32(scale):
    query, labels, gallery, gallery_labels = question()
    table = metrics.evaluate_retrieval(query, labels, gallery, gallery_labels)
    far = metrics.evaluate_retrieval(query * scale, labels, gallery / scale, gallery_labels)
    assert table.equals(far)


def test_rows_whose_directions_differ_by_rounding_errors_are_ties():
    # Both have the direction [3, 4], except for a small error in the second.
    gallery = np.array([[3, 4], [6 + 1e-12, 8]])
    for labels, rank in (([0, 1], 1), ([1, 0], 2)):
        table = metrics.evaluate_retrieval(np.array([[1.0, 0.3]]), [0], gallery, labels)
        assert table["reciprocal_rank"].tolist() == [1 / rank]


def test_identical_rows_keep_gallery_order():
    random = np.random.default_rng(2)
    gallery = random.normal(size=(4 * ranking.PIECE + 9, 64)).astype(np.float32)
    copies = [5, 6, 77, 2001, 4000, 4099, 4100, 4104]
    gallery[copies] = gallery[5]
    labels = np.zeros(len(gallery), int)
    labels[copies[1::2]] = 1
    query = gallery[5] + 0.1 * random.normal(size=(300, 64))
    table = metrics.evaluate_retrieval(query, np.ones(300, int), gallery, labels)
    # Ranks 2, 4, 6 and 8, each with a precision of one half.
    assert table["n_relevant"].tolist() == [4] * 300
    assert table["average_precision"].tolist() == [0.5] * 300


def test_searches_of_nothing_score_zero_and_queries_without_relevant_images_nan():
    query, labels, gallery, gallery_labels = question(3)
    labels[:] = 0, 1, 9
    nothing = np.zeros((3, 4), bool)
    table = metrics.evaluate_retrieval(query, labels, gallery, gallery_labels, restrict_to=nothing)
    counts = [(gallery_labels == label).sum() for label in labels]
    assert table["n_relevant"].tolist() == counts
    assert counts[2] == 0 < min(counts[:2])
    scores = table.drop(columns="n_relevant")
    assert (scores.loc[:1] == 0).all(axis=None)
    assert scores.loc[2].isna().all()


def test_excluded_images_also_do_not_count_in_restricted_searches():
    query = np.array([[1.0, 0]])
    gallery, gallery_labels = np.array([[1.0, 0], [1, 1], [1, 2]]), [0, 0, 1]
    arguments = query, [0], gallery, gallery_labels
    scores = metrics.evaluate_retrieval(*arguments, restrict_to=[0], exclude=[0])
    missed = metrics.evaluate_retrieval(*arguments, restrict_to=[1], exclude=[0])
    assert scores["n_relevant"].tolist() == missed["n_relevant"].tolist() == [1]
    assert scores["average_precision"].tolist() == [1]
    assert missed["average_precision"].tolist() == [0]


def test_copies_of_a_query_have_the_same_score():
    # Computed with integers: the average precision is 0.0970 for each.
    random = np.random.default_rng(0)
    gallery, gallery_labels = random.choice([-1.0, 1.0], (2000, 12)), random.integers(0, 10, 2000)
    query = random.choice([-1.0, 1.0], (1, 12))
    products = gallery.astype(int) @ query[0].astype(int)
    hits = gallery_labels[np.argsort(-products, kind="stable")] == 0
    expected = (np.cumsum(hits) / np.arange(1, 2001))[hits].mean()
    assert expected == pytest.approx(0.0970, abs=5e-5)
    table = metrics.evaluate_retrieval(
        np.tile(query, (300, 1)), np.zeros(300, int), gallery, gallery_labels
    )
    assert table["average_precision"].to_numpy() == pytest.approx(np.full(300, expected))


def test_repeated_evaluations_are_bit_identical():
    arguments = question(300, 5000)
    first, second = (metrics.evaluate_retrieval(*arguments).to_numpy() for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_inputs_are_not_changed():
    arguments = question()
    copies = [array.copy() for array in arguments]
    for array in arguments:
        array.flags.writeable = False
    metrics.evaluate_retrieval(*arguments, restrict_to=arguments[1], exclude=arguments[1])
    assert all(map(np.array_equal, arguments, copies))


def changed(array: np.ndarray, row, value) -> np.ndarray:
    array = np.array(array)
    array[row] = value
    return array


QUERY, LABELS, GALLERY, GALLERY_LABELS = question(5, 9)
# Rows 2 and 4 are invalid where one row can be, and errors name the first.
REFUSED = [
    ("query_embeddings", changed(QUERY, ([2, 4], 1), NAN), "row 2 is NaN or infinite"),
    ("query_embeddings", changed(QUERY, ([2, 4], 1), -INF), "row 2 is NaN or infinite"),
    ("query_embeddings", changed(QUERY, [2, 4], 0), "row 2 is zero"),
    ("query_embeddings", changed(changed(QUERY, 4, NAN), 2, 0), "row 2 is zero"),
    ("query_embeddings", QUERY[:0], r"\(0, 6\)"),
    ("query_embeddings", QUERY[:, :0], r"\(5, 0\)"),
    ("query_embeddings", QUERY[:, :4], "4 dimensions, gallery_embeddings: 6"),
    ("query_embeddings", QUERY[0], r"\(6,\)"),
    ("query_embeddings", QUERY.astype(str), "<U"),
    ("gallery_embeddings", changed(GALLERY, ([2, 4], 1), INF), "row 2 is NaN or infinite"),
    ("gallery_embeddings", changed(GALLERY, [2, 4], 0), "row 2 is zero"),
    ("gallery_embeddings", GALLERY[:0], r"\(0, 6\)"),
    ("gallery_embeddings", GALLERY[None], r"\(1, 9, 6\)"),
    ("query_labels", LABELS[1:], r"\(5,\) of int, got \(4,\)"),
    ("query_labels", LABELS[:, None], r"\(5, 1\)"),
    ("query_labels", LABELS.astype(float), "float64"),
    ("query_labels", changed(LABELS, [2, 4], -3), "row 2 is -3"),
    ("gallery_labels", GALLERY_LABELS[1:], r"\(9,\) of int, got \(8,\)"),
    ("gallery_labels", GALLERY_LABELS > 1, "bool"),
    ("gallery_labels", changed(GALLERY_LABELS, [2, 4], -1), "row 2 is -1"),
    ("restrict_to", LABELS[1:], r"\(5,\) of int, got \(4,\)"),
    ("restrict_to", LABELS > 1, "bool"),
    ("restrict_to", changed(LABELS, [2, 4], -1), "row 2 is -1"),
    ("restrict_to", np.ones((4, 4), bool), r"\(4, 4\)"),
    ("restrict_to", np.ones((5, 4), int), "int64"),
    ("restrict_to", np.ones((5, 4, 1), bool), r"\(5, 4, 1\)"),
    ("restrict_to", np.ones((5, 0), bool), "0 classes, but gallery_labels has 3"),
    ("exclude", LABELS[1:], r"\(5,\) of int, got \(4,\)"),
    ("exclude", LABELS.astype(float), "float64"),
    ("exclude", changed(LABELS, [2, 4], 9), "row 2 is 9, beyond 8"),
    ("exclude", changed(LABELS, [2, 4], -2), "row 2 is -2, below -1"),
    ("ks", [1, 0], "got 0"),
    ("ks", [-1], "got -1"),
    ("ks", [1.0], "got 1.0"),
    ("ks", [True], "got True"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_errors_name_the_invalid_argument_and_its_first_row(name, value, message):
    names = ["query_embeddings", "query_labels", "gallery_embeddings", "gallery_labels"]
    arguments = dict(zip(names, (QUERY, LABELS, GALLERY, GALLERY_LABELS), strict=True))
    metrics.evaluate_retrieval(**arguments)
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        metrics.evaluate_retrieval(**arguments | {name: value})


def test_errors_name_the_first_invalid_row_of_a_large_gallery():
    query, labels, gallery, gallery_labels = question(3, 5000)
    gallery[-3] = 0
    with pytest.raises(ValueError, match=f"gallery_embeddings: row {len(gallery) - 3} is zero"):
        metrics.evaluate_retrieval(query, labels, gallery, gallery_labels)


def test_errors_name_the_first_gallery_label_beyond_restrict_to():
    gallery_labels = changed(GALLERY_LABELS % 3, [3, 6], 3)
    restrict_to = np.ones((5, 3), bool)
    with pytest.raises(ValueError, match="^restrict_to: 3 classes, but gallery_labels has 3"):
        metrics.evaluate_retrieval(QUERY, LABELS, GALLERY, gallery_labels, restrict_to=restrict_to)


def test_metrics_do_not_import_keras():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, cbir.retrieval.metrics; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "cbir.retrieval.ranking" in loaded
    assert not {"keras", "tensorflow", "torch", "jax"} & set(loaded)
