"""Explanations: which parts of a query and its nearest result are similar, and a test of the maps.

A similarity map is Grad-CAM (Selvaraju et al., "Grad-CAM: visual explanations from deep networks
via gradient-based localization", 2017) for the similarity of two embeddings instead of a class
(Stylianou, Souvenir, Pless, "Visualizing deep similarity networks", 2019; Zhu, Yang, Chen, "Visual
explanation for deep metric learning", 2021).

The test removes or restores pixels of the query in the order of a map, and compares the similarity
with that under random maps (Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation
of black-box models", 2018). Since the object of most images is in the middle, any map of the middle
beats random maps. Therefore, the test also compares with the map of another pair.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import ops
from scipy.ndimage import gaussian_filter

from cbir import StudyError
from cbir.cache import Artifact, cached
from cbir.images.pictures import enlarge_map
from cbir.networks.embeddings import Embeddings, Encode
from cbir.networks.inference import make_encoder
from cbir.networks.models import Network
from cbir.progress import progress

KINDS = ("similarity", "attention")
# The minimum number of positions on each side of a map. Fewer would not locate a part.
LEAST_SIDE = 4
# The number of pairs whose gradients are in memory at once.
PAIRS = 16
# The standard deviation of the blur that replaces removed pixels, as a share of the image's side.
BLUR = 0.25
# The similarities under the pair's own map, another pair's map, and random maps.
CURVES = [name + order for name in ("deletion", "insertion") for order in ("", "_other", "_random")]


@dataclass(frozen=True)
class Maps:
    """Maps of both images of each pair, (n, h, w) float32, and the layer whose maps were used.

    The maximum of each map is 1; a map is all 0 if no position raises the similarity.
    """

    query: np.ndarray
    result: np.ndarray
    layer: str


@dataclass(frozen=True)
class Explanation:
    """Queries, their nearest results, the maps of both, and the test of the maps.

    Attributes:
        kind: of the maps, a name in `KINDS`.
        queries, results: (n,) int positions among the queries and in the gallery.
        similarities: (n,) float32 of each query and its result.
        curves: from `perturbation_curves`.
    """

    artifact: Artifact
    kind: str
    queries: np.ndarray
    results: np.ndarray
    similarities: np.ndarray
    maps: Maps
    curves: pd.DataFrame

    @functools.cached_property
    def faithfulness(self) -> pd.DataFrame:
        """A row per pair, from `faithfulness`."""
        return faithfulness(self.curves)


def explain_queries(
    network: Network,
    embeddings: Embeddings,
    rankings: np.ndarray,
    *,
    kind: str = "similarity",
    count: int = 40,
    steps: int = 8,
    random_maps: int = 2,
    seed: int = 0,
) -> Explanation:
    """Explain why queries match their nearest results; cached.

    With `test_time_flips`, maps are computed for the original images, not for mirror images; the
    test uses the embeddings of the study.

    Args:
        rankings: (n_queries, k) gallery positions, as in an `Evaluation`.
        kind: "similarity", or "attention" for a network with attention pooling.
        count: number of queries, chosen by `alternate_classes`; those without a result are skipped.

    Raises:
        StudyError: the network has no such maps, or its feature maps are too small.
    """
    if kind not in KINDS:
        raise StudyError(f"unknown kind of map {kind!r}; known: {', '.join(KINDS)}")
    dataset = embeddings.dataset
    queries = alternate_classes(dataset.query_labels, count)
    queries = queries[rankings[queries, 0] >= 0]
    results = np.asarray(rankings[queries, 0], int)
    query_places, result_places = dataset.queries[queries], dataset.gallery[results]
    settings = {"steps": steps, "random_maps": random_maps, "seed": seed}

    def make(folder: Path) -> None:
        query_images, result_images = dataset.images[query_places], dataset.images[result_places]
        if kind == "attention":
            maps = attention_maps(network, query_images, result_images)
        else:
            maps = similarity_maps(network, query_images, result_images, embeddings.whitening)
        np.savez(folder / "maps.npz", **vars(maps))
        encode, vectors = make_encoder(network, embeddings), embeddings.vectors[result_places]
        curves = perturbation_curves(encode, query_images, vectors, maps.query, **settings)
        curves.to_parquet(folder / "curves.parquet")

    pairs = np.column_stack([query_places, result_places]).tolist()
    parameters, reads = settings | {"kind": kind, "pairs": pairs}, [embeddings.artifact.key]
    artifact = cached("explanations", make, parameters=parameters, reads=reads, package="explain")
    with np.load(artifact.folder / "maps.npz") as arrays:
        maps = Maps(arrays["query"], arrays["result"], str(arrays["layer"]))
    curves = pd.read_parquet(artifact.folder / "curves.parquet")
    products = embeddings.vectors[query_places] * embeddings.vectors[result_places]
    return Explanation(artifact, kind, queries, results, products.sum(axis=1), maps, curves)


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


def alternate_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first image of each class, then of the second one, and so on, to a count."""
    rounds = pd.Series(labels).groupby(labels).cumcount()
    return np.lexsort((labels, rounds))[:count]


def perturbation_curves(
    encode: Encode,
    query_images: np.ndarray,
    result_vectors: np.ndarray,
    query_maps: np.ndarray,
    *,
    steps: int = 8,
    random_maps: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the similarity as pixels are removed, or restored, in the order of a map.

    A removed pixel takes its value from a strongly blurred copy of the query; a single colour would
    add edges. A random map is the pair's own map with its positions shuffled; another pair's map is
    that of the previous pair.

    Args:
        query_images: (n, size, size, 3) uint8.
        result_vectors: (n, d) float32 of unit length.
        query_maps: (n, h, w), large values for important parts of the query.
        steps: number of equal shares of the pixels.
        random_maps: for each pair, 1 or more; their similarities are averaged.
        seed: of the random maps and of the order of pixels with equal values in a map.

    Returns:
        A row per pair and share: pair, share (of the pixels removed or restored, from 0 to 1), and
        the similarities of `CURVES`.
    """
    shares = np.linspace(0, 1, steps + 1)
    generator = np.random.default_rng(seed)
    frames = []
    for pair, image in enumerate(progress(query_images, len(query_images), "explanations")):
        cells = query_maps[pair]
        maps = [cells, query_maps[pair - 1]]
        for _ in range(random_maps):
            maps.append(generator.permutation(cells.ravel()).reshape(cells.shape))
        ranks = np.stack([_pixel_ranks(cells, len(image), generator) for cells in maps])
        similarities = _similarities(encode, image, result_vectors[pair], ranks, shares)
        columns = [[*curves[:2], curves[2:].mean(axis=0)] for curves in similarities]
        by_name = dict(zip(CURVES, itertools.chain(*columns), strict=True))
        frames.append(pd.DataFrame({"pair": pair, "share": shares, **by_name}))
    return pd.concat(frames, ignore_index=True)


def faithfulness(curves: pd.DataFrame) -> pd.DataFrame:
    """The area under each of the `perturbation_curves`, and its gains over those of other maps.

    A good map has a small area of deletion and a large one of insertion. A row per pair: the areas,
    which are mean similarities, under the names of the curves; deletion_gain = deletion_random -
    deletion, insertion_gain = insertion - insertion_random, and the same with _over_other.
    """
    wide = curves.pivot(index="pair", columns="share", values=CURVES)
    shares = wide[CURVES[0]].columns
    areas = pd.DataFrame(
        {name: np.trapezoid(wide[name], shares, axis=1) for name in CURVES}, index=wide.index
    )
    for gain, other in (("gain", "random"), ("gain_over_other", "other")):
        areas[f"deletion_{gain}"] = areas[f"deletion_{other}"] - areas["deletion"]
        areas[f"insertion_{gain}"] = areas["insertion"] - areas[f"insertion_{other}"]
    return areas


def _pixel_ranks(cells: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """(size, size) share of the pixels that a map ranks before each pixel.

    A random map of the same resolution orders the pixels with equal values.
    """
    tie_breaker = enlarge_map(generator.random(cells.shape), size)
    order = np.lexsort((tie_breaker.ravel(), -enlarge_map(cells, size).ravel()))
    ranks = np.empty(size * size)
    ranks[order] = np.arange(size * size) / size**2
    return ranks.reshape(size, size)


def _similarities(
    encode: Encode, image: np.ndarray, vector: np.ndarray, ranks: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """(2, n, steps + 1) similarities of deletion and insertion, by n orders of the pixels."""
    deviation = BLUR * len(image)
    blurred = gaussian_filter(image.astype(np.float32), (deviation, deviation, 0), mode="nearest")
    blurred = blurred.round().astype(image.dtype)
    # The first and the last image are the same in every order, so they are embedded once.
    is_marked = (ranks[:, None] < shares[1:-1, None, None])[..., None]
    changed = [np.where(is_marked, blurred, image), np.where(is_marked, image, blurred)]
    images = np.concatenate(changed).reshape(-1, *image.shape)
    whole, none, *inner = encode(np.concatenate([[image, blurred], images]))[0] @ vector
    similarities = np.empty((2, len(ranks), len(shares)))
    similarities[..., 1:-1] = np.reshape(inner, (2, len(ranks), -1))
    similarities[0, :, 0] = similarities[1, :, -1] = whole
    similarities[0, :, -1] = similarities[1, :, 0] = none
    return similarities
