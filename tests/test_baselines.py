"""Vectors of baselines: shape, values, and dependence on image or seed."""

import numpy as np
import pytest
from skimage.feature import hog

from cbir import StudyError
from cbir.networks import baselines, vector_files
from cbir.reporting import sentences


def pictures(count=6, size=32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def precision_at_5(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Mean precision at 5 of each image against all others."""
    unit = vectors / np.maximum(lengths(vectors), 1e-9)[:, None]
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return (labels[np.argsort(-similarity, axis=1)[:, :5]] == labels[:, None]).mean()


@pytest.mark.parametrize("baseline", baselines.BASELINES)
@pytest.mark.parametrize("size", [8, 15, 32, 50, 96, 224])
def test_each_image_has_one_finite_row(baseline, size):
    vectors = baselines.describe_images(baseline, pictures(3, size), seed=0)
    assert len(vectors) == 3
    assert vectors.ndim == 2
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert (lengths(vectors) > 0).all()


@pytest.mark.parametrize(
    ("baseline", "width"), [("random", 128), ("raw_pixels", 3072), ("hand_crafted", 388)]
)
@pytest.mark.parametrize("count", [0, 2])
def test_width_at_32_pixels(baseline, width, count):
    assert baselines.describe_images(baseline, pictures(count), seed=0).shape == (count, width)


@pytest.mark.parametrize("baseline", baselines.BASELINES)
def test_vectors_are_reproducible(baseline):
    first, second = (baselines.describe_images(baseline, pictures(), seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_random_vectors_depend_on_the_seed_and_not_on_the_image():
    vectors = baselines.describe_images("random", pictures(seed=0), seed=3)
    np.testing.assert_array_equal(
        vectors, baselines.describe_images("random", pictures(seed=1), seed=3)
    )
    assert not np.allclose(vectors, baselines.describe_images("random", pictures(seed=0), seed=4))
    # The vectors of different images have different directions.
    cosines = np.corrcoef(vectors)[np.triu_indices(len(vectors), 1)]
    assert (np.abs(cosines) < 0.5).all()


@pytest.mark.parametrize("baseline", ["raw_pixels", "hand_crafted"])
def test_vectors_do_not_depend_on_position_and_block(baseline, monkeypatch):
    images = pictures(10)
    expected = baselines.describe_images(baseline, images, seed=0)
    monkeypatch.setattr(baselines, "BLOCK", 3)
    np.testing.assert_array_equal(expected, baselines.describe_images(baseline, images, seed=1))
    np.testing.assert_array_equal(
        expected[::-1], baselines.describe_images(baseline, images[::-1], seed=0)
    )


@pytest.mark.parametrize("baseline", baselines.BASELINES)
def test_memory_mapped_images_have_the_same_vectors(baseline, tmp_path):
    np.save(tmp_path / "images.npy", pictures())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        baselines.describe_images(baseline, mapped, seed=0),
        baselines.describe_images(baseline, pictures(), seed=0),
    )


def test_cosine_of_raw_pixels_is_their_correlation():
    images = pictures(2)
    left, right = baselines.describe_images("raw_pixels", images, seed=0)
    cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    expected = np.corrcoef(images.reshape(2, -1))[0, 1]
    assert cosine == pytest.approx(expected, abs=1e-5)


def test_raw_pixels_are_those_of_the_image():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 1] = [12, 24, 36]
    raw = baselines.raw_pixels(image)
    np.testing.assert_allclose(raw, [[-6, -6, -6, 6, 18, 30, -6, -6, -6, -6, -6, -6]])


@pytest.mark.parametrize("size", [32, 50])
def test_gradients_match_scikit_image(size):
    images = pictures(3, size)
    cell = size // 4
    for row, image in zip(baselines.oriented_gradients(images), images, strict=True):
        expected = hog(image, 9, (cell, cell), (2, 2), "L2-Hys", channel_axis=-1)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=1e-5)


def test_histogram_of_one_colour_is_one_bin():
    image = np.full((1, 32, 32, 3), [255, 64, 0], np.uint8)
    histogram = baselines.colour_histogram(image)
    # Levels 3, 1 and 0 of four per channel.
    assert np.flatnonzero(histogram[0]).tolist() == [3 * 16 + 1 * 4 + 0]
    assert histogram.max() == 1


def test_histogram_has_the_square_roots_of_the_shares():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = 255
    histogram = baselines.colour_histogram(image)[0]
    assert histogram[0] ** 2 == pytest.approx(0.75)
    assert histogram[63] ** 2 == pytest.approx(0.25)


def test_colours_and_gradients_have_equal_weight():
    vectors = baselines.describe_images("hand_crafted", pictures(), seed=0)
    np.testing.assert_allclose(lengths(vectors[:, :64]), 1, rtol=1e-5)
    np.testing.assert_allclose(lengths(vectors[:, 64:]), 1, rtol=1e-5)


def test_pictures_of_one_colour():
    flat = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 128, 255)])
    assert not baselines.describe_images("raw_pixels", flat, seed=0).any()
    crafted = baselines.describe_images("hand_crafted", flat, seed=0)
    np.testing.assert_allclose(lengths(crafted), 1)
    np.testing.assert_allclose(crafted @ crafted.T, np.eye(3))


@pytest.mark.parametrize("feature", ["colour", "shape"])
def test_hand_crafted_vectors_separate_easy_classes_and_random_ones_do_not(feature):
    labels = np.arange(40) % 2
    images = pictures(40) // 4
    for image, label in zip(images, labels, strict=True):
        if feature == "colour":
            image[..., 2 * label] += 150
        else:
            stripes = image if label else image.transpose(1, 0, 2)
            stripes[::4] += 150
    crafted = baselines.describe_images("hand_crafted", images, seed=0)
    random_vectors = baselines.describe_images("random", images, seed=0)
    assert precision_at_5(crafted, labels) > 0.95
    assert precision_at_5(random_vectors, labels) < 0.7


def test_an_unknown_baseline_is_refused_with_the_known_ones():
    with pytest.raises(StudyError) as error:
        baselines.describe_images("sift", pictures(), seed=0)
    assert str(error.value) == "unknown baseline 'sift': use random, raw_pixels, hand_crafted"


def test_a_report_describes_each_baseline():
    assert list(sentences.BASELINE_TEXTS) == [*baselines.BASELINES, vector_files.VECTORS]
