"""The choices that a study makes by name, one row each: poolings, embeddings, optimizers and so on.

To add a choice, add a row. A row names a class of Keras (a pooling can also be one of
`networks.pooling`) instead of importing it, so that checking parameters loads no Keras.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choice:
    """The name of a class, whose module the reader of the table knows, and keyword arguments."""

    name: str
    arguments: dict = field(default_factory=dict)

    def make(self, *modules, **more):
        """Call the class, found in the first module that has it, with further arguments."""
        module = next(module for module in modules if hasattr(module, self.name))
        return getattr(module, self.name)(**self.arguments | more)


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises linearly from zero, for a share of all steps and at most so many
    epochs, and falls to zero along a cosine.
    """

    warmup_share: float
    warmup_epochs: int | None = None


# Layers of `networks.pooling` or Keras that turn feature maps into one vector per image.
POOLINGS = {
    "avg": Choice("GlobalAveragePooling2D"),
    "max": Choice("GlobalMaxPooling2D"),
    "gem": Choice("GeneralisedMean"),
    "attention": Choice("AttentionPooling"),
    "flatten": Choice("Flatten"),
}
# The poolings with weights, which belong to the head.
LEARNT_POOLINGS = ("gem", "attention")

# Keras layers that turn pooled features into the embedding. `embedding_dim` is the width of all
# except `pooled`.
EMBEDDINGS = {
    "penultimate": Choice("Dense", {"activation": "relu"}),
    "projection": Choice("Dense"),
    "pooled": Choice("Activation", {"activation": "linear"}),
}

# Keras optimizers. They also get the study's learning rate, and its weight decay if it is not zero.
OPTIMIZERS = {
    "adam": Choice("Adam"),
    "adamw": Choice("AdamW", {"weight_decay": 0.0}),
    "sgd": Choice("SGD", {"momentum": 0.9, "nesterov": True}),
}

# None keeps the learning rate constant. `one_cycle` follows Smith and Topin, "Super-convergence"
# (2017).
SCHEDULES = {
    "constant": None,
    "cosine": Schedule(warmup_share=1 / 2, warmup_epochs=1),
    "one_cycle": Schedule(warmup_share=1 / 4),
}

REFLECT, RANGE = {"fill_mode": "reflect"}, {"value_range": (0, 255)}
# Keras layers, which draw new values for every image and epoch. Sizes are shares of the image.
AUGMENTATIONS = {
    "flip": Choice("RandomFlip", {"mode": "horizontal"}),
    "shift": Choice(
        "RandomTranslation",
        {"height_factor": 0.125, "width_factor": 0.125, "interpolation": "nearest"} | REFLECT,
    ),
    "rotate": Choice("RandomRotation", {"factor": 15 / 360} | REFLECT),
    "zoom": Choice("RandomZoom", {"height_factor": 0.15} | REFLECT),
    "contrast": Choice("RandomContrast", {"factor": 0.2} | RANGE),
    "brightness": Choice("RandomBrightness", {"factor": 0.2} | RANGE),
    "erase": Choice("RandomErasing", {"factor": (0.5, 0.5), "scale": (0.02, 0.2)} | RANGE),
}

# An epoch of a head on features has at least this number of steps; it passes over few images
# several times.
HEAD_STEPS = 100
# The epochs without a better validation accuracy after which the training of a head ends. They take
# seconds, so no study needs to choose their number.
HEAD_PATIENCE = 5
