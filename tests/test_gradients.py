"""Gradients equal numerical differences, and maps mark the parts that make images similar."""

import functools
import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import build_network
from keras import layers, ops

from cbir import StudyError
from cbir.explain import (
    _parts,
    attention_maps,
    deepest_layer,
    similarity_maps,
    value_and_gradient,
)
from cbir.networks import models
from cbir.networks.backbones import BACKBONES
from cbir.networks.choices import POOLINGS
from cbir.networks.embeddings import fit_whitening, normalise
from cbir.networks.models import Network
from cbir.networks.weights import Weights

# The last layer of 4 x 4 positions or more, for images of 32 pixels.
DEEPEST = {
    "cnn": ("stage3_conv1", 8),
    "cnn_strong": ("stage3_conv2_relu", 4),
    "mobilenet": ("conv_pw_5_relu", 4),
    "resnet50": ("conv3_block4_out", 4),
    "vgg16": ("block4_conv3", 4),
}


@functools.cache
def built(backbone: str):
    """A network shared by tests that do not change it."""
    return build_network(backbone, train="head", embedding="projection")


def some_images(count: int = 3, size: int = 32, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def positive_part(maps: np.ndarray) -> np.ndarray:
    """Maps with negative values set to 0, each divided by its largest value."""
    positive = np.maximum(maps, 0)
    return positive / positive.max(axis=(1, 2), keepdims=True)


# --- gradients


def test_values_and_gradients_by_hand():
    rows = np.array([[1, 2], [3, -1]])
    values, gradient = value_and_gradient(lambda inputs: ops.sum(inputs**2, axis=1), rows)
    assert values.tolist() == [5, 10]
    assert gradient.tolist() == [[2, 4], [6, -2]]
    assert values.dtype == gradient.dtype == np.float32


# Runs under each backend, in another process unless it is the current backend. It prints the
# largest error of the values, the largest gradient, and its largest error against differences.
AGAINST_DIFFERENCES = """
import keras, numpy as np
from cbir.explain import value_and_gradient
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([
    keras.Input((4, 4, 3)), layers.Conv2D(5, 3, activation="tanh"), layers.BatchNormalization(),
    layers.Dropout(0.5), layers.Flatten(), layers.Dense(2, activation="tanh"),
])
before = model.get_weights()
def function(images):
    return keras.ops.sum(model(images, training=False), axis=1)
images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
values, gradient = value_and_gradient(function, images)
expected = keras.ops.convert_to_numpy(function(images))
differences = np.empty_like(images)
for position in np.ndindex(images.shape):
    step = np.zeros_like(images)
    step[position] = 0.02
    above, below = (keras.ops.convert_to_numpy(function(images + shift)) for shift in (step, -step))
    differences[position] = (above - below).sum() / 0.04
assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights()))
print(keras.backend.backend(), np.abs(values - expected).max(), np.abs(gradient).max(),
      np.abs(gradient - differences).max())
"""


@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_the_gradient_equals_numerical_differences(backend, capsys):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    if keras.backend.backend() == backend:
        exec(AGAINST_DIFFERENCES, {})
        output = capsys.readouterr().out
    else:
        process = subprocess.run(
            [sys.executable, "-c", AGAINST_DIFFERENCES],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        output = process.stdout
    name, *numbers = output.split()
    assert name == backend
    error_of_values, largest, error_of_gradient = map(float, numbers)
    assert error_of_values < 1e-6
    assert error_of_gradient < 0.005 * largest


def test_a_backend_without_gradients_is_rejected_with_alternatives(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(StudyError, match="numpy has no gradients: use tensorflow, torch or jax"):
        value_and_gradient(ops.sum, np.ones(3))


# --- where the maps are made


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_maps_with_at_least_four_by_four_positions(backbone):
    network, (layer, side) = built(backbone), DEEPEST[backbone]
    assert deepest_layer(network.body) == layer
    maps = similarity_maps(network, some_images(), some_images(seed=2))
    assert maps.layer == layer
    for values in (maps.query, maps.result):
        assert values.shape == (3, side, side)
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert set(values.max(axis=(1, 2))) <= {0, 1}
        assert values.any()


def residual(*, padded: bool = False, last: int = 1) -> keras.Model:
    """Two residual blocks at 8 x 8 positions, then convolutions to few positions."""
    images = keras.Input((8, 8, 3))
    maps = layers.Conv2D(4, 3, padding="same", name="first")(images)
    for block in (1, 2):
        beside = layers.Conv2D(4, 3, padding="same", name=f"block{block}_conv")(maps)
        maps = layers.Add(name=f"block{block}_add")([maps, beside])
    if padded:
        maps = layers.ZeroPadding2D(name="pad")(maps)
    beside = layers.Conv2D(4, last, strides=3, name="branch")(maps)
    maps = layers.Add(name="end")([beside, layers.Conv2D(4, last, strides=3)(maps)])
    return keras.Model(images, maps)


def test_the_end_of_a_block_is_chosen_and_not_a_layer_within_it():
    assert deepest_layer(residual()) == "block2_add"


def test_padding_is_not_chosen():
    assert deepest_layer(residual(padded=True, last=3)) == "block2_add"


def test_networks_with_only_small_maps_are_rejected():
    images = keras.Input((8, 8, 3))
    body = keras.Model(images, layers.Conv2D(4, 6)(images))
    with pytest.raises(StudyError, match="no feature maps of at least 4 x 4 positions: raise"):
        deepest_layer(body)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("feature_maps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_two_parts_of_a_network_compose_its_encoder(pooling, feature_maps):
    network = build_network(
        "cnn_strong", pooling=pooling, feature_maps=feature_maps, embedding="projection",
        image_size=24,
    )  # fmt: skip
    images = some_images(size=24)
    raw = np.asarray(network.encoder(images, training=False)[0])
    # The last layer of the body, and one within it.
    for layer in ("stage3_conv2_relu", "stage2_conv2"):
        to_maps, to_embeddings = _parts(network, layer, None)
        np.testing.assert_allclose(to_embeddings(to_maps(images)), normalise(raw), atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenet", "vgg16"])
def test_pixels_are_preprocessed_for_pretrained_weights(backbone, monkeypatch):
    started_from = Weights("imagenet", None, "", "imagenet")
    monkeypatch.setattr(models, "find", lambda *_: started_from)
    network, images = build_network(backbone, embedding="pooled"), some_images()
    raw = np.asarray(network.encoder(images, training=False)[0])
    to_maps, to_embeddings = _parts(network, DEEPEST[backbone][0], None)
    np.testing.assert_allclose(to_embeddings(to_maps(images)), normalise(raw), atol=1e-4)


def test_computing_maps_does_not_change_the_network():
    network = build_network("cnn_strong", pooling="gem")
    images, table = some_images(), network.layers()
    before = network.model.predict(images, verbose=0)
    first = similarity_maps(network, images, images[::-1])
    again = similarity_maps(network, images, images[::-1])
    assert np.array_equal(first.query, again.query)
    assert np.array_equal(network.model.predict(images, verbose=0), before)
    assert network.layers().equals(table)


# --- what the maps mark


def colours(has_sum: bool = False) -> Network:
    """A network that embeds an image as its mean red, green and blue, with 8 x 8 positions.

    With `has_sum`, a sum, which is no layer, and maps of 2 x 2 positions follow.
    """
    pixels = keras.Input((32, 32, 3))
    maps = layers.AveragePooling2D(4, name="look")(pixels)
    if has_sum:
        maps = layers.AveragePooling2D(4)(maps + maps)
    body = keras.Model(pixels, maps, name="body")
    images = keras.Input((32, 32, 3))
    features = layers.GlobalAveragePooling2D(name="pooling")(
        body(layers.Rescaling(1 / 255)(images))
    )
    backbone = keras.Model(images, features, name="backbone")
    vectors = keras.Input((3,))
    embedding = layers.Activation("linear", name="embedding")(vectors)
    classes = layers.Dense(2, activation="softmax", name="classifier")(embedding)
    head = keras.Model(vectors, classes, name="head")
    model = keras.Model(images, head(backbone(images)))
    return Network(model, {"pooling": "avg"}, Weights("none", None, "", "scaled"))


@pytest.mark.parametrize("has_sum", [False, True])
def test_maps_mark_only_the_corner_that_both_images_share(has_sum):
    query, result = np.zeros((2, 1, 32, 32, 3), np.uint8)
    query[:, :8, :8, 0] = result[:, 24:, 16:, 0] = 255  # red, in different corners
    query[:, 20:, 20:, 2] = 255  # blue in the query, green in the result
    result[:, :16, :16, 1] = 255
    network = colours(has_sum)
    maps = similarity_maps(network, query, result)
    names = [operation.name for operation in network.body.operations]
    assert maps.layer == names[-2 if has_sum else -1]
    in_query, in_result = np.zeros((2, 8, 8))
    in_query[:2, :2] = in_result[6:, 4:] = 1
    np.testing.assert_allclose(maps.query[0], in_query, atol=1e-6)
    np.testing.assert_allclose(maps.result[0], in_result, atol=1e-6)


def test_images_without_a_common_colour_have_empty_maps():
    red, blue = np.zeros((2, 1, 32, 32, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    maps = similarity_maps(colours(), red, blue)
    assert not maps.query.any()
    assert not maps.result.any()


def test_the_map_of_an_image_with_itself_covers_its_content():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, 8:16, :, 1] = 200
    maps = similarity_maps(colours(), image, image)
    rows = np.zeros(8)
    rows[2:4] = 1
    np.testing.assert_allclose(maps.query[0], np.tile(rows[:, None], 8), atol=1e-6)


def test_the_map_of_a_pair_does_not_depend_on_its_batch_or_direction(monkeypatch):
    network, queries, results = built("cnn_strong"), some_images(5), some_images(5, seed=2)
    maps = similarity_maps(network, queries, results)
    monkeypatch.setattr("cbir.explain.PAIRS", 2)
    maps_in_batches = similarity_maps(network, queries, results)
    np.testing.assert_allclose(maps.query, maps_in_batches.query, atol=1e-4)
    np.testing.assert_allclose(maps.result, maps_in_batches.result, atol=1e-4)
    swapped = similarity_maps(network, results, queries)
    np.testing.assert_allclose(maps.query, swapped.result, atol=1e-4)


@pytest.mark.parametrize("whitened", [False, True])
def test_the_map_of_averaged_features_is_their_product_with_the_result(whitened):
    network = build_network("cnn_strong", embedding="pooled", pooling="avg")
    queries, results = some_images(4), some_images(4, seed=2)
    features, result_features = (
        np.asarray(network.backbone(images, training=False)) for images in (queries, results)
    )
    directions, whitening = normalise(result_features), None
    if whitened:
        whitening = fit_whitening(np.concatenate([features, result_features, some_features()]), 6)
        mean, axes = whitening["mean"], whitening["axes"]
        directions = normalise((directions - mean) @ axes) @ axes.T
    positions = np.asarray(network.body(queries / 127.5 - 1, training=False))
    expected = positive_part(np.einsum("nhwc,nc->nhw", positions, directions))
    maps = similarity_maps(network, queries, results, whitening)
    np.testing.assert_allclose(maps.query, expected, atol=2e-3)


def some_features() -> np.ndarray:
    """Features of the strong CNN's width, for fitting a whitening."""
    return np.random.default_rng(3).uniform(0, 0.1, (40, 256)).astype(np.float32)


def test_an_embedding_of_zeros_has_an_empty_map():
    network = build_network("cnn_strong", embedding="pooled", pooling="avg")
    network.body.get_layer("stage3_conv2_bn").gamma.assign(np.zeros(256))
    maps = similarity_maps(network, some_images(), some_images(seed=2))
    assert not maps.query.any()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_gives_the_same_maps(policy, monkeypatch):
    queries, results = some_images(), some_images(seed=2)
    full = similarity_maps(build_network("cnn_strong", embedding="pooled"), queries, results)
    monkeypatch.setattr(models, "best_precision", lambda: policy)
    network = build_network("cnn_strong", embedding="pooled", mixed_precision=True)
    half = similarity_maps(network, queries, results)
    np.testing.assert_allclose(half.query, full.query, atol=0.1)


# --- attention


def test_attention_maps_are_the_weights_of_pooling_divided_by_the_largest():
    network = build_network("cnn_strong", pooling="attention")
    random = np.random.default_rng(0)
    network.head.get_layer("pooling").direction.assign(random.normal(size=(256, 1)))
    queries, results = some_images(), some_images(seed=2)
    maps = attention_maps(network, queries, results)
    for attention, images in ((maps.query, queries), (maps.result, results)):
        weights = np.asarray(network.attention(images, training=False))
        expected = weights / weights.max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(attention, expected, atol=1e-5)
    assert maps.layer == "pooling"
    assert not np.array_equal(maps.query, maps.result)


def test_attention_maps_of_another_pooling_are_rejected():
    with pytest.raises(StudyError, match="need a network with attention pooling"):
        attention_maps(built("cnn_strong"), some_images(), some_images())
