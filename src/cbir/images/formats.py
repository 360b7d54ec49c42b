"""One picture, whatever its format, as a square of RGB pixels.

What Pillow can open is told by its content, not by its name. Pictures are turned as their EXIF
orientation says, what is transparent shows white, animations give their first frame, and more than
8 bits a channel are scaled down.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

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


def square(picture: Path | BinaryIO | np.ndarray, size: int) -> np.ndarray:
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


def squares(pictures: Sequence[Path | np.ndarray], size: int) -> Iterator[np.ndarray | Unreadable]:
    """Every picture as `square` makes it, in their order, or why it cannot be read.

    They are read ahead by threads of their own, a few hundred at most: whoever works on those that
    came before need not wait, and memory does not grow with their number.
    """

    def read(chunk: Sequence[Path | np.ndarray]) -> list[np.ndarray | Unreadable]:
        return [_square_or_reason(picture, size) for picture in chunk]

    begun: deque[Future] = deque()
    with ThreadPoolExecutor(1 if _are_small(pictures[:CHUNK]) else os.cpu_count()) as threads:
        for start in range(0, len(pictures), CHUNK):
            begun.append(threads.submit(read, pictures[start : start + CHUNK]))
            if len(begun) == AHEAD:
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()


def skipped(files: Sequence[str]) -> str:
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


def _square_or_reason(picture: Path | np.ndarray, size: int) -> np.ndarray | Unreadable:
    try:
        return square(picture, size)
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
