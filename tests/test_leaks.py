"""Planted copies are found, different pictures are not, and the cost per copy is constant."""

import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from cbir.images import leaks
from cbir.images.dataset import Dataset
from cbir.images.pictures import decode_pictures, digits_pictures

TYPES = {
    "query": np.dtype("int64"),
    "gallery": np.dtype("int64"),
    "copies": np.dtype("int64"),
    "kind": np.dtype("O"),
    "correlation": np.dtype("float64"),
    "is_conflict": np.dtype("bool"),
}


def scenes(count: int, size: int, seed: int) -> np.ndarray:
    """Different pictures with coarse and fine details."""
    random = np.random.default_rng(seed)
    pictures = np.zeros((count, size, size, 3))
    for cells in (4, 8, 16, 32):
        coarse = random.integers(0, 256, (count, cells, cells, 3), dtype=np.uint8)
        for index, layer in enumerate(coarse):
            enlarged = Image.fromarray(layer).resize((size, size), Image.Resampling.BICUBIC)
            pictures[index] += np.asarray(enlarged, float) / 4
    return pictures.round().astype(np.uint8)


def saved(picture: np.ndarray, file_format: str, quality: int) -> np.ndarray:
    """The picture, saved to a file and read again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def brightened(picture: np.ndarray) -> np.ndarray:
    return np.clip(picture * 0.8 + 40, 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, deviation: float = 4) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def shifted(picture: np.ndarray, down: int, across: int) -> np.ndarray:
    """Shifts a picture and fills the gap with copies of its edge."""
    size = len(picture)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    return padded[2 - down : 2 - down + size, 2 - across : 2 - across + size]


def resized(picture: np.ndarray, *sizes: int, margin: float = 0) -> np.ndarray:
    image = Image.fromarray(picture)
    box = (margin, margin, image.width - margin, image.height - margin)
    for size in sizes:
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
        box = None
    return np.asarray(image)


def find(queries: np.ndarray, gallery: np.ndarray, **options) -> pd.DataFrame:
    """`find_leaks`, where all images have the same label."""
    labels = [np.zeros(len(images), np.int64) for images in (queries, gallery)]
    return leaks.find_leaks(queries, labels[0], gallery, labels[1], **options)


def positions(pairs: pd.DataFrame) -> list[tuple]:
    return list(zip(pairs["query"], pairs["gallery"], pairs["kind"], strict=True))


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """Parts of two photographs that do not overlap, (n, 32, 32, 3), without those of plain sky."""
    corners = [(left, top) for left in range(0, 600, 105) for top in range(0, 400, 105)]
    parts = np.stack([
        np.asarray(Image.fromarray(photograph).crop((*corner, corner[0] + 105, corner[1] + 105))
                   .resize((32, 32), Image.Resampling.BICUBIC))
        for photograph in load_sample_images().images for corner in corners
    ])  # fmt: skip
    return parts[parts.std(axis=(1, 2)).mean(axis=1) > 25]


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: saved(picture, "JPEG", 50),
        lambda picture: saved(picture, "WEBP", 50),
        lambda picture: resized(picture, 48, 32),
        brightened,
        lambda picture: np.clip(picture * 1.3, 0, 255).astype(np.uint8),
        lambda picture: noisy(picture, 8),
        lambda picture: shifted(picture, 1, -1),
        lambda picture: shifted(picture, 2, 0),
        lambda picture: shifted(picture, -2, 2),
        lambda picture: resized(picture, 16, 32),
        lambda picture: np.asarray(Image.fromarray(picture).filter(ImageFilter.BoxBlur(1))),
        lambda picture: resized(picture, 32, margin=0.8),
    ],
)
def test_changed_photographs_are_found(change, photographs):
    assert len(photographs) >= 30
    pairs = find(np.stack([change(picture) for picture in photographs]), photographs)
    assert (pairs["query"] == pairs["gallery"]).all()
    # Some parts show a background that is out of focus.
    assert pairs["query"].nunique() >= 0.93 * len(photographs)


@pytest.mark.parametrize(
    "change",
    [
        np.fliplr,
        np.flipud,
        np.rot90,
        lambda picture: np.asarray(Image.fromarray(picture).convert("L").convert("RGB")),
    ],
)
def test_mirrored_rotated_and_grey_photographs_are_all_found(change, photographs):
    pairs = find(np.stack([change(picture) for picture in photographs]), photographs)
    assert pairs["query"].tolist() == pairs["gallery"].tolist() == [*range(len(photographs))]


def test_different_parts_of_a_photograph_are_no_copies(photographs):
    own_positions = np.arange(len(photographs))
    assert find(photographs, photographs, itself=own_positions).empty


@pytest.mark.parametrize("size", [8, 32, 50, 96])
def test_planted_pairs_are_found_and_nothing_else(size):
    gallery, queries = scenes(120, size, seed=1), scenes(20, size, seed=2)
    queries[3] = gallery[70]
    queries[5] = brightened(gallery[119])
    queries[7] = noisy(gallery[0], 1)
    queries[11] = gallery[70]
    pairs = find(queries, gallery)
    assert positions(pairs) == [
        (3, 70, "identical"),
        (5, 119, "near-duplicate"),
        (7, 0, "near-duplicate"),
        (11, 70, "identical"),
    ]
    assert (pairs.loc[pairs["kind"] == "identical", "correlation"] == 1).all()
    assert pairs["correlation"].between(leaks.MIN_CORRELATION, 1).all()


def test_pairs_are_ordered_by_query_and_correlation_with_identical_images_in_one_row():
    gallery, queries = scenes(60, 32, seed=7), scenes(3, 32, seed=8)
    queries[1] = queries[2] = gallery[50]
    gallery[20] = noisy(gallery[50])
    gallery[10] = gallery[50]
    pairs = find(queries, gallery)
    assert positions(pairs) == [
        (query, image, kind)
        for query in (1, 2)
        for image, kind in ((10, "identical"), (20, "near-duplicate"))
    ]
    assert list(pairs["copies"]) == [2, 1, 2, 1]
    assert list(pairs.index) == list(range(4))


def test_copies_with_another_label_are_conflicts():
    gallery, queries = scenes(30, 32, seed=21), scenes(4, 32, seed=22)
    gallery[6] = gallery[5] = queries[1]
    gallery[9] = noisy(queries[2])
    gallery_labels = np.zeros(30, np.int64)
    gallery_labels[[6, 9]] = 3, 4
    pairs = leaks.find_leaks(queries, np.array([0, 0, 1, 0]), gallery, gallery_labels)
    columns = ["query", "gallery", "copies", "is_conflict"]
    assert pairs[columns].values.tolist() == [
        [1, 5, 1, False],
        [1, 6, 1, True],
        [2, 9, 1, True],
    ]


def test_a_query_in_the_gallery_is_no_copy_of_itself():
    images = scenes(12, 32, seed=23)
    images[7] = images[2]
    images[9] = noisy(images[4])
    pairs = find(images, images, itself=np.arange(12))
    assert positions(pairs) == [
        (2, 7, "identical"),
        (4, 9, "near-duplicate"),
        (7, 2, "identical"),
        (9, 4, "near-duplicate"),
    ]
    assert (pairs["copies"] == 1).all()


def test_positions_are_correct_in_every_block(monkeypatch):
    for name, size in (("QUERIES", 64), ("GALLERY", 100), ("PAIRS", 3)):
        monkeypatch.setattr(leaks, name, size)
    gallery, queries = scenes(350, 32, seed=9), scenes(150, 32, seed=10)
    planted_pairs = [(0, 349), (63, 0), (64, 99), (65, 100), (127, 101), (128, 199), (149, 200)]
    for query, image in planted_pairs:
        queries[query] = brightened(gallery[image])
    pairs = find(queries, gallery)
    assert list(zip(pairs["query"], pairs["gallery"], strict=True)) == planted_pairs


def test_many_identical_pictures_need_one_row_per_query():
    images = np.repeat(scenes(1, 32, seed=24), 3200, axis=0)
    tracemalloc.start()
    pairs = find(images[:800], images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(pairs["query"]) == list(range(800))
    assert (pairs["copies"] == 3200).all()
    # The images have 9.8 MB. A row per pair, of which there are 2.6 million, would take 100 MB.
    assert peak < 40e6


def test_memory_mapped_images_give_the_same_pairs(tmp_path):
    gallery, queries = scenes(50, 32, seed=12), scenes(10, 32, seed=13)
    queries[4] = noisy(gallery[30])
    for name, images in (("gallery", gallery), ("queries", queries)):
        np.save(tmp_path / f"{name}.npy", images)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("queries", "gallery")]
    pairs = find(*mapped)
    assert len(pairs) == 1
    pd.testing.assert_frame_equal(pairs, find(queries, gallery))


@pytest.mark.parametrize("count", [0, 5])
def test_tables_without_pairs_have_the_same_columns(count):
    none = find(scenes(count, 32, seed=14), scenes(20, 32, seed=15))
    some = find(scenes(20, 32, seed=15), scenes(20, 32, seed=15))
    assert none.empty
    assert len(some) == 20
    for pairs in (none, some):
        assert dict(pairs.dtypes) == TYPES


def test_pictures_of_one_colour_leak_only_if_all_pixels_are_equal():
    gallery = np.full((4, 32, 32, 3), 100, np.uint8)
    gallery[1] = 0
    gallery[2, 0, 0] = 101
    gallery[3] = 255
    queries = np.full((2, 32, 32, 3), 100, np.uint8)
    queries[1] = 101
    assert positions(find(queries, gallery)) == [(0, 0, "identical")]


def test_faint_pictures_leak_only_if_all_pixels_are_equal():
    # The same three grey levels on two skies may come from different photographs.
    gradient = (np.arange(32) // 11).astype(np.uint8)[:, None]
    gallery = np.stack([np.full((32, 32, 3), value, np.uint8) + gradient for value in (20, 200)])
    assert find(gallery[:1] + 1, gallery).empty


def test_pictures_of_one_colour_do_not_affect_other_pictures():
    gallery, queries = scenes(40, 32, seed=19), scenes(12, 32, seed=20)
    gallery[::3], queries[::2] = 7, 9
    queries[11] = noisy(gallery[38])
    assert positions(find(queries, gallery)) == [(11, 38, "near-duplicate")]


def test_negatives_are_no_copies(photographs):
    assert find(255 - photographs, photographs).empty


@pytest.mark.parametrize("has_two_tones", [False, True])
def test_similar_digits_are_no_copies_but_brighter_ones_are(has_two_tones, tmp_path):
    digits = digits_pictures()
    decode_pictures(digits, range(len(digits.items)), 32, tmp_path / "digits.npy")
    images = np.load(tmp_path / "digits.npy")
    if has_two_tones:
        images = np.where(images > 110, 200, 30).astype(np.uint8)
    queries, gallery = images[::5].copy(), images[np.arange(len(images)) % 5 > 0]
    queries[8] = brightened(gallery[900])
    assert positions(find(queries, gallery)) == [(8, 900, "near-duplicate")]


def test_the_audit_counts_leaks_copies_for_validation_and_conflicts(project):
    images = scenes(40, 32, seed=25)
    images[30] = images[3]  # a query and a training image
    images[26] = noisy(images[5])  # a validation and a training image
    images[11] = images[10]  # two training images with different labels
    labels = np.zeros(40, np.int64)
    labels[[11, 5]] = 1
    dataset = Dataset(
        parameters={},
        classes=["a", "b"],
        images=images,
        labels=labels,
        names=[str(row) for row in range(40)],
        train=np.arange(25),
        validation=np.arange(25, 28),
        gallery=np.arange(28),
        queries=np.arange(28, 40),
        fingerprint="scenes",
    )
    for audit in (leaks.audit(dataset), leaks.audit(dataset)):  # computed, then read
        assert positions(audit.leaks) == [(2, 3, "identical")]
        assert positions(audit.validation_copies) == [(1, 5, "near-duplicate")]
        assert audit.validation_copies["is_conflict"].tolist() == [True]
        assert (audit.n_queries, audit.n_validation, audit.n_identical_conflicts) == (12, 3, 2)
