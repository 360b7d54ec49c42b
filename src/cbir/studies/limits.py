"""What a parameter must fulfil: its type, its bounds, the names it may take.

Names are listed here, not imported, so that checking parameters loads neither Keras nor data.
"""

import re

from cbir.networks.backbones import BACKBONES

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
# The names in `baselines.BASELINES`, `protocols.PROTOCOLS`, `pooling.POOLINGS` and `optimisers`.
BASELINES = ("random", "raw_pixels", "hand_crafted")
PROTOCOLS = ("closed", "held_out_gallery", "unseen_classes", "hashing_1k")
POOLINGS = ("avg", "max", "gem", "attention", "flatten")
LEARNT_POOLINGS = ("gem", "attention")
# Those of the backbone; the head's own have the same names behind `head_`.
NOT_OF_HEAD = ("epochs", "batch_size", "learning_rate")
EMBEDDINGS = ("penultimate", "projection", "pooled")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle")
AUGMENTATIONS = ("flip", "shift", "rotate", "zoom", "contrast", "brightness", "erase")


def _one_of(names) -> tuple:
    return lambda value: value in names, f"must be one of {', '.join(names)}"


def _some_of(names) -> tuple:
    return (
        lambda value: set(value) <= set(names) and len(set(value)) == len(value),
        f"must name some of {', '.join(names)}, each once",
    )


# What a value must fulfil beyond its type: (holds, what to say where it does not).
_POSITIVE = (lambda value: value > 0, "must be greater than 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "must be 0 or greater")
_FRACTION = (lambda value: 0 < value < 1, "must lie between 0 and 1, both excluded")
_SHARE = (lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
_RATE = (lambda value: 0 < value < float("inf"), "must be greater than 0 and finite")
LIMITS = {
    "backbone": _one_of(BACKBONES),
    "image_size": (lambda value: value >= 8, "must be 8 or more (pixels)"),
    "test_fraction": _FRACTION,
    "validation_fraction": _FRACTION,
    "training_images": _NOT_NEGATIVE,
    "test_images": _NOT_NEGATIVE,
    "learn_from": _NOT_NEGATIVE,
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
    "baseline": _one_of(BASELINES),
    "ks": (
        lambda value: value and min(value) > 0 and len(set(value)) == len(value),
        "must name at least one k, each 1 or more and each once",
    ),
    "weights": (
        lambda value: value not in ("", "study:"),
        "must be none, imagenet, study:<study> or the path of a weights file",
    ),
    "train": (
        lambda value: value in ("head", "all") or re.fullmatch("last_blocks:[1-9][0-9]*", value),
        "must be head, last_blocks:<n> or all",
    ),
    "input_size": (lambda value: value >= 32, "must be 32 or more (pixels)"),
    "pooling": _one_of(POOLINGS),
    "embedding": _one_of(EMBEDDINGS),
    "embedding_dim": _POSITIVE,
    "dropout": _SHARE,
    "whitening": _NOT_NEGATIVE,
    "head_epochs": _NOT_NEGATIVE,
    "head_batch_size": _POSITIVE,
    "head_learning_rate": _RATE,
    "epochs": _NOT_NEGATIVE,
    "measured_epochs": (
        lambda value: all(epoch > 0 for epoch in value) and len(set(value)) == len(value),
        "must be epochs from 1 on, each once",
    ),
    "batch_size": _POSITIVE,
    "optimizer": _one_of(OPTIMIZERS),
    "learning_rate": _RATE,
    "schedule": _one_of(SCHEDULES),
    "weight_decay": _SHARE,
    "augmentation": _some_of(AUGMENTATIONS),
    "label_smoothing": _SHARE,
    "early_stopping": _NOT_NEGATIVE,
}


def conflict(given: dict) -> str:
    """What no parameter of a network shows alone: the first contradiction, or nothing.

    Args:
        given: all parameters of an architecture with a backbone.
    """
    train, backbone = given["train"], given["backbone"]
    is_frozen, is_random = train == "head", given["weights"] == "none"
    blocks = BACKBONES[backbone].blocks
    count = int(train.removeprefix("last_blocks:")) if train.startswith("last_blocks:") else 0
    embedding_dim = given["embedding_dim"] if given["embedding"] != "pooled" else float("inf")
    beyond = [epoch for epoch in given["measured_epochs"] if epoch > given["epochs"]]
    rules = {
        f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path": (
            given["weights"] == "imagenet" and not BACKBONES[backbone].imagenet
        ),
        "measured_epochs: must be [] where train is head: they are those of the backbone": (
            is_frozen and given["measured_epochs"]
        ),
        "head_epochs: must be greater than 0 where train is head": (
            is_frozen and not given["head_epochs"]
        ),
        f"epochs: must be greater than 0 where train is {train}": (
            not is_frozen and not given["epochs"]
        ),
        "head_epochs: must be 0 where weights is none: nothing is gained by a head on a backbone "
        "of random weights that is then trained": (
            is_random and not is_frozen and given["head_epochs"]
        ),
        f"head_epochs: must be greater than 0 where weights is {given['weights']} and train is "
        f"{train}: gradients that come through a head of random weights would spoil what the "
        "backbone has learnt": (not is_random and not is_frozen and not given["head_epochs"]),
        f"train: {train}: {backbone} has {len(blocks)} blocks": count > len(blocks),
        f"train: {train}: must be all where weights is none: the blocks before would keep random "
        "weights, and batch normalisation what it knew before it saw an image": (
            is_random and count
        ),
        "augmentation: a frozen backbone sees each image once, so no image can change from epoch "
        "to epoch: set augmentation: [] or train: all": is_frozen and given["augmentation"],
        f"measured_epochs: {beyond[:1]} lies beyond epochs: {given['epochs']}": beyond,
        "measured_epochs: must be [] with early_stopping, which decides how many epochs there "
        "are": given["measured_epochs"] and given["early_stopping"],
        f"whitening: {given['whitening']} dimensions of an embedding of {embedding_dim}": (
            given["whitening"] > embedding_dim
        ),
    }
    return next((what for what, is_broken in rules.items() if is_broken), "")


def unused(given: dict) -> set[str]:
    """Parameters that decide nothing, as others are.

    Args:
        given: all parameters of an architecture with a backbone.
    """
    found = set()
    if given["train"] == "head":
        found |= set(NOT_OF_HEAD)
    if not given["head_epochs"]:
        found |= {f"head_{key}" for key in NOT_OF_HEAD if key != "epochs"}
    if given["embedding"] == "pooled":
        found.add("embedding_dim")
    return found
