"""Pretrained weights: which file they are, and where it comes from."""

import os
from pathlib import Path

from cbir import StudyError

# Backbone: its constructor in keras.applications, and the name under which Keras keeps the file.
IMAGENET = {
    "resnet50": ("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    "vgg16": ("VGG16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
}


def find_weights(backbone: str, weights: str) -> Path | None:
    """The file that `weights` means, downloaded where needed; None for random weights.

    Raises:
        StudyError: no such file, or the download failed.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        if not Path(weights).is_file():
            raise StudyError(
                f"weights: no file {weights}: give the path of a weights file, imagenet or none"
            )
        return Path(weights)
    path = imagenet_path(backbone)
    if not path.exists():
        try:
            import keras

            constructor = getattr(keras.applications, IMAGENET[backbone][0])
            constructor(include_top=False, weights="imagenet")
        except Exception as error:  # get_file raises a bare Exception where it cannot download
            raise StudyError(
                f"ImageNet weights of {backbone} could not be downloaded "
                f"({' '.join(str(error).split())[:160]}): put {path.name} into "
                f"{path.parent}, or set `weights: none` or `weights: <path of a file>`"
            ) from error
    return path


def imagenet_path(backbone: str) -> Path:
    """Where Keras keeps the ImageNet weights of a backbone, without its classifier."""
    if backbone not in IMAGENET:
        raise StudyError(f"weights: {backbone} has no ImageNet weights: use none or a path")
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    return home / "models" / IMAGENET[backbone][1]
