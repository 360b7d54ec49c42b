"""Outputs for many images are computed in batches and equal those of a single call."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from cbir import StudyError
from cbir.networks import inference


@pytest.fixture(scope="module")
def encoder():
    """A model with two outputs that change if an image is mirrored."""
    import keras

    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3))
    flat = keras.layers.Flatten()(images)
    outputs = [keras.layers.Dense(5)(flat), keras.layers.Dense(2, activation="softmax")(flat)]
    return keras.Model(images, outputs)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)


class Watched:
    """An array that records the rows that are read, and refuses to be read as a whole."""

    def __init__(self, rows):
        self.rows, self.reads = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        self.reads.append((rows.start, min(rows.stop, len(self.rows))))
        return self.rows[rows]

    def __array__(self, *_, **__):
        raise AssertionError("read as a whole")


def test_images_are_read_in_batches_and_outputs_equal_the_model(
    encoder, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(inference, "BATCH_SIZE", 8)
    inputs = Watched(images)
    paths = [tmp_path / "vectors.npy", tmp_path / "probabilities.npy"]
    outputs = dict(zip(paths, (np.float16, np.float32), strict=True))
    inference.predict(encoder, [inputs], outputs, "images")
    assert inputs.reads == [(0, 8), (8, 16), (16, 20)]
    vectors, probabilities = (np.load(path) for path in paths)
    assert (vectors.dtype, probabilities.dtype) == (np.float16, np.float32)
    expected = encoder.predict(images.astype(np.float32), verbose=0)
    np.testing.assert_allclose(vectors, expected[0], rtol=1e-3)
    np.testing.assert_allclose(probabilities, expected[1], atol=1e-6)


def test_a_model_with_one_output_writes_one_file(encoder, images, tmp_path, monkeypatch):
    import keras

    monkeypatch.setattr(inference, "BATCH_SIZE", 10)
    first = keras.Model(encoder.inputs, encoder.outputs[0])
    inference.predict(first, [images], {tmp_path / "vectors.npy": np.float32}, "images")
    expected = first.predict(images.astype(np.float32), verbose=0)
    assert expected.shape == (20, 5)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, rtol=1e-5)


def test_outputs_of_several_inputs_are_averaged(encoder, images, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_SIZE", 8)
    inputs = [images, images[::-1]]
    paths = [tmp_path / "vectors.npy", tmp_path / "probabilities.npy"]
    inference.predict(encoder, inputs, dict.fromkeys(paths, np.float32), "images")
    outputs = [encoder.predict(batch.astype(np.float32), verbose=0) for batch in inputs]
    for path, output, mirrored in zip(paths, *outputs, strict=True):
        np.testing.assert_allclose(np.load(path), (output + mirrored) / 2, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_images(encoder, tmp_path):
    peaks = []
    for count in (20, 1, 20):  # in batches; the first run also builds graphs
        # Repeats of one image, which need no memory.
        repeats = np.broadcast_to(np.uint8(7), (count * inference.BATCH_SIZE, 4, 4, 3))
        outputs = {tmp_path / "a.npy": np.float32, tmp_path / "b.npy": np.float32}
        tracemalloc.start()
        inference.predict(encoder, [repeats], outputs, "images")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(np.load(tmp_path / "a.npy")) == len(repeats)
    _, of_one, of_twenty = peaks
    batch = inference.BATCH_SIZE * 4 * 4 * 3 * 4  # bytes, as float32
    assert of_one > batch  # NumPy's memory is measured
    assert of_twenty < of_one + batch


def test_mirrored_outputs_equal_those_of_mirrored_images(encoder, images):
    outputs = inference.predict_batch(inference.mirror_inputs(encoder), images)
    expected = inference.predict_batch(encoder, images[:, :, ::-1])
    for output, expected_output in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, expected_output, rtol=1e-5, atol=1e-5)


def test_memory_mapped_images_have_the_same_outputs(encoder, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    outputs = inference.predict_batch(encoder, mapped[3:5])
    for output, expected in zip(
        outputs, inference.predict_batch(encoder, images[3:5]), strict=True
    ):
        assert np.array_equal(output, expected)


def test_flipped_outputs_are_means_over_an_image_and_its_mirror_image(encoder, images):
    mirrored = images[:, :, ::-1]
    outputs = [inference.predict_batch(encoder, batch) for batch in (images, mirrored)]
    flipped = inference.flipped(encoder)
    means = inference.predict_batch(flipped, images)
    of_mirrored = inference.predict_batch(flipped, mirrored)
    for index in range(2):
        expected = (outputs[0][index] + outputs[1][index]) / 2
        np.testing.assert_allclose(means[index], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(means[index], of_mirrored[index], rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs[0][0], outputs[1][0], atol=1)


class ResourceExhaustedError(Exception):
    """Has the name of TensorFlow's error."""


class OutOfMemoryError(RuntimeError):
    """Has the name of PyTorch's error."""


EXHAUSTED = [
    ResourceExhaustedError("a\nb"), OutOfMemoryError("a"), MemoryError(),
    RuntimeError("RESOURCE_EXHAUSTED: a\nb"), RuntimeError("CUDA error: out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("error", EXHAUSTED)
def test_too_little_memory_is_reported_in_one_line(error, images, tmp_path):
    def fail(_):
        raise error

    model = SimpleNamespace(predict_on_batch=fail)
    with pytest.raises(StudyError, match="^out of memory while embedding one image: lower") as at:
        inference.predict(model, [images], {tmp_path / "a.npy": np.float32}, "images")
    assert "\n" not in str(at.value)


def test_a_batch_that_exceeds_the_memory_is_split(encoder, images, tmp_path):
    sizes = []

    def predict_at_most_three(inputs):
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise MemoryError
        return encoder.predict_on_batch(inputs)

    model = SimpleNamespace(predict_on_batch=predict_at_most_three)
    paths = [tmp_path / "vectors.npy", tmp_path / "probabilities.npy"]
    inference.predict(model, [images], dict.fromkeys(paths, np.float32), "images")
    assert sizes[:4] == [20, 10, 5, 2]
    assert sum(size for size in sizes if size <= 3) == len(images)
    for path, expected in zip(paths, encoder.predict(images * 1.0, verbose=0), strict=True):
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-5, atol=1e-6)


def test_features_beyond_half_precision_are_rejected(images, tmp_path):
    model = SimpleNamespace(predict_on_batch=lambda inputs: inputs * 1000)
    path = tmp_path / "features.npy"
    inference.predict(model, [images // 4], {path: np.float16}, "features")
    with pytest.raises(StudyError, match="^features: a value exceeds .*65,504.*: use pooling: avg"):
        inference.predict(model, [images * 0 + 66], {path: np.float16}, "features")


def test_other_errors_are_not_changed(images, tmp_path):
    def fail(_):
        raise RuntimeError("shapes differ")

    assert not inference.is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        model = SimpleNamespace(predict_on_batch=fail)
        inference.predict(model, [images], {tmp_path / "a.npy": np.float32}, "images")
