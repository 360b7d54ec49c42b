"""Intervals and tests: against scipy, by hand, and in simulations."""

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
    """Values like average precisions: between 0 and 1, many of them high."""
    return np.random.default_rng(seed).beta(2, 0.7, size=shape)


def scipy_p(differences: np.ndarray) -> float:
    return scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, batch=1000,
        rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip


# --- intervals


@pytest.mark.parametrize(
    ("right", "n"), [(36, 36), (2, 2), (0, 7), (30, 36), (1, 359), (9990, 10000)]
)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_of_a_share_equals_clopper_and_pearson(right, n, level):
    shares = np.repeat([1.0, 0.0], [right, n - right])[:, None]
    expected = scipy.stats.binomtest(right, n).proportion_ci(level)
    bounds = uncertainty.confidence_bounds(shares, level=level)
    assert np.ravel(bounds) == pytest.approx([expected.low, expected.high])


def test_interval_of_a_share_of_one_by_hand():
    # All of n are right with probability share ** n, which is 0.025 at the low end.
    for n in (2, 36):
        low, high = uncertainty.confidence_bounds(np.ones((n, 1)))
        assert (low.item(), high.item()) == pytest.approx((0.025 ** (1 / n), 1))


def test_interval_of_scores_near_0_and_1_approaches_that_of_shares():
    """The random weights of both are beta distributed."""
    shares = np.repeat([1.0, 0.0], [90, 10])[:, None]
    near = np.where(shares == 1, 1 - 1e-4, 1e-4)
    drawn = uncertainty.confidence_bounds(near, resamples=100_000)
    exact = uncertainty.confidence_bounds(shares)
    np.testing.assert_allclose(drawn, exact, atol=2e-3)


def test_interval_with_a_further_query_at_each_limit_by_hand():
    # One value, 0.5, twice: the weight of the further query has the distribution beta(1, 2), whose
    # quantile of 0.975 is 1 - 0.025 ** 0.5 = 0.842.
    weight = 1 - 0.025**0.5
    low, high = uncertainty.confidence_bounds(np.full((2, 1), 0.5), resamples=200_000)
    assert (low.item(), high.item()) == pytest.approx(
        (0.5 - 0.5 * weight, 0.5 + 0.5 * weight), abs=2e-3
    )
    low, high = uncertainty.confidence_bounds(
        np.full((2, 1), 0.5), limits=(0.4, 1), resamples=200_000
    )
    assert (low.item(), high.item()) == pytest.approx(
        (0.5 - 0.1 * weight, 0.5 + 0.5 * weight), abs=2e-3
    )


def test_interval_of_many_values_approaches_the_normal_one():
    values = skewed(20_000)[:, None]
    low, high = uncertainty.confidence_bounds(values)
    half = 1.96 * values.std() / np.sqrt(20_000)
    assert (low.item(), high.item()) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=half / 7
    )


@pytest.mark.parametrize("n", [30, 100])
def test_interval_covers_the_true_mean_at_its_level(n):
    # 500 samples, one per column: mostly 1 with a tail, like average precisions of good networks.
    random = np.random.default_rng(0)
    is_miss = random.random((n, 500)) < 0.06
    values = np.where(
        is_miss, random.uniform(0, 0.8, (n, 500)), 1 - random.uniform(0, 0.002, (n, 500))
    )
    mean = 0.06 * 0.4 + 0.94 * 0.999
    low, high = uncertainty.confidence_bounds(values)
    assert ((low <= mean) & (mean <= high)).mean() >= 0.93


def test_equal_limits_give_a_point():
    values = np.column_stack([np.ones(5), np.full(5, 0.3)])
    low, high = uncertainty.confidence_bounds(
        values, limits=(np.array([1, 0.3]), np.array([1, 0.3]))
    )
    assert low.tolist() == high.tolist() == [1, 0.3]


def test_limits_may_differ_by_column_and_differences_have_symmetric_ones():
    values = np.column_stack([skewed(40), skewed(40)])
    low, high = uncertainty.confidence_bounds(values, limits=(np.zeros(2), np.array([1, 2])))
    assert low[0] == low[1]
    assert high[0] < high[1]
    differences = skewed(40)[:, None] - 0.8
    reach = np.abs(differences).max()
    expected = uncertainty.confidence_bounds(differences, limits=(-reach, reach))
    bounds = uncertainty.confidence_bounds(differences, limits=None)
    np.testing.assert_array_equal(bounds, expected)
    mirrored = uncertainty.confidence_bounds(-differences, limits=None)
    assert np.ravel(mirrored) == pytest.approx([-expected[1].item(), -expected[0].item()])
    # No difference among 36 queries does not mean that there is none at all.
    for equal in (np.zeros((36, 1)), np.full((36, 1), 1e-17)):
        low, high = uncertainty.confidence_bounds(equal, limits=None)
        assert (low.item(), high.item()) == pytest.approx((-0.094, 0.094), abs=5e-3)


def test_values_beyond_a_limit_are_refused_but_not_rounding_errors():
    with pytest.raises(ValueError, match="column 0: .* beyond its limits, 0 to 1"):
        uncertainty.confidence_bounds(np.array([[0.5], [1.01]]))
    with pytest.raises(ValueError, match="column 0: .* beyond its limits, 0 to 1"):
        uncertainty.confidence_bounds(np.array([[0.5], [-0.01]]))
    exact = uncertainty.confidence_bounds(np.array([[1.0], [0.0], [1.0]]))
    rounded = uncertainty.confidence_bounds(np.array([[1 + 1e-15], [1e-15], [1 - 1e-15]]))
    np.testing.assert_array_equal(rounded, exact)


def test_query_without_a_value_is_left_out_of_only_its_column():
    values = skewed(400, 2)
    values[::2, 0] = NAN
    low, high = uncertainty.confidence_bounds(values, resamples=20_000)
    fewer = np.ravel(uncertainty.confidence_bounds(values[1::2, [0]], resamples=20_000))
    error = np.nanstd(values[:, 0]) / np.sqrt(200)
    assert (low[0], high[0]) == pytest.approx(fewer, abs=0.1 * error)
    alone = uncertainty.confidence_bounds(values[:, [1]], resamples=20_000)
    assert (low[1], high[1]) == pytest.approx(np.ravel(alone), abs=1e-12)
    shares = np.array([[1.0], [NAN], [1.0]])
    assert uncertainty.confidence_bounds(shares)[0] == pytest.approx(0.025**0.5)


def test_fewer_than_two_values_have_no_interval():
    values = np.array([[1.0, NAN, 0.1], [NAN, NAN, 0.3], [NAN, NAN, 0.2]])
    low, high = uncertainty.confidence_bounds(values)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, True, False]
    assert np.isnan(uncertainty.confidence_bounds(np.array([[0.5]]))).all()
    assert np.isnan(uncertainty.confidence_bounds(np.empty((0, 2)), limits=None)).all()


def test_interval_depends_on_the_seed_and_not_on_batches(monkeypatch):
    values = skewed(50, 3)
    first = uncertainty.confidence_bounds(values)
    np.testing.assert_array_equal(first, uncertainty.confidence_bounds(values))
    assert (np.array(first) != uncertainty.confidence_bounds(values, seed=1)).all()
    monkeypatch.setattr(uncertainty, "BATCH", 170)
    np.testing.assert_allclose(first, uncertainty.confidence_bounds(values), rtol=1e-12)


@pytest.mark.parametrize("values", [np.array([0.1, 0.2]), np.array([[0.1], [np.inf]])])
def test_values_other_than_a_matrix_of_finite_values_are_refused(values):
    with pytest.raises(ValueError, match="matrix"):
        uncertainty.confidence_bounds(values)


@settings(max_examples=60, deadline=None)
@given(
    values=arrays.arrays(
        np.float64, st.tuples(st.integers(2, 12), st.integers(1, 4)),
        elements=st.floats(0, 1) | st.just(NAN),
    )
)  # fmt: skip
def test_interval_surrounds_the_mean_within_the_limits(values):
    low, high = uncertainty.confidence_bounds(values, resamples=200)
    for column, (start, end) in enumerate(zip(low, high, strict=True)):
        present = values[:, column][~np.isnan(values[:, column])]
        if len(present) < 2:
            assert np.isnan([start, end]).all()
        else:
            assert 0 <= start <= present.mean() + 1e-12
            assert present.mean() - 1e-12 <= end <= 1
            assert end - start > 0.2


def test_intervals_have_one_row_per_column_in_order():
    values = pd.DataFrame({"b": [0.2, 0.4, 0.9], "a": [1.0, NAN, NAN], "c": [NAN] * 3})
    table = uncertainty.intervals(values)
    assert list(table) == ["value", "ci_low", "ci_high", "n_queries"]
    assert table.index.tolist() == ["b", "a", "c"]
    assert table["value"].tolist() == pytest.approx([0.5, 1, NAN], nan_ok=True)
    assert table["n_queries"].tolist() == [3, 1, 0]
    low, high = uncertainty.confidence_bounds(values.to_numpy())
    np.testing.assert_array_equal(table[["ci_low", "ci_high"]].T, [low, high])
    assert low[0] < 0.5 < high[0]
    wider = uncertainty.intervals(values, limits=(-1, 1))
    assert wider.loc["b", "ci_low"] < low[0]


# --- permutation_test


def test_equal_sums_that_differ_by_rounding_are_counted(monkeypatch):
    # |±0.1 ±0.2 ±0.3 ±0.4| is at least 0.4, the observed sum, in 10 of 16 cases (else 0 or 0.2).
    monkeypatch.setattr(uncertainty, "MIN_QUERIES", 4)
    p = uncertainty.permutation_test([0.1, 0.2, -0.3, 0.4])
    assert p == pytest.approx(10 / 16, abs=0.02)


def test_fewer_differences_than_needed_have_no_p_value():
    enough = uncertainty.MIN_QUERIES
    assert uncertainty.permutation_test(np.ones(enough)) == 1 / 10_001
    assert np.isnan(uncertainty.permutation_test(np.ones(enough - 1)))
    assert np.isnan(uncertainty.permutation_test(np.append(np.ones(enough - 1), NAN)))
    pair = uncertainty.compare(pd.DataFrame({"a": np.ones(enough - 1), "b": 0.0}))
    assert pair[["p", "p_holm"]].isna().all(None)
    assert not pair["is_significant"].any()
    assert uncertainty.pair_outcomes(pair, ["a", "b"]).loc["b", "a"] == "untested"


def test_an_interval_over_classes_ends_at_the_limits_of_the_score():
    index = pd.MultiIndex.from_product([range(3), range(6)])
    means = pd.DataFrame({"a": [1.0, 0.6, 1.0, 1.0, 0.9, 1.0] * 3}, index=index)
    assert uncertainty.class_test(means).loc["a", "ci_high"] == 1
    shifted = uncertainty.class_test(means - 1, limits=(-1, 0)).loc["a"]
    assert shifted["ci_high"] == 0
    assert -1 < shifted["ci_low"] < shifted["value"] < 0


def test_the_permutation_test_rejects_skewed_differences_with_mean_0_too_often():
    random = np.random.default_rng(0)
    skewed = random.lognormal(sigma=1.5, size=(500, 30)) - np.exp(1.5**2 / 2)
    symmetric = skewed * random.choice([-1, 1], skewed.shape)
    errors = [
        np.mean([uncertainty.permutation_test(row, permutations=199) < 0.05 for row in samples])
        for samples in (symmetric, skewed)
    ]
    assert errors[0] < 0.08
    assert errors[1] > 0.12


@pytest.mark.parametrize("shift", [0, 0.1, 0.2, 0.5])
def test_permutation_test_equals_that_of_scipy(shift):
    differences = normal(100, seed=5) + shift
    expected = scipy_p(differences)
    # Three standard errors of the difference between shares of 10,000 and of 20,000 draws.
    tolerance = 3 * np.sqrt(expected * (1 - expected) * 1.5 / 10_000) + 2e-4
    assert uncertainty.permutation_test(differences) == pytest.approx(expected, abs=tolerance)


def test_p_is_never_zero_and_as_small_as_the_permutations_allow():
    assert uncertainty.permutation_test(np.ones(200), permutations=999) == 1 / 1000


def test_differences_that_are_all_zero_or_missing():
    assert uncertainty.permutation_test(np.zeros(50)) == 1
    assert np.isnan(uncertainty.permutation_test([]))
    assert np.isnan(uncertainty.permutation_test([NAN, NAN]))


def test_missing_difference_is_left_out():
    differences = normal(31) + 0.5
    with_missing = np.insert(differences, [0, 4, 9], NAN)
    assert uncertainty.permutation_test(with_missing) == uncertainty.permutation_test(differences)


def test_permutation_test_depends_on_the_seed_and_not_on_the_sign(monkeypatch):
    differences = normal(40, seed=3) + 0.2
    first = uncertainty.permutation_test(differences)
    assert first == uncertainty.permutation_test(differences)
    assert first == uncertainty.permutation_test(-differences)
    assert first != uncertainty.permutation_test(differences, seed=1)
    monkeypatch.setattr(uncertainty, "BATCH", 1000)
    assert first == pytest.approx(uncertainty.permutation_test(differences), abs=0.02)


def test_true_null_hypothesis_is_rejected_at_the_level_of_the_test():
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


def test_holm_by_hand():
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
def test_holm_keeps_the_order_and_is_at_most_bonferroni(p_values):
    p_values = np.array(p_values)
    adjusted = uncertainty.holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(p_values * len(p_values), 1)).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()


# --- seed_test


def test_seed_test_by_hand():
    # Queries: 2 +- 1, variance of the mean 4/3 / 4 = 1/3. Seeds of two sides: variances of the
    # means 1 / 3 and 0. The standard error is sqrt(2/3), and each part has the weight 1/2.
    differences = np.array([1.0, 3.0, 1.0, 3.0])
    low, high, p = uncertainty.seed_test(differences, [np.array([4.0, 5, 6]), np.array([3.0] * 3)])
    t_seeds, t_queries = scipy.stats.t.isf(0.025, 2), scipy.stats.t.isf(0.025, 3)
    half = np.sqrt(2 / 3) * (t_seeds + t_queries) / 2
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    reached = (scipy.stats.t.isf(p / 2, 2) + scipy.stats.t.isf(p / 2, 3)) / 2
    assert reached == pytest.approx(2 / np.sqrt(2 / 3))


def test_seed_test_without_variance_between_queries_equals_welch():
    first_means, second_means = np.array([0.70, 0.74, 0.71, 0.75]), np.array([0.68, 0.69, 0.67])
    differences = np.full(50, first_means.mean() - second_means.mean())
    low, high, p = uncertainty.seed_test(differences, [first_means, second_means])
    welch = scipy.stats.ttest_ind(first_means, second_means, equal_var=False)
    assert p == pytest.approx(welch.pvalue)
    assert (low, high) == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_seed_test_without_variance_between_seeds_equals_the_t_test_over_queries():
    differences = normal(40) + 0.3
    low, high, p = uncertainty.seed_test(differences, [np.full(3, 0.5), np.full(3, 0.2)])
    student = scipy.stats.ttest_1samp(differences, 0)
    assert p == pytest.approx(student.pvalue)
    assert (low, high) == pytest.approx(tuple(student.confidence_interval(0.95)))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shift=st.floats(-0.1, 0.1),
    n_seeds=st.tuples(*[st.integers(3, 5)] * 2),
)
def test_the_interval_over_seeds_excludes_0_if_and_only_if_p_is_below_alpha(seed, shift, n_seeds):
    random = np.random.default_rng(seed)
    means = [random.normal(0, 0.01, n) for n in n_seeds]
    differences = random.normal(shift, 0.08, 359)
    low, high, p = uncertainty.seed_test(differences, means)
    assert 0 < p <= 1
    assert (p < 0.05) == (low > 0 or high < 0)
    mirrored = uncertainty.seed_test(-differences, means)
    assert mirrored == pytest.approx((-high, -low, p))


def test_seed_test_of_constant_differences():
    equal = [np.full(3, 0.5)]
    assert uncertainty.seed_test(np.zeros(40), equal) == (0, 0, 1)
    low, high, p = uncertainty.seed_test(np.full(40, 0.25), equal)
    assert (low, high) == (0.25, 0.25)
    assert 0 < p < 1e-20


def test_equal_architectures_with_different_seeds_rarely_differ_significantly():
    # 400 pairs of 3 seeds each, sd between seeds .010, standard error over queries .004.
    random = np.random.default_rng(0)
    seeds, queries = random.normal(0, 0.010, (400, 2, 3)), random.normal(0, 0.076, (400, 359))
    p_values, p_over_queries = [], []
    for (first, second), noise in zip(seeds, queries, strict=True):
        differences = noise + first.mean() - second.mean()
        p_values.append(uncertainty.seed_test(differences, [first, second])[2])
        p_over_queries.append(scipy.stats.ttest_1samp(differences, 0).pvalue)
    # 5 % of 400 are 20, with a standard deviation of 4.4.
    assert np.mean(np.array(p_values) < 0.05) <= 0.06
    assert np.mean(np.array(p_over_queries) < 0.05) > 0.2


# --- class_test


def by_class(draws: list[list[float]], first_label: int = 0) -> pd.Series:
    """Means by draw and class; draws have different classes."""
    draws_and_labels = [(draw, first_label + 10 * draw + position)
              for draw, means in enumerate(draws) for position in range(len(means))]  # fmt: skip
    index = pd.MultiIndex.from_tuples(draws_and_labels, names=["draw", "label"])
    return pd.Series([mean for means in draws for mean in means], index)


def test_class_test_takes_the_wider_interval_and_the_larger_p_of_classes_and_draws():
    # cnn against hand_crafted on six classes of the digits: thousands of queries say p < 0.001.
    similar = by_class([[-0.096, -0.037], [-0.118, 0.056], [0.017, -0.219]])
    differing = by_class([[0.09, 0.11], [0.29, 0.31], [0.19, 0.21]])
    table = uncertainty.class_test(pd.DataFrame({"similar": similar, "differing": differing}))
    for name, values in (("similar", similar), ("differing", differing)):
        tests = [scipy.stats.ttest_1samp(values.groupby(level=level).mean(), 0) for level in (0, 1)]
        bounds = [test.confidence_interval(0.95) for test in tests]
        row = table.loc[name]
        assert row["value"] == pytest.approx(values.mean())
        assert row["p"] == pytest.approx(max(test.pvalue for test in tests))
        assert row["ci_low"] == pytest.approx(min(low for low, _ in bounds))
        assert row["ci_high"] == pytest.approx(max(high for _, high in bounds))
    assert (table["n_classes"] == 6).all()
    assert table.loc["similar", "p"] > 0.15


@pytest.mark.parametrize("draws", [[[0.5, 0.6]] * 2, [[0.5]] * 5, [[0.1 * n for n in range(9)]]])
def test_too_few_classes_or_draws_give_neither_an_interval_nor_a_p(draws):
    (row,) = uncertainty.class_test(by_class(draws).to_frame()).itertuples()
    assert row.value == pytest.approx(np.mean(np.concatenate(draws)))
    assert np.isnan([row.ci_low, row.ci_high, row.p]).all()


def test_a_class_of_two_draws_counts_once():
    index = pd.MultiIndex.from_product([range(4), range(6)], names=["draw", "label"])
    values = pd.DataFrame({"a": np.tile([0.1, 0.2, 0.3, 0.4, 0.5, 0.9], 4)}, index)
    row = uncertainty.class_test(values).loc["a"]
    once = scipy.stats.ttest_1samp([0.1, 0.2, 0.3, 0.4, 0.5, 0.9], 0)
    assert (row["n_classes"], row["p"]) == (6, pytest.approx(once.pvalue))


def test_classes_are_compared_pair_by_pair_and_corrected():
    cnn = by_class([[0.6, 0.7], [0.65, 0.75], [0.55, 0.72], [0.7, 0.6]])
    noise = [0.01, -0.01, 0.02, -0.02, 0.01, 0.0, -0.01, 0.0]
    pairs = uncertainty.compare_classes(
        pd.DataFrame({"cnn": cnn, "alike": cnn + noise - 0.001, "low": 0.1 * cnn})
    ).set_index(["ahead", "behind"])
    assert pairs.loc[("cnn", "low"), "is_significant"]
    assert not pairs.loc[("cnn", "alike"), "is_significant"]
    assert (pairs["n_classes"] == 8).all()
    assert pairs["covers_seeds"].all()
    np.testing.assert_allclose(pairs["p_holm"], uncertainty.holm(pairs["p"].to_numpy()))


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


def test_compare_has_one_row_per_pair(pairs):
    assert list(pairs) == [
        "ahead", "behind", "difference", "ci_low", "ci_high", "p", "p_holm", "effect_size",
        "n_queries", "is_significant", "covers_seeds",
    ]  # fmt: skip
    assert {frozenset(pair) for pair in zip(pairs["ahead"], pairs["behind"], strict=True)} == {
        frozenset("ab"),
        frozenset("ac"),
        frozenset("bc"),
    }
    assert (pairs["difference"] >= 0).all()
    assert (pairs["n_queries"] == 100).all()


def test_compare_finds_exactly_the_pairs_that_differ(pairs):
    significant = {pair.ahead + pair.behind for pair in pairs.itertuples() if pair.is_significant}
    assert significant == {"ca", "cb"}


def test_compare_is_paired(pairs, scores):
    # The queries differ far more than the architectures: an unpaired test finds no difference.
    assert scipy.stats.ttest_ind(scores["c"], scores["b"]).pvalue > 0.05
    row = pairs[(pairs["ahead"] == "c") & (pairs["behind"] == "b")].iloc[0]
    differences = (scores["c"] - scores["b"]).to_numpy()
    low, high = uncertainty.confidence_bounds(differences[:, None], limits=None)
    assert row["difference"] == pytest.approx(differences.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low.item(), high.item()), abs=2e-3)
    assert row["ci_low"] > 0
    assert row["effect_size"] == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_compare_tests_each_pair_and_corrects_over_the_table(pairs, scores):
    for pair in pairs.itertuples():
        p = uncertainty.permutation_test(scores[pair.ahead] - scores[pair.behind])
        assert pair.p == pytest.approx(p, abs=0.02)
    np.testing.assert_array_equal(pairs["p_holm"], uncertainty.holm(pairs["p"]))
    assert (pairs["p_holm"] > pairs["p"]).any()


def test_a_correction_for_more_pairs_can_remove_significance():
    # 25 of 36 differences of equal size are positive: p is about 0.03, and three times that 0.09.
    table = pd.DataFrame({"a": np.repeat([1.0, 0.0], [25, 11])})
    table = table.assign(b=1 - table["a"], c=1 - table["a"])
    two, three = uncertainty.compare(table[["a", "b"]]), uncertainty.compare(table)
    expected = scipy.stats.binomtest(25, 36).pvalue
    assert two["p"].tolist() == pytest.approx([expected], abs=0.01)
    assert two["is_significant"].tolist() == [True]
    assert three["p_holm"].tolist()[:2] == pytest.approx([3 * expected] * 2, abs=0.03)
    assert not three["is_significant"].any()


def test_compare_is_independent_of_the_order_of_columns(pairs, scores):
    pd.testing.assert_frame_equal(uncertainty.compare(scores[["c", "b", "a"]]), pairs)
    pd.testing.assert_frame_equal(uncertainty.compare(scores[["b", "c", "a"]]), pairs)


def test_pair_is_compared_on_the_queries_that_both_have():
    # On all its queries a is ahead (0.9 to 0.6), on the two shared queries b is.
    table = pd.DataFrame({"a": [0.3, 0.4, 1.0, 1.9], "b": [0.5, 0.7, NAN, NAN]})
    pair = uncertainty.compare(table).iloc[0]
    assert (pair["ahead"], pair["behind"], pair["n_queries"]) == ("b", "a", 2)
    assert pair["difference"] == pytest.approx((0.2 + 0.3) / 2)
    assert pair["ci_low"] < 0.25 < pair["ci_high"]
    assert np.isnan(pair["p"])
    assert pair["effect_size"] == pytest.approx(0.25 / (0.05 * np.sqrt(2)))


def test_architectures_that_are_equal_on_every_query():
    pair = uncertainty.compare(pd.DataFrame({"b": skewed(36), "a": skewed(36)})).iloc[0]
    assert (pair["ahead"], pair["behind"]) == ("a", "b")
    assert pair[["difference", "effect_size"]].tolist() == [0, 0]
    assert -0.1 < pair["ci_low"] < 0 < pair["ci_high"] < 0.1
    assert (pair["p"], pair["is_significant"]) == (1, False)


def test_effect_size_of_equal_differences_is_undefined_not_infinite():
    table = pd.DataFrame({"a": skewed(20) + 0.3, "b": skewed(20)})
    assert np.isnan(uncertainty.compare(table)["effect_size"][0])


def test_compare_with_one_query_no_shared_query_and_one_architecture():
    single = uncertainty.compare(pd.DataFrame({"a": [0.1], "b": [0.4]})).iloc[0]
    assert (single["ahead"], single["n_queries"]) == ("b", 1)
    assert single[["ci_low", "ci_high", "effect_size", "p"]].isna().all()
    disjoint = uncertainty.compare(pd.DataFrame({"a": [0.1, NAN], "b": [NAN, 0.4]})).iloc[0]
    assert disjoint["n_queries"] == 0
    assert not disjoint["is_significant"]
    assert disjoint[["difference", "p", "p_holm"]].isna().all()
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


def scores_by_seed(level: float, n_seeds: int, seed: int) -> pd.DataFrame:
    """Scores of 60 queries under several seeds, whose means differ."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.05, (60, n_seeds)) + random.normal(0, 0.01, n_seeds)
    return pd.DataFrame(skewed(60)[:, None] + level + noise)


def test_a_pair_covers_seeds_if_both_have_several():
    scores = {
        "a": scores_by_seed(0, 3, 1),
        "b": scores_by_seed(0.1, 4, 2),
        "c": scores_by_seed(0.2, 1, 3),
    }
    pairs = uncertainty.compare(scores).set_index(["ahead", "behind"])
    assert pairs["covers_seeds"].to_dict() == {
        ("c", "b"): False, ("c", "a"): False, ("b", "a"): True,
    }  # fmt: skip
    row, differences = pairs.loc[("b", "a")], scores["b"].mean(axis=1) - scores["a"].mean(axis=1)
    means = [scores[name].mean().to_numpy() for name in "ba"]
    expected = uncertainty.seed_test(differences.to_numpy(), means)
    assert tuple(row[["ci_low", "ci_high", "p"]]) == pytest.approx(expected)
    assert row["difference"] == pytest.approx(differences.mean())
    mean_over_seeds = pd.DataFrame({name: frame.mean(axis=1) for name, frame in scores.items()})
    without_seeds = uncertainty.compare(mean_over_seeds).set_index(["ahead", "behind"])
    assert not without_seeds["covers_seeds"].any()
    assert without_seeds.loc[("c", "b"), "ci_low"] == pairs.loc[("c", "b"), "ci_low"]


def test_baselines_have_no_seeds_to_cover():
    scores = {
        "a": scores_by_seed(0.3, 3, 1),
        "b": scores_by_seed(0, 1, 2),
        "c": scores_by_seed(0.1, 1, 3),
    }
    pairs = uncertainty.compare(scores, baselines=["b", "c"]).set_index(["ahead", "behind"])
    assert pairs["covers_seeds"].all()
    differences = (scores["a"].mean(axis=1) - scores["b"][0]).to_numpy()
    expected = uncertainty.seed_test(differences, [scores["a"].mean().to_numpy()])
    assert tuple(pairs.loc[("a", "b"), ["ci_low", "ci_high", "p"]]) == pytest.approx(expected)
    queries = (scores["c"][0] - scores["b"][0]).to_numpy()
    assert pairs.loc[("c", "b"), "p"] == pytest.approx(
        uncertainty.permutation_test(queries), abs=0.02
    )


def test_searches_of_the_same_networks_are_paired_by_seed():
    # Networks differ far more than searches of one network.
    unrestricted = scores_by_seed(0, 3, 1) + [0, 0.1, 0.2]
    scores = {"soft": unrestricted + 0.02 + 0.01 * normal(60, 3), "unrestricted": unrestricted}
    paired = uncertainty.compare(scores, same_networks=True)
    assert paired["is_significant"].all()
    assert not uncertainty.compare(scores)["is_significant"].any()
