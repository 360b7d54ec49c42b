"""Pooling: results on small maps, and the weights that poolings learn."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cbir.networks.choices import LEARNT_POOLINGS, POOLINGS
from cbir.networks.pooling import AttentionPooling, GeneralisedMean, make_pooling

# One map of 2 x 2 positions and two channels.
MAPS = np.array([[[[1, 0], [2, 0]], [[3, 0], [6, 8]]]], np.float32)
AVERAGES = [[3, 2]]


def random_maps(n=64, side=3, channels=4) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (n, side, side, channels)).astype(np.float32)


def gem(power: float, maps, dtype="float32") -> np.ndarray:
    layer = GeneralisedMean(dtype=dtype)
    layer.build(maps.shape)
    layer.power.assign(power)
    return np.asarray(layer(maps))


def trained(layer, maps, targets, rate, steps):
    """The layer after a number of training steps towards the targets."""
    inputs = keras.Input(maps.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.Adam(rate), "mse")
    for _ in range(steps):
        model.train_on_batch(maps, targets)
    return layer


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("avg", AVERAGES),
        ("max", [[6, 8]]),
        # The cube root of (1 + 8 + 27 + 216) / 4, and of 512 / 4.
        ("gem", [[63 ** (1 / 3), 128 ** (1 / 3)]]),
        ("attention", AVERAGES),
        ("flatten", [[1, 0, 2, 0, 3, 0, 6, 8]]),
    ],
)
def test_poolings_of_a_small_map_equal_values_by_hand(pooling, expected):
    layer = make_pooling(pooling)
    np.testing.assert_allclose(layer(MAPS), expected, rtol=1e-4)
    assert layer.compute_output_shape((None, 2, 2, 2)) == (None, len(expected[0]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_learnt_poolings_have_weights(pooling):
    layer = make_pooling(pooling)
    layer(MAPS)
    assert bool(layer.trainable_weights) == (pooling in LEARNT_POOLINGS)


@pytest.mark.parametrize("pooling", LEARNT_POOLINGS)
def test_learnt_poolings_can_be_serialised(pooling):
    layer = make_pooling(pooling)
    restored = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(restored) is type(layer)


def test_a_generalised_mean_of_power_one_is_the_mean():
    np.testing.assert_allclose(gem(1, MAPS), AVERAGES, rtol=1e-5)


def test_a_generalised_mean_never_falls_below_the_mean():
    np.testing.assert_allclose(gem(0.1, MAPS), AVERAGES, rtol=1e-5)
    np.testing.assert_allclose(gem(-2, MAPS), AVERAGES, rtol=1e-5)


def test_a_generalised_mean_approaches_the_maximum_with_growing_power():
    maps = random_maps()
    largest = maps.max(axis=(1, 2))
    gaps = [np.abs(gem(power, maps) - largest).max() for power in (1, 3, 10, 100, 1000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.005


@pytest.mark.parametrize(("reduce", "sign"), [(np.max, 1), (np.mean, -1)])
def test_the_power_grows_for_maxima_and_falls_for_means(reduce, sign):
    maps = random_maps()
    layer = trained(GeneralisedMean(), maps, reduce(maps, axis=(1, 2)), rate=0.05, steps=20)
    assert sign * (float(layer.power) - 3) > 0.5


@pytest.mark.parametrize("power", [1, 3, 50])
@pytest.mark.parametrize("scale", [0, 1e-30, 1, 1e30])
def test_a_generalised_mean_and_its_gradients_are_finite_for_maps_of_any_size(power, scale):
    layer = GeneralisedMean()
    maps = tf.constant(MAPS * scale)
    layer.build(maps.shape)
    layer.power.assign(power)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        outputs = layer(maps)
    of_maps, of_power = tape.gradient(outputs, [maps, layer.power.value])
    for values in (outputs, of_maps, of_power):
        assert np.isfinite(values).all()
    if scale >= 1:
        np.testing.assert_allclose(outputs / scale, gem(power, MAPS), rtol=1e-4)


def test_a_generalised_mean_does_not_overflow_in_half_precision():
    outputs = gem(3, MAPS * 8_000, "mixed_float16")
    assert outputs.dtype == np.float16
    np.testing.assert_allclose(outputs, 8_000 * gem(3, MAPS), rtol=1e-3)


def test_attention_starts_as_the_mean_with_equal_weights():
    maps, layer = random_maps(), AttentionPooling()
    np.testing.assert_allclose(layer(maps), maps.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.attention(maps), np.full((64, 3, 3), 1 / 9), rtol=1e-5)


def test_attention_is_the_softmax_of_a_linear_function_of_the_channels():
    layer = AttentionPooling()
    layer.build(MAPS.shape)
    layer.direction.assign([[np.log(2)], [0]])
    # 2 ** channel 0 at each position: 2, 4, 8, 64 of 78.
    shares = np.array([[[2, 4], [8, 64]]]) / 78
    np.testing.assert_allclose(layer.attention(MAPS), shares, rtol=1e-5)
    expected = (MAPS * shares[..., None]).sum(axis=(1, 2))
    np.testing.assert_allclose(layer(MAPS), expected, rtol=1e-5)


def test_weights_of_attention_sum_to_one_for_maps_of_any_size():
    layer = AttentionPooling()
    layer.build((None, 3, 3, 4))
    layer.direction.assign(np.ones((4, 1)))
    for scale in (0, 1, 1e6):
        weights = np.asarray(layer.attention(random_maps() * scale))
        np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, atol=1e-5)


def test_attention_learns_the_informative_position():
    random = np.random.default_rng(0)
    maps = random.normal(size=(128, 2, 2, 2)).astype(np.float32)
    position = random.integers(0, 4, 128)
    row, column = np.unravel_index(position, (2, 2))
    maps[..., 0] = 0
    maps[np.arange(128), row, column, 0] = 1  # marks the position whose channel 1 is the target
    targets = maps[np.arange(128), row, column]
    layer = trained(AttentionPooling(), maps, targets, rate=0.3, steps=40)
    weights = np.asarray(layer.attention(maps))
    assert weights[np.arange(128), row, column].min() > 0.9
