"""Every metric against values worked out by hand, a slow reference, and scikit-learn."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cbir import metrics

NAN, INF = np.nan, np.inf
# Of metrics.py's docstring: a gallery of ten or more, relevant images at ranks 1, 3, 6 and 10.
EXAMPLE = np.array([[1, 3, 6, 10]], np.float32)
AT_K = [
    metrics.precision_at_k,
    metrics.recall_at_k,
    metrics.hit_rate_at_k,
    metrics.average_precision,
]
WHOLE = [metrics.average_precision, metrics.r_precision, metrics.reciprocal_rank]


def ranks(*rows) -> np.ndarray:
    """Rows of different lengths as relevant_ranks gives them."""
    filled = np.full((len(rows), max(map(len, rows), default=0)), NAN, np.float32)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return filled


def ranks_of(found: list[bool], n_unreachable: int = 0) -> list[float]:
    """Ranks of the relevant images in a ranking given as hits and misses."""
    return [place for place, hit in enumerate(found, start=1) if hit] + [INF] * n_unreachable


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
def test_nothing_ever_found_is_zero(metric):
    assert metric(ranks([INF, INF])) == [0.0]


@pytest.mark.parametrize("metric", AT_K)
def test_no_hit_among_the_first_k_is_zero(metric):
    assert metric(ranks([6, 7, INF]), 5) == [0.0]


def test_relevant_images_are_counted_with_the_unreachable_ones():
    # Two finite and one infinite rank; two places left over; none at all.
    assert metrics.n_relevant(ranks([1, 4, INF], [2], [])).tolist() == [3, 1, 0]


def test_precision_of_the_worked_example():
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
    both = ranks([1, 3, 6, 10], [4])
    assert metrics.hit_rate_at_k(both, 3).tolist() == [1, 0]
    assert metrics.hit_rate_at_k(both, 4).tolist() == [1, 1]


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


def test_r_precision_of_the_worked_example():
    # R = 4; ranks <= 4 are {1, 3}: 2 of 4.
    assert metrics.r_precision(EXAMPLE) == pytest.approx([2 / 4])


def test_r_precision_takes_each_query_at_its_own_number_of_relevant_images():
    # R = 1, rank 2 > 1: 0 of 1. R = 3, ranks <= 3 are {2, 3}: 2 of 3.
    assert metrics.r_precision(ranks([2], [2, 3, 9])) == pytest.approx([0, 2 / 3])


def test_reciprocal_rank_is_of_the_first_relevant_image():
    assert metrics.reciprocal_rank(EXAMPLE) == [1]
    assert metrics.reciprocal_rank(ranks([4, 5], [3], [INF])) == pytest.approx([1 / 4, 1 / 3, 0])


def test_unreachable_relevant_image_counts_as_missed():
    found = ranks([1, 2, INF, INF])
    # Two of four relevant images stand at ranks 1 and 2; the others are never returned.
    assert metrics.precision_at_k(found, 4) == pytest.approx([2 / 4])
    assert metrics.recall_at_k(found, 1000) == pytest.approx([2 / 4])
    # (1/1 + 2/2 + 0 + 0) / 4
    assert metrics.average_precision(found) == pytest.approx([2 / 4])
    # (1/1 + 2/2) / min(4, 2), and (1/1 + 2/2) / min(4, 3)
    assert metrics.average_precision(found, 2) == pytest.approx([1])
    assert metrics.average_precision(found, 3) == pytest.approx([2 / 3])
    assert metrics.r_precision(found) == pytest.approx([2 / 4])


def test_query_without_relevant_images_is_nan_beside_one_that_has_some():
    table = metrics.per_query(ranks([], [1, 2]), [1, 5])
    assert table["n_relevant"].tolist() == [0, 2]
    scores = table.drop(columns="n_relevant")
    assert scores.loc[0].isna().all()
    assert scores.loc[1].notna().all()


def test_no_query_has_relevant_images():
    table = metrics.per_query(np.empty((3, 0), np.float32), [1])
    assert len(table) == 3
    assert table.drop(columns="n_relevant").isna().all(axis=None)


def test_k_beyond_the_gallery_divides_by_k():
    # A gallery of three, all found: 3 of 100.
    everything = ranks([1, 2, 3])
    assert metrics.precision_at_k(everything, 100) == pytest.approx([3 / 100])
    assert metrics.recall_at_k(everything, 100) == [1]
    assert metrics.average_precision(everything, 100) == [1]


def test_per_query_keeps_the_order_of_queries_and_names_each_k():
    table = metrics.per_query(ranks([1], [2]), [1, 2])
    assert list(table) == [
        "n_relevant", "average_precision", "r_precision", "reciprocal_rank",
        "precision@1", "recall@1", "hit_rate@1", "average_precision@1",
        "precision@2", "recall@2", "hit_rate@2", "average_precision@2",
    ]  # fmt: skip
    assert table["reciprocal_rank"].tolist() == [1, 0.5]
    assert table["precision@1"].tolist() == [1, 0]
    assert table["precision@2"].tolist() == [0.5, 0.5]
    assert table["average_precision@1"].tolist() == [1, 0]


def test_scores_are_float64_and_silent_about_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = metrics.per_query(ranks([1, 3], [], [INF]), [1, 10])
    assert set(table.drop(columns="n_relevant").dtypes) == {np.dtype(np.float64)}


def test_ranks_of_a_large_gallery_are_not_rounded():
    # 3 / 16,000,001 in float32 would be off from the eighth digit on.
    found = ranks([1, 2, 16_000_001])
    assert metrics.average_precision(found)[0] == pytest.approx((2 + 3 / 16_000_001) / 3, rel=1e-14)


def reference(found: list[bool], n_relevant: int, k: int) -> dict[str, float]:
    """Each metric, slowly, from hits and misses; the rest of n_relevant is never returned."""
    names = ["average_precision", "r_precision", "reciprocal_rank"]
    names += [f"{name}@{k}" for name in ("precision", "recall", "hit_rate", "average_precision")]
    if n_relevant == 0:
        return dict.fromkeys(names, NAN)

    def precision(depth: int) -> float:
        return sum(found[:depth]) / depth

    def precisions(depth: int) -> float:
        return sum(precision(place + 1) for place, hit in enumerate(found[:depth]) if hit)

    values = [
        precisions(len(found)) / n_relevant,
        precision(n_relevant),
        1 / (found.index(True) + 1) if any(found) else 0,
        precision(k),
        sum(found[:k]) / n_relevant,
        float(any(found[:k])),
        precisions(k) / min(n_relevant, k),
    ]
    return dict(zip(names, values, strict=True))


rankings = st.lists(
    st.tuples(st.lists(st.booleans(), max_size=12), st.integers(0, 3)), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(queries=rankings, k=st.integers(1, 15))
def test_all_metrics_equal_the_slow_reference(queries, k):
    table = metrics.per_query(ranks(*(ranks_of(*query) for query in queries)), [k])
    for row, (found, n_unreachable) in enumerate(queries):
        n_relevant = sum(found) + n_unreachable
        assert table.loc[row, "n_relevant"] == n_relevant
        expected = reference(found, n_relevant, k)
        assert table.loc[row, list(expected)].tolist() == pytest.approx(
            list(expected.values()), nan_ok=True
        )


@settings(max_examples=100, deadline=None)
@given(found=st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_average_precision_equals_that_of_scikit_learn_without_ties(found):
    falling = -np.arange(len(found))
    expected = average_precision_score(found, falling)
    assert metrics.average_precision(ranks(ranks_of(found))) == pytest.approx([expected])
