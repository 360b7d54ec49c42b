"""What drives a training: optimizer, learning rate by step, loss, changes of the images."""

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
# Each draws anew for every image and every epoch; sizes are shares of the image.
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
    """The same model behind random changes of its images; for training alone.

    The weights are shared, and the model itself stays without the changes.

    Args:
        model: images in [0, 255] -> probabilities.
        augmentation: keys of `AUGMENTATIONS`, in the order of their work.
    """
    if not augmentation:
        return model
    images = keras.Input(model.input_shape[1:])
    changed = images
    for name in augmentation:
        changed = AUGMENTATIONS[name]()(changed)
    whole = keras.Model(images, model(changed))
    # By this Keras decides whether to scale the loss, without which float16 loses small gradients.
    whole.dtype_policy = model.dtype_policy
    return whole
