"""Data sets: the images of a study, decoded once, and their roles.

Whatever the source (digits, CIFAR-10, a folder of pictures), a data set is one memory-mapped array
of RGB images of one size, training images before test images.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cbir import StudyError, project_root
from cbir.cache import cached, digest, find, read
from cbir.images.folders import (
    LeftOut,
    Pictures,
    dataset_folder,
    folder_pictures,
    folder_state,
    list_folder,
)
from cbir.images.pictures import cifar10_pictures, decode_pictures, digits_pictures

# The number of images hashed at a time.
BLOCK = 1024


@dataclass(frozen=True)
class Dataset:
    """All images of a study in one array, and their roles.

    Attributes:
        parameters: the arguments of `load_dataset`.
        classes: class names; a label is an index into them.
        images: (n, size, size, 3) uint8 RGB, memory-mapped, training images before test images.
        labels: (n,) int64.
        names: n unique names, such as paths.
        train, validation, gallery, queries: positions in `images`, each sorted.
        fingerprint: SHA-256 of all images and labels.
        skipped: the unreadable files, each "name: reason".
        remarks: the files that are used though something is odd about them, such as damage.
        protocol: which images are gallery and which are queries; see `protocols`.
        draw: number of the draw, if the protocol draws classes.

    Networks are trained on `train`; every choice is made on `validation`, never on queries.
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
    remarks: list[LeftOut] = field(default_factory=list)
    protocol: str = "closed"
    draw: int | None = None

    @property
    def split_fingerprint(self) -> str:
        """Digest of the fingerprint and of the training and validation positions."""
        return digest([self.fingerprint, self.train.tolist(), self.validation.tolist()])

    @property
    def search_fingerprint(self) -> str:
        """Digest of the fingerprint and of the gallery and query positions."""
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
        """(n_queries,) int64, the gallery position of the query itself, or -1 if it has none."""
        places = np.searchsorted(self.gallery, self.queries)
        places = np.minimum(places, len(self.gallery) - 1)
        return np.where(self.gallery[places] == self.queries, places, -1)

    def counts(self) -> pd.DataFrame:
        """Number of images by class (rows; the last one is all classes) and by role (columns)."""
        uses = {
            "training": self.train,
            "validation": self.validation,
            "gallery": self.gallery,
            "queries": self.queries,
        }
        columns = {
            use: np.bincount(self.labels[positions], minlength=len(self.classes))
            for use, positions in uses.items()
        }
        table = pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))
        # A class may be called "all", so the sum is appended.
        return pd.concat([table, table.sum().to_frame("all").T]).rename_axis("class")


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
    """Load a data set; images are decoded the first time and memory-mapped afterwards.

    Args:
        dataset: "digits", "cifar10", or a folder arranged as `<class>/...` or
            `{train,test}/<class>/...`.
        image_size: side length in pixels of the images, which are centre crops.
        test_fraction: share of each class that becomes test images if the data has no test split;
            at least one image per class.
        validation_fraction: share of each class's training images, at least one.
        split_seed: seed of every choice of images, the same for all runs of a study.
        training_images, test_images: approximate number of images of each part to keep, in equal
            shares of all classes; 0 keeps all.
        learn_from: approximate number of training images to train and validate on, in equal shares
            of all classes; 0 for all. A smaller selection is part of a larger one. The gallery
            keeps all training images.

    Raises:
        StudyError: the data cannot be read, or cannot be split as requested.
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
    n_train = content["n_train"]
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
        parameters={"validation_fraction": validation_fraction, "split_seed": split_seed},
        reads=[content["fingerprint"]],
        package="images",
    )
    train, validation = (
        stratified_share(
            np.load(split.folder / f"{part}.npy"), learn_from / n_train, labels, split_seed
        )
        for part in ("train", "validation")
    )
    parameters["validation_fraction"] = validation_fraction
    return _open(images.folder, parameters, train, validation)


def stored_dataset(fingerprint: str, *, validation_fraction: float, **parameters) -> Dataset | None:
    """A data set as it was read earlier, even if its pictures have changed or are gone.

    Args:
        fingerprint: of the data set.
        validation_fraction, parameters: `Dataset.parameters`.

    Returns:
        None if its images are not stored.
    """
    paths = (project_root() / "artifacts" / "images").glob("*/content.json")
    # Renamed pictures have the same fingerprint, and the newest names fit best.
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        images = read(path.parent)
        if images is None or images.manifest["parameters"] != parameters:
            continue
        content = json.loads(path.read_text("utf-8"))
        if content["fingerprint"] == fingerprint:
            n_train, labels = content["n_train"], np.load(path.with_name("labels.npy"))
            train, validation = stratified_split(
                labels[:n_train], validation_fraction, parameters["split_seed"],
                content["classes"], "validation",
            )  # fmt: skip
            parameters["validation_fraction"] = validation_fraction
            return _open(path.parent, parameters, train, validation)
    return None


def is_cached(*, validation_fraction: float, **parameters) -> bool:
    """Whether the images and their split are cached, so that `load_dataset` only reads."""
    step = _images_step(**parameters)
    del step["make"]
    if (images := find(**step)) is None:
        return False
    content = json.loads((images.folder / "content.json").read_text("utf-8"))
    split = {"validation_fraction": validation_fraction, "split_seed": parameters["split_seed"]}
    reads = [content["fingerprint"]]
    return find("split", parameters=split, reads=reads, package="images") is not None


def _open(folder: Path, parameters: dict, train: np.ndarray, validation: np.ndarray) -> Dataset:
    """The data set whose images are stored in a folder."""
    content = json.loads((folder / "content.json").read_text("utf-8"))
    n_train, labels = content.pop("n_train"), np.load(folder / "labels.npy")
    content["remarks"] = [LeftOut(*row) for row in content["remarks"]]
    loaded = Dataset(
        parameters=parameters,
        images=np.load(folder / "images.npy", mmap_mode="r"),
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
    """The rows at the given positions: a view if the positions are consecutive, else a copy."""
    first, last = positions[0], positions[-1] + 1
    is_range = last - first == len(positions) and (np.diff(positions) == 1).all()
    return array[first:last] if is_range else array[positions]


def _images_step(**parameters) -> dict:
    """The step that decodes the images of a data set: the arguments of `cached`."""
    dataset = parameters["dataset"]
    folder = project_root() / dataset_folder(dataset)
    if dataset == "digits":
        read, state = digits_pictures, "scikit-learn"
    elif dataset == "cifar10" and not folder.is_dir():
        read, state = cifar10_pictures, "keras.datasets"
    else:
        paths = list_folder(folder)
        if dataset == "cifar10" and "test" not in paths:
            raise StudyError(
                f"{folder} has no folder test/: unpack CIFAR-10 there again, with train/ and test/"
            )
        read, state = lambda: folder_pictures(folder, paths), folder_state(folder, paths)

    def make(into: Path) -> None:
        settings = {name: value for name, value in parameters.items() if name != "dataset"}
        _decode(read(), into, **settings)

    return {
        "step": "images",
        "make": make,
        "parameters": parameters,
        "reads": [state],
        "package": "images",
    }


def _decode(pictures: Pictures, into: Path, image_size: int, **selection) -> None:
    """Write images.npy, labels.npy and content.json; `selection` as for `_select`."""
    skipped = {}
    while True:  # If files cannot be read, the parts are chosen again without them.
        readable = np.setdiff1d(np.arange(len(pictures.items)), list(skipped))
        train, test = _select(pictures, readable, **selection)
        order = np.concatenate([train, test])
        unreadable, remarks = decode_pictures(pictures, order, image_size, into / "images.npy")
        if unreadable.keys() <= skipped.keys():
            break
        skipped |= unreadable
    images = np.load(into / "images.npy", mmap_mode="r")
    labels = pictures.labels[order]
    fingerprint = hashlib.sha256(json.dumps([pictures.classes, len(train)]).encode())
    for start in range(0, len(images), BLOCK):
        fingerprint.update(images[start : start + BLOCK].tobytes())
    fingerprint.update(labels.tobytes())
    np.save(into / "labels.npy", labels)
    content = {
        "classes": pictures.classes,
        "names": [pictures.names[row] for row in order],
        "n_train": len(train),
        "skipped": [f"{pictures.names[row]}: {skipped[row]}" for row in sorted(skipped)],
        "remarks": [[pictures.names[row], remark] for row, remark in remarks.items()],
        "fingerprint": fingerprint.hexdigest(),
    }
    (into / "content.json").write_text(json.dumps(content), encoding="utf-8")


def _select(
    pictures: Pictures,
    readable: np.ndarray,
    *,
    test_fraction: float,
    split_seed: int,
    training_images: int,
    test_images: int,
) -> list[np.ndarray]:
    """Positions of the training and of the test images among the readable pictures."""
    labels = pictures.labels[readable]
    if pictures.is_test is None:
        parts = stratified_split(labels, test_fraction, split_seed, pictures.classes, "test")
    else:
        is_test = pictures.is_test[readable]
        parts = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    for part, rows in zip(("train", "test"), parts, strict=True):
        _check_classes(labels[rows], pictures.classes, part)
    return [
        readable[stratified_share(rows, limit / len(rows), labels, split_seed)]
        for rows, limit in zip(parts, (training_images, test_images), strict=True)
    ]


def _check_classes(labels: np.ndarray, classes: list[str], part: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    needed = 2 if part == "train" else 1
    if counts.min() < needed:
        raise StudyError(
            f"class {classes[counts.argmin()]!r} has {counts.min()} readable {part} image(s), but "
            f"the split needs at least {needed}: add some or remove the class"
        )


def _check_disjoint(dataset: Dataset) -> None:
    """Check that queries, training and validation images do not overlap."""
    assert len(set(dataset.names)) == len(dataset.names), "an image is query and gallery"
    assert not np.intersect1d(dataset.train, dataset.validation).size, "train meets validation"
    assert np.isin([*dataset.train, *dataset.validation], dataset.gallery).all()


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: list[str], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Split images class by class; return the positions of both parts, each sorted.

    Args:
        labels: (n,) int.
        fraction: share of each class in the second part; each part keeps at least one image.
        seed: seed of the random choice.
        classes, part: names for the error message.

    Raises:
        StudyError: a class has fewer than two images.
    """
    random = np.random.default_rng(seed)
    second = []
    for label, name in enumerate(classes):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise StudyError(
                f"class {name!r} has too few images left ({len(members)}) to hold some out for "
                f"{part}: each class needs at least 3, or 2 if there is a test folder"
            )
        second.append(members[: min(len(members) - 1, max(1, round(fraction * len(members))))])
    second = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), second), second


def stratified_share(rows: np.ndarray, share: float, labels: np.ndarray, seed: int) -> np.ndarray:
    """Select the same share of the rows of each class, at least one row; sorted.

    A smaller share is part of a larger one.

    Args:
        rows: positions in `labels`, sorted.
        share: above 0 and below 1; any other value keeps all rows.
        labels: (n,) int.
        seed: seed of the random choice.
    """
    if not 0 < share < 1:
        return rows
    kept = []
    for label in np.unique(labels[rows]):
        members = np.random.default_rng([seed, label]).permutation(rows[labels[rows] == label])
        kept.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(kept))
