"""What a parameter must fulfil: its type, its bounds, the names it may take.

Names are listed here, not imported, so that checking parameters loads neither Keras nor data.
"""

TYPES = {"str": str, "int": int, "float": float, "bool": bool}

# The rows of `models.BACKBONES`, `controls.CONTROLS` and `protocols.PROTOCOLS`.
BACKBONES = ("cnn", "resnet50", "vgg16")
CONTROLS = ("random", "raw_pixels", "hand_crafted")
PROTOCOLS = ("closed", "held_out_gallery", "unseen_classes", "hashing_1k")

# What a value must fulfil beyond its type: (holds, what to say where it does not).
_POSITIVE = (lambda value: value > 0, "must be greater than 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "must be 0 or greater")
_FRACTION = (lambda value: 0 < value < 1, "must lie between 0 and 1, both excluded")
LIMITS = {
    "backbone": (lambda value: value in BACKBONES, f"must be one of {', '.join(BACKBONES)}"),
    "image_size": (lambda value: value >= 8, "must be 8 or more (pixels)"),
    "test_fraction": _FRACTION,
    "validation_fraction": _FRACTION,
    "split_seed": _NOT_NEGATIVE,
    "seeds": (
        lambda value: value and min(value) >= 0 and len(set(value)) == len(value),
        "must name at least one seed, each 0 or more and each once",
    ),
    "protocols": (
        lambda value: (
            value
            and set(value) <= set(PROTOCOLS)
            and len(set(value)) == len(value)
            and value[0] != "unseen_classes"
        ),
        f"must name some of {', '.join(PROTOCOLS)}, each once, unseen_classes not first",
    ),
    "unseen": _POSITIVE,
    "draws": _POSITIVE,
    "control": (lambda value: value in CONTROLS, f"must be one of {', '.join(CONTROLS)}"),
    "ks": (
        lambda value: value and min(value) > 0 and len(set(value)) == len(value),
        "must name at least one k, each 1 or more and each once",
    ),
    "train": (lambda value: value in ("head", "all"), "must be head or all"),
    "schedule": (
        lambda value: value in ("constant", "cosine"),
        "must be constant or cosine",
    ),
    "input_size": (lambda value: value >= 32, "must be 32 or more (pixels)"),
    "embedding_dim": _POSITIVE,
    "dropout": (lambda value: 0 <= value < 1, "must be at least 0 and less than 1"),
    "epochs": _POSITIVE,
    "measured_epochs": (
        lambda value: all(epoch > 0 for epoch in value) and len(set(value)) == len(value),
        "must be epochs from 1 on, each once",
    ),
    "batch_size": _POSITIVE,
    "learning_rate": (
        lambda value: 0 < value < float("inf"),
        "must be greater than 0 and finite",
    ),
}
