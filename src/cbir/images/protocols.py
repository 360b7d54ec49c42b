"""Protocols: which images train, which are searched, and with which.

| protocol | trained on | gallery | queries |
|---|---|---|---|
| `closed` | training images | training images | test images |
| `held_out_gallery` | training images | test images | test images, each without itself |
| `unseen_classes` | training images of some classes | training images of all classes | test \
images of the other classes |
| `hashing_1k` | 500 images a class | all but the queries | 100 images a class |

`closed` is the paper's: the gallery is what the network was trained on. In `held_out_gallery` it
has seen neither side. `unseen_classes` asks whether an embedding knows more than the classes it was
taught. `hashing_1k` is that of the deep-hashing literature on CIFAR-10 with a gallery of 59,000:
training and test images are pooled and drawn from anew.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cbir import StudyError
from cbir.images.dataset import Dataset, stratified_split

PROTOCOLS = ("closed", "held_out_gallery", "unseen_classes", "hashing_1k")
HASHING_QUERIES, HASHING_TRAINING = 100, 500


def views(dataset: Dataset, protocols: list[str], *, unseen: int, draws: int) -> Iterator[Dataset]:
    """The data set as each protocol sees it, one view a draw where the protocol draws.

    Args:
        dataset: from `data.load`.
        protocols: names in `PROTOCOLS`.
        unseen: classes that `unseen_classes` keeps from training.
        draws: how often it draws them.

    Raises:
        StudyError: the data cannot serve a protocol.
    """
    for protocol in protocols:
        for draw in range(draws) if protocol == "unseen_classes" else [None]:
            yield view(dataset, protocol, unseen=unseen, draw=draw)


def view(dataset: Dataset, protocol: str, *, unseen: int = 2, draw: int | None = None) -> Dataset:
    """The data set as one protocol sees it; arguments and errors as for `views`."""
    if protocol == "closed":
        return dataset
    if protocol == "held_out_gallery":
        _need_two_of_one(dataset, dataset.queries, protocol)
        return replace(dataset, protocol=protocol, gallery=dataset.queries)
    if protocol == "unseen_classes":
        return _unseen_classes(dataset, unseen, draw or 0)
    if protocol == "hashing_1k":
        return _hashing_1k(dataset)
    raise StudyError(f"unknown protocol {protocol!r}: known are {', '.join(PROTOCOLS)}")


def unseen_labels(dataset: Dataset) -> np.ndarray:
    """Labels of the classes that a view has queries of, but was not trained on."""
    return np.setdiff1d(dataset.query_labels, dataset.labels[dataset.train])


def _unseen_classes(dataset: Dataset, unseen: int, draw: int) -> Dataset:
    """Each class is unseen once before one is for the second time."""
    n_classes = len(dataset.classes)
    if unseen > n_classes - 2:
        raise StudyError(
            f"protocol unseen_classes: {n_classes} classes without {unseen} leave fewer than two "
            "to train on: lower `unseen`, or leave the protocol out"
        )
    start = draw * unseen
    rounds = range((start + unseen - 1) // n_classes + 1)
    seed = dataset.parameters["split_seed"]
    order = np.concatenate(
        [np.random.default_rng([seed, each]).permutation(n_classes) for each in rounds]
    )
    # A draw that begins in one round and ends in the next may meet a class twice.
    apart = list(dict.fromkeys(order[start:].tolist()))[:unseen]

    def of(positions: np.ndarray, wanted: bool) -> np.ndarray:
        return positions[np.isin(dataset.labels[positions], apart) == wanted]

    return replace(
        dataset,
        protocol="unseen_classes",
        draw=draw,
        train=of(dataset.train, False),
        validation=of(dataset.validation, False),
        queries=of(dataset.queries, True),
    )


def _hashing_1k(dataset: Dataset) -> Dataset:
    if dataset.parameters["dataset"] != "cifar10":
        raise StudyError(
            "protocol hashing_1k is that of CIFAR-10: leave it out of `protocols` for "
            f"{dataset.parameters['dataset']}"
        )
    seed = dataset.parameters["split_seed"]
    queries, training = [], []
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label)
        if len(members) < HASHING_QUERIES + HASHING_TRAINING:
            raise StudyError(
                f"protocol hashing_1k needs {HASHING_QUERIES + HASHING_TRAINING} images a class, "
                f"and {name!r} has {len(members)}: leave it out of `protocols`"
            )
        drawn = np.random.default_rng([seed, label]).permutation(members)
        queries.append(drawn[:HASHING_QUERIES])
        training.append(drawn[HASHING_QUERIES:][:HASHING_TRAINING])
    queries, training = np.sort(np.concatenate(queries)), np.sort(np.concatenate(training))
    # Choices are made on a part of the 5,000, not on labels that the protocol does not give.
    train, validation = stratified_split(
        dataset.labels[training],
        dataset.parameters["validation_fraction"],
        seed,
        dataset.classes,
        "validation",
    )
    return replace(
        dataset,
        protocol="hashing_1k",
        train=training[train],
        validation=training[validation],
        gallery=np.setdiff1d(np.arange(len(dataset.labels)), queries),
        queries=queries,
    )


def _need_two_of_one(dataset: Dataset, positions: np.ndarray, protocol: str) -> None:
    counts = np.bincount(dataset.labels[positions], minlength=len(dataset.classes))
    if counts.max() < 2:
        raise StudyError(
            f"protocol {protocol}: no class has two test images, so no query has a relevant image: "
            "leave it out of `protocols`"
        )
