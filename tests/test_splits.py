"""Stratified splits and shares of images: by class, by seed, and nested."""

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
    rest, part = stratified_split(labels, fraction, seed, classes, "test")
    assert sorted([*rest, *part]) == list(range(len(labels)))
    assert sorted(rest) == rest.tolist()
    assert sorted(part) == part.tolist()
    counts, taken = np.bincount(labels), np.bincount(labels[part], minlength=len(classes))
    assert (taken >= 1).all()
    assert (taken < counts).all()
    # As close to the fraction as whole images allow, with at least one in either part.
    assert (abs(taken - np.clip(fraction * counts, 1, counts - 1)) <= 0.5).all()
    second_split = stratified_split(labels, fraction, seed, classes, "test")
    assert np.array_equal(rest, second_split[0])
    assert np.array_equal(part, second_split[1])


def test_another_seed_gives_another_split():
    labels = np.repeat([0, 1], 50)
    parts = [stratified_split(labels, 0.2, seed, ["a", "b"], "test")[1] for seed in range(2)]
    assert len(parts[0]) == len(parts[1])
    assert not np.array_equal(*parts)


def test_a_class_with_one_image_cannot_be_split():
    with pytest.raises(StudyError, match=r"too few images left .* for validation: 'b' \(1\)"):
        stratified_split(np.array([0, 0, 1]), 0.5, 0, ["a", "b"], "validation")


@settings(max_examples=50, deadline=None)
@given(
    labels=labellings,
    shares=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)).map(sorted),
    seed=st.integers(0, 2**32),
)
def test_a_share_is_taken_of_every_class_and_contained_in_larger_shares(labels, shares, seed):
    labels = np.array(labels)
    rows = np.flatnonzero(np.arange(len(labels)) % 3)  # some of all images, sorted
    smaller, larger = (stratified_share(rows, share, labels, seed) for share in shares)
    assert set(smaller) <= set(larger) <= set(rows)
    for share, part in zip(shares, (smaller, larger), strict=True):
        assert (np.diff(part) > 0).all()
        for label in np.unique(labels[rows]):
            count = (labels[rows] == label).sum()
            count_in_part = (labels[part] == label).sum()
            assert count_in_part == max(1, round(share * count))
    assert np.array_equal(smaller, stratified_share(rows, shares[0], labels, seed))


def test_a_share_of_two_classes_by_hand():
    labels = np.repeat([0, 1], [20, 10])
    part = stratified_share(np.arange(30), 0.3, labels, 0)
    assert np.bincount(labels[part]).tolist() == [6, 3]
    assert np.bincount(labels[stratified_share(np.arange(30), 0.01, labels, 0)]).tolist() == [1, 1]


@pytest.mark.parametrize("share", [0, 1, 1.0, 1.5, 40.0])
def test_a_share_of_0_or_at_least_1_is_all_images(share):
    rows = np.array([1, 2, 5])
    assert stratified_share(rows, share, np.array([0, 0, 1, 1, 0, 1]), 0).tolist() == [1, 2, 5]


def test_another_seed_gives_another_share():
    labels = np.repeat([0, 1], 50)
    parts = [stratified_share(np.arange(100), 0.5, labels, seed) for seed in range(2)]
    assert len(parts[0]) == len(parts[1]) == 50
    assert not np.array_equal(*parts)


def test_the_share_of_a_class_is_independent_of_other_classes():
    labels = np.repeat([0, 1], 20)
    alone = stratified_share(np.arange(20), 0.5, labels, 3)
    with_second_class = stratified_share(np.arange(40), 0.5, labels, 3)
    assert with_second_class[with_second_class < 20].tolist() == alone.tolist()
