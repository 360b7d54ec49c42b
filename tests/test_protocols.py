"""Protocols: which images train, which are searched and with which, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import toy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir import StudyError
from cbir.images import protocols
from cbir.reporting import sentences


def all_protocols(dataset) -> list:
    return list(protocols.views(dataset, [*protocols.PROTOCOLS[:3]], unseen=1, draws=2))


def cifar(per_class=700, in_test=100, **changes):
    """CIFAR-10 in small: labels alone."""
    given = {"dataset": "cifar10", "validation_fraction": 0.1} | changes
    return toy_dataset(10, per_class - in_test, in_test, **given)


def error_of(dataset, protocol, **arguments) -> str:
    """The one line that a protocol refuses a data set with."""
    with pytest.raises(StudyError) as caught:
        protocols.view(dataset, protocol, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts_of(dataset, positions) -> list[int]:
    return np.bincount(dataset.labels[positions], minlength=len(dataset.classes)).tolist()


def apart_in(dataset, unseen, draw) -> set[int]:
    """The classes that a draw of `unseen_classes` keeps from training."""
    view = protocols.view(dataset, "unseen_classes", unseen=unseen, draw=draw)
    return set(view.query_labels.tolist())


# All of them


def test_no_query_is_ever_trained_or_validated_on():
    for view in [*all_protocols(toy_dataset()), protocols.view(cifar(), "hashing_1k")]:
        learnt = np.concatenate([view.train, view.validation])
        assert len(set(learnt)) == len(learnt)
        assert not np.intersect1d(view.queries, learnt).size
        for positions in (view.train, view.validation, view.gallery, view.queries):
            assert positions.size
            assert (np.diff(positions) > 0).all()


def test_no_query_finds_itself():
    for view in [*all_protocols(toy_dataset()), protocols.view(cifar(), "hashing_1k")]:
        itself = view.exclude
        assert (view.gallery[itself[itself >= 0]] == view.queries[itself >= 0]).all()
        assert not np.isin(view.queries[itself < 0], view.gallery).any()


def test_a_view_changes_no_image_and_not_the_data_set():
    dataset = toy_dataset()
    before = {part: getattr(dataset, part).copy() for part in ("train", "gallery", "queries")}
    for view in all_protocols(dataset):
        assert view.images is dataset.images
        assert view.labels is dataset.labels
        assert (view.fingerprint, view.parameters) == (dataset.fingerprint, dataset.parameters)
    assert all(np.array_equal(getattr(dataset, part), before[part]) for part in before)


def test_views_stand_in_the_given_order_one_per_draw():
    dataset = toy_dataset()
    names = ["held_out_gallery", "unseen_classes", "closed"]
    order = [
        (view.protocol, view.draw) for view in protocols.views(dataset, names, unseen=1, draws=3)
    ]
    assert order == [
        ("held_out_gallery", None),
        ("unseen_classes", 0),
        ("unseen_classes", 1),
        ("unseen_classes", 2),
        ("closed", None),
    ]


def test_what_is_searched_and_what_is_trained_on_have_different_fingerprints():
    closed, held_out, first, second = all_protocols(toy_dataset())
    searched = [view.search_fingerprint for view in (closed, held_out, first, second)]
    assert len(set(searched)) == 4
    # What is trained on is the same in the two first: they share a training.
    assert closed.split_fingerprint == held_out.split_fingerprint
    assert len({view.split_fingerprint for view in (closed, first, second)}) == 3
    for part in ("train", "validation"):
        fewer = replace(closed, **{part: getattr(closed, part)[1:]})
        assert fewer.split_fingerprint != closed.split_fingerprint
        assert fewer.search_fingerprint == closed.search_fingerprint
    other = replace(closed, fingerprint="other images")
    assert other.search_fingerprint != closed.search_fingerprint
    assert other.split_fingerprint != closed.split_fingerprint


def test_an_unknown_protocol_is_answered_with_those_that_are_known():
    message = error_of(toy_dataset(), "open")
    assert message.startswith("unknown protocol 'open'")
    assert all(name in message for name in protocols.PROTOCOLS)


def test_every_protocol_is_explained():
    assert set(sentences.PROTOCOL_TEXTS) == set(protocols.PROTOCOLS)
    assert set(sentences.INTERVAL_TEXTS) == set(protocols.PROTOCOLS)
    assert set(sentences.PUBLISHED_MAP) <= set(protocols.PROTOCOLS)


places = st.sets(st.integers(0, 15), min_size=1).map(lambda positions: np.array(sorted(positions)))


@settings(max_examples=50, deadline=None)
@given(gallery=places, queries=places)
def test_exclude_is_the_place_of_the_query_in_the_gallery(gallery, queries):
    view = replace(toy_dataset(2, 4, 4), gallery=gallery, queries=queries)
    expected = [gallery.tolist().index(query) if query in gallery else -1 for query in queries]
    assert view.exclude.tolist() == expected


# closed


def test_closed_searches_what_was_trained_and_validated_on_with_test_images():
    dataset = toy_dataset(4, 14, 12)
    view = protocols.view(dataset, "closed")
    learnt = np.union1d(view.train, view.validation)
    assert np.array_equal(view.gallery, learnt)
    assert np.array_equal(view.gallery, np.arange(56))
    assert np.array_equal(view.queries, np.arange(56, 104))
    assert (view.exclude == -1).all()


# held_out_gallery


def test_held_out_gallery_is_the_queries_each_without_itself():
    dataset = toy_dataset(4, 14, 12)
    view = protocols.view(dataset, "held_out_gallery")
    assert np.array_equal(view.gallery, dataset.queries)
    assert np.array_equal(view.queries, dataset.queries)
    assert view.exclude.tolist() == list(range(48))
    assert not np.intersect1d(view.gallery, np.union1d(view.train, view.validation)).size
    assert np.array_equal(view.train, dataset.train)
    assert np.array_equal(view.validation, dataset.validation)


def test_held_out_gallery_needs_a_class_with_two_test_images():
    message = error_of(toy_dataset(4, 5, 1), "held_out_gallery")
    assert message.startswith("protocol held_out_gallery: no class has two test images")


@pytest.mark.parametrize(
    ("named", "fitting"),
    [
        (["closed", "held_out_gallery"], "closed"),
        (["closed", "held_out_gallery", "unseen_classes"], "closed,unseen_classes"),
        (["held_out_gallery", "unseen_classes"], "closed,unseen_classes"),
        (["hashing_1k", "closed"], "closed"),
    ],
)
def test_protocol_that_does_not_fit_says_which_to_set(named, fitting):
    dataset = toy_dataset(4, 5, 1)
    with pytest.raises(StudyError) as caught:
        list(protocols.views(dataset, named, unseen=2, draws=1))
    assert str(caught.value).endswith(f', or set SET="protocols=[{fitting}]"')
    assert list(protocols.views(dataset, fitting.split(","), unseen=2, draws=1))
    two = toy_dataset(4, 5, 2)
    one_class_has_two = replace(two, queries=np.delete(two.queries, [0, 1]))
    view = protocols.view(one_class_has_two, "held_out_gallery")
    assert len(view.gallery) == 6


# unseen_classes

studies = st.tuples(st.integers(3, 12), st.integers(0, 9)).flatmap(
    lambda given: st.tuples(
        st.just(toy_dataset(given[0], 5, 2, split_seed=given[1])), st.integers(1, given[0] - 2)
    )
)


@settings(max_examples=60, deadline=None)
@given(study=studies, draw=st.integers(0, 30))
def test_unseen_classes_are_searched_but_never_trained_on(study, draw):
    dataset, unseen = study
    view = protocols.view(dataset, "unseen_classes", unseen=unseen, draw=draw)
    apart = sorted(set(view.query_labels.tolist()))
    assert len(apart) == unseen
    assert protocols.unseen_labels(view).tolist() == apart
    assert not np.isin(dataset.labels[view.train], apart).any()
    assert not np.isin(dataset.labels[view.validation], apart).any()
    # Of the other classes all is trained and validated on as before, and all classes are searched.
    is_seen = ~np.isin(dataset.labels, apart)
    assert view.train.tolist() == [at for at in dataset.train if is_seen[at]]
    assert view.validation.tolist() == [at for at in dataset.validation if is_seen[at]]
    assert view.queries.tolist() == [at for at in dataset.queries if not is_seen[at]]
    assert np.array_equal(view.gallery, dataset.gallery)
    assert set(view.gallery_labels.tolist()) == set(range(len(dataset.classes)))


@settings(max_examples=60, deadline=None)
@given(study=studies)
def test_every_class_is_unseen_once_before_one_is_for_the_second_time(study):
    dataset, unseen = study
    n_classes = len(dataset.classes)
    whole = n_classes // unseen
    met = [label for draw in range(whole) for label in apart_in(dataset, unseen, draw)]
    assert len(met) == len(set(met)) == whole * unseen
    # The next draw takes what is left.
    left = set(range(n_classes)) - set(met)
    assert left <= apart_in(dataset, unseen, whole)


def test_draws_come_back_and_follow_the_seed_of_the_split_alone():
    def course(**changes) -> list[set[int]]:
        return [apart_in(toy_dataset(10, 4, 2, **changes), 2, draw) for draw in range(8)]

    assert course() == course()
    assert course() == course(validation_fraction=0.5)
    assert course() != course(split_seed=1)
    # The second round, from the sixth draw on, is another one.
    assert course()[:3] != course()[5:]


def test_the_first_draw_is_taken_where_none_is_named():
    dataset = toy_dataset(10, 4, 2)
    view = protocols.view(dataset, "unseen_classes", unseen=3)
    assert view.draw == 0
    assert set(view.query_labels.tolist()) == apart_in(dataset, 3, 0)


def test_other_numbers_of_draws_and_other_protocols_change_no_draw():
    dataset = toy_dataset(10, 4, 2)
    few = list(protocols.views(dataset, ["unseen_classes"], unseen=2, draws=2))
    many = list(protocols.views(dataset, ["closed", "unseen_classes"], unseen=2, draws=5))
    assert [view.queries.tolist() for view in few] == [view.queries.tolist() for view in many[1:3]]


@pytest.mark.parametrize("unseen", [3, 4, 9])
def test_fewer_than_two_classes_to_train_on_are_refused(unseen):
    message = error_of(toy_dataset(4), "unseen_classes", unseen=unseen)
    assert message.startswith(f"protocol unseen_classes: 4 classes without {unseen} leave fewer")
    assert "lower `unseen`" in message


def test_counts_show_what_unseen_classes_serve_for():
    dataset = toy_dataset(4, 14, 12)
    view = protocols.view(dataset, "unseen_classes", unseen=1, draw=0)
    (apart,) = protocols.unseen_labels(view)
    counts = view.counts()
    assert counts.loc[dataset.classes[apart]].tolist() == [0, 0, 14, 12]
    other = dataset.classes[(apart + 1) % 4]
    assert counts.loc[other].tolist() == [10, 4, 14, 0]


# hashing_1k


@pytest.fixture(scope="module")
def hashing():
    dataset = cifar(700)
    return dataset, protocols.view(dataset, "hashing_1k")


def test_hashing_1k_has_100_queries_and_500_images_to_learn_from_a_class(hashing):
    dataset, view = hashing
    assert counts_of(dataset, view.queries) == [100] * 10
    assert counts_of(dataset, view.train) == [450] * 10
    assert counts_of(dataset, view.validation) == [50] * 10
    assert counts_of(dataset, view.gallery) == [600] * 10


def test_hashing_1k_searches_all_but_the_queries(hashing):
    dataset, view = hashing
    together = np.concatenate([view.gallery, view.queries])
    assert sorted(together) == list(range(len(dataset.labels)))
    assert (view.exclude == -1).all()
    assert np.isin(np.union1d(view.train, view.validation), view.gallery).all()
    assert len(view.gallery) > len(view.train) + len(view.validation)


def test_hashing_1k_draws_from_training_and_test_images_alike(hashing):
    dataset, view = hashing
    for positions in (view.queries, view.train, view.gallery):
        from_test = np.isin(positions, dataset.queries).mean()
        # A seventh of all images are test images.
        assert 0.1 < from_test < 0.2


def test_hashing_1k_comes_back_and_follows_the_seed_of_the_split(hashing):
    dataset, view = hashing
    again = protocols.view(cifar(700), "hashing_1k")
    other = protocols.view(cifar(700, split_seed=1), "hashing_1k")
    for part in ("queries", "train", "validation", "gallery"):
        assert np.array_equal(getattr(view, part), getattr(again, part))
        assert not np.array_equal(getattr(view, part), getattr(other, part))


def test_hashing_1k_validates_on_a_part_of_what_it_may_learn_from():
    few, many = (
        protocols.view(cifar(validation_fraction=fraction), "hashing_1k") for fraction in (0.1, 0.5)
    )
    learnt = [np.union1d(view.train, view.validation) for view in (few, many)]
    assert np.array_equal(*learnt)
    assert np.array_equal(few.queries, many.queries)
    assert (len(few.validation), len(many.validation)) == (500, 2500)


def test_hashing_1k_takes_what_is_just_enough_and_refuses_less():
    view = protocols.view(cifar(600), "hashing_1k")
    assert np.array_equal(view.gallery, np.union1d(view.train, view.validation))
    message = error_of(cifar(599), "hashing_1k")
    assert message.startswith(
        "protocol hashing_1k needs 600 images per class, but 'class 0' has 599"
    )


def test_hashing_1k_is_refused_for_other_images():
    message = error_of(cifar(dataset="digits"), "hashing_1k")
    assert message.startswith("protocol hashing_1k is defined only for CIFAR-10")
    assert "digits" in message
