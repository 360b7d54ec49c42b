"""Feature maps to one vector: the ways of pooling, two of which learn."""

import keras
from keras import layers, ops

LEARNT = ("gem", "attention")


@keras.saving.register_keras_serializable("cbir")
class GeneralisedMean(layers.Layer):
    """Generalised mean (GeM): (n, h, w, c) maps -> (n, c), mean(x ** p) ** (1 / p).

    The power is learnt, one for all channels: 1 is the mean, and the larger it is, the nearer the
    maximum. Values below 1e-6 count as 1e-6.
    Source: Radenović, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation".
    """

    def build(self, shape):
        self.power = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(3.0), name="power", autocast=False
        )

    def call(self, maps):
        # A power far from the mean's overflows float16, and below 1 the mean would lose its sense.
        maps = ops.maximum(ops.cast(maps, "float32"), 1e-6)
        power = ops.maximum(ops.cast(self.power, "float32"), 1.0)
        # Divided by the largest value first, so that no power overflows.
        largest = ops.max(maps, axis=(1, 2), keepdims=True)
        means = ops.mean(ops.power(maps / largest, power), axis=(1, 2))
        pooled = ops.squeeze(largest, (1, 2)) * ops.power(means, 1 / power)
        return ops.cast(pooled, self.compute_dtype)

    def compute_output_shape(self, shape):
        return (shape[0], shape[-1])


@keras.saving.register_keras_serializable("cbir")
class AttentionPooling(layers.Layer):
    """A learnt weight for each position: (n, h, w, c) maps -> (n, c), their weighted mean.

    A position's weight is the softmax, over all positions, of a linear function of its channels.
    That function starts at zero, where the weighted mean is the plain one. `attention` gives the
    weights, which can be drawn over the image.
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


POOLINGS = {
    "avg": layers.GlobalAveragePooling2D,
    "max": layers.GlobalMaxPooling2D,
    "gem": GeneralisedMean,
    "attention": AttentionPooling,
    "flatten": layers.Flatten,
}
