"""Leaks that were planted are found, pictures that differ are not, and the words count them."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from cbir.images import leaks
from cbir.images.pictures import decode_pictures, digits_pictures

COLUMNS = {
    "query": np.dtype("int64"),
    "gallery": np.dtype("int64"),
    "hash_distance": np.dtype("int64"),
    "pixel_distance": np.dtype("float64"),
}


def scenes(count: int, size: int, seed: int) -> np.ndarray:
    """Natural-ish pictures: blurred noise over a gradient, each of its own."""
    random = np.random.default_rng(seed)
    pictures = np.empty((count, size, size, 3), np.uint8)
    for place in range(count):
        coarse = random.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        pictures[place] = np.asarray(smooth.filter(ImageFilter.GaussianBlur(size / 32)))
    return pictures


def compressed(picture: np.ndarray) -> np.ndarray:
    """The picture, saved as JPEG and read again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return np.asarray(Image.open(buffer))


def brightened(picture: np.ndarray) -> np.ndarray:
    return np.clip(picture * 0.8 + 40, 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, 2, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def shifted(picture: np.ndarray) -> np.ndarray:
    """Moved by a 32nd of its width; the edge that opens repeats the old one."""
    by = max(1, len(picture) // 32)
    return np.pad(picture, ((0, 0), (by, 0), (0, 0)), mode="edge")[:, :-by]


def positions(pairs: pd.DataFrame) -> list[tuple]:
    return list(zip(pairs["query"], pairs["gallery"], pairs["kind"], strict=True))


@pytest.mark.parametrize("size", [8, 32, 50, 96])
def test_planted_pairs_are_found_and_nothing_else(size):
    gallery, queries = scenes(120, size, seed=1), scenes(20, size, seed=2)
    queries[3] = gallery[70]
    queries[5] = brightened(gallery[119])
    queries[7] = noisy(gallery[0])
    queries[11] = gallery[70]
    pairs = leaks.find_leaks(queries, gallery)
    assert positions(pairs) == [
        (3, 70, "identical"),
        (5, 119, "near-duplicate"),
        (7, 0, "near-duplicate"),
        (11, 70, "identical"),
    ]
    assert (pairs.loc[pairs["kind"] == "identical", "pixel_distance"] == 0).all()
    near = pairs[pairs["kind"] == "near-duplicate"]
    assert near["pixel_distance"].between(0, leaks.PIXEL_DISTANCE, "right").all()
    assert near["hash_distance"].between(0, leaks.HASH_BITS).all()


@pytest.mark.parametrize("change", [compressed, shifted])
def test_compression_and_shift_do_not_hide_a_picture(change):
    gallery, queries = scenes(40, 64, seed=3), scenes(4, 64, seed=4)
    queries[2] = change(gallery[9])
    assert positions(leaks.find_leaks(queries, gallery)) == [(2, 9, "near-duplicate")]


@pytest.mark.parametrize("change", [np.flipud, np.fliplr, np.rot90, lambda picture: 255 - picture])
def test_mirrored_turned_and_inverted_pictures_are_other_pictures(change):
    gallery = scenes(30, 32, seed=5)
    assert leaks.find_leaks(change(gallery[4])[None], gallery).empty


def test_the_brightness_of_a_picture_does_not_make_it_another():
    gallery = scenes(30, 32, seed=6)
    query = (gallery[8] * 0.5).astype(np.uint8)[None]
    assert leaks.find_leaks(query, gallery)["pixel_distance"].item() < 0.05


def test_every_pair_is_given_by_query_then_distance():
    gallery, queries = scenes(60, 32, seed=7), scenes(3, 32, seed=8)
    queries[1] = queries[2] = gallery[50]
    gallery[20] = noisy(gallery[50])
    gallery[10] = gallery[50]
    pairs = leaks.find_leaks(queries, gallery)
    assert positions(pairs) == [
        (query, image, kind)
        for query in (1, 2)
        for image, kind in ((10, "identical"), (50, "identical"), (20, "near-duplicate"))
    ]
    assert list(pairs.index) == list(range(6))


def test_positions_hold_in_every_block():
    # Signatures are made of some 341 pictures at once, queries compared by 64, pairs by 64.
    gallery, queries = scenes(800, 32, seed=9), scenes(700, 32, seed=10)
    places = [(0, 799), (63, 0), (64, 340), (65, 341), (340, 63), (341, 682), (699, 683)]
    for query, image in places:
        queries[query] = brightened(gallery[image])
    pairs = leaks.find_leaks(queries, gallery)
    assert list(zip(pairs["query"], pairs["gallery"], strict=True)) == places


def test_dozens_of_copies_of_every_query_are_found():
    # Also more candidates of a block than are compared at once, and a gallery in which the 10th
    # neighbour of every query is a copy.
    queries = scenes(10, 32, seed=11)
    gallery = np.concatenate([scenes(1600, 32, seed=12), *[noisy(queries)] * 20])
    pairs = leaks.find_leaks(queries, gallery)
    assert list(pairs["query"]) == [query for query in range(10) for _ in range(20)]
    assert (pairs["gallery"] >= 1600).all()


def test_memory_mapped_images_give_the_same(tmp_path):
    gallery, queries = scenes(50, 32, seed=12), scenes(10, 32, seed=13)
    queries[4] = noisy(gallery[30])
    for name, images in (("gallery", gallery), ("queries", queries)):
        np.save(tmp_path / f"{name}.npy", images)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("queries", "gallery")]
    pairs = leaks.find_leaks(*mapped)
    assert len(pairs) == 1
    pd.testing.assert_frame_equal(pairs, leaks.find_leaks(queries, gallery))


@pytest.mark.parametrize("count", [0, 5])
def test_no_pairs_have_the_same_columns(count):
    none = leaks.find_leaks(scenes(count, 32, seed=14), scenes(20, 32, seed=15))
    some = leaks.find_leaks(scenes(20, 32, seed=15), scenes(20, 32, seed=15))
    assert none.empty
    assert len(some) == 20
    assert list(none.columns) == list(some.columns)
    for pairs in (none, some):
        assert {name: pairs[name].dtype for name in COLUMNS} == COLUMNS


def test_pictures_of_one_colour_leak_only_where_all_pixels_are_equal():
    gallery = np.full((4, 32, 32, 3), 100, np.uint8)
    gallery[1] = 0
    gallery[2, 0, 0] = 101
    gallery[3] = 255
    queries = np.full((2, 32, 32, 3), 100, np.uint8)
    queries[1] = 101
    assert positions(leaks.find_leaks(queries, gallery)) == [(0, 0, "identical")]


def test_faint_pictures_leak_only_where_all_pixels_are_equal():
    # The same three grey levels on two skies: nothing says that it is one shot.
    gradient = (np.arange(32) // 11).astype(np.uint8)[:, None]
    gallery = np.stack([np.full((32, 32, 3), value, np.uint8) + gradient for value in (20, 200)])
    assert positions(leaks.find_leaks(gallery[:1] + 1, gallery)) == []


def test_pictures_of_one_colour_do_not_move_the_others():
    gallery, queries = scenes(40, 32, seed=19), scenes(12, 32, seed=20)
    gallery[::3], queries[::2] = 7, 9
    queries[11] = noisy(gallery[38])
    assert positions(leaks.find_leaks(queries, gallery)) == [(11, 38, "near-duplicate")]


@pytest.mark.parametrize(("by", "least", "most"), [(1, 0.85, 1), (2, 0.2, 0.8), (3, 0, 0)])
def test_most_photographs_moved_by_one_pixel_are_found_and_some_by_two(by, least, most):
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    corners = [(left, top) for left in range(0, 500, 100) for top in range(0, 300, 75)]
    patches = np.stack([
        np.asarray(photograph.crop((*corner, corner[0] + 144, corner[1] + 128)).resize((36, 32)))
        for photograph in photographs for corner in corners
    ])  # fmt: skip
    pairs = leaks.find_leaks(patches[:, :, by : by + 32], patches[:, :, :32])
    share = (pairs["query"] == pairs["gallery"]).sum() / len(patches)
    assert least <= share <= most


@pytest.mark.parametrize("by", [(0, 0), (2, 0), (0, -2), (-2, 2), (1, -1)])
def test_the_distance_of_pixels_allows_for_a_shift_by_two(by):
    # Noise, of which a shift by one pixel leaves nothing in common.
    picture = np.random.default_rng(22).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    moved = np.roll(picture, by, axis=(1, 2))
    assert leaks._pixel_distance(moved, picture) == pytest.approx([0], abs=1e-3)
    further = np.roll(moved, 5, axis=(1, 2))
    assert leaks._pixel_distance(further, picture) == pytest.approx([np.sqrt(2)], abs=0.1)


def test_digits_that_look_alike_are_not_leaks_but_copies_are(tmp_path):
    digits = digits_pictures()
    decode_pictures(digits, range(len(digits.items)), 32, tmp_path / "digits.npy")
    images = np.load(tmp_path / "digits.npy")
    queries, gallery = images[::5].copy(), images[np.arange(len(images)) % 5 > 0]
    assert leaks.find_leaks(queries, gallery).empty
    queries[8] = brightened(gallery[900])
    assert positions(leaks.find_leaks(queries, gallery)) == [(8, 900, "near-duplicate")]
