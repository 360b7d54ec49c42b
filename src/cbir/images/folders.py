"""Folders of pictures: which files are used, in which class and part, and which are left out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cbir import StudyError
from cbir.cache import digest

# The file name endings of formats that Pillow can decode. A folder without any is not a class.
# Pillow recognises MPEG but has no decoder, and calls another program for EPS.
Image.init()
SUFFIXES = {
    suffix
    for suffix, image_format in Image.registered_extensions().items()
    if image_format in Image.OPEN and image_format not in ("MPEG", "EPS")
}


class LeftOut(NamedTuple):
    """A file or folder that is not used.

    Attributes:
        name: its path relative to the data set's folder, or another unique name.
        reason: why, in a few words that are the same for all files of one kind.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of a data set, not yet decoded.

    Attributes:
        classes: class names; a label is an index into them.
        items: n paths, or arrays as for `read_square`.
        labels: (n,) int64.
        names: n unique names, such as paths relative to the folder.
        is_test: (n,) bool, or None if the data has no test split.
    """

    classes: list[str]
    items: list
    labels: np.ndarray
    names: list[str]
    is_test: np.ndarray | None = None


def dataset_folder(dataset: str) -> Path:
    """The folder of a data set's pictures, relative to the project's; it need not exist.

    Args:
        dataset: as for `load_dataset`.
    """
    return Path("data/cifar10" if dataset == "cifar10" else dataset)


def folder_pictures(folder: Path, paths: dict[str, dict[str, list[Path]]]) -> Pictures:
    """The pictures of a folder; `paths` as from `list_folder`."""
    classes = list(paths["train"])
    rows = [
        (path, classes.index(name), part == "test")
        for part, paths_by_class in paths.items()
        for name, files in paths_by_class.items()
        for path in files
    ]
    items, labels, is_test = zip(*rows, strict=True)
    return Pictures(
        classes=list(map(readable_name, classes)),
        items=list(items),
        labels=np.array(labels, np.int64),
        names=[readable_name(path.relative_to(folder).as_posix()) for path in items],
        is_test=np.array(is_test) if "test" in paths else None,
    )


def readable_name(name: str) -> str:
    """The name of a file or folder as text: each byte that is not UTF-8 as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_folder(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of a folder by part ("train", and "test" if there is one) and class.

    A folder is a class if it contains a file with the extension of a picture format.

    Raises:
        StudyError: the folder is missing, unreadable or empty, has a single class, or test has
            a class that train lacks.
    """
    layout = f"{folder}/<class>/*.png or {folder}/{{train,test}}/<class>/*.png"
    roots = {"train": folder / "train", "test": folder / "test"}
    try:
        # A folder `train` without subfolders is a class of that name.
        if not any(path.is_dir() for path in roots["train"].glob("*")):
            roots = {"train": folder}
        paths = {
            part: {
                child.name: list_files(child)
                for child in sorted(root.iterdir())
                if child.is_dir() and not child.name.startswith(".")
            }
            for part, root in roots.items()
            if part == "train" or root.is_dir()
        }
    except OSError as error:
        raise StudyError(
            f"cannot read the folder {error.filename} ({error.strerror}): "
            f"arrange the pictures as {layout}"
        ) from None
    paths = {
        part: {name: files for name, files in paths_by_class.items() if _has_picture(files)}
        for part, paths_by_class in paths.items()
    }
    if not paths["train"]:
        raise StudyError(f"no pictures in the subfolders of {folder}: arrange them as {layout}")
    if len(paths["train"]) < 2:
        raise StudyError(
            f"{folder} has only one class ({next(iter(paths['train']))}): "
            f"a study needs at least two, arranged as {layout}"
        )
    if unknown := paths.get("test", {}).keys() - paths["train"].keys():
        raise StudyError(
            f"{folder}/test has a class that train lacks: {', '.join(sorted(unknown))}"
        )
    return paths


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without hidden ones.

    Files of any kind are listed; unreadable files are reported while decoding.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=fail)
        for name in names
        if not name.startswith(".")
    )


def _has_picture(files: list[Path]) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in files)


def folder_state(folder: Path, paths: dict[str, dict[str, list[Path]]]) -> str:
    """Digest of the names, sizes and modification times of a folder's pictures."""
    state = [
        [part, name, path.relative_to(folder).as_posix(), file_state(path)]
        for part, paths_by_class in paths.items()
        for name, files in paths_by_class.items()
        for path in files
    ]
    return digest(state)


def file_state(path: Path) -> str:
    """The size and modification time of a file; "gone" if there is none, as for a broken link."""
    try:
        stat = path.stat()
    except OSError:
        return "gone"
    return f"{stat.st_size} {stat.st_mtime_ns}"
