"""Where a backbone's weights come from: ImageNet, a file, or another study of this project."""

import json
import re
import warnings
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from cbir import StudyError, cache, project_root
from cbir.cache import file_digest, keras_home, write_text
from cbir.networks.backbones import BACKBONES

if TYPE_CHECKING:
    import keras

    from cbir.networks.models import Network
    from cbir.networks.training import Training

# The backbone's weights in the folder of a training, for another study to start from.
BACKBONE_FILE = "backbone.weights.h5"
OF_STUDY = "study:"


@dataclass(frozen=True)
class Weights:
    """The weights that a backbone starts from.

    Attributes:
        source: as a study says it, or the file's place within the project.
        path: the file; None for random weights.
        sha256: of the file; empty for random weights.
        pixels: what the weights expect of pixels: "imagenet" for the backbone's own preprocessing,
            "scaled" for [-1, 1].
    """

    source: str
    path: Path | None
    sha256: str
    pixels: str


def find(backbone: str, weights: str) -> Weights:
    """What `weights` means for a backbone, downloaded where needed.

    Args:
        backbone: a name in `BACKBONES`.
        weights: "none", "imagenet", "study:<study>", "study:<study>/<architecture>", or a path: of
            a file that this project's training left, its manifest says what pixels it expects; of
            any other, they are ImageNet's.

    Raises:
        StudyError: no such file or study, or the download failed.
    """
    if weights == "none":
        return Weights("none", None, "", "scaled")
    if weights.startswith(OF_STUDY):
        return _of_study(backbone, weights)
    if weights == "imagenet":
        path = _downloaded(backbone)
    else:
        path = project_root() / weights
        if not path.is_file():
            raise StudyError(
                f"weights: no file {path}: give the path of a weights file, imagenet, "
                "study:<study> or none"
            )
    return Weights(weights, path, file_digest(path), _pixels_of(path))


def _pixels_of(path: Path) -> str:
    try:
        pixels = cache.read(path.parent).manifest["parameters"]["pixels"]
    except (AttributeError, ValueError, TypeError, KeyError):  # no manifest, or not one of ours
        return "imagenet"
    return "scaled" if pixels == "scaled" else "imagenet"


def load(body: "keras.Model", found: Weights, backbone: str) -> None:
    """Put a file's weights into a backbone, whether or not the file has a classifier too.

    Args:
        body: the backbone without resizing, preprocessing and pooling.
        found: from `find`, with a path.
        backbone: its name, for the error.

    Raises:
        StudyError: the file does not hold this backbone, or Keras builds another one for it.
    """
    path = found.path
    constructor = BACKBONES[backbone].constructor
    if found.pixels == "imagenet" and re.fullmatch("EfficientNetB[0-7]", constructor):
        # For ImageNet weights these alone have a rescaling more than for any others; without it the
        # weights would see pixels that they were not trained on.
        raise StudyError(
            f"weights: {found.source}: {constructor} cannot start from ImageNet weights here: use "
            "none, or a row with an EfficientNetV2"
        )
    try:
        # Before Keras refuses a file, it warns of every layer that it did not find in it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.endswith((".weights.h5", ".keras")):
                body.load_weights(path)
            elif any(kind_of(layer) for layer in body.layers if layer.weights):
                _load_by_place(body, path)
            else:
                _check_names(body, path)
                body.load_weights(path, by_name=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StudyError(
            f"weights: {path} does not fit {backbone}: {' '.join(str(error).split())[:200]}"
        ) from error


def number_anew(body: "keras.Model") -> None:
    """Names that Keras has made count from 0 again, as in the first network of a process.

    Keras numbers the layers that get no name of their own (`conv2d_2`) through all networks that a
    process builds, and a row of `BACKBONES` could not say what its blocks are called.
    """
    kinds = defaultdict(dict)
    for layer in body.layers:
        if kind := kind_of(layer):
            kinds[kind][int(layer.name.removeprefix(kind).removeprefix("_") or 0)] = layer
    for kind, numbered in kinds.items():
        for place, number in enumerate(sorted(numbered)):
            numbered[number].name = f"{kind}_{place}" if place else kind


def missing(backbone: str, weights: str) -> str:
    """The name of the file that `find` would download; empty where it would not."""
    path = imagenet_path(backbone) if weights == "imagenet" else None
    return path.name if path and not path.exists() else ""


def imagenet_path(backbone: str) -> Path:
    """Where Keras keeps the ImageNet weights of a backbone, without its classifier."""
    imagenet = BACKBONES[backbone].imagenet
    if imagenet is None:
        raise StudyError(
            f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path"
        )
    return keras_home() / "models" / imagenet.file


def _downloaded(backbone: str) -> Path:
    path = imagenet_path(backbone)
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    imagenet = BACKBONES[backbone].imagenet
    try:
        import keras

        # Under another name until it is whole, so that nothing half-loaded is ever used.
        keras.utils.get_file(
            part.name, imagenet.address, cache_dir=keras_home(), cache_subdir="models",
            file_hash=imagenet.md5, force_download=True,
        )  # fmt: skip
        part.replace(path)
    except Exception as error:  # get_file raises a bare Exception where it cannot download
        part.unlink(missing_ok=True)
        raise StudyError(
            f"ImageNet weights of {backbone} could not be downloaded "
            f"({' '.join(str(error).split())[:400]}): put {path.name} into "
            f"{path.parent}; or run, which needs none, `make report STUDY=cifar10-scratch "
            'ARCHITECTURES="cnn resnet50 vgg16"`; or set in params/ `weights: <path of a file>`, '
            "or `weights: none`, `train: all`, `head_epochs: 0` and `epochs`"
        ) from error
    return path


def register_backbone(
    study: str, architecture: str, network: "Network", training: "Training"
) -> None:
    """Note where the backbone of a trained network is, so that `study:<study>` finds it.

    Args:
        study, architecture: the run that trained it.
        network, training: what `Architecture.train` returned.
    """
    path = training.artifact.folder / BACKBONE_FILE
    entry = {name: network.parameters[name] for name in ("backbone", "pixels")}
    entry["path"] = path.relative_to(project_root()).as_posix()
    folder = _index(study)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{architecture}.json", json.dumps(entry))


def _index(study: str) -> Path:
    """The folder with a file for each backbone that a study has trained."""
    return project_root() / "artifacts" / "backbones" / study


def _of_study(backbone: str, weights: str) -> Weights:
    """The backbone that an architecture learnt in another study, after its last epoch."""
    study, _, architecture = weights.removeprefix(OF_STUDY).partition("/")
    found = {}
    for path in sorted(_index(study).glob(f"{architecture or '*'}.json")):
        entry = json.loads(path.read_text("utf-8"))
        if entry["backbone"] == backbone:
            found[path.stem] = entry
    if not found:
        raise StudyError(
            f"weights: {weights}: the study {study} has trained no "
            f"{architecture or 'architecture'} with the backbone {backbone}: run "
            f"`make report STUDY={study}` first"
        )
    if len(found) > 1:
        raise StudyError(
            f"weights: {weights}: {', '.join(found)} all have the backbone {backbone}: say which, "
            f"as in study:{study}/{next(iter(found))}"
        )
    (entry,) = found.values()
    path = project_root() / entry["path"]
    if not path.is_file():
        raise StudyError(f"weights: {weights}: {path} is gone: run `make report STUDY={study}`")
    return Weights(weights, path, file_digest(path), entry["pixels"])


def _check_names(body: "keras.Model", path: Path) -> None:
    """Keras passes over layers that a file of its older format (.h5) lacks, or has beyond the body.

    Raises:
        ValueError: the file lacks a layer that has weights, or has another among these: only a
            classifier may stand behind them.
    """
    with h5py.File(path) as file:
        stored = list(_stored_layers(file))
    wanted = [layer.name for layer in body.layers if layer.weights]
    if lacking := [name for name in wanted if name not in stored]:
        raise ValueError(f"the file has no layer {lacking[0]}")
    if beyond := [name for name in stored[: len(wanted)] if name not in wanted]:
        raise ValueError(f"the file is of a network with a layer {beyond[0]} too")


def _load_by_place(body: "keras.Model", path: Path) -> None:
    """The older format (.h5) where some layers have no name of their own: in the layers' order.

    Their numbers in the file are of the process that wrote it, and older versions of Keras counted
    from 1; Keras itself goes by the order in the ImageNet files of these networks.

    Raises:
        ValueError: at some place the file has a layer of another name, kind or shape.
    """
    layers = [layer for layer in body.layers if layer.weights]
    kinds = {kind_of(layer) for layer in layers} - {""}
    with h5py.File(path) as file:
        stored = _stored_layers(file)
        told = [stem if (stem := _without_number(name)) in kinds else name for name in stored]
        for place, layer in enumerate(layers):
            name = kind_of(layer) or layer.name
            if told[place : place + 1] != [name]:
                raise ValueError(f"the file has no layer {name} as its layer {place + 1}")
        for layer, values in zip(layers, stored.values(), strict=False):
            layer.set_weights([np.asarray(value) for value in values])


def _stored_layers(file: h5py.File) -> dict[str, list[h5py.Dataset]]:
    """The layers with weights of a file of the older format, and their weights, in its order.

    Networks that the file nests in one layer are not looked into.
    """
    group = file if "layer_names" in file.attrs else file["model_weights"]
    stored = {}
    for name in _texts(group.attrs["layer_names"]):
        if names := _texts(group[name].attrs["weight_names"]):
            stored[name] = [group[name][each] for each in names]
    return stored


def kind_of(layer: "keras.layers.Layer") -> str:
    """The kind (`conv2d`) of a layer that Keras has named by it and a number; "" for any other."""
    stem = _without_number(layer.name)
    return stem if stem.replace("_", "") == type(layer).__name__.lower() else ""


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _texts(names) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
