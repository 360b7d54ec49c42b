"""Protocols: which images train the network, form the gallery and serve as queries.

docs/evaluation.md describes them and what each shows. `hashing_1k` pools CIFAR-10's training and
test images, and draws all parts from the pool.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cbir import StudyError
from cbir.images.dataset import Dataset, stratified_split

PROTOCOLS = ("closed", "held_out_gallery", "unseen_classes", "hashing_1k")
HASHING_QUERIES, HASHING_TRAINING = 100, 500


def views(dataset: Dataset, protocols: list[str], *, unseen: int, draws: int) -> Iterator[Dataset]:
    """Yield the data set as each protocol uses it; StudyError if it does not fit one.

    `unseen_classes` draws `unseen` classes that it does not train on, and has one view per draw.
    """
    for protocol in protocols:
        for draw in range(draws) if protocol == "unseen_classes" else [None]:
            try:
                yield view(dataset, protocol, unseen=unseen, draw=draw)
            except StudyError as error:
                fitting = ",".join(_fitting(dataset, protocols, unseen))
                raise StudyError(f'{error}, or set SET="protocols=[{fitting}]"') from None


def _fitting(dataset: Dataset, protocols: list[str], unseen: int) -> list[str]:
    """The protocols that the data set fits, beginning with one that may be the first."""
    fitting = []
    for protocol in protocols:
        with contextlib.suppress(StudyError):
            view(dataset, protocol, unseen=unseen)
            fitting.append(protocol)
    return fitting if fitting and fitting[0] != "unseen_classes" else ["closed", *fitting]


def view(dataset: Dataset, protocol: str, *, unseen: int = 2, draw: int | None = None) -> Dataset:
    """The data set as one protocol uses it; arguments and errors as for `views`."""
    if protocol == "closed":
        return dataset
    if protocol == "held_out_gallery":
        if np.bincount(dataset.query_labels).max() < 2:
            raise StudyError(
                f"protocol {protocol}: no class has two test images, so no query has a relevant "
                "image: add test images"
            )
        return replace(dataset, protocol=protocol, gallery=dataset.queries)
    if protocol == "unseen_classes":
        return _unseen_classes(dataset, unseen, draw or 0)
    if protocol == "hashing_1k":
        return _hashing_1k(dataset)
    raise StudyError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")


def unseen_labels(dataset: Dataset) -> np.ndarray:
    """(n,) int64, the classes of a view's queries that it does not train on."""
    return np.setdiff1d(dataset.query_labels, dataset.labels[dataset.train])


def _unseen_classes(dataset: Dataset, unseen: int, draw: int) -> Dataset:
    """Draw classes in rounds: every class is unseen once before any class is unseen twice."""
    n_classes, seed = len(dataset.classes), dataset.parameters["split_seed"]
    if unseen > n_classes - 2:
        raise StudyError(
            f"protocol unseen_classes: {n_classes} classes without {unseen} leave fewer than two "
            "to train on: lower `unseen`"
        )
    start = draw * unseen
    rounds = range((start + unseen - 1) // n_classes + 1)
    order = np.concatenate(
        [np.random.default_rng([seed, number]).permutation(n_classes) for number in rounds]
    )
    # A draw that starts in one round and ends in the next may contain a class twice.
    unseen_classes = list(dict.fromkeys(order[start:].tolist()))[:unseen]

    def select(positions: np.ndarray, *, is_unseen: bool) -> np.ndarray:
        return positions[np.isin(dataset.labels[positions], unseen_classes) == is_unseen]

    return replace(
        dataset,
        protocol="unseen_classes",
        draw=draw,
        train=select(dataset.train, is_unseen=False),
        validation=select(dataset.validation, is_unseen=False),
        queries=select(dataset.queries, is_unseen=True),
    )


def _hashing_1k(dataset: Dataset) -> Dataset:
    if dataset.parameters["dataset"] != "cifar10":
        raise StudyError(
            "protocol hashing_1k is defined only for CIFAR-10, not for "
            f"{dataset.parameters['dataset']}: use dataset: cifar10"
        )
    seed = dataset.parameters["split_seed"]
    queries, training = [], []
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label)
        if len(members) < HASHING_QUERIES + HASHING_TRAINING:
            raise StudyError(
                f"protocol hashing_1k needs {HASHING_QUERIES + HASHING_TRAINING} images per class, "
                f"but {name!r} has {len(members)}: add some"
            )
        drawn = np.random.default_rng([seed, label]).permutation(members)
        queries.append(drawn[:HASHING_QUERIES])
        training.append(drawn[HASHING_QUERIES:][:HASHING_TRAINING])
    queries, training = np.sort(np.concatenate(queries)), np.sort(np.concatenate(training))
    # The protocol gives labels for only 5,000 images, so validation images are taken from these.
    share, names = dataset.parameters["validation_fraction"], (dataset.classes, "validation")
    train, validation = stratified_split(dataset.labels[training], share, seed, *names)
    return replace(
        dataset,
        protocol="hashing_1k",
        train=training[train],
        validation=training[validation],
        gallery=np.setdiff1d(np.arange(len(dataset.labels)), queries),
        queries=queries,
    )
