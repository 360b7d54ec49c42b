"""A model's outputs for many images, from disk to disk."""

from pathlib import Path

import keras
import numpy as np
from numpy.lib.format import open_memmap

from cbir import StudyError
from cbir.progress import Ticker

BATCH_SIZE = 256


def predict(model: keras.Model, inputs: np.ndarray, outputs: dict[Path, type], what: str) -> None:
    """Write a model's outputs for all inputs, in their order, into arrays on disk.

    A batch at a time from disk to disk: memory does not grow with the number of images.

    Args:
        model: one or more outputs.
        inputs: (n, ...) array, memory-mapped or not.
        outputs: a `.npy` file and its dtype for each of the model's outputs.
        what: is seen while it works.

    Raises:
        StudyError: memory is too small for a batch.
    """
    arrays = []
    ticker = Ticker(len(inputs), what)
    for start in range(0, len(inputs), BATCH_SIZE):
        try:
            parts = batch(model, inputs[start : start + BATCH_SIZE])
        except Exception as error:
            if is_out_of_memory(error):
                raise StudyError(
                    f"out of memory while embedding {BATCH_SIZE} images: lower input_size"
                ) from error
            raise
        if not arrays:
            arrays = [
                open_memmap(path, "w+", dtype, (len(inputs), *part.shape[1:]))
                for (path, dtype), part in zip(outputs.items(), parts, strict=True)
            ]
        for array, part in zip(arrays, parts, strict=True):
            array[start : start + BATCH_SIZE] = part
        ticker.reached(min(start + BATCH_SIZE, len(inputs)))
    for array in arrays:
        array.flush()


def batch(model: keras.Model, inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model for one batch, as arrays."""
    outputs = model.predict_on_batch(np.asarray(inputs, np.float32))
    return outputs if isinstance(outputs, list) else [outputs]


def flipped(encoder: keras.Model) -> keras.Model:
    """An encoder whose outputs are the means over an image and its mirror image."""
    images = keras.Input(encoder.input_shape[1:])
    mirrored = keras.ops.flip(images, axis=2)
    pairs = zip(encoder(images), encoder(mirrored), strict=True)
    return keras.Model(images, [keras.layers.Average()(list(pair)) for pair in pairs])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any of Keras' backends says that memory ran out."""
    named = type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError")
    told = str(error)
    return named or "RESOURCE_EXHAUSTED" in told or "out of memory" in told.lower()
