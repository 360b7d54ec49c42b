"""Protocols: training images, galleries and queries, and the data sets that they reject."""

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
    """A small stand-in for CIFAR-10 with only labels."""
    parameters = {"dataset": "cifar10", "validation_fraction": 0.1} | changes
    return toy_dataset(10, per_class - in_test, in_test, **parameters)


def error_of(dataset, protocol, **arguments) -> str:
    """The single line of the error with which a protocol rejects a data set."""
    with pytest.raises(StudyError) as caught:
        protocols.view(dataset, protocol, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts_of(dataset, positions) -> list[int]:
    return np.bincount(dataset.labels[positions], minlength=len(dataset.classes)).tolist()


def unseen_in(dataset, unseen, draw) -> set[int]:
    """The classes that a draw of `unseen_classes` excludes from training."""
    view = protocols.view(dataset, "unseen_classes", unseen=unseen, draw=draw)
    return set(view.query_labels.tolist())


# All protocols


def test_queries_are_never_training_or_validation_images():
    for view in [*all_protocols(toy_dataset()), protocols.view(cifar(), "hashing_1k")]:
        learning_images = np.concatenate([view.train, view.validation])
        assert len(set(learning_images)) == len(learning_images)
        assert not np.intersect1d(view.queries, learning_images).size
        for positions in (view.train, view.validation, view.gallery, view.queries):
            assert positions.size
            assert (np.diff(positions) > 0).all()


def test_queries_are_excluded_from_their_own_search():
    for view in [*all_protocols(toy_dataset()), protocols.view(cifar(), "hashing_1k")]:
        excluded = view.exclude
        assert (view.gallery[excluded[excluded >= 0]] == view.queries[excluded >= 0]).all()
        assert not np.isin(view.queries[excluded < 0], view.gallery).any()


def test_a_view_does_not_change_its_data_set():
    dataset = toy_dataset()
    before = {part: getattr(dataset, part).copy() for part in ("train", "gallery", "queries")}
    for view in all_protocols(dataset):
        assert view.images is dataset.images
        assert view.labels is dataset.labels
        assert (view.fingerprint, view.parameters) == (dataset.fingerprint, dataset.parameters)
    assert all(np.array_equal(getattr(dataset, part), before[part]) for part in before)


def test_views_follow_the_order_of_protocols_and_draws():
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


def test_fingerprints_differ_by_gallery_and_by_training_images():
    closed, held_out, first, second = all_protocols(toy_dataset())
    search_fingerprints = [view.search_fingerprint for view in (closed, held_out, first, second)]
    assert len(set(search_fingerprints)) == 4
    # The first two views have the same training images, and therefore share a training.
    assert closed.split_fingerprint == held_out.split_fingerprint
    assert len({view.split_fingerprint for view in (closed, first, second)}) == 3
    for part in ("train", "validation"):
        fewer = replace(closed, **{part: getattr(closed, part)[1:]})
        assert fewer.split_fingerprint != closed.split_fingerprint
        assert fewer.search_fingerprint == closed.search_fingerprint
    other_images = replace(closed, fingerprint="other images")
    assert other_images.search_fingerprint != closed.search_fingerprint
    assert other_images.split_fingerprint != closed.split_fingerprint


def test_an_unknown_protocol_is_rejected_with_the_known_ones():
    message = error_of(toy_dataset(), "open")
    assert message.startswith("unknown protocol 'open'")
    assert all(name in message for name in protocols.PROTOCOLS)


def test_every_protocol_is_explained():
    assert set(sentences.PROTOCOL_TEXTS) == set(protocols.PROTOCOLS)
    assert set(sentences.INTERVAL_TEXTS) == set(protocols.PROTOCOLS)
    assert set(sentences.PUBLISHED_MAP) <= set(protocols.PROTOCOLS)


position_sets = st.sets(st.integers(0, 15), min_size=1).map(
    lambda positions: np.array(sorted(positions))
)


@settings(max_examples=50, deadline=None)
@given(gallery=position_sets, queries=position_sets)
def test_exclude_is_the_position_of_a_query_in_the_gallery(gallery, queries):
    view = replace(toy_dataset(2, 4, 4), gallery=gallery, queries=queries)
    expected = [gallery.tolist().index(query) if query in gallery else -1 for query in queries]
    assert view.exclude.tolist() == expected


# closed


def test_the_gallery_of_closed_is_the_training_and_validation_images():
    dataset = toy_dataset(4, 14, 12)
    view = protocols.view(dataset, "closed")
    learning_images = np.union1d(view.train, view.validation)
    assert np.array_equal(view.gallery, learning_images)
    assert np.array_equal(view.gallery, np.arange(56))
    assert np.array_equal(view.queries, np.arange(56, 104))
    assert (view.exclude == -1).all()


# held_out_gallery


def test_held_out_gallery_searches_the_other_queries():
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
    ("names", "possible"),
    [
        (["closed", "held_out_gallery"], "closed"),
        (["closed", "held_out_gallery", "unseen_classes"], "closed,unseen_classes"),
        (["held_out_gallery", "unseen_classes"], "closed,unseen_classes"),
        (["hashing_1k", "closed"], "closed"),
    ],
)
def test_an_impossible_protocol_is_rejected_with_the_possible_ones(names, possible):
    dataset = toy_dataset(4, 5, 1)
    with pytest.raises(StudyError) as caught:
        list(protocols.views(dataset, names, unseen=2, draws=1))
    assert str(caught.value).endswith(f', or set SET="protocols=[{possible}]"')
    assert list(protocols.views(dataset, possible.split(","), unseen=2, draws=1))
    two_per_class = toy_dataset(4, 5, 2)
    one_class_has_two = replace(two_per_class, queries=np.delete(two_per_class.queries, [0, 1]))
    view = protocols.view(one_class_has_two, "held_out_gallery")
    assert len(view.gallery) == 6


# unseen_classes

studies = st.tuples(st.integers(3, 12), st.integers(0, 9)).flatmap(
    lambda counts: st.tuples(
        st.just(toy_dataset(counts[0], 5, 2, split_seed=counts[1])), st.integers(1, counts[0] - 2)
    )
)


@settings(max_examples=60, deadline=None)
@given(study=studies, draw=st.integers(0, 30))
def test_unseen_classes_are_searched_but_not_trained(study, draw):
    dataset, unseen = study
    view = protocols.view(dataset, "unseen_classes", unseen=unseen, draw=draw)
    labels = sorted(set(view.query_labels.tolist()))
    assert len(labels) == unseen
    assert protocols.unseen_labels(view).tolist() == labels
    assert not np.isin(dataset.labels[view.train], labels).any()
    assert not np.isin(dataset.labels[view.validation], labels).any()
    # The other classes keep their training and validation images; all classes are searched.
    is_seen = ~np.isin(dataset.labels, labels)
    assert view.train.tolist() == [position for position in dataset.train if is_seen[position]]
    assert view.validation.tolist() == [
        position for position in dataset.validation if is_seen[position]
    ]
    assert view.queries.tolist() == [
        position for position in dataset.queries if not is_seen[position]
    ]
    assert np.array_equal(view.gallery, dataset.gallery)
    assert set(view.gallery_labels.tolist()) == set(range(len(dataset.classes)))


@settings(max_examples=60, deadline=None)
@given(study=studies)
def test_every_class_is_unseen_once_before_any_is_again(study):
    dataset, unseen = study
    n_classes = len(dataset.classes)
    full_draws = n_classes // unseen
    labels = [label for draw in range(full_draws) for label in unseen_in(dataset, unseen, draw)]
    assert len(labels) == len(set(labels)) == full_draws * unseen
    # The next draw contains the remaining classes.
    remaining = set(range(n_classes)) - set(labels)
    assert remaining <= unseen_in(dataset, unseen, full_draws)


def test_draws_depend_only_on_the_seed_of_the_split():
    def unseen_by_draw(**changes) -> list[set[int]]:
        return [unseen_in(toy_dataset(10, 4, 2, **changes), 2, draw) for draw in range(8)]

    assert unseen_by_draw() == unseen_by_draw()
    assert unseen_by_draw() == unseen_by_draw(validation_fraction=0.5)
    assert unseen_by_draw() != unseen_by_draw(split_seed=1)
    # The second round, which starts with the sixth draw, differs.
    assert unseen_by_draw()[:3] != unseen_by_draw()[5:]


def test_the_first_draw_is_the_default():
    dataset = toy_dataset(10, 4, 2)
    view = protocols.view(dataset, "unseen_classes", unseen=3)
    assert view.draw == 0
    assert set(view.query_labels.tolist()) == unseen_in(dataset, 3, 0)


def test_draws_do_not_depend_on_their_number_or_on_other_protocols():
    dataset = toy_dataset(10, 4, 2)
    few = list(protocols.views(dataset, ["unseen_classes"], unseen=2, draws=2))
    many = list(protocols.views(dataset, ["closed", "unseen_classes"], unseen=2, draws=5))
    assert [view.queries.tolist() for view in few] == [view.queries.tolist() for view in many[1:3]]


@pytest.mark.parametrize("unseen", [3, 4, 9])
def test_fewer_than_two_training_classes_are_rejected(unseen):
    message = error_of(toy_dataset(4), "unseen_classes", unseen=unseen)
    assert message.startswith(f"protocol unseen_classes: 4 classes without {unseen} leave fewer")
    assert "lower `unseen`" in message


def test_counts_show_the_use_of_unseen_classes():
    dataset = toy_dataset(4, 14, 12)
    view = protocols.view(dataset, "unseen_classes", unseen=1, draw=0)
    (unseen,) = protocols.unseen_labels(view)
    counts = view.counts()
    assert counts.loc[dataset.classes[unseen]].tolist() == [0, 0, 14, 12]
    seen = dataset.classes[(unseen + 1) % 4]
    assert counts.loc[seen].tolist() == [10, 4, 14, 0]


# hashing_1k


@pytest.fixture(scope="module")
def hashing():
    dataset = cifar(700)
    return dataset, protocols.view(dataset, "hashing_1k")


def test_hashing_1k_has_100_queries_and_500_learning_images_per_class(hashing):
    dataset, view = hashing
    assert counts_of(dataset, view.queries) == [100] * 10
    assert counts_of(dataset, view.train) == [450] * 10
    assert counts_of(dataset, view.validation) == [50] * 10
    assert counts_of(dataset, view.gallery) == [600] * 10


def test_hashing_1k_searches_all_images_except_queries(hashing):
    dataset, view = hashing
    all_positions = np.concatenate([view.gallery, view.queries])
    assert sorted(all_positions) == list(range(len(dataset.labels)))
    assert (view.exclude == -1).all()
    assert np.isin(np.union1d(view.train, view.validation), view.gallery).all()
    assert len(view.gallery) > len(view.train) + len(view.validation)


def test_hashing_1k_draws_from_both_training_and_test_images(hashing):
    dataset, view = hashing
    for positions in (view.queries, view.train, view.gallery):
        from_test = np.isin(positions, dataset.queries).mean()
        # A seventh of all images are test images.
        assert 0.1 < from_test < 0.2


def test_hashing_1k_depends_only_on_the_seed_of_the_split(hashing):
    dataset, view = hashing
    same_seed = protocols.view(cifar(700), "hashing_1k")
    other_seed = protocols.view(cifar(700, split_seed=1), "hashing_1k")
    for part in ("queries", "train", "validation", "gallery"):
        assert np.array_equal(getattr(view, part), getattr(same_seed, part))
        assert not np.array_equal(getattr(view, part), getattr(other_seed, part))


def test_hashing_1k_validates_on_part_of_its_learning_images():
    few, many = (
        protocols.view(cifar(validation_fraction=fraction), "hashing_1k") for fraction in (0.1, 0.5)
    )
    learning_images = [np.union1d(view.train, view.validation) for view in (few, many)]
    assert np.array_equal(*learning_images)
    assert np.array_equal(few.queries, many.queries)
    assert (len(few.validation), len(many.validation)) == (500, 2500)


def test_hashing_1k_needs_600_images_per_class():
    view = protocols.view(cifar(600), "hashing_1k")
    assert np.array_equal(view.gallery, np.union1d(view.train, view.validation))
    message = error_of(cifar(599), "hashing_1k")
    assert message.startswith(
        "protocol hashing_1k needs 600 images per class, but 'class 0' has 599"
    )


def test_hashing_1k_is_rejected_for_other_data_sets():
    message = error_of(cifar(dataset="digits"), "hashing_1k")
    assert message.startswith("protocol hashing_1k is defined only for CIFAR-10")
    assert "digits" in message
