"""Maps of the parts of two images that make them similar, by gradients or by attention weights.

A similarity map is Grad-CAM (Selvaraju et al., "Grad-CAM: visual explanations from deep networks
via gradient-based localization", 2017) for the similarity of two embeddings instead of a class
(Stylianou, Souvenir, Pless, "Visualizing deep similarity networks", 2019; Zhu, Yang, Chen, "Visual
explanation for deep metric learning", 2021). Keras has no function for gradients;
`value_and_gradient` calls that of the backend.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from cbir import StudyError
from cbir.networks.models import Network

# The minimum number of positions on each side of a map. Fewer would not locate a part.
LEAST_SIDE = 4
# The number of pairs whose gradients are in memory at once.
PAIRS = 16


@dataclass(frozen=True)
class Maps:
    """Maps of both images of each pair, (n, h, w) float32, and the layer whose maps were used.

    The maximum of each map is 1; a map is all 0 if no position raises the similarity.
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
    """Grad-CAM maps of how much each part of an image raises its similarity to the other image.

    At each position the map is max(0, sum over channels of a_c F_c), divided by its maximum, where
    F_c are the feature maps of `deepest_layer` and a_c is the mean over positions of the derivative
    of the similarity with respect to F_c. The derivative treats the length of an embedding as a
    constant; otherwise, it would vanish if two embeddings are equal.

    Args:
        query_images, result_images: (n, size, size, 3) in [0, 255], pair by pair.
        whitening: from `embeddings.fit_whitening`, if the embeddings are whitened.

    Raises:
        StudyError: as for `deepest_layer`.
    """
    layer = deepest_layer(network.body)
    to_features, to_vectors = _parts(network, layer, whitening)
    blocks = []
    for start in range(0, len(query_images), PAIRS):
        rows = slice(start, start + PAIRS)
        pairs = np.concatenate([query_images[rows], result_images[rows]])
        blocks.append(np.split(_grad_cam(to_vectors, to_features(pairs)), 2))
    query, result = (_scaled(np.concatenate(maps)) for maps in zip(*blocks, strict=True))
    return Maps(query, result, layer)


def attention_maps(network: Network, query_images: np.ndarray, result_images: np.ndarray) -> Maps:
    """Maps of the weights of an attention pooling, divided by the largest weight of each image.

    Images are (n, size, size, 3) in [0, 255]. Unlike a similarity map, an attention map does not
    depend on the other image of the pair. StudyError if the network has no attention pooling.
    """
    if network.parameters["pooling"] != "attention":
        raise StudyError("attention maps need a network with attention pooling")
    query, result = (
        _scaled(ops.convert_to_numpy(network.attention(np.asarray(images, np.float32))))
        for images in (query_images, result_images)
    )
    return Maps(query, result, "pooling")


def deepest_layer(body: keras.Model) -> str:
    """The last layer of a body whose feature maps have 4 x 4 positions or more, else StudyError.

    Only layers through which all information passes count, such as the end of a residual block, but
    not a layer that its shortcut bypasses. Padding does not count.
    """
    operations = body.operations  # Each operation follows those whose outputs it reads.
    made = {id(operation.output): place for place, operation in enumerate(operations)}
    last_read = np.arange(len(operations))
    for place, operation in enumerate(operations[1:], start=1):
        for tensor in keras.tree.flatten(operation.input):
            last_read[made[id(tensor)]] = place
    for place in range(len(operations) - 1, 0, -1):
        layer = operations[place]
        # An output that was made before this layer and is read after it bypasses the layer.
        if last_read[:place].max() > place or isinstance(layer, keras.layers.ZeroPadding2D):
            continue
        if len(layer.output.shape) == 4 and min(layer.output.shape[1:3]) >= LEAST_SIDE:
            return layer.name
    raise StudyError(
        f"no feature maps of at least {LEAST_SIDE} x {LEAST_SIDE} positions: raise input_size"
    )


def value_and_gradient(function: Callable, tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float32 values of a function, and the gradient of their sum, with any backend of Keras.

    The function maps a tensor to one of any shape, with Keras operations and models called with
    `training=False`. StudyError if the backend, such as NumPy or OpenVINO, has no gradients.
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
        # Unlike `backward`, `grad` leaves nothing in the gradients of the model's weights.
        (gradient,) = torch.autograd.grad(values.sum(), inputs)
    elif backend == "jax":
        import jax

        def total(traced):
            # The scope keeps layers from writing traced values into their variables.
            with keras.StatelessScope():
                values = function(traced)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(inputs)
    else:
        raise StudyError(f"Keras' backend {backend} has no gradients: use tensorflow, torch or jax")
    return _array(values), _array(gradient)


def _parts(network: Network, layer: str, whitening: dict | None) -> tuple[Callable, Callable]:
    """Two functions: images to the maps of a layer, and these maps to unit-length embeddings."""
    backbone, body = network.backbone, network.body
    before = backbone.operations[backbone.operations.index(body) - 1]
    prepare = keras.Model(backbone.inputs, before.output)
    # An operation such as a sum is not a layer, so `get_layer` would not find it.
    maps = next(operation.output for operation in body.operations if operation.name == layer)
    below = keras.Model(body.inputs, maps)
    above = None if maps is body.outputs[0] else keras.Model(maps, body.outputs)

    # The network is called directly, because tracing a deep network takes longer than running it on
    # so few images.
    def to_features(images: np.ndarray) -> np.ndarray:
        pixels = ops.convert_to_tensor(images, "float32")
        return _array(below(prepare(pixels, training=False), training=False))

    def to_vectors(features):
        if above is not None:
            features = above(features, training=False)
        if not network.has_maps:
            features = backbone.get_layer("pooling")(features)
        vectors = _normalise(network.head_encoder(features, training=False)[0])
        if whitening is None:
            return vectors
        mean, axes = (ops.cast(whitening[name], "float32") for name in ("mean", "axes"))
        return _normalise(ops.matmul(vectors - mean, axes))

    return to_features, to_vectors


def _normalise(vectors):
    """Like `embeddings.normalise`, in Keras operations; for gradients, the length is constant."""
    squares = ops.stop_gradient(ops.sum(ops.square(vectors), axis=1, keepdims=True))
    lengths = ops.sqrt(ops.where(squares > 0, squares, 1.0))
    return ops.where(squares > 0, vectors / lengths, vectors.shape[1] ** -0.5)


def _grad_cam(to_vectors: Callable, maps: np.ndarray) -> np.ndarray:
    """(2n, h, w, c) maps, queries before results -> (2n, h, w) float32, 0 or more."""
    vectors = ops.convert_to_numpy(to_vectors(ops.convert_to_tensor(maps)))
    # The other image of each pair is half of the rows away.
    others = ops.convert_to_tensor(np.roll(vectors, len(maps) // 2, axis=0))

    def similarities(features):
        return ops.sum(to_vectors(features) * others, axis=1)

    _, gradient = value_and_gradient(similarities, maps)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(axis=-1), 0)


def _scaled(maps: np.ndarray) -> np.ndarray:
    highest = maps.max(axis=(1, 2), keepdims=True)
    return np.where(highest > 0, maps / np.where(highest > 0, highest, 1), 0).astype(np.float32)


def _array(tensor) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
