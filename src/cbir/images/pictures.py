"""One picture, whatever its format, as a square of RGB pixels.

What Pillow can open is told by its content, not by its name. Pictures are turned as their EXIF
orientation says, what is transparent shows white, animations give their first frame, and more than
8 bits a channel are scaled down.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cbir import StudyError
from cbir.cache import digest, keras_home
from cbir.progress import progress

# Endings of the formats that Pillow reads; a folder without any of these is not one of pictures.
# Two it only recognises: for films it has no decoder, for PostScript it calls another program.
Image.init()
SUFFIXES = {
    suffix
    for suffix, format_ in Image.registered_extensions().items()
    if format_ in Image.OPEN and format_ not in ("MPEG", "EPS")
}
# Files that cannot be read and are named in a terminal; reports name all.
LISTED = 20
# How many pictures a thread reads at a time, and how many of these are read ahead.
CHUNK, AHEAD = 64, 8
# Bytes. Files this small are read faster by one thread: more of them wait for the interpreter.
SMALL = 16_000


class Unreadable(Exception):
    """A picture cannot be read; the text is the reason, in one line."""


def read_square(picture: Path | BinaryIO | np.ndarray, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8 RGB: scaled bicubically, the middle of its longer side.

    Args:
        picture: a file, what was read of one, or (h, w) grey or (h, w, 3) RGB uint8 values.
        size: pixels.

    Raises:
        Unreadable: it is not a picture, is broken, or is too large for Pillow to trust.
    """
    if isinstance(picture, Path) and picture.exists() and not picture.is_file():
        raise Unreadable("not a file")  # a pipe, say, would never end
    try:
        is_array = isinstance(picture, np.ndarray)
        with Image.fromarray(picture) if is_array else Image.open(picture) as opened:
            upright = _rgb(_upright(opened))
            if upright.size != (size, size):
                upright = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(upright)
    except UnidentifiedImageError as error:  # whose text names the file, or what stands for one
        raise Unreadable("not a picture, or of a format that Pillow does not know") from error
    # What the decoders of broken files raise is not documented; nothing else is called here.
    except Exception as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def read_squares(
    pictures: Sequence[Path | np.ndarray], size: int
) -> Iterator[np.ndarray | Unreadable]:
    """Every picture as `square` makes it, in their order, or why it cannot be read.

    They are read ahead by threads of their own, a few hundred at most: whoever works on those that
    came before need not wait, and memory does not grow with their number.
    """

    def read(chunk: Sequence[Path | np.ndarray]) -> list[np.ndarray | Unreadable]:
        return [_read_or_reason(picture, size) for picture in chunk]

    begun: deque[Future] = deque()
    with ThreadPoolExecutor(1 if _are_small(pictures[:CHUNK]) else os.cpu_count()) as threads:
        for start in range(0, len(pictures), CHUNK):
            begun.append(threads.submit(read, pictures[start : start + CHUNK]))
            if len(begun) == AHEAD:
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()


def describe_skipped(files: Sequence[str]) -> str:
    """Lines for a terminal that count and name what could not be read; empty where all could.

    Args:
        files: "name: reason" each.
    """
    if not files:
        return ""
    lines = [f"skipped {len(files):,} that could not be read:"]
    lines += [f"  {each}" for each in files[:LISTED]]
    if len(files) > LISTED:
        lines.append(f"  and {len(files) - LISTED:,} more")
    return "\n".join(lines)


def _read_or_reason(picture: Path | np.ndarray, size: int) -> np.ndarray | Unreadable:
    try:
        return read_square(picture, size)
    except Unreadable as reason:
        return reason


def _are_small(pictures: Sequence[Path | np.ndarray]) -> bool:
    sizes = [
        each.nbytes if isinstance(each, np.ndarray) else each.stat().st_size
        for each in pictures
        if isinstance(each, np.ndarray) or each.exists()
    ]
    return sum(sizes) <= SMALL * len(sizes)


def _upright(picture: Image.Image) -> Image.Image:
    # Pillow copies a picture that needs no turning too.
    is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(picture) if is_turned else picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of 16 or more bits, which Pillow would clip to 8, which leaves white.

    White is 65535 for integers and 1 for floating-point numbers, or what is brightest beyond it.
    """
    values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0).clip(min=0)
    white = max(1.0 if picture.mode.startswith("F") else 65535.0, values.max())
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


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


def digits_pictures() -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return Pictures(
        classes=[str(name) for name in loaded.target_names],
        items=list((loaded.images * (255 / 16)).round().astype(np.uint8)),
        labels=loaded.target.astype(np.int64),
        names=[f"digit-{row:04d}" for row in range(len(loaded.target))],
    )


def cifar10_pictures() -> Pictures:
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
    return any(path.suffix.lower() in SUFFIXES for path in paths)


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


def decode_pictures(
    pictures: Pictures, size: int, path: Path
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All pictures as one (n, size, size, 3) uint8 array on disk; what cannot be read is skipped.

    Returns:
        The array, the positions in `pictures` of what it holds, and "name: reason" of the rest.
    """
    array = open_memmap(path, "w+", np.uint8, (len(pictures.items), size, size, 3))
    readable, skipped = [], []
    found = read_squares(pictures.items, size)
    for row, image in enumerate(progress(found, len(pictures.items), "reading images")):
        if isinstance(image, Unreadable):
            skipped.append(f"{pictures.names[row]}: {image}")
        else:
            array[len(readable)] = image
            readable.append(row)
    return array, np.array(readable, int), skipped
