"""What a training is fed, and what is seen of it meanwhile."""

import math

import keras
import numpy as np

from cbir.progress import Ticker


class Batches(keras.utils.PyDataset):
    """Batches of (inputs, labels), read from a memory-mapped array as they are asked for.

    Args:
        inputs: (n, ...) images or features.
        labels: (n,) int.
        positions: which rows, in this order.
        batch_size: rows in a batch; the last one may be smaller.
        workers: threads that read ahead. With two or more Keras reads ahead by itself and switches
            tf.data's autotuning off, whose thread otherwise holds up the end of each epoch (by up
            to its length). Where an epoch takes less than a second, this costs more than it brings.
    """

    def __init__(self, inputs, labels, positions, batch_size, workers=2):
        super().__init__(workers=workers)
        self.inputs, self.labels = inputs, labels
        self.positions, self.batch_size = positions, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __getitem__(self, batch: int):
        rows = self.positions[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.asarray(self.inputs[rows], np.float32), np.asarray(self.labels[rows])


class Progress(keras.callbacks.Callback):
    """A line every half minute while an epoch is under way."""

    def __init__(self, batches: int, what: str):
        super().__init__()
        self.ticker = Ticker(batches, what, every=30)

    def on_train_batch_end(self, batch, logs=None):
        self.ticker.reached(batch + 1)
