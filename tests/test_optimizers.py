"""Training steps of every optimizer, learning rates, the loss, and augmentation."""

import keras
import numpy as np
import pytest
from conftest import DEFAULTS

from cbir.networks import training
from cbir.networks.choices import AUGMENTATIONS, OPTIMIZERS, SCHEDULES

STEPS, EPOCHS, RATE = 10, 8, 0.2


def driver(name="sgd", steps=STEPS, **changes):
    parameters = {"optimizer": name, "schedule": "constant", "learning_rate": 0.1, "epochs": EPOCHS}
    return training.make_optimizer(DEFAULTS | parameters | changes, steps)


def after_steps(optimizer, count=1, weight=2.0, gradient=4.0) -> float:
    variable = keras.Variable(np.float32(weight))
    for _ in range(count):
        optimizer.apply([keras.ops.convert_to_tensor(np.float32(gradient))], [variable])
    return float(variable)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The length of Adam's first step is the rate, for any gradient.
        ("adam", 2 - 0.1),
        ("adamw", 2 - 0.1),
        # The rate times the gradient, and again times Nesterov's momentum.
        ("sgd", 2 - 0.1 * 4 - 0.9 * 0.1 * 4),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_first_step_of_every_optimizer_equals_values_by_hand(name, expected, decay):
    # The decay is decoupled: the weight shrinks by rate * decay, and the step is unchanged.
    shrunk = 2 * 0.1 * decay
    after = after_steps(driver(name, weight_decay=decay))
    assert after == pytest.approx(expected - shrunk, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_without_gradient_shrinks_a_weight_by_a_constant_share(name):
    after = after_steps(driver(name, weight_decay=0.5), count=3, gradient=0.0)
    assert after == pytest.approx(2 * (1 - 0.1 * 0.5) ** 3, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_follows_the_schedule(name):
    parameters = {"schedule": "cosine", "learning_rate": RATE, "weight_decay": 0.5}
    # The rates of the first three steps are 0, 0.02 and 0.04.
    expected = 2 * (1 - 0.02 * 0.5) * (1 - 0.04 * 0.5)
    assert after_steps(driver(name, **parameters), 3, gradient=0.0) == pytest.approx(
        expected, rel=1e-5
    )


def falling(share: float) -> float:
    return RATE * (1 + np.cos(np.pi * share)) / 2


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, RATE),
        ("constant", 10, RATE),
        ("constant", 79, RATE),
        # Up during the 10 steps of the first epoch, down during the other 70.
        ("cosine", 0, 0),
        ("cosine", 5, RATE / 2),
        ("cosine", 10, RATE),
        ("cosine", 45, RATE / 2),
        ("cosine", 79, falling(69 / 70)),
        # Up during the first quarter of all 80 steps, down during the other 60.
        ("one_cycle", 0, 0),
        ("one_cycle", 10, RATE / 2),
        ("one_cycle", 20, RATE),
        ("one_cycle", 50, RATE / 2),
        ("one_cycle", 79, falling(59 / 60)),
    ],
)
def test_the_rate_at_a_step_equals_values_by_hand(schedule, step, expected):
    optimizer = driver(schedule=schedule, learning_rate=RATE)
    optimizer.iterations.assign(step)
    assert float(optimizer.learning_rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 3), (10, 1)])
def test_the_rate_of_a_very_short_training_stays_within_its_bounds(schedule, steps, epochs):
    optimizer = driver(schedule=schedule, learning_rate=RATE, steps=steps, epochs=epochs)
    for step in range(steps * epochs):
        optimizer.iterations.assign(step)
        assert 0 <= float(optimizer.learning_rate) <= RATE + 1e-6


LABELS = np.array([0, 2, 1])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], np.float32)


def smoothed_by_hand(share: float) -> np.ndarray:
    targets = (1 - share) * np.eye(3)[LABELS] + share / 3
    return -(targets * np.log(PROBABILITIES)).sum(axis=1)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_label_smoothing_spreads_its_share_over_all_classes(share):
    losses = training.make_loss(DEFAULTS | {"label_smoothing": share})(LABELS, PROBABILITIES)
    np.testing.assert_allclose(losses, smoothed_by_hand(share), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_loss_and_accuracy_of_a_model_equal_values_by_hand(share):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    loss = training.make_loss(DEFAULTS | {"label_smoothing": share})
    model.compile("sgd", loss=loss, metrics=["accuracy"])
    loss, accuracy = model.evaluate(PROBABILITIES, LABELS, verbose=0)
    assert loss == pytest.approx(smoothed_by_hand(share).mean(), rel=1e-5)
    assert accuracy == pytest.approx(2 / 3)


def unchanging() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, keras.layers.Activation("linear")(inputs))


def one_image_many_times(count=32) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.float32)
    return np.repeat(image, count, axis=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_change_every_image_differently_and_only_in_training(name):
    keras.utils.set_random_seed(0)
    images = one_image_many_times()
    model = training.augmented(unchanging(), [name])
    first, second = (np.asarray(model(images, training=True)) for _ in range(2))
    assert first.shape == images.shape
    assert (first != images).any()
    assert (first != first[:1]).any()
    assert (first != second).any()
    assert np.array_equal(model(images, training=False), images)


@pytest.mark.parametrize("extreme", [None, 0, 255])
def test_all_augmentations_together_keep_pixels_within_their_range(extreme):
    keras.utils.set_random_seed(0)
    images = one_image_many_times()
    if extreme is not None:
        images[:] = extreme
    model = training.augmented(unchanging(), list(AUGMENTATIONS))
    changed = np.asarray(model(images, training=True))
    assert changed.shape == images.shape
    assert 0 <= changed.min() < changed.max() <= 255


def test_a_flip_mirrors_about_half_of_the_images():
    keras.utils.set_random_seed(0)
    images = one_image_many_times()
    changed = np.asarray(training.augmented(unchanging(), ["flip"])(images, training=True))
    mirrored = (changed == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (changed == images).all(axis=(1, 2, 3))).all()
    assert 8 <= mirrored.sum() <= 24


def test_a_shift_moves_an_image_by_an_eighth_at_most():
    keras.utils.set_random_seed(0)
    images = np.zeros((64, 16, 16, 3), np.float32)
    images[:, 8, 8] = 255
    changed = np.asarray(training.augmented(unchanging(), ["shift"])(images, training=True))
    _, rows, columns = np.nonzero(changed[..., 0])
    assert set(rows) == set(columns) == {6, 7, 8, 9, 10}


def test_without_augmentation_the_model_is_returned():
    model = unchanging()
    assert training.augmented(model, []) is model


def test_training_with_augmentation_trains_the_original_model():
    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    augmented = training.augmented(model, ["flip", "shift"])
    images, before = one_image_many_times(), model.get_weights()[0].copy()
    loss = training.make_loss(DEFAULTS | {"label_smoothing": 0.1})
    augmented.compile(driver("adam"), loss=loss, run_eagerly=True)
    augmented.train_on_batch(images, np.arange(32) % 2)
    assert all(
        weight is augmented_weight
        for weight, augmented_weight in zip(
            model.trainable_weights, augmented.trainable_weights, strict=True
        )
    )
    assert not np.array_equal(model.get_weights()[0], before)
    assert len(np.unique(np.asarray(model(images, training=True)), axis=0)) == 1
