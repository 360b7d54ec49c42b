"""Optimizers, learning-rate schedules, the loss and augmentation."""

import keras
from keras import layers, ops

OPTIMIZERS = {
    "adam": lambda rate, decay: keras.optimizers.Adam(rate, weight_decay=decay),
    "adamw": lambda rate, decay: keras.optimizers.AdamW(rate, weight_decay=decay or 0.0),
    "sgd": lambda rate, decay: keras.optimizers.SGD(
        rate, momentum=0.9, nesterov=True, weight_decay=decay
    ),
}
SCHEDULES = ("constant", "cosine", "one_cycle")
# Each draws again for every image and every epoch; sizes are shares of the image.
AUGMENTATIONS = {
    "flip": lambda: layers.RandomFlip("horizontal"),
    "shift": lambda: layers.RandomTranslation(
        0.125, 0.125, fill_mode="reflect", interpolation="nearest"
    ),
    "rotate": lambda: layers.RandomRotation(15 / 360, fill_mode="reflect"),
    "zoom": lambda: layers.RandomZoom(0.15, fill_mode="reflect"),
    "contrast": lambda: layers.RandomContrast(0.2, value_range=(0, 255)),
    "brightness": lambda: layers.RandomBrightness(0.2, value_range=(0, 255)),
    "erase": lambda: layers.RandomErasing((0.5, 0.5), scale=(0.02, 0.2), value_range=(0, 255)),
}


def optimizer(settings: dict, steps: int) -> keras.optimizers.Optimizer:
    """An optimizer whose learning rate follows a schedule.

    Args:
        settings: `optimizer`, a key of `OPTIMIZERS`, where "sgd" has a Nesterov momentum of 0.9;
            `learning_rate` at its highest;
            `schedule`: "constant"; "cosine", which rises during the first epoch and falls to zero
            along a cosine; "one_cycle", which rises during the first quarter of all steps (Smith,
            Topin, "Super-convergence", 2017);
            `weight_decay`: share by which a step shrinks each weight, times the rate, decoupled
            from the gradient for every optimizer;
            `epochs`: passes over the training images.
        steps: batches in an epoch.
    """
    rate, schedule = settings["learning_rate"], settings["schedule"]
    if schedule != "constant":
        total = steps * settings["epochs"]
        warmup = min(steps, total // 2) if schedule == "cosine" else total // 4
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, total - warmup),
            warmup_target=rate,
            warmup_steps=max(1, warmup),
        )
    return OPTIMIZERS[settings["optimizer"]](rate, settings["weight_decay"] or None)


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
        augmented_images = AUGMENTATIONS[name]()(augmented_images)
    training_model = keras.Model(images, model(augmented_images))
    # Keras scales the loss by this policy; without that, float16 loses small gradients.
    training_model.dtype_policy = model.dtype_policy
    return training_model
