"""Networks: a picture in, class probabilities out, the embedding under the classifier.

Every network is the same two parts. Its backbone resizes and preprocesses, so that no caller can
forget it, and turns a picture into features. Its head turns features into an embedding and the
embedding into class probabilities; a pooling that learns is the head's, so that it can be trained
on kept feature maps.
"""

import functools
import inspect
import math
from dataclasses import dataclass
from pathlib import Path

import keras
import pandas as pd
from keras import layers

from cbir import StudyError
from cbir.networks import cnns
from cbir.networks.backbones import BACKBONES, INCLUDED, Backbone
from cbir.networks.pooling import LEARNT, POOLINGS
from cbir.networks.precision import FULL, use_precision
from cbir.networks.weights import Weights, find, load, renumber_layers

# Keras' 0.99 leaves the moving statistics near their start after the few hundred steps of a small
# study, and validation at chance.
BATCH_NORM_MOMENTUM = 0.9
LAST_BLOCKS = "last_blocks:"


@dataclass(frozen=True)
class Network:
    """A network and what it was built from.

    Attributes:
        model: (n, size, size, 3) images in [0, 255] -> (n, n_classes) probabilities. Its parts are
            `model.get_layer("backbone")` and `model.get_layer("head")`.
        parameters: all that decides its shape and its initial weights, but those of the file.
        weights: that its backbone started from.
    """

    model: keras.Model
    parameters: dict
    weights: Weights

    @property
    def backbone(self) -> keras.Model:
        """Images -> (n, channels) features, or (n, h, w, channels) maps: see `has_maps`."""
        return self.model.get_layer("backbone")

    @property
    def body(self) -> keras.Model:
        """The backbone without resizing, preprocessing and pooling."""
        return self.backbone.get_layer("body")

    @property
    def head(self) -> keras.Model:
        """Features or maps -> (n, n_classes) probabilities."""
        return self.model.get_layer("head")

    @property
    def is_frozen(self) -> bool:
        """Whether none of the backbone is trained, so that an image needs to pass it only once."""
        return self.parameters["train"] == "head"

    @property
    def has_maps(self) -> bool:
        """Whether the backbone hands on feature maps, which the head pools."""
        return len(self.backbone.output_shape) == 4

    @property
    def embedding_width(self) -> int:
        """Dimensions of the embedding before any whitening."""
        return self.head.get_layer("embedding").output.shape[-1]

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
                for each in within if 0 < len(within) < 30 else [layer]:
                    if isinstance(each, layers.InputLayer):
                        continue
                    rows.append(
                        {
                            "part": part.name,
                            "layer": each.name,
                            "output": " × ".join(str(side) for side in each.output.shape[1:]),
                            "parameters": each.count_params(),
                            "trained": sum(
                                math.prod(variable.shape) for variable in each.trainable_variables
                            ),
                        }
                    )
        return pd.DataFrame(rows)

    @functools.cached_property
    def head_encoder(self) -> keras.Model:
        """Features or maps -> [(n, d) embeddings, (n, n_classes) probabilities]."""
        return keras.Model(
            self.head.inputs, [self.head.get_layer("embedding").output, self.head.outputs[0]]
        )

    @functools.cached_property
    def encoder(self) -> keras.Model:
        """Images -> [(n, d) embeddings, (n, n_classes) probabilities]."""
        images = keras.Input(self.model.input_shape[1:])
        return keras.Model(images, self.head_encoder(self.backbone(images)))

    @functools.cached_property
    def attention(self) -> keras.Model:
        """Images -> (n, h, w) weights of the positions, where the pooling is `attention`."""
        pooling = self.head.get_layer("pooling")
        images = keras.Input(self.model.input_shape[1:])
        return keras.Model(images, layers.Lambda(pooling.attention)(self.backbone(images)))


def rebuild(parameters: dict, path: Path) -> Network:
    """Build a trained network from what is stored of it.

    Args:
        parameters: of the network, as `Network.parameters` gives them; further keys do not matter.
        path: the file of all its weights.
    """
    names = [name for name in inspect.signature(build).parameters if name in parameters]
    network = build(
        **{name: parameters[name] for name in names},
        weights=Weights("", None, "", parameters["pixels"]),
        mixed_precision=parameters["precision"] != FULL,
    )
    network.model.load_weights(path)
    return network


def build(
    backbone: str,
    *,
    weights: str | Weights,
    train: str,
    image_size: int,
    input_size: int,
    pooling: str,
    feature_maps: bool,
    embedding: str,
    embedding_dim: int,
    dropout: float,
    mixed_precision: bool,
    n_classes: int,
    seed: int,
    was_frozen: bool = False,
) -> Network:
    """A network, ready to be trained.

    Args:
        backbone: a name in `BACKBONES`.
        weights: as `weights.find` takes it, or what it returned.
        train: "all"; "last_blocks:n", the head and the last n of the backbone's blocks; "head".
        image_size: pixels of the images that come in.
        input_size: pixels that the backbone sees; the network resizes by itself.
        pooling: a name in `POOLINGS`.
        feature_maps: whether the backbone hands on its maps even where pooling learns nothing.
        embedding: "penultimate", a dense layer with ReLU under the classifier; "projection", one
            without; "pooled", the pooled features themselves.
        embedding_dim: units of that layer; `pooled` has none.
        dropout: share of the embedding that is dropped while training.
        mixed_precision: compute in half precision where the machine has it.
        n_classes: number of classes.
        seed: of the initial weights.
        was_frozen: whether the backbone was frozen before; its BatchNorm then stays as it is.

    Raises:
        StudyError: no such backbone or block, too few pixels for it, or its weights cannot be had
            or do not fit.
    """
    if backbone not in BACKBONES:
        raise StudyError(f"unknown backbone {backbone!r}: known are {', '.join(BACKBONES)}")
    known = BACKBONES[backbone]
    started_from = find(backbone, weights) if isinstance(weights, str) else weights
    keras.utils.set_random_seed(seed)
    with use_precision(mixed_precision) as policy:
        body = _body(known, input_size, dropout)
        if started_from.path:
            load(body, started_from, backbone)
        first_trained = _freeze(body, known, train, was_frozen)

        images = keras.Input((image_size, image_size, 3))
        pixels = images
        if input_size != image_size:
            pixels = layers.Resizing(input_size, input_size, interpolation="bicubic")(images)
        # Pretrained weights expect what they were trained on; random ones learn best near zero.
        if started_from.pixels == "imagenet" and known.preprocess not in (None, INCLUDED):
            pixels = getattr(keras.applications, known.preprocess).preprocess_input(pixels)
        elif known.preprocess != INCLUDED:
            pixels = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
        features = body(pixels)
        pool = POOLINGS[pooling](name="pooling")
        is_of_head = pooling in LEARNT or feature_maps
        if not is_of_head:
            features = pool(features)
        encoder = keras.Model(images, features, name="backbone")

        vectors = keras.Input(features.shape[1:])
        pooled = pool(vectors) if is_of_head else vectors
        head = keras.Model(
            vectors, _head(pooled, embedding, embedding_dim, dropout, n_classes), name="head"
        )
        model = keras.Model(images, head(encoder(images)), name=backbone)
    parameters = {
        "backbone": backbone,
        "constructor": [known.constructor, known.arguments, known.preprocess],
        "pixels": started_from.pixels,
        "train": train,
        "first_trained": first_trained,
        "was_frozen": was_frozen,
        "image_size": image_size,
        "input_size": input_size,
        "pooling": pooling,
        "feature_maps": is_of_head,
        "embedding": embedding,
        "embedding_dim": embedding_dim,
        "dropout": dropout,
        "precision": policy,
        "n_classes": n_classes,
        "seed": seed,
    }
    return Network(model, parameters, started_from)


def _body(known: Backbone, input_size: int, dropout: float) -> keras.Model:
    """Pixels to feature maps, from random weights."""
    own = {"dropout": dropout} if known.constructor == "plain_cnn" else {}
    construct = getattr(cnns, known.constructor, None)
    construct = construct or getattr(keras.applications, known.constructor)
    try:
        body = construct(
            input_shape=(input_size, input_size, 3),
            include_top=False,
            weights=None,
            **known.arguments,
            **own,
        )
    except ValueError as error:  # as Xception says it of fewer than 71 pixels
        raise StudyError(
            f"input_size: {known.constructor} cannot be built for {input_size} pixels: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    body.name = "body"
    renumber_layers(body)
    for layer in _batch_norms(body):
        layer.momentum = BATCH_NORM_MOMENTUM
    return body


def _head(pooled, embedding: str, embedding_dim: int, dropout: float, n_classes: int):
    # In full precision: what follows compares embeddings and probabilities finely.
    if embedding == "pooled":
        vectors = layers.Activation("linear", dtype="float32", name="embedding")(pooled)
    else:
        vectors = layers.Dense(
            embedding_dim,
            activation="relu" if embedding == "penultimate" else None,
            dtype="float32",
            name="embedding",
        )(pooled)
    dropped = layers.Dropout(dropout, dtype="float32")(vectors)
    return layers.Dense(n_classes, activation="softmax", dtype="float32", name="classifier")(
        dropped
    )


def _batch_norms(body: keras.Model) -> list[layers.Layer]:
    return [layer for layer in body.layers if isinstance(layer, layers.BatchNormalization)]


def _freeze(body: keras.Model, known: Backbone, train: str, was_frozen: bool) -> str | None:
    """Freeze what is not trained; where the backbone was frozen once, its BatchNorm too.

    A frozen BatchNorm keeps its statistics and uses them: with those of a small batch instead, the
    features that the head has learnt to read would change under it.

    Returns:
        The name of the first layer that is trained; None for the whole backbone, or none of it.
    """
    body.trainable = train != "head"
    first = None
    if train.startswith(LAST_BLOCKS):
        count = int(train.removeprefix(LAST_BLOCKS))
        if count > len(known.blocks):
            raise StudyError(
                f"train: {train}: the backbone has {len(known.blocks)} blocks: "
                f"{', '.join(known.blocks)}"
            )
        first = known.blocks[-count]
        names = [layer.name for layer in body.layers]
        for layer in body.layers[: names.index(first)]:
            layer.trainable = False
    if was_frozen or first:
        for layer in _batch_norms(body):
            layer.trainable = False
    return first
