"""Pictures: their decoding into square RGB images by a centre crop.

A data set's pictures are listed first (`digits_pictures`, `cifar10_pictures`, or
`folders.folder_pictures`) and then decoded into one array on disk (`decode_pictures`).

The format of a file is detected from its content. Decoding applies the EXIF orientation, puts
transparent pictures on white, takes the first frame of an animation, and scales channels of more
than 8 bits down to 8.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cbir import StudyError
from cbir.cache import keras_home
from cbir.images.folders import Pictures
from cbir.progress import progress

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip
# The number of pictures that a thread reads at a time, and of such chunks that are read ahead.
CHUNK, CHUNKS_AHEAD = 64, 8
# A size in bytes. Threads that read smaller files mostly wait for Python's global lock, so that one
# thread reads faster.
SMALL_FILE = 16_000


class Unreadable(Exception):
    """A picture cannot be read; the message is the reason, in one line."""


def digits_pictures() -> Pictures:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 grey levels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Pictures(
        classes=[str(name) for name in digits.target_names],
        items=list((digits.images * (255 / 16)).round().astype(np.uint8)),
        labels=digits.target.astype(np.int64),
        names=[f"digit-{row:04d}" for row in range(len(digits.target))],
    )


def cifar10_pictures() -> Pictures:
    """CIFAR-10 as Keras downloads it, with the archive's SHA-256 checked.

    Raises:
        StudyError: the download failed.
    """
    keras_home()
    import keras

    try:
        (train, train_labels), (test, test_labels) = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception if a download fails.
        raise StudyError(
            "CIFAR-10 is not in data/cifar10 and could not be downloaded "
            f"({' '.join(str(error).split())[:200]}): put its pictures into "
            "data/cifar10/{train,test}/<class>/*.png, or run `make report` without STUDY, "
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


def decode_pictures(
    pictures: Pictures, rows: Sequence[int], size: int, path: Path
) -> dict[int, Unreadable]:
    """Decode pictures directly into an array on disk.

    Pictures that are not in `rows` are also decoded, but not kept, so that unreadable files are
    found whether they are selected or not.

    Args:
        pictures: n pictures.
        rows: positions in `pictures`, in the order of the array.
        size: side length in pixels.
        path: the .npy file to write, (len(rows), size, size, 3) uint8 RGB.

    Returns:
        The unreadable pictures by position in `pictures`, in ascending order. Their rows in the
        array are black.
    """
    images = open_memmap(path, "w+", np.uint8, (len(rows), size, size, 3))
    others = np.setdiff1d(np.arange(len(pictures.items)), rows)
    order = [*rows, *others]
    squares = read_squares([pictures.items[row] for row in order], size)
    unreadable = {}
    for place, square in enumerate(progress(squares, len(order), "reading images")):
        if isinstance(square, Unreadable):
            unreadable[int(order[place])] = square
        elif place < len(rows):
            images[place] = square
    images.flush()
    return dict(sorted(unreadable.items()))


def read_squares(
    pictures: Sequence[Path | np.ndarray], size: int
) -> Iterator[np.ndarray | Unreadable]:
    """Yield every picture as from `read_square`, in order, or the reason why it cannot be read.

    Threads read at most a few hundred pictures ahead, so memory does not grow with their number.
    """

    def read(chunk: Sequence[Path | np.ndarray]) -> list[np.ndarray | Unreadable]:
        return [_square_or_reason(picture, size) for picture in chunk]

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1 if _are_small(pictures[:CHUNK]) else os.cpu_count()) as threads:
        for start in range(0, len(pictures), CHUNK):
            pending.append(threads.submit(read, pictures[start : start + CHUNK]))
            if len(pending) == CHUNKS_AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def read_square(picture: Path | BinaryIO | np.ndarray, size: int) -> np.ndarray:
    """Decode a picture and take its centre crop: (size, size, 3) uint8 RGB.

    Args:
        picture: a file, a binary stream, or (h, w) grey or (h, w, 3) RGB uint8 values.
        size: side length in pixels.

    Raises:
        Unreadable: the file is not a picture, is broken, or is larger than Pillow's limit.
    """
    if isinstance(picture, Path) and picture.exists() and not picture.is_file():
        raise Unreadable("not a file")  # Reading a pipe, for example, would never end.
    try:
        is_array = isinstance(picture, np.ndarray)
        with Image.fromarray(picture) if is_array else Image.open(picture) as opened:
            return np.asarray(_centre_crop(_to_rgb(_upright(opened)), size))
    except UnidentifiedImageError as error:  # Its message contains the file, or a stream's address.
        raise Unreadable("not a picture, or in a format that Pillow does not support") from error
    # The exceptions that Pillow's decoders raise for broken files are not documented.
    except Exception as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def enlarge_map(cells: np.ndarray, size: int) -> np.ndarray:
    """Enlarge the (h, w) values of a map to (size, size) float32, bilinearly."""
    image = Image.fromarray(np.asarray(cells, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of a picture, scaled bicubically to size x size pixels."""
    if picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


def _square_or_reason(picture: Path | np.ndarray, size: int) -> np.ndarray | Unreadable:
    try:
        return read_square(picture, size)
    except Unreadable as reason:
        return reason


def _are_small(pictures: Sequence[Path | np.ndarray]) -> bool:
    sizes = [
        picture.nbytes if isinstance(picture, np.ndarray) else picture.stat().st_size
        for picture in pictures
        if isinstance(picture, np.ndarray) or picture.exists()
    ]
    return sum(sizes) <= SMALL_FILE * len(sizes)


def _upright(picture: Image.Image) -> Image.Image:
    # exif_transpose copies the picture even if it needs no rotation.
    is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(picture) if is_turned else picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith(("I", "F")):
        picture = _to_eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scale grey values of 16 or more bits to 8; Pillow would clip them.

    White is 65535 for integers and 1 for floating-point numbers, or the brightest value above it.
    """
    values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0).clip(min=0)
    white = max(1.0 if picture.mode.startswith("F") else 65535.0, values.max())
    return Image.fromarray((values / white * 255).round().astype(np.uint8))
