"""Pooling: feature maps to one vector per image; `choices.POOLINGS` lists all poolings."""

import sys

import keras
from keras import layers, ops

from cbir.networks.choices import POOLINGS


@keras.saving.register_keras_serializable("cbir")
class GeneralisedMean(layers.Layer):
    """Generalised mean (GeM): (n, h, w, c) maps -> (n, c), mean(x ** p) ** (1 / p).

    One power is learnt for all channels: 1 gives the mean, and larger powers approach the maximum.
    Values below 1e-6 are replaced by 1e-6.
    Source: Radenović, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation".
    """

    def build(self, shape):
        self.power = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(3.0), name="power", autocast=False
        )

    def call(self, maps):
        # Large powers overflow float16, and powers below 1 would weaken the strongest features.
        maps = ops.maximum(ops.cast(maps, "float32"), 1e-6)
        power = ops.maximum(ops.cast(self.power, "float32"), 1.0)
        # Dividing by the largest value first prevents overflow.
        largest = ops.max(maps, axis=(1, 2), keepdims=True)
        means = ops.mean(ops.power(maps / largest, power), axis=(1, 2))
        pooled = ops.squeeze(largest, (1, 2)) * ops.power(means, 1 / power)
        return ops.cast(pooled, self.compute_dtype)

    def compute_output_shape(self, shape):
        return (shape[0], shape[-1])


@keras.saving.register_keras_serializable("cbir")
class AttentionPooling(layers.Layer):
    """Weighted mean over positions: (n, h, w, c) maps -> (n, c).

    The weights are the softmax, over all positions, of a learnt linear function of the channels.
    The function is initially zero, so the pooling starts as the plain mean.
    """

    def build(self, shape):
        self.direction = self.add_weight(
            shape=(shape[-1], 1), initializer="zeros", name="direction"
        )

    def attention(self, maps):
        """(n, h, w, c) maps -> (n, h, w) weights, which sum to 1 over the positions."""
        n, h, w, channels = maps.shape
        scores = ops.matmul(ops.reshape(maps, (-1, h * w, channels)), self.direction)
        weights = ops.softmax(ops.cast(scores, "float32"), axis=1)
        return ops.reshape(weights, (-1, h, w))

    def call(self, maps):
        weights = ops.cast(self.attention(maps), self.compute_dtype)
        return ops.sum(maps * weights[..., None], axis=(1, 2))

    def compute_output_shape(self, shape):
        return (shape[0], shape[-1])


def make_pooling(pooling: str) -> layers.Layer:
    """A new layer that pools; `pooling` is a name in `POOLINGS`."""
    return POOLINGS[pooling].make(sys.modules[__name__], layers, name="pooling")
