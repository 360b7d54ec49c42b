"""Building a network: images in, class probabilities out, the embedding before the classifier.

Every network has two parts. Its backbone resizes and preprocesses images, so no caller can forget
it, and turns them into features. Its head turns features into an embedding and class probabilities.
A pooling with weights belongs to the head, so that it can be trained on stored feature maps of a
frozen backbone.
"""

import contextlib
import functools
import inspect
import itertools
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd
from keras import layers

from cbir import StudyError
from cbir.machine import keep_freed_memory, nvidia_smi
from cbir.networks import cnns
from cbir.networks.backbones import BACKBONES, INCLUDED, Backbone
from cbir.networks.choices import EMBEDDINGS, LEARNT_POOLINGS
from cbir.networks.pooling import make_pooling
from cbir.networks.weights import Weights, find

# Whatever the user's keras.json says: a study sets the precision of its networks itself.
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_image_data_format("channels_last")
keep_freed_memory()

# With Keras' default of 0.99, the moving statistics are still close to their initial values after
# the few hundred steps of a small study, and validation accuracy stays at chance.
BATCH_NORM_MOMENTUM = 0.9
LAST_BLOCKS = "last_blocks:"
# The first layer after the pooling in a head that is trained on features of a frozen backbone.
STANDARDISATION = "standardise"
# A body with at least this number of layers is a single row in the table of layers.
DEEP = 30
FULL = "float32"


@dataclass(frozen=True)
class Network:
    """A network, and the settings it was built from.

    Attributes:
        model: (n, size, size, 3) images in [0, 255] -> (n, n_classes) probabilities, by backbone
            and head.
        parameters: everything that determines its layers and its random initial weights.
        weights: the initial weights of its backbone.
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
        """Whether no layer of the backbone is trained, so that its features can be stored."""
        return self.parameters["train"] == "head"

    @property
    def has_maps(self) -> bool:
        """Whether the backbone returns feature maps, which the head pools."""
        return len(self.backbone.output_shape) == 4

    @property
    def embedding_width(self) -> int:
        """Dimensions of the embedding before any whitening."""
        return self.head.get_layer("embedding").output.shape[-1]

    @property
    def size(self) -> dict[str, int]:
        """Number of parameters: of backbone, of head, in total, and of those that are trained."""
        parts = {"backbone": self.backbone, "head": self.head, "total": self.model}
        sizes = {name: part.count_params() for name, part in parts.items()}
        return sizes | {"trained": _count_trained(self.model)}

    def layers(self) -> pd.DataFrame:
        """A row per layer: part, layer, output, parameters, trained; a deep body is one row."""
        rows = []
        for part in (self.backbone, self.head):
            for outer in part.layers:
                inner = getattr(outer, "layers", [])
                rows += [
                    (part.name, layer.name, _output_shape(layer), layer.count_params(),
                     _count_trained(layer))
                    for layer in (inner if 0 < len(inner) < DEEP else [outer])
                    if not isinstance(layer, layers.InputLayer)
                ]  # fmt: skip
        return pd.DataFrame(rows, columns=["part", "layer", "output", "parameters", "trained"])

    def blocks(self) -> pd.DataFrame:
        """Contents and cost of the blocks in the backbone's body: a row per block, then a total.

        Columns: block (its first layer), output (of its last layer), convolutions, batch_norms,
        parameters, trained, multiplications (in the convolutions, for an image).
        """
        starts = BACKBONES[self.parameters["backbone"]].blocks
        groups = [[]]
        for layer in self.body.layers:
            # What precedes the first block belongs to it.
            if layer.name in starts[1:]:
                groups.append([])
            groups[-1].append(layer)
        named = [*zip(starts, groups, strict=True), ("all", self.body.layers)]
        return pd.DataFrame([{"block": name} | _describe_layers(group) for name, group in named])

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
        """Images -> (n, h, w) attention weights; for a network whose pooling is `attention`."""
        pooling = self.head.get_layer("pooling")
        images = keras.Input(self.model.input_shape[1:])
        return keras.Model(images, layers.Lambda(pooling.attention)(self.backbone(images)))


def rebuild(parameters: dict, path: Path) -> Network:
    """Build a trained network from its stored `Network.parameters` and all its weights."""
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
    """Build a network to train.

    Args:
        backbone, train, input_size, pooling, embedding, embedding_dim, dropout, mixed_precision: as
            in `studies.params.PARAMETERS`.
        weights: as there, or the result of `weights.find`.
        image_size: side length of the images in pixels.
        feature_maps: whether the head pools even if the pooling has no weights.
        seed: of the random initial weights.
        was_frozen: whether the head is trained first, on features of the frozen backbone; the
            backbone's BatchNorm then stays frozen. With this or `train: head`, the head
            standardises the features.

    Raises:
        StudyError: the backbone is unknown, the images are too small for it, or its weights are
            missing or do not fit.
    """
    # Every argument, so that none is missing from the keys of what the network computes.
    parameters = dict(locals())
    if backbone not in BACKBONES:
        raise StudyError(f"unknown backbone {backbone!r}; known: {', '.join(BACKBONES)}")
    row = BACKBONES[backbone]
    started_from = find(backbone, weights) if isinstance(weights, str) else weights
    keras.utils.set_random_seed(seed)
    with use_precision(mixed_precision) as policy:
        body = _body(row, input_size, dropout)
        if started_from.path:
            load_weights(body, started_from, backbone)
        elif row.initializer:
            _draw_convolutions(body, row.initializer)
        first_trained = _freeze(body, row, train, was_frozen)

        images = keras.Input((image_size, image_size, 3))
        pixels = images
        if input_size != image_size:
            pixels = layers.Resizing(input_size, input_size, interpolation="bicubic")(images)
        # Pretrained weights need the preprocessing that they were trained with.
        if started_from.pixels == "imagenet" and row.preprocess not in (None, INCLUDED):
            pixels = getattr(keras.applications, row.preprocess).preprocess_input(pixels)
        elif row.preprocess != INCLUDED:
            pixels = layers.Rescaling(1 / 127.5, offset=-1)(pixels)
        features = body(pixels)
        pool = make_pooling(pooling)
        head_pools = pooling in LEARNT_POOLINGS or feature_maps
        if not head_pools:
            features = pool(features)
        encoder = keras.Model(images, features, name="backbone")

        vectors = keras.Input(features.shape[1:])
        pooled = pool(vectors) if head_pools else vectors
        if was_frozen or train == "head":
            pooled = _standardised(pooled, dropout)
        head = keras.Model(
            vectors, _head(pooled, embedding, embedding_dim, dropout, n_classes), name="head"
        )
        model = keras.Model(images, head(encoder(images)), name=backbone)
    # The weights have a fingerprint of their own.
    del parameters["weights"], parameters["mixed_precision"]
    parameters |= {
        "row": row.key_fields(),
        "pixels": started_from.pixels,
        "first_trained": first_trained,
        "feature_maps": head_pools,
        "precision": policy,
    }
    return Network(model, parameters, started_from)


@contextlib.contextmanager
def use_precision(mixed: bool) -> Iterator[str]:
    """Layers built in it use `best_precision()` if `mixed`, else float32; yields Keras' policy."""
    before = keras.config.dtype_policy()
    policy = best_precision() if mixed else FULL
    keras.config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


def best_precision() -> str:
    """bfloat16 on NVIDIA's Ampere and later, float16 on Volta and Turing, float32 elsewhere."""
    try:
        has_gpu = bool(keras.distribution.list_devices("gpu"))
    except AttributeError:  # Keras lists no devices for PyTorch, which takes any GPU there is
        has_gpu = True
    capability = _compute_capability() if has_gpu else 0
    if capability < 7:
        return FULL
    return "mixed_bfloat16" if capability >= 8 else "mixed_float16"


def _compute_capability() -> float:
    """The compute capability of the weakest GPU; 0 if the driver reports none."""
    try:
        return min(map(float, nvidia_smi("compute_cap")))
    except ValueError:
        return 0


def _body(row: Backbone, input_size: int, dropout: float) -> keras.Model:
    """Preprocessed pixels -> feature maps, with random weights."""
    arguments = row.arguments | ({"dropout": dropout} if row.constructor == "plain_cnn" else {})
    module = cnns if hasattr(cnns, row.constructor) else keras.applications
    arguments |= {"input_shape": (input_size, input_size, 3), "include_top": False}
    try:
        body = getattr(module, row.constructor)(weights=None, **arguments)
    except ValueError as error:  # such as Xception's for fewer than 71 pixels
        raise StudyError(
            f"input_size: {row.constructor} cannot be built for {input_size} pixels: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    body.name = "body"
    renumber_layers(body)
    for layer in _batch_norms(body):
        layer.momentum = BATCH_NORM_MOMENTUM
    return body


def _draw_convolutions(body: keras.Model, initializer: str) -> None:
    for layer in _convolutions(body.layers):
        layer.kernel.assign(keras.initializers.get(initializer)(layer.kernel.shape))


def _head(pooled, embedding: str, embedding_dim: int, dropout: float, n_classes: int):
    # The head uses full precision, because retrieval compares embeddings that hardly differ.
    full = {"dtype": "float32"}
    arguments = full if embedding == "pooled" else full | {"units": embedding_dim}
    vectors = EMBEDDINGS[embedding].make(layers, **arguments, name="embedding")(pooled)
    classify = layers.Dense(n_classes, activation="softmax", name="classifier", **full)
    return classify(layers.Dropout(dropout, **full)(vectors))


def _standardised(pooled, dropout: float):
    """Features with mean 0 and variance 1 per channel, some of which are dropped in training.

    `training.train` sets the statistics to those of the training images.
    """
    # Not trainable, so that it uses the same statistics in training as later.
    settings = {"center": False, "scale": False, "epsilon": 0.0, "trainable": False}
    standardise = layers.BatchNormalization(**settings, dtype="float32", name=STANDARDISATION)
    # With a few hundred images, a head on thousands of channels overfits without this.
    return layers.Dropout(dropout / 2, dtype="float32")(standardise(pooled))


def _output_shape(layer: layers.Layer) -> str:
    return " × ".join(str(side) for side in layer.output.shape[1:])


def _describe_layers(group: list[layers.Layer]) -> dict:
    """A row of `Network.blocks`, but for its name."""
    convolutions = _convolutions(group)
    # Each weight of a kernel is used once per position of the output.
    multiplications = sum(
        math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3]) for layer in convolutions
    )
    return {
        "output": _output_shape(group[-1]),
        "convolutions": len(convolutions),
        "batch_norms": sum(isinstance(x, layers.BatchNormalization) for x in group),
        "parameters": sum(layer.count_params() for layer in group),
        "trained": sum(map(_count_trained, group)),
        "multiplications": multiplications,
    }


def _count_trained(layer: layers.Layer) -> int:
    return sum(math.prod(variable.shape) for variable in layer.trainable_variables)


def _convolutions(group: list[layers.Layer]) -> list[layers.Layer]:
    kinds = layers.Conv2D | layers.DepthwiseConv2D
    return [layer for layer in group if isinstance(layer, kinds)]


def _batch_norms(body: keras.Model) -> list[layers.Layer]:
    return [layer for layer in body.layers if isinstance(layer, layers.BatchNormalization)]


def _freeze(body: keras.Model, row: Backbone, train: str, was_frozen: bool) -> str | None:
    """Freeze the layers that are not trained, and BatchNorm if a head was trained before.

    Returns the name of the first layer that is trained; None if all or none are.
    """
    body.trainable = train != "head"
    first = None
    if train.startswith(LAST_BLOCKS):
        first = row.blocks[-int(train.removeprefix(LAST_BLOCKS))]
        names = [layer.name for layer in body.layers]
        for layer in body.layers[: names.index(first)]:
            layer.trainable = False
    if was_frozen or first:
        # The statistics of small batches would change the features that a head was trained on.
        for layer in _batch_norms(body):
            layer.trainable = False
    return first


def load_weights(body: keras.Model, weights: Weights, backbone: str) -> None:
    """Load a file into the body of a backbone, without its classifier; StudyError if it does not
    contain this backbone, Keras builds another network for it, or a weight is not finite.
    """
    path, constructor = weights.path, BACKBONES[backbone].constructor
    if weights.pixels == "imagenet" and re.fullmatch("EfficientNetB[0-7]", constructor):
        # For ImageNet weights, Keras builds these with an additional rescaling layer.
        raise StudyError(
            f"weights: {weights.source}: {constructor} cannot start from ImageNet weights here: "
            "use none, or a row with an EfficientNetV2"
        )
    try:
        # Keras warns about each layer missing from a file before it rejects the file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.endswith((".weights.h5", ".keras")):
                body.load_weights(path)
            else:
                _check_names(body, path)
                body.load_weights(path, by_name=True)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise StudyError(
            f"weights: {path} does not fit {backbone} ({' '.join(str(error).split())[:200]}): use "
            "a file of this backbone, imagenet or none"
        ) from error
    if broken := broken_layer(body):
        raise StudyError(
            f"weights: {path} has NaN or infinite values in the layer {broken}: use another file"
        )


def broken_layer(model: keras.Model) -> str:
    """The first layer with a weight that is NaN or infinite; empty if there is none."""
    for variable in model.weights:
        if not np.isfinite(np.asarray(keras.ops.convert_to_numpy(variable), np.float32)).all():
            return variable.path.rpartition("/")[0]
    return ""


def _check_names(body: keras.Model, path: Path) -> None:
    """Check the layers of a file in the older format (.h5), since Keras skips layers that differ.

    ValueError if a name is not fixed, or the file lacks or adds a layer; a classifier may follow.
    """
    names = [layer.name for layer in body.layers if layer.weights]
    if numbered := [layer.name for *_, layer in _numbered_layers(body) if layer.weights]:
        raise ValueError(
            f"Keras numbers its layers ({numbered[0]}), so names in an .h5 file may differ: "
            "use a .weights.h5 or .keras file"
        )
    with h5py.File(path) as file:
        group = file if "layer_names" in file.attrs else file["model_weights"]
        stored = [
            name for name in group.attrs["layer_names"] if group[name].attrs["weight_names"].size
        ]
        stored = [name.decode() if isinstance(name, bytes) else name for name in stored]
    if lacking := [name for name in names if name not in stored]:
        raise ValueError(f"the file has no layer {lacking[0]}")
    if others := [name for name in stored[: len(names)] if name not in names]:
        raise ValueError(f"the file also has a layer {others[0]}, which the network lacks")


def renumber_layers(body: keras.Model) -> None:
    """Number unnamed layers (`conv2d_2`) from 0, as in the first network that a process builds.

    Otherwise, a row of `BACKBONES` could not name its blocks.
    """
    for kind, group in itertools.groupby(_numbered_layers(body), key=lambda entry: entry[0]):
        for place, (_, _, layer) in enumerate(group):
            layer.name = f"{kind}_{place}" if place else kind


def _numbered_layers(body: keras.Model) -> list[tuple[str, int, layers.Layer]]:
    """Kind, number and layer, sorted, of the layers that Keras named by their class."""
    numbered = []
    for layer in body.layers:
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()
        if kind.replace("_", "") == type(layer).__name__.lower():
            numbered.append((kind, int(number or 0), layer))
    return sorted(numbered, key=lambda entry: entry[:2])
