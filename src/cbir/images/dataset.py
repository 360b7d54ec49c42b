"""Data sets: the images of a study, decoded once, and their roles.

Whatever the source (digits, CIFAR-10, a folder of pictures), a data set is one memory-mapped array
of RGB images of one size, training images before test images.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from cbir import StudyError, project_root
from cbir.cache import MANIFEST, cached, digest, find, read, read_manifest
from cbir.images.folders import (
    PARTS,
    LeftOut,
    Pictures,
    data_place,
    folder_state,
    list_pictures,
    short_list,
)
from cbir.images.pictures import MAX_MEGAPIXELS, cifar10_pictures, decode_pictures, digits_pictures

# The number of images hashed at a time.
BLOCK = 1024
TRAIN, VALIDATION, TEST = range(len(PARTS))
# The parameters that decide which images are kept, and in which part: those of `select`.
SELECTION = ("test_fraction", "split_seed", "training_images", "test_images", "min_images")
# The fewest images of a class that can be split into training, validation and test images.
MIN_IMAGES = 3


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
        left_out: the files and folders that are not used, with their reasons.
        remarks: the files that are used though something is odd about them, such as damage.
        layout: a sentence on which folders are which part, or on what is odd about the folders.
        protocol: which images are gallery and which are queries; see `protocols`.
        draw: number of the draw, if the protocol draws classes.
        stored: the folder of the decoded images.

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
    left_out: list[LeftOut] = field(default_factory=list)
    remarks: list[LeftOut] = field(default_factory=list)
    layout: str = ""
    stored: Path | None = None
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
        roles = {"training": self.train, "validation": self.validation}
        roles |= {"gallery": self.gallery, "queries": self.queries}
        columns = {
            role: np.bincount(self.labels[positions], minlength=len(self.classes))
            for role, positions in roles.items()
        }
        table = pd.DataFrame(columns, index=self.classes)
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
    min_images: int = 0,
    damaged: str = "use",
    max_megapixels: int = MAX_MEGAPIXELS,
    learn_from: int = 0,
) -> Dataset:
    """Load a data set; images are decoded the first time and memory-mapped afterwards.

    Args:
        dataset: "digits", "cifar10", or a folder or CSV file as for `folders.list_pictures`.
        image_size: side length in pixels of the images, which are centre crops.
        test_fraction: share of each class that becomes test images if the data has no test split;
            at least one image per class.
        validation_fraction: share of each class's training images, at least one, if the data has no
            validation images.
        split_seed: seed of every choice of images, the same for all runs of a study.
        training_images, test_images: approximate number of images of each part to keep, in equal
            shares of all classes; 0 keeps all.
        min_images: classes with fewer images, or too few to split, are left out; 0 keeps all
            classes, and refuses those with too few.
        damaged, max_megapixels: as for `pictures.read_picture`.
        learn_from: approximate number of training images to train and validate on, in equal shares
            of all classes; 0 for all. A smaller selection is part of a larger one. The gallery
            keeps all training images.

    Raises:
        StudyError: the data cannot be read, or cannot be split as requested.
    """
    parameters = dict(locals())
    del parameters["learn_from"]
    step, decode, left_out = _images_step(parameters)
    return _open(cached(make=decode, **step).folder, parameters, left_out, learn_from)


def stored_dataset(fingerprint: str, **parameters) -> Dataset | None:
    """A data set as it was read earlier, even if its pictures have changed or are gone.

    `parameters` are those of the data set. None if no images with this fingerprint are stored.
    """
    settings = _decoding(parameters)
    paths = (project_root() / "artifacts" / "images").glob("*/content.json")
    # Renamed pictures have the same fingerprint, and the newest names fit best.
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        is_same = read_manifest(path.parent).get("parameters") == settings
        if is_same and read(path.parent) is not None:
            content = _read_content(path.parent)
            if content["fingerprint"] == fingerprint:
                return _open(path.parent, parameters, content["listed"])
    return None


def is_cached(**parameters) -> bool:
    """Whether the images are decoded, so that `load_dataset` with these arguments only reads."""
    return find(**_images_step(parameters)[0]) is not None


def forget(parameters: dict) -> str:
    """Discard the decoded images, and return their fingerprint; empty if there were none.

    The next `load_dataset` decodes them again, since sizes and modification times of files do not
    show every change. Parameters as for `is_cached`.
    """
    if (images := find(**_images_step(parameters)[0])) is None:
        return ""
    (images.folder / MANIFEST).unlink()
    return _read_content(images.folder)["fingerprint"]


def describe_changes(dataset: Dataset) -> str:
    """What has changed in a data set's folder since it was decoded, in words; empty if nothing."""
    name = dataset.parameters["dataset"]
    place = data_place(name)
    if name == "digits" or (name == "cifar10" and not place.is_dir()):
        return ""
    try:
        pictures = list_pictures(place)
    except StudyError as error:
        return str(error)
    before = {*dataset.names, *(one.name for one in dataset.left_out)}
    new, gone = set(pictures.names) - before, set(dataset.names) - set(pictures.names)
    words = [f"{len(names):,} {word} ({short_list(sorted(names), 3)})"
             for names, word in ((new, "new"), (gone, "gone")) if names]  # fmt: skip
    made_from = read(dataset.stored).manifest["reads"]
    if not words and made_from != folder_state(pictures):
        words = ["some pictures were replaced"]
    return ", ".join(words)


def take_rows(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The rows at the given positions: a view if the positions are consecutive, else a copy."""
    first, last = positions[0], positions[-1] + 1
    is_range = last - first == len(positions) and (np.diff(positions) == 1).all()
    return array[first:last] if is_range else array[positions]


def _read_content(images: Path) -> dict:
    return json.loads((images / "content.json").read_text("utf-8"))


def _open(
    folder: Path, parameters: dict, undecoded: Iterable[LeftOut], learn_from: int = 0
) -> Dataset:
    """The data set whose images are stored in a folder; `undecoded` files were left out before."""
    content, labels = _read_content(folder), np.load(folder / "labels.npy")
    n_train, seed = content["n_train"], parameters["split_seed"]
    validation = np.array(content["validation"], np.int64)
    train = np.setdiff1d(np.arange(n_train), validation)
    if not len(validation):
        share = parameters["validation_fraction"]
        names = content["classes"], "validation"
        train, validation = stratified_split(labels[:n_train], share, seed, *names)
    train, validation = (
        stratified_share(rows, learn_from / n_train, labels, seed) for rows in (train, validation)
    )
    loaded = Dataset(
        parameters=parameters,
        classes=content["classes"],
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=labels,
        names=content["names"],
        train=train,
        validation=validation,
        gallery=np.arange(n_train),
        queries=np.arange(n_train, len(labels)),
        fingerprint=content["fingerprint"],
        left_out=[LeftOut(*row) for row in [*undecoded, *content["left_out"]]],
        remarks=[LeftOut(*row) for row in content["remarks"]],
        layout=content["layout"],
        stored=folder,
    )
    assert len(set(loaded.names)) == len(loaded.names), "two images have the same name"
    assert not np.intersect1d(train, validation).size, "an image is in training and validation"
    assert np.isin([*train, *validation], loaded.gallery).all()
    return loaded


def _decoding(parameters: dict) -> dict:
    """The arguments of `load_dataset` that decide what is decoded; another folder may hold it."""
    others = ("dataset", "validation_fraction")
    return {name: value for name, value in parameters.items() if name not in others}


def _images_step(parameters: dict) -> tuple[dict, Callable[[Path], None], list[LeftOut]]:
    """The step that decodes the images of a data set (the arguments of `find`), a function that
    makes it, and the files that are left out without being decoded.
    """
    dataset, settings, left_out = parameters["dataset"], _decoding(parameters), []
    place = data_place(dataset)
    if dataset == "digits":
        read_pictures, reads = digits_pictures, ["scikit-learn"]
    elif dataset == "cifar10" and not place.is_dir():
        read_pictures, reads = cifar10_pictures, ["keras.datasets"]
    else:
        pictures = list_pictures(place)
        if dataset == "cifar10" and "test" not in pictures.given_parts:
            raise StudyError(
                f"{place} has no folder test/: unpack CIFAR-10 there again, with train/ and test/"
            )
        left_out = pictures.left_out
        read_pictures, reads = lambda: pictures, folder_state(pictures)
    step = {"step": "images", "parameters": settings, "reads": reads, "package": "images"}
    return step, lambda into: _decode(read_pictures(), into, **settings), left_out


def _decode(
    pictures: Pictures,
    into: Path,
    image_size: int,
    damaged: str,
    max_megapixels: int,
    **selection,
) -> None:
    """Write images.npy, labels.npy and content.json; `selection` as for `select`."""
    skipped = dict(pictures.unreadable)
    while True:  # If files cannot be read, the parts are chosen again without them.
        rows, n_train, left_out = select(pictures, skipped, **selection)
        unreadable, remarks = decode_pictures(
            pictures, rows, image_size, into / "images.npy",
            damaged=damaged, max_megapixels=max_megapixels,
        )  # fmt: skip
        if unreadable.keys() <= skipped.keys():
            break
        skipped = {row: str(reason) for row, reason in unreadable.items()} | skipped
    images = np.load(into / "images.npy", mmap_mode="r")
    used_labels, labels = np.unique(pictures.labels[rows], return_inverse=True)
    classes = [pictures.classes[label] for label in used_labels]
    is_validation = pictures.parts is not None and pictures.parts[rows] == VALIDATION
    validation = np.flatnonzero(is_validation).tolist()
    # The order of images, by part and class, distinguishes validation images.
    fingerprint = hashlib.sha256(json.dumps([classes, n_train]).encode())
    for start in range(0, len(images), BLOCK):
        fingerprint.update(images[start : start + BLOCK].tobytes())
    fingerprint.update(labels.tobytes())
    np.save(into / "labels.npy", labels)
    content = {
        "classes": classes,
        "names": [pictures.names[row] for row in rows],
        "n_train": n_train,
        "validation": validation,
        "layout": pictures.layout,
        "remarks": [
            [pictures.names[row], remarks[row]] for row in np.intersect1d(rows, [*remarks])
        ],
        "listed": pictures.left_out,
        "left_out": [
            *(LeftOut(pictures.names[row], skipped[row]) for row in sorted(skipped)),
            *left_out,
        ],
        "fingerprint": fingerprint.hexdigest(),
    }
    (into / "content.json").write_text(json.dumps(content), encoding="utf-8")


def select(
    pictures: Pictures,
    unreadable: dict[int, str],
    *,
    test_fraction: float,
    split_seed: int,
    training_images: int,
    test_images: int,
    min_images: int,
) -> tuple[np.ndarray, int, list[LeftOut]]:
    """Positions of the images to keep, test images last; the number before these; and the rest.

    StudyError if classes have too few readable pictures to be split.
    """
    readable = np.setdiff1d(np.arange(len(pictures.items)), list(unreadable))
    left_out = []
    small = _small_classes(pictures, readable, unreadable, min_images)
    if small and not min_images:
        raise StudyError(
            f"too few readable images to split: {short_list(small.values())}: add pictures, or "
            f'leave such classes out with SET="min_images={MIN_IMAGES}"'
        )
    for label, description in small.items():
        is_small = pictures.labels[readable] == label
        reason = f"class with too few images for min_images={min_images}"
        left_out.append(LeftOut(description, reason, int(is_small.sum())))
        readable = readable[~is_small]
    labels = pictures.labels[readable]
    if len(np.unique(labels)) < 2:
        raise StudyError(
            f"fewer than two classes have enough images for min_images={min_images}: lower it"
        )
    parts = np.full_like(labels, TRAIN) if pictures.parts is None else pictures.parts[readable]
    if "test" not in pictures.given_parts:
        training = np.flatnonzero(parts == TRAIN)
        _, held_out = stratified_split(
            labels[training], test_fraction, split_seed, pictures.classes, "test"
        )
        parts[training[held_out]] = TEST
    n_gallery, n_queries = (parts != TEST).sum(), (parts == TEST).sum()
    chosen = [
        readable[stratified_share(np.flatnonzero(parts == part), share, labels, split_seed)]
        for part, share in (
            (TRAIN, training_images / n_gallery),
            (VALIDATION, training_images / n_gallery),
            (TEST, test_images / n_queries),
        )
    ]
    rows = np.concatenate(chosen)
    if len(rows) < len(readable):
        reason = f"not drawn (training_images={training_images}, test_images={test_images})"
        left_out.append(LeftOut("", reason, len(readable) - len(rows)))
    return rows, len(rows) - len(chosen[TEST]), left_out


def _small_classes(
    pictures: Pictures, readable: np.ndarray, unreadable: dict[int, str], min_images: int
) -> dict[int, str]:
    """Classes with too few images to be split, or fewer than `min_images`, and how many they have.

    `readable` are positions of pictures, `unreadable` reasons by position.
    """
    given_parts = pictures.given_parts
    needed = np.array([1, "validation" in given_parts, "test" in given_parts], int)
    # The parts that the data lacks are taken from the training images.
    needed[TRAIN] += 2 - needed[1:].sum()
    parts = np.zeros_like(pictures.labels) if pictures.parts is None else pictures.parts
    counts = np.zeros((len(pictures.classes), len(PARTS)), int)
    np.add.at(counts, (pictures.labels[readable], parts[readable]), 1)
    is_small = (counts < needed).any(axis=1) | (counts.sum(axis=1) < min_images)
    descriptions = {}
    for label in np.flatnonzero(is_small).tolist():
        reasons = [unreadable[row] for row in unreadable if pictures.labels[row] == label]
        part = int((counts[label] < needed).argmax())
        count, kind = int(counts[label, part]), f"{PARTS[part]} " if given_parts else ""
        text = f"{count} {kind}image{'' if count == 1 else 's'}, needs {needed[part]}"
        if (counts[label] >= needed).all():
            text = f"{counts[label].sum()} images"
        if reasons:
            text += f"; {len(reasons)} unreadable: {short_list(dict.fromkeys(reasons), 2)}"
        descriptions[label] = f"{pictures.classes[label]!r} ({text})"
    return descriptions


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: list[str], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Split images with (n,) int labels class by class; return the sorted positions of both parts.

    `fraction` is the share of each class in the second part; each part keeps at least one image.
    StudyError, with the names of `classes` and `part`, if a class has fewer than two images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if small := [label for label in np.unique(labels) if counts[label] < 2]:
        names = short_list(f"{classes[label]!r} ({counts[label]})" for label in small)
        raise StudyError(f"too few images left to hold some out for {part}: {names}")
    random = np.random.default_rng(seed)
    second = []
    for label in range(len(classes)):
        members = random.permutation(np.flatnonzero(labels == label))
        second.append(members[: min(len(members) - 1, max(1, round(fraction * len(members))))])
    second = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), second), second


def stratified_share(rows: np.ndarray, share: float, labels: np.ndarray, seed: int) -> np.ndarray:
    """Select the same share of the rows of each class, at least one row; sorted.

    `rows` are sorted positions in `labels`. A share of 0, or of 1 and above, keeps all of them. A
    smaller share is part of a larger one.
    """
    if not 0 < share < 1 or not len(rows):
        return rows
    selected_rows = []
    for label in np.unique(labels[rows]):
        members = np.random.default_rng([seed, label]).permutation(rows[labels[rows] == label])
        selected_rows.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(selected_rows))
