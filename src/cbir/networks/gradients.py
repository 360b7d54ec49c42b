"""What part of two images makes them similar, by the gradient of their similarity.

A similarity map is Grad-CAM (Selvaraju et al., "Grad-CAM: visual explanations from deep networks
via gradient-based localization", 2017) towards the similarity of two embeddings, in the place of a
class (Stylianou, Souvenir, Pless, "Visualizing deep similarity networks", 2019; Zhu, Yang, Chen,
"Visual explanation for deep metric learning", 2021). Keras has no call of its own for gradients:
`value_and_gradient` holds one for each backend, and nothing else knows which it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from cbir import StudyError
from cbir.networks.models import Network

# A map of fewer positions a side hardly says where.
LEAST_SIDE = 4
# Pairs whose gradients are in memory at once.
PAIRS = 16


@dataclass(frozen=True)
class Maps:
    """What marks a part of each image of some pairs.

    Attributes:
        query, result: (n, h, w) float32 from 0 to 1, which each map reaches where it is highest; a
            map is all 0 where no position raises the similarity.
        layer: the layer that they were made at.
    """

    query: np.ndarray
    result: np.ndarray
    layer: str


def similarity_maps(
    network: Network,
    query_images: np.ndarray,
    result_images: np.ndarray,
    whitening: dict[str, np.ndarray] | None = None,
) -> Maps:
    """Which part of each image raises its similarity to the other one of its pair: Grad-CAM.

    At each position the map is max(0, sum over channels of a_c F_c), where F_c are the feature maps
    of `deepest_layer` and a_c is the mean over positions of the similarity's derivative by F_c;
    then it is divided by its maximum.

    To the derivative the length of an embedding is a constant. Without that it would vanish where
    two embeddings are alike, and ask what could make the images more similar still; with it, what
    the positions add sums up to the similarity wherever the rest of the network is linear.

    Args:
        network: whose embeddings are compared.
        query_images, result_images: (n, size, size, 3) in [0, 255], pair by pair.
        whitening: from `vectors.fit_whitening`, where the embeddings were whitened.

    Raises:
        StudyError: as for `deepest_layer`.
    """
    layer = deepest_layer(network.body)
    look, embed = _parts(network, layer, whitening)
    found = []
    for start in range(0, len(query_images), PAIRS):
        rows = slice(start, start + PAIRS)
        pairs = np.concatenate([query_images[rows], result_images[rows]])
        found.append(np.split(_grad_cam(embed, look(pairs)), 2))
    query, result = (_scaled(np.concatenate(part)) for part in zip(*found, strict=True))
    return Maps(query, result, layer)


def attention_maps(network: Network, query_images: np.ndarray, result_images: np.ndarray) -> Maps:
    """What an attention pooling weighs in each image, divided by the largest weight.

    Unlike a similarity map it is the same whatever an image is compared with.

    Args:
        query_images, result_images: (n, size, size, 3) in [0, 255].

    Raises:
        StudyError: the network has no attention pooling.
    """
    if network.parameters["pooling"] != "attention":
        raise StudyError("attention maps need a network whose pooling is attention")
    query, result = (
        _scaled(ops.convert_to_numpy(network.attention(np.asarray(images, np.float32))))
        for images in (query_images, result_images)
    )
    return Maps(query, result, "pooling")


def deepest_layer(body: keras.Model) -> str:
    """The last layer of a body whose feature maps have 4 x 4 positions or more.

    Only layers that all information passes count: of a residual network the end of a block, not
    what runs beside a shortcut. Padding does not count, since what it adds shows nothing.

    Raises:
        StudyError: all maps are smaller.
    """
    operations = body.operations  # none stands before one that it reads
    made = {id(each.output): place for place, each in enumerate(operations)}
    last_read = np.arange(len(operations))
    for place, operation in enumerate(operations[1:], start=1):
        for tensor in keras.tree.flatten(operation.input):
            last_read[made[id(tensor)]] = place
    for place in range(len(operations) - 1, 0, -1):
        layer = operations[place]
        # What was made earlier and is read later passes by.
        if last_read[:place].max() > place or isinstance(layer, keras.layers.ZeroPadding2D):
            continue
        if len(layer.output.shape) == 4 and min(layer.output.shape[1:3]) >= LEAST_SIDE:
            return layer.name
    raise StudyError(
        f"no feature maps of {LEAST_SIDE} x {LEAST_SIDE} positions to explain: raise input_size"
    )


def value_and_gradient(function: Callable, tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a function, and the gradient of their sum.

    Where each value depends on one row of the tensor alone, each row of the gradient is that of its
    own value.

    Args:
        function: from a tensor of the backend to a tensor of any shape, by Keras' operations and
            by models called with `training=False`. It reads variables and sets none.
        tensor: (...) where the gradient is taken.

    Returns:
        values: float32, of whatever shape the function gives; gradient: (...) float32.

    Raises:
        StudyError: the backend has no gradients, as Keras' NumPy and OpenVINO.
    """
    inputs = ops.convert_to_tensor(tensor, "float32")
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            values = function(inputs)
        gradient = tape.gradient(values, inputs)
    elif backend == "torch":
        import torch

        inputs = inputs.detach().requires_grad_()
        with torch.enable_grad():
            values = function(inputs)
        # Unlike `backward`, this leaves nothing in the gradients of the model's weights.
        (gradient,) = torch.autograd.grad(values.sum(), inputs)
    elif backend == "jax":
        import jax

        def total(traced):
            # Whatever a layer would write into a variable while it is traced stays in this scope.
            with keras.StatelessScope():
                values = function(traced)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(inputs)
    else:
        raise StudyError(f"Keras' backend {backend} has no gradients: use tensorflow, torch or jax")
    return _array(values), _array(gradient)


def _parts(network: Network, layer: str, whitening: dict | None) -> tuple[Callable, Callable]:
    """Images to the maps of a layer of the body, and these maps to embeddings of unit length."""
    backbone, body = network.backbone, network.body
    before = backbone.operations[backbone.operations.index(body) - 1]
    prepare = keras.Model(backbone.inputs, before.output)
    maps = next(each.output for each in body.operations if each.name == layer)
    below = keras.Model(body.inputs, maps)
    above = None if maps is body.outputs[0] else keras.Model(maps, body.outputs)

    # Called as they are: a deep network takes longer to be traced than to see so few images.
    def look(images: np.ndarray) -> np.ndarray:
        pixels = ops.convert_to_tensor(images, "float32")
        found = below(prepare(pixels, training=False), training=False)
        return ops.convert_to_numpy(ops.cast(found, "float32"))

    def embed(features):
        if above is not None:
            features = above(features, training=False)
        if not network.has_maps:
            features = backbone.get_layer("pooling")(features)
        vectors = _normalise(network.head_encoder(features, training=False)[0])
        if whitening is None:
            return vectors
        mean, axes = (
            ops.convert_to_tensor(whitening[name], "float32") for name in ("mean", "axes")
        )
        return _normalise(ops.matmul(vectors - mean, axes))

    return look, embed


def _normalise(vectors):
    """As `vectors.normalise`, in Keras' operations; to a gradient the length is a constant."""
    squares = ops.stop_gradient(ops.sum(ops.square(vectors), axis=1, keepdims=True))
    lengths = ops.sqrt(ops.where(squares > 0, squares, 1.0))
    return ops.where(squares > 0, vectors / lengths, vectors.shape[1] ** -0.5)


def _grad_cam(embed: Callable, maps: np.ndarray) -> np.ndarray:
    """(2n, h, w, c) maps, queries before results -> (2n, h, w) float32, 0 or more."""
    vectors = ops.convert_to_numpy(embed(ops.convert_to_tensor(maps)))
    # Beside each image stands the other of its pair, half of the rows away.
    others = ops.convert_to_tensor(np.roll(vectors, len(maps) // 2, axis=0))
    _, gradient = value_and_gradient(lambda each: ops.sum(embed(each) * others, axis=1), maps)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(axis=-1), 0)


def _scaled(maps: np.ndarray) -> np.ndarray:
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.where(highest > 0, maps / np.where(highest > 0, highest, 1), 0).astype(np.float32)


def _array(tensor) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
