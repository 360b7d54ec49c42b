"""Pictures of every format become RGB squares; what cannot be read says why."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from cbir.images.pictures import DAMAGED, Unreadable, read_picture, read_square

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)


def read(folder: Path, picture: Image.Image, name="picture.png", size=16, **saved) -> np.ndarray:
    """A picture, saved and read again, as signed integers that can be subtracted."""
    path = folder / name
    picture.save(path, **saved)
    return read_square(path, size).astype(int)


# EXIF's orientation: what was done to the upright picture before it was saved.
TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(("orientation", "turned"), TURNED.items())
def test_jpeg_is_turned_upright_as_its_exif_says(tmp_path, orientation, turned):
    upright = Image.new("RGB", (32, 32), RED)
    upright.paste(BLUE, (0, 0, 16, 16))
    upright.paste(GREEN, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turned is None else upright.transpose(turned)
    square = read(tmp_path, stored, "picture.jpg", size=32, exif=exif, quality=95, subsampling=0)
    assert np.abs(square - np.asarray(upright).astype(int)).mean() < 6


MODES = {
    "greyscale": (lambda: Image.new("L", (20, 20), 77), (77, 77, 77)),
    "greyscale with alpha": (lambda: Image.new("LA", (20, 20), (77, 255)), (77, 77, 77)),
    "palette": (lambda: Image.new("RGB", (20, 20), RED).quantize(4), RED),
    "RGBA": (lambda: Image.new("RGBA", (20, 20), (*BLUE, 255)), BLUE),
    "black and white": (lambda: Image.new("1", (20, 20), 1), WHITE),
    "RGB": (lambda: Image.new("RGB", (20, 20), GREEN), GREEN),
}


@pytest.mark.parametrize(("picture", "colour"), MODES.values(), ids=MODES)
def test_png_of_every_mode_becomes_rgb(tmp_path, picture, colour):
    square = read(tmp_path, picture())
    assert square.shape == (16, 16, 3)
    assert (square == colour).all()


def transparent_palette() -> Image.Image:
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([*RED, *GREEN])
    picture.info["transparency"] = 0
    return picture


TRANSPARENT = {
    "RGBA": lambda: Image.new("RGBA", (20, 20), (*BLUE, 0)),
    "greyscale": lambda: Image.new("LA", (20, 20), (77, 0)),
    "palette": transparent_palette,
}


@pytest.mark.parametrize("picture", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_shows_white(tmp_path, picture):
    assert (read(tmp_path, picture()) == WHITE).all()


def test_what_is_half_transparent_shows_half(tmp_path):
    square = read(tmp_path, Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert np.abs(square - 127).max() <= 1


def test_greyscale_of_sixteen_bits_keeps_its_levels(tmp_path):
    levels = np.linspace(0, 65535, 16, dtype=np.uint16)
    square = read(tmp_path, Image.fromarray(np.tile(levels, (16, 1))))
    assert np.abs(square[0, :, 0] - levels // 257).max() <= 1


def test_tiff_of_floating_point_numbers_keeps_its_levels(tmp_path):
    levels = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    square = read(tmp_path, Image.fromarray(levels), "picture.tif")
    assert np.abs(square[0, :, 0] - levels[0] * 255).max() <= 1


def test_tiff_of_large_integers_is_scaled_to_its_brightest(tmp_path):
    levels = np.tile(np.linspace(0, 1_000_000, 16).astype(np.int32), (16, 1))
    square = read(tmp_path, Image.fromarray(levels), "picture.tif")
    assert np.abs(square[0, :, 0] - np.linspace(0, 255, 16)).max() <= 1


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    picture = Image.new("RGB", (20, 20), BLUE).convert("CMYK")
    assert np.abs(read(tmp_path, picture, "picture.jpg") - BLUE).max() < 40


LOSSLESS = {
    "bmp": {}, "gif": {}, "tif": {"compression": "tiff_lzw"}, "ppm": {}, "tga": {},
    "webp": {"lossless": True}, "jp2": {},
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "saved"), LOSSLESS.items())
def test_formats_that_lose_nothing_are_read_as_they_were_written(tmp_path, suffix, saved):
    picture = Image.new("RGB", (20, 12), GREEN)
    picture.paste(BLUE, (0, 0, 10, 12))
    wanted = read_square(np.asarray(picture), 12)
    assert (read(tmp_path, picture, f"picture.{suffix}", 12, **saved) == wanted).all()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_formats_that_lose_a_little_are_read(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    square = read(tmp_path, Image.new("RGB", (20, 20), GREEN), f"picture.{suffix}", quality=95)
    assert np.abs(square - GREEN).max() < 12


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    saved = {"save_all": True, "append_images": frames[1:], "duration": 50}
    saved |= {"lossless": True} if suffix == "webp" else {}
    assert np.abs(read(tmp_path, frames[0], f"picture.{suffix}", **saved) - RED).max() <= 2


def test_format_is_told_by_the_content_not_by_the_name(tmp_path):
    Image.new("RGB", (20, 20), RED).save(tmp_path / "picture", "PNG")
    assert (read_square(tmp_path / "picture", 8) == RED).all()


def test_picture_is_read_from_a_stream_too():
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), RED).save(stream, "PNG")
    assert (read_square(io.BytesIO(stream.getvalue()), 8) == RED).all()


@pytest.mark.parametrize("shape", [(30, 10), (10, 30)])
def test_centre_of_a_picture_is_kept(tmp_path, shape):
    picture = Image.new("RGB", shape, RED)
    centre = (10, 0, 20, 10) if shape[0] > shape[1] else (0, 10, 10, 20)
    picture.paste(GREEN, centre)
    assert (read(tmp_path, picture, size=10) == GREEN).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_small_picture_is_enlarged(tmp_path, shape):
    assert (read(tmp_path, Image.new("RGB", shape, BLUE)) == BLUE).all()


def test_every_mode_of_array_is_a_picture():
    grey = np.full((5, 5), 9, np.uint8)
    assert (read_square(grey, 4) == 9).all()
    assert (read_square(np.dstack([grey] * 3), 4) == 9).all()


# What cannot be read


def content(suffix: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_picture_cut_anywhere_is_read_or_says_in_one_line_why_not(suffix):
    whole, broken = content(suffix), 0
    for length in range(0, len(whole), 7):
        try:
            assert read_square(io.BytesIO(whole[:length]), 8).shape == (8, 8, 3)
        except Unreadable as error:
            broken += 1
            assert str(error)
            assert "\n" not in str(error)
    assert broken > 10


def test_picture_that_would_fill_the_memory_is_refused_in_one_line_with_its_limit(capsys, recwarn):
    picture = saved(Image.new("L", (1500, 1000)), "PNG")
    assert read_picture(io.BytesIO(picture), 8, max_megapixels=2).image is not None
    image, reason = read_picture(io.BytesIO(picture), 8, max_megapixels=1)
    assert image is None
    assert reason == "more than 1 million pixels, the limit set by max_megapixels"
    # Pillow itself refuses pictures of more than twice the limit.
    larger = io.BytesIO(saved(Image.new("L", (2500, 1000)), "PNG"))
    assert read_picture(larger, 8, max_megapixels=1).remark == reason
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


# Damaged files


def scene(width=400, height=300) -> Image.Image:
    """A picture of blurred noise, which compresses as a photograph does."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_jpeg_without_its_last_two_bytes_is_read_whole(options):
    whole = saved(scene(), "JPEG", quality=90, **options)
    image, remark = read_picture(io.BytesIO(whole[:-2]), 32)
    assert (image == read_square(io.BytesIO(whole), 32)).all()
    assert remark == DAMAGED


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"quality": 90}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("PPM", {}),
        ("TIFF", {}), ("TGA", {}),
    ],
)  # fmt: skip
def test_cut_file_is_read_as_far_as_it_goes_and_named_or_skipped(image_format, options):
    whole = saved(scene(), image_format, **options)
    cut = whole[: int(len(whole) * 0.9)]
    image, remark = read_picture(io.BytesIO(cut), 32)
    assert remark == DAMAGED
    wanted = read_square(io.BytesIO(whole), 32)
    if image_format in ("BMP", "TGA"):  # written from below
        image, wanted = image[::-1], wanted[::-1]
    assert np.abs(image[:20].astype(int) - wanted[:20]).max() <= 1
    assert read_picture(io.BytesIO(cut), 32, damaged="skip") == (None, DAMAGED)
    assert read_picture(io.BytesIO(whole), 32, damaged="skip").remark == ""


def test_file_without_any_pixels_is_unreadable():
    whole = saved(scene(), "PNG")
    image, reason = read_picture(io.BytesIO(whole[: whole.index(b"IDAT") + 6]), 32)
    assert image is None
    assert "truncated" in reason


def test_warnings_of_pillow_become_remarks_of_their_picture(recwarn):
    whole = saved(scene(), "PNG")
    frames = b"acTL" + bytes(8)  # an animation of no frames
    chunk = struct.pack(">I", 8) + frames + struct.pack(">I", zlib.crc32(frames))
    place = whole.index(b"IDAT") - 4
    odd = whole[:place] + chunk + whole[place:]
    remarks = [read_picture(io.BytesIO(content), 16).remark for content in (odd, whole, odd)]
    warning = "Pillow warns: Invalid APNG, will use default PNG image if possible"
    assert remarks == [warning, "", warning]
    assert not recwarn.list
    warnings.warn("of somebody else", stacklevel=1)
    assert len(recwarn.list) == 1


def test_nearly_black_or_uniform_pictures_are_named():
    grey = np.full((40, 40), 128, np.uint8)
    shaded = np.tile(np.arange(40, dtype=np.uint8) * 4, (40, 1))
    remarks = {}
    for name, values in {"uniform": grey, "black": shaded // 20, "shaded": shaded}.items():
        remarks[name] = read_picture(io.BytesIO(saved(Image.fromarray(values), "PNG")), 16).remark
    assert remarks == {"uniform": "nearly uniform", "black": "nearly black", "shaded": ""}
