"""Where pictures come from, and how they become arrays."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from cbir import StudyError
from cbir.cache import digest, keras_home
from cbir.images import formats
from cbir.progress import progress

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Undecoded pictures: paths or arrays, with their labels and, where it is given, their part."""

    classes: list[str]
    items: list
    labels: np.ndarray
    names: list[str]
    is_test: np.ndarray | None = None


def digits() -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return Pictures(
        classes=[str(name) for name in loaded.target_names],
        items=list((loaded.images * (255 / 16)).round().astype(np.uint8)),
        labels=loaded.target.astype(np.int64),
        names=[f"digit-{row:04d}" for row in range(len(loaded.target))],
    )


def cifar10_of_keras() -> Pictures:
    """CIFAR-10 as Keras downloads it, the archive's SHA-256 checked."""
    keras_home()
    import keras

    try:
        (train, train_labels), (test, test_labels) = keras.datasets.cifar10.load_data()
    except Exception as error:  # get_file raises a bare Exception where it cannot download
        raise StudyError(
            "CIFAR-10 is neither in data/cifar10 nor could it be downloaded "
            f"({' '.join(str(error).split())[:200]}): put its pictures into "
            "data/cifar10/{train,test}/<class>/*.png, or run `make report` alone, "
            "which needs no download"
        ) from error
    return Pictures(
        classes=CIFAR10_CLASSES,
        items=[*train, *test],
        labels=np.concatenate([train_labels, test_labels]).ravel().astype(np.int64),
        names=[f"train-{row:05d}" for row in range(len(train))]
        + [f"test-{row:05d}" for row in range(len(test))],
        is_test=np.arange(len(train) + len(test)) >= len(train),
    )


def list_folder(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of a folder by part ("train", and "test" where there is one) and class.

    A folder that holds no picture, to go by the names of its files, is not a class.

    Raises:
        StudyError: no such folder, unreadable, empty, one class only, or classes that differ.
    """
    layout = f"{folder}/<class>/*.png or {folder}/{{train,test}}/<class>/*.png"
    try:
        roots = {"train": folder / "train", "test": folder / "test"}
        # A folder `train` that holds no folders is a class of that name.
        if not any(each.is_dir() for each in roots["train"].glob("*")):
            roots = {"train": folder}
        found = {
            part: {
                each.name: files_below(each)
                for each in sorted(root.iterdir())
                if each.is_dir() and not each.name.startswith(".")
            }
            for part, root in roots.items()
            if part == "train" or root.is_dir()
        }
    except OSError as error:
        raise StudyError(
            f"cannot read the folder {error.filename} ({error.strerror}): "
            f"lay pictures out as {layout}"
        ) from None
    found = {
        part: {name: paths for name, paths in classes.items() if _any_picture(paths)}
        for part, classes in found.items()
    }
    if not found["train"]:
        raise StudyError(f"no pictures in folders of {folder}: lay them out as {layout}")
    if len(found["train"]) < 2:
        raise StudyError(
            f"{folder} has one class only ({next(iter(found['train']))}): "
            f"a study needs at least two, laid out as {layout}"
        )
    if strangers := found.get("test", {}).keys() - found["train"].keys():
        raise StudyError(
            f"{folder}/test has a class that train lacks: {', '.join(sorted(strangers))}"
        )
    return found


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and the folders in it, sorted, but hidden ones.

    What of it is no picture is found out when it is read, and then named.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder, onerror=fail)
        for name in names
        if not name.startswith(".")
    )


def _any_picture(paths: list[Path]) -> bool:
    return any(path.suffix.lower() in formats.SUFFIXES for path in paths)


def folder_state(folder: Path, paths: dict) -> str:
    """Digest of the names of a folder's pictures, their sizes and when they last changed."""
    state = []
    for part, classes in paths.items():
        for name, files in classes.items():
            for path in files:
                state.append([part, name, path.relative_to(folder).as_posix(), file_state(path)])
    return digest(state)


def file_state(path: Path) -> str:
    """A file's size and when it last changed; that it is gone, as behind a broken link."""
    try:
        about = path.stat()
    except OSError:
        return "gone"
    return f"{about.st_size} {about.st_mtime_ns}"


def folder_pictures(folder: Path, paths: dict) -> Pictures:
    """The pictures of a folder, as `list_folder` found them."""
    classes = list(paths["train"])
    rows = [
        (path, classes.index(name), part == "test")
        for part, by_class in paths.items()
        for name, files in by_class.items()
        for path in files
    ]
    items, labels, is_test = zip(*rows, strict=True)
    return Pictures(
        classes=classes,
        items=list(items),
        labels=np.array(labels, np.int64),
        names=[path.relative_to(folder).as_posix() for path in items],
        is_test=np.array(is_test) if "test" in paths else None,
    )


def decode(pictures: Pictures, size: int, path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All pictures as one (n, size, size, 3) uint8 array on disk; what cannot be read is skipped.

    Returns:
        The array, the positions in `pictures` of what it holds, and "name: reason" of the rest.
    """
    array = open_memmap(path, "w+", np.uint8, (len(pictures.items), size, size, 3))
    readable, skipped = [], []
    found = formats.squares(pictures.items, size)
    for row, image in enumerate(progress(found, len(pictures.items), "reading images")):
        if isinstance(image, formats.Unreadable):
            skipped.append(f"{pictures.names[row]}: {image}")
        else:
            array[len(readable)] = image
            readable.append(row)
    return array, np.array(readable, int), skipped
