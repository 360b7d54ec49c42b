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


def optimizer(
    name: str, *, schedule: str, learning_rate: float, weight_decay: float, steps: int, epochs: int
) -> keras.optimizers.Optimizer:
    """An optimizer whose rate follows a schedule.

    Args:
        name: a key of `OPTIMIZERS`; "sgd" has a Nesterov momentum of 0.9.
        schedule: "constant"; "cosine", up during the first epoch, then down to zero along a
            cosine; "one_cycle", up during the first quarter of all steps, then down likewise
            (Smith, Topin, "Super-convergence", 2017).
        learning_rate: at its highest.
        weight_decay: share by which each weight shrinks a step, times the rate; decoupled from the
            gradient for every optimizer.
        steps: batches an epoch.
        epochs: passes over the training images.
    """
    rate = learning_rate
    if schedule != "constant":
        total = steps * epochs
        warmup = min(steps, total // 2) if schedule == "cosine" else total // 4
        rate = keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, total - warmup),
            warmup_target=learning_rate,
            warmup_steps=max(1, warmup),
        )
    return OPTIMIZERS[name](rate, weight_decay or None)


def cross_entropy(label_smoothing: float):
    """(n,) int labels, (n, n_classes) probabilities -> (n,) losses.

    Args:
        label_smoothing: share of the certainty that is spread over all classes.
    """
    if not label_smoothing:
        return "sparse_categorical_crossentropy"

    def smoothed(labels, probabilities):
        wanted = ops.one_hot(ops.reshape(labels, (-1,)), probabilities.shape[-1])
        return keras.losses.categorical_crossentropy(
            wanted, probabilities, label_smoothing=label_smoothing
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
