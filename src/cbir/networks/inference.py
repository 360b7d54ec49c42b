"""A network's outputs for many images, in batches: features, and encoders for further images."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from cbir import StudyError
from cbir.cache import Artifact, cached, create_array
from cbir.images.dataset import Dataset
from cbir.networks.embeddings import BATCH_SIZE, Embeddings, Encode, batched
from cbir.networks.models import Network
from cbir.progress import Ticker

FEATURES = "features.npy"
# The parameters of a network that do not change the features of its frozen backbone.
OF_HEAD = ("train", "first_trained", "was_frozen", "embedding", "embedding_dim", "n_classes")


def predict(
    model: keras.Model, inputs: Sequence[np.ndarray], outputs: dict[Path, type], what: str
) -> None:
    """Write a model's outputs for all inputs, in their order, into `.npy` files, batch by batch.

    Args:
        inputs: (n, ...) arrays, memory-mapped or not; their outputs are averaged row by row.
        outputs: a file and its dtype for each of the model's outputs.
        what: the name of the task in the progress output.

    Raises:
        StudyError: one image does not fit in memory, or a value is too large for its dtype.
    """
    arrays, count = [], len(inputs[0])
    ticker = Ticker(count, what)
    for start in range(0, count, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        batches = [predict_batch(model, array[rows]) for array in inputs]
        parts = [sum(part) / len(inputs) for part in zip(*batches, strict=True)]
        if not arrays:
            arrays = [
                create_array(path, dtype, (count, *part.shape[1:]))
                for (path, dtype), part in zip(outputs.items(), parts, strict=True)
            ]
        for array, part in zip(arrays, parts, strict=True):
            with np.errstate(over="ignore"):
                array[rows] = part
            # Feature maps are stored in half precision.
            if array.dtype == np.float16 and not np.isfinite(array[rows]).all():
                raise StudyError(
                    f"{what}: a value exceeds the maximum of float16 "
                    f"({np.finfo(np.float16).max:,.0f}): use pooling: avg or max with "
                    "feature_maps: false, which keep float32"
                )
        ticker.reached(min(start + BATCH_SIZE, count))
    for array in arrays:
        array.flush()


def predict_batch(model: keras.Model, inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model for one batch; a batch that does not fit in memory is halved.

    StudyError if one image does not fit.
    """
    try:
        outputs = model.predict_on_batch(np.asarray(inputs, np.float32))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(inputs) == 1:
            raise StudyError("out of memory while embedding one image: lower input_size") from error
        half = len(inputs) // 2
        halves = [predict_batch(model, part) for part in (inputs[:half], inputs[half:])]
        return [np.concatenate(pair) for pair in zip(*halves, strict=True)]
    return outputs if isinstance(outputs, list) else [outputs]


def mirror_inputs(model: keras.Model) -> keras.Model:
    """A model that mirrors its inputs first."""
    images = keras.Input(model.input_shape[1:])
    return keras.Model(images, model(keras.ops.flip(images, axis=2)))


def flipped(encoder: keras.Model) -> keras.Model:
    """An encoder whose outputs are means over an image and its mirror image."""
    images = keras.Input(encoder.input_shape[1:])
    pairs = zip(encoder(images), encoder(keras.ops.flip(images, axis=2)), strict=True)
    return keras.Model(images, [keras.layers.Average()(list(pair)) for pair in pairs])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any Keras backend means that memory ran out."""
    names = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError")
    phrases = ("resource_exhausted", "out of memory", "can't allocate memory")
    message = str(error).lower()
    return type(error).__name__ in names or any(phrase in message for phrase in phrases)


def frozen_features(
    network: Network, dataset: Dataset, *, mirrored: bool = False
) -> Artifact | None:
    """Features of a frozen backbone for all images, computed once; None if it is trained.

    Heads, seeds and epochs share the array `features.npy`: (n, channels) float32 pooled features,
    or (n, h, w, channels) float16 maps if the head pools. Those of mirror images are another array.
    """
    if not network.is_frozen:
        return None
    ignored = {*OF_HEAD, "pooling" if network.has_maps else "feature_maps"}
    if network.weights.path:
        # Random weights depend on the seed, and on dropout, which draws from the same seed.
        ignored |= {"seed", "dropout"}
    dtype = np.float16 if network.has_maps else np.float32

    def make(folder: Path) -> None:
        backbone = mirror_inputs(network.backbone) if mirrored else network.backbone
        predict(backbone, [dataset.images], {folder / FEATURES: dtype}, "features")

    parameters = {k: v for k, v in network.parameters.items() if k not in ignored}
    reads = [dataset.fingerprint, network.weights.sha256]
    parameters |= {"mirrored": mirrored}
    return cached("features", make, parameters=parameters, reads=reads, package="networks")


def open_features(features: Artifact) -> np.ndarray:
    """The array of `frozen_features`, memory-mapped."""
    return np.load(features.folder / FEATURES, mmap_mode="r")


def make_encoder(network: Network, embeddings: Embeddings) -> Encode:
    """A function that embeds further images, (n, size, size, 3) uint8, like the stored ones."""
    model = encoder_of(network, embeddings)
    return batched(lambda images: predict_batch(model, images), embeddings.whitening)


def encoder_of(network: Network, embeddings: Embeddings) -> keras.Model:
    """Images -> raw vectors and probabilities, over mirror images if the embeddings are."""
    flips = embeddings.artifact.manifest["parameters"]["test_time_flips"]
    return flipped(network.encoder) if flips else network.encoder
