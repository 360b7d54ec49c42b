"""The project's own networks, with the same arguments as the functions in `keras.applications`.

Each function returns a model from images to feature maps, with random weights.
"""

import keras
from keras import layers


def plain_cnn(
    *, input_shape: tuple, include_top: bool, weights: None, dropout: float
) -> keras.Model:
    """A network like the paper's: convolution, pooling and, in the head, fully connected layers.

    `dropout` is the rate of the head; half of it is applied after each pooling.
    """
    inputs = keras.Input(input_shape)
    maps = inputs
    for stage, filters in enumerate((32, 64), start=1):
        for place in (1, 2):
            maps = layers.Conv2D(
                filters, 3, padding="same", activation="relu", name=f"stage{stage}_conv{place}"
            )(maps)
        maps = layers.MaxPooling2D(name=f"stage{stage}_pool")(maps)
        maps = layers.Dropout(dropout / 2, name=f"stage{stage}_dropout")(maps)
    maps = layers.Conv2D(128, 3, padding="same", activation="relu", name="stage3_conv1")(maps)
    return keras.Model(inputs, maps)


def strong_cnn(*, input_shape: tuple, include_top: bool, weights: None) -> keras.Model:
    """A modern plain CNN with BatchNorm: few filters at full size, many for small maps.

    A stem of 32 filters and three stages (64, 128, 256) of convolution, pooling and convolution.
    The order of convolution, pooling and BatchNorm follows Jordan, "94% on CIFAR-10 in 3.29 seconds
    on a single GPU" (2024).
    """

    def convolution(maps, filters: int, name: str, pool: bool = False):
        maps = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(maps)
        if pool:
            maps = layers.MaxPooling2D(name=f"{name}_pool")(maps)
        maps = layers.BatchNormalization(name=f"{name}_bn")(maps)
        return layers.ReLU(name=f"{name}_relu")(maps)

    inputs = keras.Input(input_shape)
    maps = convolution(inputs, 32, "stem_conv")
    for stage, filters in enumerate((64, 128, 256), start=1):
        maps = convolution(maps, filters, f"stage{stage}_conv1", pool=True)
        maps = convolution(maps, filters, f"stage{stage}_conv2")
    return keras.Model(inputs, maps)
