"""Images: read once into memory-mapped arrays, split without overlap, fingerprinted.

Whatever the source (digits, CIFAR-10, a folder of pictures), what comes out is the same: RGB
images of one size in one array, training images before test images, that is read from disk only
where it is used.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from cbir import StudyError, project_root
from cbir.cache import cached, digest, find
from cbir.images.pictures import (
    cifar10_pictures,
    decode_pictures,
    digits_pictures,
    folder_pictures,
    folder_state,
    list_folder,
)


@dataclass(frozen=True)
class Dataset:
    """All images of a study in one array, and which of them serve what.

    Attributes:
        parameters: what it was loaded with.
        classes: class names; a label is a position in them.
        images: (n, size, size, 3) uint8 RGB, memory-mapped, training images before test images.
        labels: (n,) int64.
        names: what tells an image from all others, such as its path.
        train, validation, gallery, queries: positions in `images`, each sorted.
        fingerprint: SHA-256 of all images and labels.
        skipped: files that could not be read, with the reason.
        protocol: which images are gallery and which are queries; see `protocols`.
        draw: number of the draw, where the protocol draws.

    A network learns from `train`; choices are made on `validation`; queries serve no choice.
    """

    parameters: dict
    classes: list[str]
    images: np.ndarray
    labels: np.ndarray
    names: list[str]
    train: np.ndarray
    validation: np.ndarray
    gallery: np.ndarray
    queries: np.ndarray
    fingerprint: str
    skipped: list[str]
    protocol: str = "closed"
    draw: int | None = None

    @property
    def split_fingerprint(self) -> str:
        """Digest of the fingerprint and of which images train and which validate."""
        return digest([self.fingerprint, self.train.tolist(), self.validation.tolist()])

    @property
    def search_fingerprint(self) -> str:
        """Digest of the fingerprint and of which images are searched, and with which."""
        return digest([self.fingerprint, self.gallery.tolist(), self.queries.tolist()])

    @property
    def gallery_labels(self) -> np.ndarray:
        """(n_gallery,) int64."""
        return self.labels[self.gallery]

    @property
    def query_labels(self) -> np.ndarray:
        """(n_queries,) int64."""
        return self.labels[self.queries]

    @property
    def exclude(self) -> np.ndarray:
        """(n_queries,) the gallery position that is the query itself, -1 where there is none."""
        place = np.searchsorted(self.gallery, self.queries)
        place = np.minimum(place, len(self.gallery) - 1)
        return np.where(self.gallery[place] == self.queries, place, -1)

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and by what they serve (columns)."""
        parts = {
            "training": self.train,
            "validation": self.validation,
            "gallery": self.gallery,
            "queries": self.queries,
        }
        table = {
            part: np.bincount(self.labels[positions], minlength=len(self.classes))
            for part, positions in parts.items()
        }
        frame = pd.DataFrame(table, index=pd.Index(self.classes, name="class"))
        frame.loc["all"] = frame.sum()
        return frame


def load_dataset(
    dataset: str,
    *,
    image_size: int,
    test_fraction: float,
    validation_fraction: float,
    split_seed: int,
    training_images: int = 0,
    test_images: int = 0,
    learn_from: int = 0,
) -> Dataset:
    """A data set, decoded on first use and memory-mapped from then on.

    Args:
        dataset: "digits", "cifar10", or a folder laid out `<class>/...` or
            `{train,test}/<class>/...`.
        image_size: pictures become squares of this many pixels (the centre is kept).
        test_fraction: share of each class that becomes test images where the data has no test
            split of its own; at least one image a class.
        validation_fraction: share of each class's training images, at least one.
        split_seed: of every choice of images; the same for every run of a study.
        training_images, test_images: about how many of each part to keep, in equal shares of all
            classes; 0 keeps all.
        learn_from: about how many of the training images to learn from and to validate on, in
            equal shares of all classes, the fewer among the more; 0 for all. The gallery keeps all.

    Raises:
        StudyError: the data cannot be had, or cannot be split so.
    """
    parameters = {
        "dataset": dataset,
        "image_size": image_size,
        "test_fraction": test_fraction,
        "split_seed": split_seed,
        "training_images": training_images,
        "test_images": test_images,
    }
    images = cached(**_images_step(**parameters))
    content = json.loads((images.folder / "content.json").read_text("utf-8"))
    n_train = content.pop("n_train")
    labels = np.load(images.folder / "labels.npy")

    def make(folder: Path) -> None:
        train, validation = stratified_split(
            labels[:n_train], validation_fraction, split_seed, content["classes"], "validation"
        )
        np.save(folder / "train.npy", train)
        np.save(folder / "validation.npy", validation)

    split = cached(
        "split",
        make,
        parameters={
            "validation_fraction": validation_fraction,
            "split_seed": split_seed,
        },
        reads=[content["fingerprint"]],
        package="images",
    )
    train, validation = (
        stratified_share(
            np.load(split.folder / f"{part}.npy"), learn_from / n_train, labels, split_seed
        )
        for part in ("train", "validation")
    )
    loaded = Dataset(
        parameters=parameters | {"validation_fraction": validation_fraction},
        images=np.load(images.folder / "images.npy", mmap_mode="r"),
        labels=labels,
        train=train,
        validation=validation,
        gallery=np.arange(n_train),
        queries=np.arange(n_train, len(labels)),
        **content,
    )
    _check_disjoint(loaded)
    return loaded


def take_rows(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows by position: a view where they follow one another, a copy where they do not."""
    first, last = positions[0], positions[-1] + 1
    is_whole = last - first == len(positions) and (np.diff(positions) == 1).all()
    return array[first:last] if is_whole else array[positions]


def is_decoded(**parameters) -> bool:
    """Whether `load` would find the images decoded; arguments as for `load`."""
    step = _images_step(**parameters)
    del step["make"]
    return find(**step) is not None


def _images_step(
    *,
    dataset: str,
    image_size: int,
    test_fraction: float,
    split_seed: int,
    training_images: int,
    test_images: int,
) -> dict:
    """The step that decodes the images of a data set, as `cached` takes it."""
    folder = project_root() / ("data/cifar10" if dataset == "cifar10" else dataset)
    if dataset == "digits":
        read, state = digits_pictures, "scikit-learn"
    elif dataset == "cifar10" and not folder.is_dir():
        read, state = cifar10_pictures, "keras.datasets"
    else:
        paths = list_folder(folder)
        if dataset == "cifar10" and "test" not in paths:
            raise StudyError(f"{folder} has no test/: unpack CIFAR-10 there anew, test images too")
        read, state = (
            lambda: folder_pictures(folder, paths),
            folder_state(folder, paths),
        )

    def make(into: Path) -> None:
        pictures = read()
        images, readable, skipped = decode_pictures(pictures, image_size, into / "all.npy")
        labels, names = (
            pictures.labels[readable],
            [pictures.names[row] for row in readable],
        )
        if pictures.is_test is None:
            parts = stratified_split(labels, test_fraction, split_seed, pictures.classes, "test")
        else:
            is_test = pictures.is_test[readable]
            parts = np.flatnonzero(~is_test), np.flatnonzero(is_test)
        for part, rows in zip(("train", "test"), parts, strict=True):
            _check_classes(labels[rows], pictures.classes, part)
        parts = [
            stratified_share(rows, limit / len(rows), labels, split_seed)
            for rows, limit in zip(parts, (training_images, test_images), strict=True)
        ]
        order = np.concatenate(parts)
        fingerprint = hashlib.sha256(json.dumps([pictures.classes, len(parts[0])]).encode())
        array = open_memmap(
            into / "images.npy", "w+", images.dtype, (len(order), *images.shape[1:])
        )
        for start in range(0, len(order), 1024):
            array[start : start + 1024] = images[order[start : start + 1024]]
            fingerprint.update(array[start : start + 1024].tobytes())
        array.flush()
        fingerprint.update(labels[order].tobytes())
        np.save(into / "labels.npy", labels[order])
        content = {
            "classes": pictures.classes,
            "names": [names[row] for row in order],
            "n_train": len(parts[0]),
            "skipped": skipped,
            "fingerprint": fingerprint.hexdigest(),
        }
        (into / "content.json").write_text(json.dumps(content), encoding="utf-8")
        del images, array
        (into / "all.npy").unlink()

    parameters = {"dataset": dataset, "image_size": image_size}
    parameters |= {"test_fraction": test_fraction, "split_seed": split_seed}
    parameters |= {"training_images": training_images, "test_images": test_images}
    return {
        "step": "images",
        "make": make,
        "parameters": parameters,
        "reads": [state],
        "package": "images",
    }


def _check_classes(labels: np.ndarray, classes: list[str], part: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    needed = 2 if part == "train" else 1
    if counts.min() < needed:
        raise StudyError(
            f"class {classes[counts.argmin()]!r} has {counts.min()} readable {part} image(s), and "
            f"the split needs at least {needed}: add some or remove the class"
        )


def _check_disjoint(dataset: Dataset) -> None:
    """Queries, training and validation images are different images, by name and by position."""
    assert len(set(dataset.names)) == len(dataset.names), "an image is query and gallery"
    assert not np.intersect1d(dataset.train, dataset.validation).size, "train meets validation"
    assert np.isin([*dataset.train, *dataset.validation], dataset.gallery).all()


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: list[str], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images that stay and of those set apart, class by class, both sorted.

    Args:
        labels: (n,) int.
        fraction: share of each class to set apart, at least one image.
        seed: decides which.
        classes, part: names for the error message.

    Raises:
        StudyError: a class has fewer than two images.
    """
    random = np.random.default_rng(seed)
    apart = []
    for label, name in enumerate(classes):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise StudyError(
                f"class {name!r} has too few images left ({len(members)}) to set some apart for "
                f"{part}: each class needs at least 3, or 2 beside a test folder of its own"
            )
        apart.append(members[: min(len(members) - 1, max(1, round(fraction * len(members))))])
    apart = np.sort(np.concatenate(apart))
    return np.setdiff1d(np.arange(len(labels)), apart), apart


def stratified_share(rows: np.ndarray, share: float, labels: np.ndarray, seed: int) -> np.ndarray:
    """A share of some rows, the same of each class and at least one; all of them for 0, or above 1.

    Of two shares, the smaller is part of the larger.

    Args:
        rows: positions in `labels`, sorted.
        labels: (n,) int.
        seed: decides which.
    """
    if not 0 < share < 1:
        return rows
    kept = []
    for label in np.unique(labels[rows]):
        members = np.random.default_rng([seed, label]).permutation(rows[labels[rows] == label])
        kept.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(kept))
