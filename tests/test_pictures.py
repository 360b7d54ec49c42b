"""Pictures of every format become RGB squares, and unreadable pictures have a reason."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import (
    EpsImagePlugin,
    Image,
    ImageCms,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    features,
)

from cbir.images import pictures
from cbir.images.pictures import (
    DAMAGED,
    FORMATS,
    read_picture,
    read_squares,
)

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)


def read_square(picture, size: int) -> np.ndarray:
    return read_picture(picture, size).image


def read(folder: Path, picture: Image.Image, name="picture.png", size=16, **options) -> np.ndarray:
    """A picture, saved with `options` and read again, as signed integers."""
    path = folder / name
    picture.save(path, **options)
    return read_square(path, size).astype(int)


# The transformation of an upright picture before saving, by EXIF's orientation.
TRANSFORMATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(("orientation", "transformation"), TRANSFORMATIONS.items())
def test_jpeg_is_turned_upright_by_its_exif_orientation(tmp_path, orientation, transformation):
    upright = Image.new("RGB", (32, 32), RED)
    upright.paste(BLUE, (0, 0, 16, 16))
    upright.paste(GREEN, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if transformation is None else upright.transpose(transformation)
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
def test_transparent_pixels_are_white(tmp_path, picture):
    assert (read(tmp_path, picture()) == WHITE).all()
    assert (read(tmp_path, picture(), "picture.ico", sizes=[(20, 20)]) == WHITE).all()


def test_half_transparent_pixels_are_blended_with_white(tmp_path):
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


def test_tiff_of_large_integers_is_scaled_to_its_maximum(tmp_path):
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


@pytest.mark.parametrize(("suffix", "options"), LOSSLESS.items())
def test_lossless_formats_are_read_exactly(tmp_path, suffix, options):
    picture = Image.new("RGB", (20, 12), GREEN)
    picture.paste(BLUE, (0, 0, 10, 12))
    expected = read_square(np.asarray(picture), 12)
    assert (read(tmp_path, picture, f"picture.{suffix}", 12, **options) == expected).all()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_lossy_formats_are_read_approximately(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    square = read(tmp_path, Image.new("RGB", (20, 20), GREEN), f"picture.{suffix}", quality=95)
    assert np.abs(square - GREEN).max() < 12


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    options = {"save_all": True, "append_images": frames[1:], "duration": 50}
    options |= {"lossless": True} if suffix == "webp" else {}
    assert np.abs(read(tmp_path, frames[0], f"picture.{suffix}", **options) - RED).max() <= 2


def test_the_format_is_detected_from_the_content(tmp_path):
    Image.new("RGB", (20, 20), RED).save(tmp_path / "picture", "PNG")
    assert (read_square(tmp_path / "picture", 8) == RED).all()


def test_pictures_are_also_read_from_streams():
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), RED).save(stream, "PNG")
    assert (read_square(io.BytesIO(stream.getvalue()), 8) == RED).all()


@pytest.mark.parametrize("shape", [(30, 10), (10, 30)])
def test_pictures_are_cropped_to_their_centre(tmp_path, shape):
    picture = Image.new("RGB", shape, RED)
    centre = (10, 0, 20, 10) if shape[0] > shape[1] else (0, 10, 10, 20)
    picture.paste(GREEN, centre)
    assert (read(tmp_path, picture, size=10) == GREEN).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_small_picture_is_enlarged(tmp_path, shape):
    assert (read(tmp_path, Image.new("RGB", shape, BLUE)) == BLUE).all()


def test_arrays_of_every_mode_are_pictures():
    grey = np.full((5, 5), 9, np.uint8)
    assert (read_square(grey, 4) == 9).all()
    assert (read_square(np.dstack([grey] * 3), 4) == 9).all()


# Unreadable pictures


def content(suffix: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_truncated_pictures_are_read_or_have_a_reason_of_one_line(suffix):
    complete, unreadable = content(suffix), 0
    for length in range(0, len(complete), 7):
        image, remark = read_picture(io.BytesIO(complete[:length]), 8)
        if image is None:
            unreadable += 1
            assert remark
            assert "\n" not in remark
        else:
            assert image.shape == (8, 8, 3)
    assert unreadable > 10


def test_pictures_beyond_max_megapixels_are_rejected_with_the_limit(capsys, recwarn):
    picture = saved(Image.new("L", (1500, 1000)), "PNG")
    assert read_picture(io.BytesIO(picture), 8, max_megapixels=2).image is not None
    image, reason = read_picture(io.BytesIO(picture), 8, max_megapixels=1)
    assert image is None
    assert reason == "more than 1 million pixels, the limit set by max_megapixels"
    # Pillow itself rejects pictures of more than twice the limit.
    larger = io.BytesIO(saved(Image.new("L", (2500, 1000)), "PNG"))
    assert read_picture(larger, 8, max_megapixels=1).remark == reason
    assert [str(warning.message) for warning in recwarn] == []
    assert capsys.readouterr() == ("", "")


# Damaged files


def scene(width=400, height=300) -> Image.Image:
    """A picture of blurred noise, which compresses like a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_jpeg_without_its_last_two_bytes_is_read_completely(options):
    complete = saved(scene(), "JPEG", quality=90, **options)
    image, remark = read_picture(io.BytesIO(complete[:-2]), 32)
    assert (image == read_square(io.BytesIO(complete), 32)).all()
    assert remark == DAMAGED


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"quality": 90}), ("PNG", {}), ("BMP", {}), ("GIF", {}), ("PPM", {}),
        ("TIFF", {}), ("TGA", {}),
    ],
)  # fmt: skip
def test_truncated_files_are_read_in_part_or_skipped(image_format, options):
    complete = saved(scene(), image_format, **options)
    truncated = complete[: int(len(complete) * 0.9)]
    image, remark = read_picture(io.BytesIO(truncated), 32)
    assert remark == DAMAGED
    expected = read_square(io.BytesIO(complete), 32)
    if image_format in ("BMP", "TGA"):  # stored from bottom to top
        image, expected = image[::-1], expected[::-1]
    assert np.abs(image[:20].astype(int) - expected[:20]).max() <= 1
    assert read_picture(io.BytesIO(truncated), 32, damaged="skip") == (None, DAMAGED)
    assert read_picture(io.BytesIO(complete), 32, damaged="skip").remark == ""


def test_file_without_any_pixels_is_unreadable():
    complete = saved(scene(), "PNG")
    image, reason = read_picture(io.BytesIO(complete[: complete.index(b"IDAT") + 6]), 32)
    assert image is None
    assert "truncated" in reason


def test_warnings_of_pillow_become_remarks_on_their_picture(recwarn):
    valid = saved(scene(), "PNG")
    frames = b"acTL" + bytes(8)  # an animation of no frames
    chunk = struct.pack(">I", 8) + frames + struct.pack(">I", zlib.crc32(frames))
    position = valid.index(b"IDAT") - 4
    invalid = valid[:position] + chunk + valid[position:]
    remarks = [
        read_picture(io.BytesIO(content), 16).remark for content in (invalid, valid, invalid)
    ]
    warning = "Pillow warns: Invalid APNG, will use default PNG image if possible"
    assert remarks == [warning, "", warning]
    assert [str(warning.message) for warning in recwarn] == []
    warnings.warn("of somebody else", stacklevel=1)
    assert len(recwarn.list) == 1


def test_messages_of_libtiff_become_remarks_on_their_picture(capfd):
    valid = bytearray(saved(scene().convert("1"), "TIFF", compression="group4"))
    remarks = []
    for content in (valid, valid[:100] + bytes(9) + valid[109:], valid):
        remarks.append(read_picture(io.BytesIO(content), 16).remark)
    assert remarks[0] == remarks[2] == ""
    assert remarks[1].startswith("libtiff warns: Fax4Decode: Bad code word")
    os.write(2, b"of somebody else")
    assert capfd.readouterr().err == "of somebody else"


def test_nearly_black_or_uniform_pictures_have_a_remark():
    grey = np.full((40, 40), 128, np.uint8)
    shaded = np.tile(np.arange(40, dtype=np.uint8) * 4, (40, 1))
    remarks = {}
    for name, values in {"uniform": grey, "black": shaded // 20, "shaded": shaded}.items():
        remarks[name] = read_picture(io.BytesIO(saved(Image.fromarray(values), "PNG")), 16).remark
    assert remarks == {"uniform": "nearly uniform", "black": "nearly black", "shaded": ""}


# Colours and depths


def p3_profile() -> bytes:
    """The ICC profile of Display P3: that of sRGB with other colorants."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag, colorant in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3, strict=True):
        entry = profile.index(tag)
        (offset,) = struct.unpack(">I", profile[entry + 4 : entry + 8])
        values = [round(value * 65536) for value in colorant]
        profile[offset + 8 : offset + 20] = struct.pack(">3i", *values)
    return bytes(profile)


# The colorants of Display P3 and of sRGB in the XYZ of ICC profiles (D50), one per row.
P3 = np.array(
    [[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.7141]]
)


def in_p3(picture: Image.Image) -> Image.Image:
    """The same colours in Display P3, which has the transfer curve of sRGB."""
    values = np.asarray(picture) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ SRGB @ np.linalg.inv(P3)).clip(0, 1)
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray((values * 255).round().astype(np.uint8))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_are_those_of_the_icc_profile(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    options |= {"quality": 95, "subsampling": 0} if image_format == "JPEG" else {}
    vivid = scene()
    expected = read_square(io.BytesIO(saved(vivid, image_format, **options)), 32).astype(int)
    stored = saved(in_p3(vivid), image_format, icc_profile=p3_profile(), **options)
    square = read_square(io.BytesIO(stored), 32).astype(int)
    assert np.abs(square - expected).mean() < 1
    # The similarity of embeddings of raw pixels.
    assert np.corrcoef(square.ravel(), expected.ravel())[0, 1] > 0.999
    without_profile = saved(in_p3(vivid), image_format, **options)
    assert np.abs(read_square(io.BytesIO(without_profile), 32) - expected).mean() > 3


def test_a_broken_icc_profile_is_ignored_with_a_remark():
    image, remark = read_picture(io.BytesIO(saved(scene(), "PNG", icc_profile=b"no profile")), 32)
    assert (image == read_square(io.BytesIO(saved(scene(), "PNG")), 32)).all()
    assert remark == "its colour profile cannot be used"


def test_lab_and_grey_profiles_become_srgb():
    lab = ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    expected = read_square(io.BytesIO(saved(scene(), "TIFF")), 32).astype(int)
    assert np.abs(read_square(io.BytesIO(saved(lab, "TIFF")), 32) - expected).mean() < 3
    # Many greyscale files have an RGB profile.
    grey = saved(scene().convert("L"), "PNG", icc_profile=p3_profile())
    assert read_picture(io.BytesIO(grey), 32).remark == ""


def png(depth: int, colours: int, rows: np.ndarray, **chunks: bytes) -> bytes:
    """A PNG file, for 16-bit colours and transparencies that Pillow cannot write.

    Args:
        depth: bits of a channel; rows of fewer than 8 bits are packed.
        colours: 0 for grey, 2 for RGB.
        rows: (height, values) integers.
        chunks: further chunks by name.
    """
    bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
    lines = np.packbits(bits.reshape(len(rows), -1).astype(bool), axis=1)
    width = rows.shape[1] // (3 if colours == 2 else 1)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colours, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    parts = {b"IHDR": header, **{name.encode(): value for name, value in chunks.items()}}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in {**parts, b"IDAT": data, b"IEND": b""}.items()
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_of_every_depth_is_white(depth):
    maximum = 2**depth - 1
    grey = np.tile([maximum // 3, 0], (8, 4))
    expected = read_square(io.BytesIO(png(depth, 0, grey)), 8).astype(int)
    square = read_square(io.BytesIO(png(depth, 0, grey, tRNS=struct.pack(">H", maximum // 3))), 8)
    assert (square[:, ::2] == 255).all()
    assert (square[:, 1::2] == (255 if depth == 1 else expected[:, 1::2])).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_every_depth_is_white(depth):
    maximum = 2**depth - 1
    # The two bytes of every value differ.
    transparent_colour = [int(maximum * share) for share in (0.3, 0.7, 0.45)]
    colours = np.tile([*transparent_colour, 0, maximum // 2, maximum // 4], (8, 4))
    transparent = struct.pack(">HHH", *colours[0, :3])
    square = read_square(io.BytesIO(png(depth, 2, colours, tRNS=transparent)), 8)
    assert (square[:, ::2] == 255).all()
    assert np.abs(square[:, 1].astype(int) - [0, 127, 64]).max() <= 1


SHADES = np.tile(np.linspace(0, 1, 16), (16, 1))
DEEP = {
    "12 bits in 16": (SHADES * 4095).round().astype(np.uint16),
    "8 bits in 16": (SHADES * 255).round().astype(np.uint16),
    "8 bits in 32": (SHADES * 255).round().astype(np.int32),
    "signed": (SHADES * 32767).round().astype(np.int32),
    "no data": np.where(SHADES == 0, 3.4e38, SHADES).astype(np.float32),
    "not a number": np.where(SHADES == 0, np.nan, SHADES).astype(np.float32),
    "negative": np.where(SHADES == 0, -9999, SHADES).astype(np.float32),
}


@pytest.mark.parametrize("values", DEEP.values(), ids=DEEP)
def test_deep_values_are_scaled_by_the_range_used_in_a_file(values):
    image, remark = read_picture(io.BytesIO(saved(Image.fromarray(values), "TIFF")), 16)
    assert np.abs(image[..., 0] - SHADES * 255).max() <= 1
    assert remark == ""


def test_the_tag_of_a_tiff_names_its_missing_values():
    values = np.where(SHADES == 0, 9999, SHADES).astype(np.float32)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[42113] = "9999"
    info.tagtype[42113] = 2
    content = saved(Image.fromarray(values), "TIFF", tiffinfo=info)
    assert np.abs(read_square(io.BytesIO(content), 16)[..., 0] - SHADES * 255).max() <= 1


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """A TIFF file of one strip, with the most significant byte first.

    Args:
        values: (height, width) or, in planes, (channels, height, width).
        tags: further tags: `t259=8`, for example.
    """
    *_, height, width = values.shape
    channels = len(values) if values.ndim == 3 else 1
    planes = [plane.tobytes() for plane in values.reshape(channels, height, width)]
    planes = [zlib.compress(plane) for plane in planes] if tags.get("t259") == 8 else planes
    entries = {256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 1}
    entries |= {262: 2 if channels == 3 else 1, 277: channels, 278: height, 284: 1}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    starts = np.cumsum([8, *map(len, planes)])
    wide = {258: [entries[258]] * channels, 273: starts[:-1], 279: [len(plane) for plane in planes]}
    offset, more, lines = int(starts[-1]) + 2 + 12 * (len(entries) + 2) + 4, b"", []
    for tag, value in sorted((entries | wide).items()):
        numbers = np.ravel(value)
        packed = struct.pack(f">{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, more = struct.pack(">I", offset + len(more)), more + packed
        lines.append(struct.pack(">HHI", tag, 4, len(numbers)) + packed)
    directory = struct.pack(">H", len(lines)) + b"".join(lines) + bytes(4)
    return b"MM\0*" + struct.pack(">I", int(starts[-1])) + b"".join(planes) + directory + more


def test_tiff_with_white_as_zero_is_inverted():
    values = (SHADES * 65535).astype(">u2")
    content = saved(Image.fromarray(values.astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    expected = 255 - SHADES * 255
    assert np.abs(read_square(io.BytesIO(content), 16)[..., 0] - expected).max() <= 1


def test_tiffs_that_pillow_misreads_are_rejected():
    values = (SHADES * 65535).astype(">u2")
    planes = tiff(np.stack([values, values.T, values]), t284=2)
    swapped = tiff(SHADES.astype(">f4"), t259=8, t339=3)
    for content in (planes, swapped):
        image, reason = read_picture(io.BytesIO(content), 16)
        assert image is None
        assert reason == "a kind of TIFF that Pillow misreads: convert it to PNG"
    plain = tiff(SHADES.astype(">f4"), t339=3)
    assert np.abs(read_square(io.BytesIO(plain), 16)[..., 0] - SHADES * 255).max() <= 1


def test_canvas_around_a_smaller_first_frame_is_white():
    content = bytearray(saved(Image.new("RGB", (20, 20), RED), "GIF"))
    content[6:10] = struct.pack("<HH", 40, 40)  # the canvas
    square = read_square(io.BytesIO(content), 40)
    assert (square[:20, :20] == RED).all()
    assert (square[20:] == 255).all()
    assert (square[:, 20:] == 255).all()


# Metadata


# EXIF data of two tags: the orientation, and a resolution with a text instead of a number.
INVALID_EXIF = b"Exif\0\0MM\0*" + struct.pack(
    ">IHHHIHHHHI4sI", 8, 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 4, b"odd\0", 0
)


@pytest.mark.parametrize(
    ("image_format", "exif"),
    [
        ("JPEG", INVALID_EXIF), ("PNG", INVALID_EXIF), ("WEBP", INVALID_EXIF), ("AVIF", None),
        ("TIFF", None),
    ],
)  # fmt: skip
def test_orientation_is_read_in_every_format_despite_invalid_tags(image_format, exif):
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    upright = scene(160, 160)
    if exif is None:  # Pillow cannot write the invalid tag there.
        exif = Image.Exif()
        exif[0x0112] = 6
    stored = saved(upright.transpose(Image.Transpose.ROTATE_90), image_format, exif=exif)
    expected = np.asarray(upright.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    image, remark = read_picture(io.BytesIO(stored), 32)
    assert np.abs(image - expected).mean() < 4
    assert remark == ""


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_unknown_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(scene(), "PNG", exif=exif)
    assert (
        read_square(io.BytesIO(content), 32) == read_square(io.BytesIO(saved(scene(), "PNG")), 32)
    ).all()


def test_png_with_a_long_text_is_read():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "long " * 500_000, zip=True)
    assert read_picture(io.BytesIO(saved(scene(), "PNG", pnginfo=texts)), 32).remark == ""


# Formats


def test_heic_is_read_if_its_package_is_installed():
    pytest.importorskip("pillow_heif", reason="`make heic` installs it")
    upright, exif = scene(64, 64), Image.Exif()
    exif[0x0112] = 6
    stored = saved(
        upright.transpose(Image.Transpose.ROTATE_90), "HEIF", quality=95, exif=exif.tobytes()
    )
    expected = np.asarray(upright.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    image, remark = read_picture(io.BytesIO(stored), 32)
    assert np.abs(image - expected).mean() < 4
    assert remark == ""
    transparent = saved(Image.new("RGBA", (64, 64), (*BLUE, 0)), "HEIF", quality=-1)
    assert (read_square(io.BytesIO(transparent), 8) >= 254).all()
    image, reason = read_picture(io.BytesIO(stored[: len(stored) // 2]), 32)
    assert image is None or reason == DAMAGED
    assert reason
    assert "\n" not in reason
    # An installed package needs no advice.
    assert "make heic" not in read_picture(io.BytesIO(stored[:40]), 32).remark


def test_postscript_files_start_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("started a program"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    (tmp_path / "cat.jpg").write_bytes(saved(scene(), "EPS"))
    image, reason = read_picture(tmp_path / "cat.jpg", 32)
    assert image is None
    assert reason.startswith("not a picture")


def test_documentation_lists_every_supported_format():
    text = Path(__file__).parent.parent.joinpath("docs", "search.md").read_text("utf-8")
    section = text.partition("## Picture formats")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert {name for name in FORMATS if not re.search(rf"\b{name}\b", section, re.I)} == set()


# Size, speed and memory


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_draft_of_a_large_jpeg_resembles_the_full_picture(mode, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(scene(1003, 757).convert(mode), "JPEG", exif=exif, quality=90, **options)
    draft = read_square(io.BytesIO(content), 32).astype(float)
    with Image.open(io.BytesIO(content)) as full:
        upright = full.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    expected = ImageOps.fit(upright, (32, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(expected).astype(float)
    assert np.corrcoef(draft.ravel(), expected.ravel())[0, 1] > 0.9995
    assert np.abs(draft - expected).mean() < 1


@pytest.mark.parametrize("picture", [scene, lambda *size: scene(*size).convert("P")])
def test_a_reduced_large_picture_resembles_the_full_picture(picture):
    large = picture(1003, 757)
    expected = ImageOps.fit(large.convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
    square = read_square(io.BytesIO(saved(large, "PNG")), 32).astype(float)
    assert np.corrcoef(square.ravel(), np.asarray(expected).ravel())[0, 1] > 0.9995


def test_bands_of_a_picture_are_seamless(monkeypatch):
    content = saved(scene(1003, 757), "PNG")
    expected = read_square(io.BytesIO(content), 32)
    monkeypatch.setattr(pictures, "BAND", 10_000)
    assert (read_square(io.BytesIO(content), 32) == expected).all()


def test_large_pictures_are_read_one_at_a_time(tmp_path, monkeypatch):
    for number in range(8):
        scene(200, 200).save(tmp_path / f"{number}.png")
    reading, counts, load = [], [], pictures._load

    def slow_load(*arguments):
        reading.append(1)
        counts.append(len(reading))
        time.sleep(0.005)
        reading.pop()
        return load(*arguments)

    monkeypatch.setattr(pictures, "_load", slow_load)
    monkeypatch.setattr(pictures, "CHUNK", 1)
    monkeypatch.setattr(pictures, "_are_small", lambda _: False)
    monkeypatch.setattr(pictures.os, "cpu_count", lambda: 4)
    list(read_squares(sorted(tmp_path.iterdir()), 16))
    assert max(counts) > 1
    counts.clear()
    monkeypatch.setattr(pictures, "MEMORY", 100_000)
    list(read_squares(sorted(tmp_path.iterdir()), 16))
    assert max(counts) == 1


PEAK = """
import sys
from pathlib import Path
from cbir.images.pictures import read_squares

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

small, *others = sorted(Path(sys.argv[1]).iterdir())
list(read_squares([small], 96))
before = peak()
for image, remark in read_squares(others, 96):
    assert image is not None, remark
print(peak() - before)
"""


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
@pytest.mark.parametrize(
    ("picture", "copies", "megabytes"),
    [
        (lambda: saved(scene(4000, 3000), "JPEG", quality=80)[:-20_000], 60, 100),
        (lambda: saved(scene(10_000, 6000).convert("RGBA"), "PNG", compress_level=1), 1, 300),
        (lambda: saved(scene(10_000, 6000).convert("P"), "TIFF"), 2, 300),
    ],
    ids=["cut JPEGs", "RGBA", "palette"],
)
def test_memory_of_reading_is_bounded(tmp_path, picture, copies, megabytes):
    (tmp_path / "0").write_bytes(saved(scene(100, 100), "PNG"))
    content = picture()
    for number in range(copies):
        (tmp_path / f"{number + 1}").write_bytes(content)
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(output) < megabytes


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
def test_mutated_pictures_are_read_or_rejected():
    script = Path(__file__).parent / "mutated_pictures.py"
    command = [sys.executable, script, "4000"]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    outcomes = json.loads(process.stdout)
    assert min(outcomes["image"], outcomes["remark"], outcomes["reason"]) > 200
