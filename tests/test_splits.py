"""Images set apart or kept: of every class alike, by a seed, the fewer among the more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir import StudyError
from cbir.images.dataset import stratified_share, stratified_split

labellings = st.lists(st.integers(2, 30), min_size=2, max_size=6).flatmap(
    lambda counts: st.permutations(np.repeat(np.arange(len(counts)), counts).tolist())
)


@settings(max_examples=50, deadline=None)
@given(
    labels=labellings,
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_split_is_disjoint_complete_and_has_every_class_in_both_parts(labels, fraction, seed):
    labels = np.array(labels)
    classes = [str(label) for label in range(labels.max() + 1)]
    stay, apart = stratified_split(labels, fraction, seed, classes, "test")
    assert sorted([*stay, *apart]) == list(range(len(labels)))
    assert sorted(stay) == stay.tolist()
    assert sorted(apart) == apart.tolist()
    counts, taken = np.bincount(labels), np.bincount(labels[apart], minlength=len(classes))
    assert (taken >= 1).all()
    assert (taken < counts).all()
    # As near to the fraction as whole pictures and one on either side allow.
    assert (abs(taken - np.clip(fraction * counts, 1, counts - 1)) <= 0.5).all()
    again = stratified_split(labels, fraction, seed, classes, "test")
    assert np.array_equal(stay, again[0])
    assert np.array_equal(apart, again[1])


def test_split_of_another_seed_is_another_one():
    labels = np.repeat([0, 1], 50)
    apart = [stratified_split(labels, 0.2, seed, ["a", "b"], "test")[1] for seed in range(2)]
    assert len(apart[0]) == len(apart[1])
    assert not np.array_equal(*apart)


def test_split_of_a_class_with_one_image_names_the_class_and_the_part():
    with pytest.raises(StudyError, match=r"too few images left .* for validation: 'b' \(1\)"):
        stratified_split(np.array([0, 0, 1]), 0.5, 0, ["a", "b"], "validation")


@settings(max_examples=50, deadline=None)
@given(
    labels=labellings,
    shares=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)).map(sorted),
    seed=st.integers(0, 2**32),
)
def test_a_share_is_that_of_every_class_and_part_of_every_larger_one(labels, shares, seed):
    labels = np.array(labels)
    rows = np.flatnonzero(np.arange(len(labels)) % 3)  # some of all images, sorted
    fewer, more = (stratified_share(rows, share, labels, seed) for share in shares)
    assert set(fewer) <= set(more) <= set(rows)
    for share, kept in zip(shares, (fewer, more), strict=True):
        assert (np.diff(kept) > 0).all()
        for label in np.unique(labels[rows]):
            count = (labels[rows] == label).sum()
            taken = (labels[kept] == label).sum()
            assert taken == max(1, round(share * count))
    assert np.array_equal(fewer, stratified_share(rows, shares[0], labels, seed))


def test_a_share_of_two_classes_by_hand():
    labels = np.repeat([0, 1], [20, 10])
    kept = stratified_share(np.arange(30), 0.3, labels, 0)
    assert np.bincount(labels[kept]).tolist() == [6, 3]
    assert np.bincount(labels[stratified_share(np.arange(30), 0.01, labels, 0)]).tolist() == [1, 1]


@pytest.mark.parametrize("share", [0, 1, 1.0, 1.5, 40.0])
def test_nothing_and_more_than_all_is_all(share):
    rows = np.array([1, 2, 5])
    assert stratified_share(rows, share, np.array([0, 0, 1, 1, 0, 1]), 0).tolist() == [1, 2, 5]


def test_a_share_of_another_seed_is_another_one():
    labels = np.repeat([0, 1], 50)
    kept = [stratified_share(np.arange(100), 0.5, labels, seed) for seed in range(2)]
    assert len(kept[0]) == len(kept[1]) == 50
    assert not np.array_equal(*kept)


def test_another_class_beside_it_changes_no_share_of_a_class():
    labels = np.repeat([0, 1], 20)
    alone = stratified_share(np.arange(20), 0.5, labels, 3)
    both = stratified_share(np.arange(40), 0.5, labels, 3)
    assert both[both < 20].tolist() == alone.tolist()
