"""What a study can choose by name, one row each: poolings, embeddings, optimizers and the like.

To add one, add a row. A row names a class of Keras, or of this project, instead of importing it, so
that checking parameters loads no Keras.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Choice:
    """A class by name, and how it is called.

    Attributes:
        name: of the class; the function that reads the table says in which modules.
        arguments: by name.
    """

    name: str
    arguments: dict = field(default_factory=dict)

    def make(self, *modules, **more):
        """Call the class, found in the first module that has it, with further arguments."""
        module = next(module for module in modules if hasattr(module, self.name))
        return getattr(module, self.name)(**self.arguments | more)


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises from zero in a line and falls to zero along a cosine.

    Attributes:
        warmup_share: share of all steps in which it rises.
        warmup_epochs: the most epochs in which it rises; None for any number.
    """

    warmup_share: float
    warmup_epochs: int | None = None


# A layer of `networks.pooling` or Keras turns feature maps into one vector per image.
POOLINGS = {
    "avg": Choice("GlobalAveragePooling2D"),
    "max": Choice("GlobalMaxPooling2D"),
    "gem": Choice("GeneralisedMean"),
    "attention": Choice("AttentionPooling"),
    "flatten": Choice("Flatten"),
}
# These poolings have weights and belong to the head.
LEARNT_POOLINGS = ("gem", "attention")

# A layer of Keras turns pooled features into the embedding. `embedding_dim` is the width of all but
# `pooled`.
EMBEDDINGS = {
    "penultimate": Choice("Dense", {"activation": "relu"}),
    "projection": Choice("Dense"),
    "pooled": Choice("Activation", {"activation": "linear"}),
}

# All optimizers of Keras also get the study's learning rate, and its weight decay where it is not
# zero.
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

# A layer of Keras draws again for every image and every epoch. Sizes are shares of the image.
AUGMENTATIONS = {
    "flip": Choice("RandomFlip", {"mode": "horizontal"}),
    "shift": Choice(
        "RandomTranslation",
        {
            "height_factor": 0.125,
            "width_factor": 0.125,
            "fill_mode": "reflect",
            "interpolation": "nearest",
        },
    ),
    "rotate": Choice("RandomRotation", {"factor": 15 / 360, "fill_mode": "reflect"}),
    "zoom": Choice("RandomZoom", {"height_factor": 0.15, "fill_mode": "reflect"}),
    "contrast": Choice("RandomContrast", {"factor": 0.2, "value_range": (0, 255)}),
    "brightness": Choice("RandomBrightness", {"factor": 0.2, "value_range": (0, 255)}),
    "erase": Choice(
        "RandomErasing", {"factor": (0.5, 0.5), "scale": (0.02, 0.2), "value_range": (0, 255)}
    ),
}
