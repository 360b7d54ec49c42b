"""Initial weights of a backbone: ImageNet's, a file, or a backbone trained in a study."""

import itertools
import json
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from cbir import StudyError, cache, project_root
from cbir.cache import file_digest, keras_home, write_text
from cbir.networks.backbones import BACKBONES

if TYPE_CHECKING:  # Keras takes seconds to import
    import keras

    from cbir.networks.models import Network
    from cbir.networks.training import Training

# The file of the trained backbone in the folder of a training.
BACKBONE_FILE = "backbone.weights.h5"
STUDY_PREFIX = "study:"


@dataclass(frozen=True)
class Weights:
    """The initial weights of a backbone.

    Attributes:
        source: the parameter `weights` of the study.
        path: the file; None for random weights.
        sha256: SHA-256 of the file; empty for random weights.
        pixels: the range of pixels that the weights expect: "imagenet" for the backbone's own
            preprocessing, "scaled" for [-1, 1].
    """

    source: str
    path: Path | None
    sha256: str
    pixels: str


def find(backbone: str, weights: str) -> Weights:
    """Find the weights of a backbone; ImageNet's are downloaded once.

    Args:
        backbone: a name in `BACKBONES`.
        weights: "none", "imagenet", "study:<study>", "study:<study>/<architecture>", or the path of
            a file. For a file of this project, the manifest beside it records the pixels that it
            expects; any other file is assumed to expect ImageNet's.

    Raises:
        StudyError: the file or study does not exist, or the download failed.
    """
    if weights == "none":
        return Weights("none", None, "", "scaled")
    if weights.startswith(STUDY_PREFIX):
        return _find_in_study(backbone, weights)
    if weights == "imagenet":
        path = _download(backbone)
    else:
        path = project_root() / weights
        if not path.is_file():
            raise StudyError(
                f"weights: no file {path}: use the path of a weights file, imagenet, "
                "study:<study> or none"
            )
    try:
        is_scaled = cache.read(path.parent).manifest["parameters"]["pixels"] == "scaled"
    except (AttributeError, ValueError, TypeError, KeyError):  # no manifest of this project
        is_scaled = False
    return Weights(weights, path, file_digest(path), "scaled" if is_scaled else "imagenet")


def missing(backbone: str, weights: str) -> str:
    """The name of the file that `find` would download; empty if it would download none."""
    path = imagenet_path(backbone) if weights == "imagenet" else None
    return path.name if path and not path.exists() else ""


def imagenet_path(backbone: str) -> Path:
    """Where Keras keeps the ImageNet weights of a backbone, without its classifier.

    Raises:
        StudyError: the backbone has none.
    """
    imagenet = BACKBONES[backbone].imagenet
    if imagenet is None:
        raise StudyError(
            f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path"
        )
    return keras_home() / "models" / imagenet.file


def _download(backbone: str) -> Path:
    path = imagenet_path(backbone)
    if path.exists():
        return path
    # The file has a temporary name until it is complete, so that a partial file is never used.
    part = path.with_name(path.name + ".part")
    imagenet = BACKBONES[backbone].imagenet
    try:
        import keras

        keras.utils.get_file(
            part.name, imagenet.address, cache_dir=keras_home(), cache_subdir="models",
            file_hash=imagenet.md5, force_download=True,
        )  # fmt: skip
        part.replace(path)
    except Exception as error:  # get_file raises a bare Exception if a download fails
        part.unlink(missing_ok=True)
        raise StudyError(
            f"ImageNet weights of {backbone} could not be downloaded "
            f"({' '.join(str(error).split())[:400]}): put {path.name} into "
            f"{path.parent}; or run `make report STUDY=cifar10-scratch "
            'ARCHITECTURES="cnn resnet50 vgg16"`, which needs no weights; or set '
            "`weights: <path of a file>` in params/, or `weights: none`, `train: all`, "
            "`head_epochs: 0` and `epochs`"
        ) from error
    return path


def register_backbone(
    study: str, architecture: str, network: "Network", training: "Training"
) -> None:
    """Record the path of a trained network's backbone, so that `study:<study>` finds it.

    Args:
        study, architecture: the run that trained it.
        network, training: from `Architecture.train`.
    """
    path = training.artifact.folder / BACKBONE_FILE
    entry = {name: network.parameters[name] for name in ("backbone", "pixels")}
    entry["path"] = path.relative_to(project_root()).as_posix()
    folder = _index_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{architecture}.json", json.dumps(entry))


def _index_folder(study: str) -> Path:
    """The folder with one file per backbone that a study has trained."""
    return project_root() / "artifacts" / "backbones" / study


def _find_in_study(backbone: str, weights: str) -> Weights:
    study, _, architecture = weights.removeprefix(STUDY_PREFIX).partition("/")
    entries = {}
    for path in sorted(_index_folder(study).glob(f"{architecture or '*'}.json")):
        entry = json.loads(path.read_text("utf-8"))
        if entry["backbone"] == backbone:
            entries[path.stem] = entry
    if not entries:
        raise StudyError(
            f"weights: {weights}: the study {study} has trained no "
            f"{architecture or 'architecture'} with the backbone {backbone}: run "
            f"`make report STUDY={study}` first"
        )
    if len(entries) > 1:
        raise StudyError(
            f"weights: {weights}: {', '.join(entries)} all have the backbone {backbone}: name "
            f"one, as in study:{study}/{next(iter(entries))}"
        )
    (entry,) = entries.values()
    path = project_root() / entry["path"]
    if not path.is_file():
        raise StudyError(f"weights: {weights}: {path} is missing: run `make report STUDY={study}`")
    return Weights(weights, path, file_digest(path), entry["pixels"])


def load(body: "keras.Model", weights: Weights, backbone: str) -> None:
    """Load a file's weights into a backbone; a classifier in the file is ignored.

    Args:
        body: the backbone without resizing, preprocessing and pooling.
        weights: from `find`, with a path.
        backbone: its name, for the error.

    Raises:
        StudyError: the file does not contain this backbone, or Keras builds another network for it.
    """
    path, constructor = weights.path, BACKBONES[backbone].constructor
    if weights.pixels == "imagenet" and re.fullmatch("EfficientNetB[0-7]", constructor):
        # For ImageNet weights, Keras builds these with an additional rescaling layer.
        raise StudyError(
            f"weights: {weights.source}: {constructor} cannot start from ImageNet weights here: "
            "use none, or a row with an EfficientNetV2"
        )
    try:
        # Keras warns about each layer missing from a file before it rejects the file.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.endswith((".weights.h5", ".keras")):
                body.load_weights(path)
            else:
                _check_names(body, path)
                body.load_weights(path, by_name=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StudyError(
            f"weights: {path} does not fit {backbone}: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_names(body: "keras.Model", path: Path) -> None:
    """Check the layers of a file in the older format (.h5), since Keras skips layers that differ.

    Raises:
        ValueError: a layer has no fixed name, the file lacks a layer with weights, or it has
            another layer among them; only a classifier may follow them.
    """
    names = [layer.name for layer in body.layers if layer.weights]
    if numbered := [layer.name for *_, layer in _numbered_layers(body) if layer.weights]:
        raise ValueError(
            f"Keras numbers its layers ({numbered[0]}), so names in an .h5 file may differ: "
            "use a .weights.h5 or .keras file"
        )
    with h5py.File(path) as file:
        group = file if "layer_names" in file.attrs else file["model_weights"]
        stored = [
            name for name in group.attrs["layer_names"] if group[name].attrs["weight_names"].size
        ]
        stored = [name.decode() if isinstance(name, bytes) else name for name in stored]
    if lacking := [name for name in names if name not in stored]:
        raise ValueError(f"the file has no layer {lacking[0]}")
    if others := [name for name in stored[: len(names)] if name not in names]:
        raise ValueError(f"the file also has a layer {others[0]}, which the network lacks")


def renumber_layers(body: "keras.Model") -> None:
    """Number unnamed layers from 0, as in the first network of a process.

    Keras numbers layers without a name (`conv2d_2`) across all networks that a process builds, so a
    row of `BACKBONES` could not name its blocks.
    """
    for kind, layers in itertools.groupby(_numbered_layers(body), key=lambda entry: entry[0]):
        for place, (_, _, layer) in enumerate(layers):
            layer.name = f"{kind}_{place}" if place else kind


def _numbered_layers(body: "keras.Model") -> list[tuple[str, int, "keras.layers.Layer"]]:
    """Kind, number and layer, sorted, of the layers that Keras named by their class."""
    numbered = []
    for layer in body.layers:
        kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()
        if kind.replace("_", "") == type(layer).__name__.lower():
            numbered.append((kind, int(number or 0), layer))
    return sorted(numbered, key=lambda entry: entry[:2])
