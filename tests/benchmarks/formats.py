"""Compare the decoding of pictures of every format, mode and depth with that of ffmpeg.

    .venv/bin/python -m pip install imageio-ffmpeg
    .venv/bin/python tests/benchmarks/formats.py

Pillow writes a file of each of its formats and modes, and ffmpeg one of each of its pixel formats.
A line is printed for every file that only one of them reads, or whose pixels differ.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cbir.images.pictures import FORMATS, read_picture

SIZE = 64
# The mean difference, in levels of 255, from which pictures differ: decoders of JPEG and other
# lossy formats round and interpolate colours differently.
TOLERANCE = 2.5
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
# Options of Pillow's writers, by format.
OPTIONS = {
    "JPEG": [{"quality": 95}, {"progressive": True}, {"subsampling": 0}],
    "TIFF": [{}, *({"compression": f"tiff_{name}"} for name in ("lzw", "adobe_deflate")),
             {"compression": "jpeg"}, {"compression": "group4"}, {"compression": "packbits"}],
    "WEBP": [{"quality": 95}, {"lossless": True}],
    "AVIF": [{"quality": 95}, {"subsampling": "4:4:4", "quality": 95}],
    "JPEG2000": [{}, {"irreversible": True}],
    "TGA": [{}, {"rle": True}],
    "DDS": [{}, *({"pixel_format": f"DXT{number}"} for number in (1, 3, 5))],
    "ICO": [{}, {"bitmap_format": "bmp"}],
}  # fmt: skip
# ffmpeg's encoders of still pictures, by the ending of their files.
ENCODERS = {
    "png": "png", "tif": "tiff", "sgi": "sgi", "tga": "targa", "pcx": "pcx", "bmp": "bmp",
    "qoi": "qoi", "j2k": "jpeg2000", "jp2": "libopenjpeg", "pgm": "pgm", "ppm": "ppm", "pbm": "pbm",
    "pam": "pam", "pfm": "pfm", "gif": "gif", "jpg": "mjpeg", "webp": "libwebp",
    "avif": "libaom-av1",
}  # fmt: skip


def scene() -> Image.Image:
    """A smooth picture that uses the whole range of each channel, from transparent to opaque."""
    noise = np.random.default_rng(0).random((5, 5, 4), np.float32)
    planes = [
        np.asarray(Image.fromarray(noise[..., channel]).resize((SIZE, SIZE), Image.BICUBIC))
        for channel in range(4)
    ]
    levels = [(plane - plane.min()) / np.ptp(plane) * 255 for plane in planes]
    return Image.fromarray(np.dstack(levels).round().astype(np.uint8), "RGBA")


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode in ("I", "I;16", "F"):
        levels = np.asarray(picture.convert("L"), np.float64) / 255
        maximum, dtype = {"I": (65535, np.int32), "I;16": (65535, np.uint16), "F": (1, np.float32)}[
            mode
        ]
        return Image.fromarray((levels * maximum).astype(dtype))
    if mode in ("LA", "P"):
        return picture.convert("LA") if mode == "LA" else picture.quantize(64)
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def written_by_pillow(folder: Path) -> Iterator[tuple[str, Path]]:
    suffixes = {name: suffix for suffix, name in reversed(Image.registered_extensions().items())}
    for image_format in FORMATS:
        for mode in MODES if image_format in Image.SAVE else ():
            for options in OPTIONS.get(image_format, [{}]):
                path = folder / f"file{suffixes.get(image_format, '.bin')}"
                try:
                    in_mode(scene(), mode).save(path, image_format, **options)
                except (OSError, ValueError, KeyError, RuntimeError, TypeError):  # not this mode
                    continue
                yield f"{image_format} {mode} {options or ''} by Pillow", path


def written_by_ffmpeg(ffmpeg: str, folder: Path) -> Iterator[tuple[str, Path]]:
    scene().save(folder / "scene.png")
    for suffix, encoder in ENCODERS.items():
        help_text = run(ffmpeg, "-h", f"encoder={encoder}").stdout.decode()
        formats = re.search(r"Supported pixel formats: (.*)", help_text)
        for pixels in formats[1].split() if formats else ():
            path = folder / f"file.{suffix}"
            path.unlink(missing_ok=True)
            run(ffmpeg, "-i", folder / "scene.png", "-pix_fmt", pixels, "-c:v", encoder,
                "-frames:v", "1", "-update", "1", path)  # fmt: skip
            if path.exists() and path.stat().st_size:
                yield f"{suffix} {pixels} by ffmpeg", path


def read_by_ffmpeg(ffmpeg: str, path: Path) -> np.ndarray | None:
    """(SIZE, SIZE, 3) uint8 RGB on white; None if it is not read."""
    output = run(
        ffmpeg, "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgba64le", "-"
    )
    values = np.frombuffer(output.stdout, "<u2")
    if values.size != SIZE * SIZE * 4:
        return None
    values = values.reshape(SIZE, SIZE, 4) / 65535
    alpha = values[..., 3:]
    return ((values[..., :3] * alpha + 1 - alpha) * 255).round().astype(np.uint8)


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, check=False)


def difference(image: np.ndarray, wanted: np.ndarray) -> float:
    """The mean difference of two images, in levels of 255."""
    return float(np.abs(image.astype(int) - wanted).mean())


def main() -> None:
    import imageio_ffmpeg

    # A format may save the picture on white, without its transparency, or without colours.
    white = Image.alpha_composite(Image.new("RGBA", (SIZE, SIZE), "white"), scene())
    pictures = [white, scene(), scene().convert("L"), scene().convert("LA").convert("RGBA")]
    pictures[3] = Image.alpha_composite(Image.new("RGBA", (SIZE, SIZE), "white"), pictures[3])
    possible_images = [np.asarray(picture.convert("RGB")) for picture in pictures]
    ffmpeg, counts = imageio_ffmpeg.get_ffmpeg_exe(), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for files in (written_by_pillow(folder), written_by_ffmpeg(ffmpeg, folder)):
            for description, path in files:
                image, remark = read_picture(path, SIZE)
                image_by_ffmpeg = read_by_ffmpeg(ffmpeg, path)
                counts["compared"] += 1
                if image is None or image_by_ffmpeg is None:
                    readers = [name for name, read in (("cbir", image), ("ffmpeg", image_by_ffmpeg))
                               if read is not None]  # fmt: skip
                    text = f"read by {' and '.join(readers) or 'neither'}"
                elif (distance := difference(image, image_by_ffmpeg)) >= TOLERANCE:
                    ours, theirs = (
                        min(difference(reading, expected) for expected in possible_images)
                        for reading in (image, image_by_ffmpeg)
                    )
                    text = f"differ by {distance:.1f}, from the picture {ours:.1f} and {theirs:.1f}"
                else:
                    counts["equal"] += 1
                    continue
                print(f"{description}: {text}{f' ({remark})' * bool(remark)}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
