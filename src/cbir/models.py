"""Networks: a picture in, class probabilities out, the embedding in the layer under the classifier.

Every network is the same three pieces: its input (resizing and preprocessing, so that no caller can
forget them), a backbone that turns a picture into features, and a head that turns features into an
embedding and the embedding into class probabilities.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import pandas as pd
from keras import layers

from cbir import StudyError
from cbir.sources import find_weights, weights_fingerprint


@dataclass(frozen=True)
class Backbone:
    """What the study knows of a backbone.

    Attributes:
        construct: (input shape, dropout) -> model without its classifier, from random weights; its
            output is (h, w, channels) feature maps, or a vector.
        preprocess: what its ImageNet weights expect of RGB images in [0, 255].
    """

    construct: Callable
    preprocess: Callable | None = None


def plain_cnn(shape: tuple[int, int, int], dropout: float) -> keras.Model:
    """The paper's kind of network: convolution, pooling, fully connected, nothing else.

    Half of `dropout` is applied after each pooling.
    """
    inputs = keras.Input(shape)
    maps = inputs
    for filters in (32, 64):
        maps = layers.Conv2D(filters, 3, padding="same", activation="relu")(maps)
        maps = layers.Conv2D(filters, 3, padding="same", activation="relu")(maps)
        maps = layers.MaxPooling2D()(maps)
        maps = layers.Dropout(dropout / 2)(maps)
    maps = layers.Conv2D(128, 3, padding="same", activation="relu")(maps)
    return keras.Model(inputs, layers.Flatten()(maps))


def _of_applications(constructor: Callable, module) -> Backbone:
    return Backbone(
        construct=lambda shape, dropout: constructor(
            include_top=False, weights=None, input_shape=shape
        ),
        preprocess=module.preprocess_input,
    )


BACKBONES = {
    "cnn": Backbone(plain_cnn),
    "resnet50": _of_applications(keras.applications.ResNet50, keras.applications.resnet50),
    "vgg16": _of_applications(keras.applications.VGG16, keras.applications.vgg16),
}
# Keras' 0.99 leaves the moving statistics near their start after the few hundred steps of a small
# study, and validation at chance.
BATCH_NORM_MOMENTUM = 0.9


@dataclass(frozen=True)
class Network:
    """A network and what it was built from.

    Attributes:
        model: (n, size, size, 3) images in [0, 255] -> (n, n_classes) probabilities. Its parts are
            `model.get_layer("backbone")` and `model.get_layer("head")`.
        parameters: all that decides its shape and its initial weights.
        weights: SHA-256 of the file its backbone started from; empty for random weights.
        train: "all", or "head" where the backbone is frozen.
    """

    model: keras.Model
    parameters: dict
    weights: str
    train: str

    @property
    def backbone(self) -> keras.Model:
        """Images -> (n, features): input, preprocessing and pooling included."""
        return self.model.get_layer("backbone")

    @property
    def head(self) -> keras.Model:
        """(n, features) -> (n, n_classes) probabilities."""
        return self.model.get_layer("head")

    @property
    def size(self) -> dict[str, int]:
        """Number of parameters by part, and of those that are trained."""
        trained = self.model.trainable_variables
        return {
            "backbone": self.backbone.count_params(),
            "head": self.head.count_params(),
            "total": self.model.count_params(),
            "trained": sum(math.prod(variable.shape) for variable in trained),
        }

    def layers(self) -> pd.DataFrame:
        """A row per layer; a body of many layers is one row."""
        rows = []
        for part in (self.backbone, self.head):
            for layer in part.layers:
                within = getattr(layer, "layers", [])
                for each in within if 0 < len(within) < 20 else [layer]:
                    if isinstance(each, layers.InputLayer):
                        continue
                    rows.append(
                        {
                            "part": part.name,
                            "layer": each.name,
                            "output": " × ".join(str(side) for side in each.output.shape[1:]),
                            "parameters": each.count_params(),
                        }
                    )
        return pd.DataFrame(rows)

    @functools.cached_property
    def head_encoder(self) -> keras.Model:
        """(n, features) -> [(n, embedding_dim) embeddings, (n, n_classes) probabilities]."""
        return keras.Model(
            self.head.inputs, [self.head.get_layer("embedding").output, self.head.outputs[0]]
        )

    @functools.cached_property
    def encoder(self) -> keras.Model:
        """Images -> [(n, embedding_dim) embeddings, (n, n_classes) probabilities]."""
        images = keras.Input(self.model.input_shape[1:])
        return keras.Model(images, self.head_encoder(self.backbone(images)))


def build(
    backbone: str,
    *,
    weights: str,
    train: str,
    image_size: int,
    input_size: int,
    embedding_dim: int,
    dropout: float,
    n_classes: int,
    seed: int,
) -> Network:
    """A network, ready to be trained.

    Args:
        backbone: a name in `BACKBONES`.
        weights: "none", "imagenet", or the path of a weights file that fits the backbone without
            its classifier.
        train: "all", or "head" to freeze the backbone.
        image_size: pixels of the images that come in.
        input_size: pixels that the backbone sees; the network resizes by itself.
        embedding_dim: units of the layer under the classifier.
        dropout: share of the embedding that is dropped while training.
        n_classes: number of classes.
        seed: of the initial weights.

    Raises:
        StudyError: no such backbone, or its weights cannot be had or do not fit.
    """
    if backbone not in BACKBONES:
        raise StudyError(f"unknown backbone {backbone!r}: known are {', '.join(BACKBONES)}")
    path = find_weights(backbone, weights)
    keras.utils.set_random_seed(seed)
    known = BACKBONES[backbone]
    body = known.construct((input_size, input_size, 3), dropout)
    body.name = f"{backbone}_body"
    if path:
        try:
            body.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(
                f"weights: {path} does not fit {backbone} without its classifier: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
    else:
        for layer in body.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = BATCH_NORM_MOMENTUM

    images = keras.Input((image_size, image_size, 3))
    pixels = images
    if input_size != image_size:
        pixels = layers.Resizing(input_size, input_size, interpolation="bicubic")(images)
    # Pretrained weights expect what they were trained on; random ones learn best near zero.
    if path and known.preprocess:
        pixels = known.preprocess(pixels)
    else:
        pixels = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
    features = body(pixels)
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D()(features)
    encoder = keras.Model(images, features, name="backbone")
    encoder.trainable = train == "all"

    vectors = keras.Input(features.shape[1:])
    embedding = layers.Dense(embedding_dim, activation="relu", name="embedding")(vectors)
    dropped = layers.Dropout(dropout)(embedding)
    probabilities = layers.Dense(n_classes, activation="softmax", name="classifier")(dropped)
    head = keras.Model(vectors, probabilities, name="head")

    parameters = {
        "backbone": backbone,
        "train": train,
        "image_size": image_size,
        "input_size": input_size,
        "embedding_dim": embedding_dim,
        "dropout": dropout,
        "n_classes": n_classes,
        "seed": seed,
    }
    model = keras.Model(images, head(encoder(images)), name=backbone)
    return Network(model, parameters, weights_fingerprint(path), train)
