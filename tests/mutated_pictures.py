"""Read damaged and hostile pictures: `python tests/mutated_pictures.py COUNT [SEED]`.

Each of COUNT pictures is a file of some format with random changes. The script ends with an error
if reading one of them crashes, takes long, takes much memory, gives anything but an image or a
reason of one line, or opens another file, starts a program or connects to something.
"""

import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cbir.images.pictures import read_picture

SIZE, MAX_MEGAPIXELS = 16, 4
# Seconds of CPU for a picture, and bytes for all: 4 million pixels of 20 bytes, and some more.
LONGEST, MEMORY = 5, 150 * 2**20
ESCAPES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "pickle.")
BIG = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\xff\xff"]


def seeds() -> list[bytes]:
    """Pictures of all formats that Pillow writes, in several modes."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC)
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 200)
    real = Image.fromarray(np.asarray(grey, np.float32))
    animated = {"save_all": True, "append_images": [rgb.rotate(90)]}
    options = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}), (grey, "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "MPO", animated), (rgb, "PNG", {"exif": exif}),
        (rgba, "PNG", {}), (palette, "PNG", {"transparency": 3}), (deep, "PNG", {}),
        (rgb, "PNG", animated), (palette, "GIF", {}), (rgb, "GIF", animated), (rgb, "WEBP", {}),
        (rgba, "WEBP", {"lossless": True}), (rgb, "WEBP", animated), (rgb, "AVIF", {}),
        (rgb, "TIFF", {}), (rgba, "TIFF", {"compression": "tiff_lzw"}), (real, "TIFF", {}),
        (rgb, "TIFF", {"compression": "jpeg"}), (deep, "TIFF", {"compression": "tiff_deflate"}),
        (rgb.convert("LAB"), "TIFF", {}), (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "BMP", {}), (palette, "BMP", {}), (rgb, "PPM", {}), (rgba, "TGA", {"rle": True}),
        (rgb, "JPEG2000", {}), (rgba, "ICO", {}), (rgb, "PCX", {}), (rgb, "SGI", {}),
        (rgba, "DDS", {}), (rgba, "QOI", {}), (rgb, "EPS", {}),
    ]  # fmt: skip
    files = []
    for picture, image_format, saved in options:
        if image_format in Image.SAVE:
            stream = io.BytesIO()
            picture.save(stream, image_format, **saved)
            files.append(stream.getvalue())
    return files


def mutated(files: list[bytes], choose: random.Random) -> bytes:
    """One of the files with one to three random changes, most of them near its beginning."""
    content = bytearray(choose.choice(files))
    for _ in range(choose.randint(1, 3)):
        span = max(1, min(len(content), choose.choice([64, 512, len(content)])))
        place, length = choose.randrange(span), choose.randint(1, 64)
        match choose.randrange(6):
            case 0 if content:
                content[place] ^= 1 << choose.randrange(8)
            case 1:
                content[place : place + 4] = choose.choice(BIG)
            case 2:
                del content[place : place + length]
            case 3:
                content[place:place] = choose.randbytes(length)
            case 4:
                del content[choose.randrange(len(content) + 1) :]
            case 5:
                other = choose.choice(files)
                start = choose.randrange(len(other))
                content[place : place + length] = other[start : start + length]
    return bytes(content)


def peak() -> int:
    """The most memory in bytes that the process has used."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def main(count: int, seed: int) -> None:
    files, choose, escapes = seeds(), random.Random(seed), []
    outcomes, slowest = {"image": 0, "remark": 0, "reason": 0}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")

        def watch(event: str, arguments: tuple) -> None:
            # A temporary file without a name is opened by the name of its folder.
            usual = (str(path), tempfile.gettempdir())
            is_other = event == "open" and arguments[0] not in usual and is_reading
            if is_reading and (event.startswith(ESCAPES) or is_other):
                escapes.append((event, str(arguments)[:200]))

        is_reading = False
        sys.addaudithook(watch)
        for content in files:  # so that all modules are imported
            read_picture(io.BytesIO(content), SIZE)
        before = peak()
        for number in range(count):
            content = mutated(files, choose)
            path.write_bytes(content)
            start, is_reading = time.process_time(), True
            image, remark = read_picture(path, SIZE, max_megapixels=MAX_MEGAPIXELS)
            is_reading, seconds = False, time.process_time() - start
            slowest = max(slowest, seconds)
            assert seconds < LONGEST, (number, seconds, content[:64])
            assert "\n" not in remark, (number, remark)
            assert not escapes, (number, escapes, content[:64])
            if image is None:
                assert remark, (number, content[:64])
            else:
                assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8), number
            outcomes["reason" if image is None else "remark" if remark else "image"] += 1
        used = peak() - before
        assert used < MEMORY, used
        assert [file.name for file in Path(folder).iterdir()] == ["picture"] * bool(count)
    print(json.dumps(outcomes | {"slowest": round(slowest, 3), "megabytes": used // 2**20}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
