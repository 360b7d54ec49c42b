"""Intervals and tests against scipy's, values worked out by hand, and simulated truth."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cbir.retrieval import uncertainty

NAN = np.nan


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def skewed(*shape: int, seed: int = 0) -> np.ndarray:
    """Like average precisions: between 0 and 1, many of them high."""
    return np.random.default_rng(seed).beta(2, 0.7, size=shape)


def scipy_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    interval = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile",
        batch=1000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    return interval.low, interval.high


def scipy_p(differences: np.ndarray) -> float:
    return scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, batch=1000,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip


# --- bootstrap


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_equals_that_of_scipy(level):
    values = np.column_stack([skewed(60), normal(60), skewed(60, seed=2) > 0.5])
    low, high = uncertainty.bootstrap(values, resamples=20_000, level=level)
    expected = np.array([scipy_interval(column, level) for column in values.T])
    # Both are quantiles of 20,000 random means: off by a few hundredths of the mean's own spread.
    error = values.std(axis=0) / np.sqrt(60)
    np.testing.assert_array_less(np.abs(low - expected[:, 0]), 0.06 * error)
    np.testing.assert_array_less(np.abs(high - expected[:, 1]), 0.06 * error)


def test_interval_of_two_queries_worked_out():
    # Means of two draws from {0, 1}: 0 in a quarter of the cases, 1/2 in a half, 1 in a quarter.
    low, high = uncertainty.bootstrap(np.array([[0.0], [1.0]]), level=0.6)
    assert (low, high) == (0, 1)
    low, high = uncertainty.bootstrap(np.array([[0.0], [1.0]]), level=0.4)
    assert (low, high) == (0.5, 0.5)


def test_query_without_a_value_is_left_out_of_its_column_alone():
    values = skewed(400, 2)
    values[::2, 0] = NAN
    low, high = uncertainty.bootstrap(values, resamples=20_000)
    # scipy draws from the 200 values present, always 200 of them; here their number varies a bit.
    expected = scipy_interval(values[1::2, 0], 0.95)
    error = np.nanstd(values[:, 0]) / np.sqrt(200)
    assert (low[0], high[0]) == pytest.approx(expected, abs=0.1 * error)
    alone = uncertainty.bootstrap(values[:, [1]], resamples=20_000)
    assert (low[1], high[1]) == pytest.approx(np.ravel(alone), abs=1e-12)


def test_nothing_is_said_of_fewer_than_two_values():
    values = np.array([[1.0, NAN, 0.1], [NAN, NAN, 0.3], [NAN, NAN, 0.2]])
    low, high = uncertainty.bootstrap(values)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, False]
    assert np.isnan(uncertainty.bootstrap(np.array([[0.5]]))).all()
    assert np.isnan(uncertainty.bootstrap(np.empty((0, 2)))).all()


def test_resample_that_caught_no_value_of_a_column_is_left_out():
    # Two values among a hundred queries: an eighth of the resamples has neither.
    values = np.full((100, 1), NAN)
    values[:2] = [[0.0], [1.0]]
    assert np.ravel(uncertainty.bootstrap(values)).tolist() == [0, 1]


def test_interval_is_the_same_again_whatever_the_batches_and_another_with_another_seed(monkeypatch):
    values = skewed(50, 3)
    first = uncertainty.bootstrap(values)
    np.testing.assert_array_equal(first, uncertainty.bootstrap(values))
    assert (np.array(first) != uncertainty.bootstrap(values, seed=1)).all()
    monkeypatch.setattr(uncertainty, "BATCH", 170)
    np.testing.assert_allclose(first, uncertainty.bootstrap(values), rtol=1e-12)


def test_every_column_is_resampled_with_the_same_queries():
    column = skewed(30, 1)
    low, high = uncertainty.bootstrap(np.hstack([column, column + 1, -column]))
    assert low[1] == pytest.approx(low[0] + 1)
    assert (low[2], high[2]) == pytest.approx((-high[0], -low[0]))


def test_interval_covers_the_true_mean_as_often_as_it_says():
    # 2,000 samples of 60 queries, one a column, of a distribution with mean 2 / 2.7.
    low, high = uncertainty.bootstrap(skewed(60, 2000))
    covered = ((low <= 2 / 2.7) & (high >= 2 / 2.7)).mean()
    assert 0.93 <= covered <= 0.96


@pytest.mark.parametrize("values", [np.array([0.1, 0.2]), np.array([[0.1], [np.inf]])])
def test_bootstrap_refuses_what_is_no_matrix_of_finite_values(values):
    with pytest.raises(ValueError, match="matrix"):
        uncertainty.bootstrap(values)


@settings(max_examples=60, deadline=None)
@given(
    values=arrays.arrays(
        np.float64, st.tuples(st.integers(2, 12), st.integers(1, 4)),
        elements=st.floats(0, 1) | st.just(NAN),
    )
)  # fmt: skip
def test_interval_lies_within_the_values(values):
    low, high = uncertainty.bootstrap(values, resamples=200)
    for column, (start, end) in enumerate(zip(low, high, strict=True)):
        present = values[:, column][~np.isnan(values[:, column])]
        if len(present) < 2:
            assert np.isnan([start, end]).all()
        else:
            assert present.min() - 1e-12 <= start <= end <= present.max() + 1e-12


def test_intervals_have_a_row_per_column_in_order():
    values = pd.DataFrame({"b": [0.2, 0.4, 0.9], "a": [1.0, NAN, NAN], "c": [NAN] * 3})
    table = uncertainty.intervals(values)
    assert list(table) == ["value", "ci_low", "ci_high", "n_queries"]
    assert table.index.tolist() == ["b", "a", "c"]
    assert table["value"].tolist() == pytest.approx([0.5, 1, NAN], nan_ok=True)
    assert table["n_queries"].tolist() == [3, 1, 0]
    low, high = uncertainty.bootstrap(values.to_numpy())
    np.testing.assert_array_equal(table[["ci_low", "ci_high"]].T, [low, high])
    assert low[0] < 0.5 < high[0]


# --- permutation_test


def test_exact_test_worked_out():
    # Sums of ±1 ±2 ±3: 6, 4, 2, 0 and their opposites. |sum| >= 6: 2 of 8.
    assert uncertainty.permutation_test([1, 2, 3]) == 2 / 8
    # The sum seen is 1 + 2 - 3 = 0, which all 8 reach; that of 3 + 2 - 1 is 4: 4 of 8.
    assert uncertainty.permutation_test([1, 2, -3]) == 1
    assert uncertainty.permutation_test([3, 2, -1]) == 4 / 8


def test_exact_test_counts_equal_sums_that_differ_by_rounding():
    # |±0.1 ±0.2 ±0.3 ±0.4| >= 0.4, as seen: 10 of 16 in exact numbers (0, 0.2 the other 6).
    assert uncertainty.permutation_test([0.1, 0.2, -0.3, 0.4]) == 10 / 16


@pytest.mark.parametrize("n", [2, 5, 12, 13])
@pytest.mark.parametrize("shift", [0, 0.7])
def test_exact_test_equals_that_of_scipy(n, shift):
    differences = normal(n, seed=n) + shift
    assert uncertainty.permutation_test(differences) == pytest.approx(scipy_p(differences))


@pytest.mark.parametrize("shift", [0, 0.1, 0.2, 0.5])
def test_random_test_equals_that_of_scipy(shift):
    differences = normal(100, seed=5) + shift
    expected = scipy_p(differences)
    # Three standard errors of the difference between shares of 10,000 and of 20,000 draws.
    tolerance = 3 * np.sqrt(expected * (1 - expected) * 1.5 / 10_000) + 2e-4
    assert uncertainty.permutation_test(differences) == pytest.approx(expected, abs=tolerance)


def test_exact_and_random_test_agree_at_the_border(monkeypatch):
    differences = normal(13, seed=8) + 0.4
    exact = uncertainty.permutation_test(differences)
    monkeypatch.setattr(uncertainty, "EXACT_UP_TO", 12)
    drawn = uncertainty.permutation_test(differences, permutations=50_000)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.006)


def test_p_is_never_zero_and_as_small_as_the_permutations_allow():
    assert uncertainty.permutation_test(np.ones(200), permutations=999) == 1 / 1000


def test_differences_that_are_all_zero_or_missing():
    assert uncertainty.permutation_test(np.zeros(5)) == 1
    assert uncertainty.permutation_test(np.zeros(50)) == 1
    assert np.isnan(uncertainty.permutation_test([]))
    assert np.isnan(uncertainty.permutation_test([NAN, NAN]))


def test_missing_difference_is_left_out():
    given = normal(12) + 0.5
    with_missing = np.insert(given, [0, 4, 9], NAN)
    assert uncertainty.permutation_test(with_missing) == uncertainty.permutation_test(given)


def test_permutation_test_is_the_same_again_and_its_two_sides_agree(monkeypatch):
    differences = normal(40, seed=3) + 0.2
    first = uncertainty.permutation_test(differences)
    assert first == uncertainty.permutation_test(differences)
    assert first == uncertainty.permutation_test(-differences)
    assert first != uncertainty.permutation_test(differences, seed=1)
    monkeypatch.setattr(uncertainty, "BATCH", 1000)
    assert first == pytest.approx(uncertainty.permutation_test(differences), abs=0.02)


def test_true_null_hypothesis_is_rejected_as_rarely_as_it_should():
    # 300 samples of 30 differences around 0: p < 0.05 in about 15, with standard deviation 3.8.
    samples = normal(300, 30, seed=4)
    p_values = [uncertainty.permutation_test(sample, permutations=999) for sample in samples]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_permutation_test_refuses_a_matrix_and_infinity():
    with pytest.raises(ValueError, match="one-dimensional"):
        uncertainty.permutation_test(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        uncertainty.permutation_test([1, np.inf])


# --- holm


def test_holm_worked_out():
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 are 0.02, 0.03, 0.06, 0.04; the last may
    # not fall below the one before.
    adjusted = uncertainty.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_and_does_not_count_nan():
    assert uncertainty.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert uncertainty.holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert uncertainty.holm([NAN, 0.02, 0.03]) == pytest.approx([NAN, 0.04, 0.04], nan_ok=True)
    assert uncertainty.holm([]).shape == (0,)


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_that_of_bonferroni(p_values):
    p_values = np.array(p_values)
    adjusted = uncertainty.holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(p_values * len(p_values), 1)).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()


# --- compare, outcomes


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """a and b alike, c well ahead of both, on the same 100 queries."""
    hard = skewed(100)
    noise = 0.04 * normal(100, 3, seed=1)
    return pd.DataFrame(hard[:, None] + noise + [0, 0, 0.05], columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def pairs(scores) -> pd.DataFrame:
    return uncertainty.compare(scores)


def test_compare_has_a_row_per_pair(pairs):
    assert list(pairs) == [
        "ahead", "behind", "difference", "ci_low", "ci_high", "p", "p_holm", "effect_size",
        "n_queries", "is_significant",
    ]  # fmt: skip
    assert {frozenset(pair) for pair in zip(pairs["ahead"], pairs["behind"], strict=True)} == {
        frozenset("ab"),
        frozenset("ac"),
        frozenset("bc"),
    }
    assert (pairs["difference"] >= 0).all()
    assert (pairs["n_queries"] == 100).all()


def test_compare_tells_apart_what_differs_and_nothing_else(pairs):
    significant = {pair.ahead + pair.behind for pair in pairs.itertuples() if pair.is_significant}
    assert significant == {"ca", "cb"}


def test_compare_is_paired(pairs, scores):
    # The queries differ far more than the architectures: unpaired, nothing would be significant.
    assert scipy.stats.ttest_ind(scores["c"], scores["b"]).pvalue > 0.05
    row = pairs[(pairs["ahead"] == "c") & (pairs["behind"] == "b")].iloc[0]
    differences = (scores["c"] - scores["b"]).to_numpy()
    low, high = scipy_interval(differences, 0.95)
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-3)
    assert row["effect_size"] == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_compare_tests_each_pair_and_corrects_over_the_table(pairs, scores):
    for pair in pairs.itertuples():
        p = uncertainty.permutation_test(scores[pair.ahead] - scores[pair.behind])
        assert pair.p == pytest.approx(p, abs=0.02)
    np.testing.assert_array_equal(pairs["p_holm"], uncertainty.holm(pairs["p"]))
    assert (pairs["p_holm"] > pairs["p"]).any()


def test_correction_can_take_back_what_one_test_alone_would_say():
    # 7 of 7 signs alike: 2 of 128, or 0.016. Among three pairs it becomes 0.047, among six 0.094.
    table = pd.DataFrame({"a": [1.0] * 7, "b": [0.0] * 7, "c": [0.0] * 7, "d": [0.0] * 7})
    three = uncertainty.compare(table[["a", "b", "c"]]).query("ahead == 'a'")
    four = uncertainty.compare(table).query("ahead == 'a'")
    assert three["p"].tolist() == [2 / 128] * 2
    assert three["p_holm"].tolist() == pytest.approx([6 / 128] * 2)
    assert three["is_significant"].all()
    assert four["p_holm"].tolist() == pytest.approx([12 / 128] * 3)
    assert not four["is_significant"].any()


def test_order_of_the_columns_changes_nothing(pairs, scores):
    pd.testing.assert_frame_equal(uncertainty.compare(scores[["c", "b", "a"]]), pairs)
    pd.testing.assert_frame_equal(uncertainty.compare(scores[["b", "c", "a"]]), pairs)


def test_pair_is_compared_on_the_queries_that_both_have():
    # By their own means a is ahead (0.9 to 0.6), on the two shared queries b is.
    table = pd.DataFrame({"a": [0.3, 0.4, 1.0, 1.9], "b": [0.5, 0.7, NAN, NAN]})
    pair = uncertainty.compare(table).iloc[0]
    assert (pair["ahead"], pair["behind"], pair["n_queries"]) == ("b", "a", 2)
    assert pair["difference"] == pytest.approx((0.2 + 0.3) / 2)
    # Means of two draws from {0.2, 0.3}; signs alike in 2 of 4 choices.
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((0.2, 0.3))
    assert pair["p"] == 2 / 4
    assert pair["effect_size"] == pytest.approx(0.25 / (0.05 * np.sqrt(2)))


def test_architectures_that_are_equal_on_every_query():
    pair = uncertainty.compare(pd.DataFrame({"b": skewed(20), "a": skewed(20)})).iloc[0]
    assert (pair["ahead"], pair["behind"]) == ("a", "b")
    assert pair[["difference", "ci_low", "ci_high", "effect_size"]].tolist() == [0] * 4
    assert (pair["p"], pair["is_significant"]) == (1, False)


def test_effect_size_of_equal_differences_is_undefined_not_infinite():
    table = pd.DataFrame({"a": skewed(20) + 0.3, "b": skewed(20)})
    assert np.isnan(uncertainty.compare(table)["effect_size"][0])


def test_one_query_none_shared_one_architecture():
    single = uncertainty.compare(pd.DataFrame({"a": [0.1], "b": [0.4]})).iloc[0]
    assert (single["ahead"], single["n_queries"], single["p"]) == ("b", 1, 1)
    assert single[["ci_low", "ci_high", "effect_size"]].isna().all()
    apart = uncertainty.compare(pd.DataFrame({"a": [0.1, NAN], "b": [NAN, 0.4]})).iloc[0]
    assert apart["n_queries"] == 0
    assert not apart["is_significant"]
    assert apart[["difference", "p", "p_holm"]].isna().all()
    assert uncertainty.compare(pd.DataFrame({"a": [0.1, 0.2]})).empty


def test_architectures_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same name"):
        uncertainty.compare(pd.DataFrame(np.ones((3, 2)), columns=["a", "a"]))


def test_outcomes(pairs):
    table = uncertainty.pair_outcomes(pairs, ["a", "b", "c"])
    assert table.loc["c"].tolist() == ["win", "win", ""]
    assert table["c"].tolist() == ["loss", "loss", ""]
    assert (table.loc["a", "b"], table.loc["b", "a"], table.loc["a", "a"]) == ("tie", "tie", "")


def test_outcomes_of_some_architectures_and_of_one_without_results(pairs):
    table = uncertainty.pair_outcomes(pairs, ["c", "x", "a"])
    assert table.index.tolist() == table.columns.tolist() == ["c", "x", "a"]
    assert table.to_numpy().tolist() == [["", "", "win"], ["", "", ""], ["loss", "", ""]]
