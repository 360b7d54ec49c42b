"""Optimizers, learning-rate schedules, the loss and augmentation."""

import keras
from keras import layers, ops

from cbir.networks.choices import AUGMENTATIONS, OPTIMIZERS, SCHEDULES


def optimizer(settings: dict, steps: int) -> keras.optimizers.Optimizer:
    """An optimizer whose learning rate follows a schedule.

    Args:
        settings: `optimizer`, a key of `OPTIMIZERS`;
            `learning_rate` at its highest;
            `schedule`, a key of `SCHEDULES`;
            `weight_decay`: share by which a step shrinks each weight, times the rate, decoupled
            from the gradient for every optimizer;
            `epochs`: passes over the training images.
        steps: batches in an epoch.
    """
    rate = settings["learning_rate"]
    if schedule := SCHEDULES[settings["schedule"]]:
        total = steps * settings["epochs"]
        warmup = int(total * schedule.warmup_share)
        if schedule.warmup_epochs:
            warmup = min(warmup, steps * schedule.warmup_epochs)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, total - warmup),
            warmup_target=rate,
            warmup_steps=max(1, warmup),
        )
    # A weight decay of 0 would add an operation that changes nothing.
    decay = {"weight_decay": settings["weight_decay"]} if settings["weight_decay"] else {}
    row = OPTIMIZERS[settings["optimizer"]]
    return row.make(keras.optimizers, learning_rate=rate, **decay)


def loss(settings: dict):
    """Cross-entropy: (n,) int labels, (n, n_classes) probabilities -> (n,) losses.

    Args:
        settings: `label_smoothing`, the share of the label that is spread over all classes.
    """
    if not (smoothing := settings["label_smoothing"]):
        return "sparse_categorical_crossentropy"

    def smoothed(labels, probabilities):
        targets = ops.one_hot(ops.reshape(labels, (-1,)), probabilities.shape[-1])
        return keras.losses.categorical_crossentropy(
            targets, probabilities, label_smoothing=smoothing
        )

    return smoothed


def augmented(model: keras.Model, augmentation: list[str]) -> keras.Model:
    """A model for training that augments its images; it shares the weights of the model.

    Args:
        model: images in [0, 255] -> probabilities.
        augmentation: keys of `AUGMENTATIONS`, applied in this order.
    """
    if not augmentation:
        return model
    images = keras.Input(model.input_shape[1:])
    augmented_images = images
    for name in augmentation:
        augmented_images = AUGMENTATIONS[name].make(layers)(augmented_images)
    training_model = keras.Model(images, model(augmented_images))
    # Keras scales the loss by this policy; without that, float16 loses small gradients.
    training_model.dtype_policy = model.dtype_policy
    return training_model
