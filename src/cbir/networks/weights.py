"""Initial weights of a backbone: ImageNet's, a file, or a backbone trained in a study."""

import json
from dataclasses import dataclass
from pathlib import Path

from cbir import StudyError, project_root, report_command
from cbir.cache import file_digest, keras_home, read, read_manifest, write_text
from cbir.networks.backbones import BACKBONES

# The file of the trained backbone in the folder of a training.
BACKBONE_FILE = "backbone.weights.h5"
STUDY_PREFIX = "study:"
# The folder of the project for files of ImageNet weights that replace those of Keras.
OWN_FILES = "data/weights"
# Its folders, one per study, have a file per backbone that the study has trained.
INDEX = "artifacts/backbones"


@dataclass(frozen=True)
class Weights:
    """The initial weights of a backbone.

    Attributes:
        source: the parameter `weights` of the study.
        path, sha256: of the file; None and empty for random weights.
        pixels: the range of pixels that the weights expect: "imagenet" for the backbone's own
            preprocessing, "scaled" for [-1, 1].
    """

    source: str
    path: Path | None
    sha256: str
    pixels: str


def find(backbone: str, weights: str) -> Weights:
    """Find the weights of a backbone; StudyError if they do not exist, or the download fails.

    Those of ImageNet come from the file `data/weights/<backbone>.*` of the project if there is one;
    otherwise Keras downloads its own file once.

    Args:
        weights: "none", "imagenet", "study:<study>", "study:<study>/<architecture>", or the path of
            a file. For a file of this project, the manifest beside it records the pixels that it
            expects; any other file is assumed to expect ImageNet's.
    """
    if weights == "none":
        return Weights("none", None, "", "scaled")
    if weights.startswith(STUDY_PREFIX):
        return _find_in_study(backbone, weights)
    if weights == "imagenet":
        path = _download(backbone)
        if path.parent == project_root() / OWN_FILES:
            weights = f"{OWN_FILES}/{path.name}"
    else:
        path = project_root() / weights
        if not path.is_file():
            raise StudyError(
                f"weights: no file {path}: use the path of a weights file, imagenet, "
                "study:<study> or none"
            )
    try:
        is_scaled = read_manifest(path.parent)["parameters"]["pixels"] == "scaled"
    except (TypeError, KeyError):  # no manifest of this project
        is_scaled = False
    return Weights(weights, path, file_digest(path), "scaled" if is_scaled else "imagenet")


def missing(backbone: str, weights: str) -> str:
    """The name of the file that `find` would download; empty if it would download none."""
    path = imagenet_path(backbone) if weights == "imagenet" else None
    return path.name if path and not path.exists() else ""


def imagenet_path(backbone: str) -> Path:
    """The project's own file of a backbone's ImageNet weights, or the one that Keras keeps.

    StudyError if the backbone has none.
    """
    imagenet = BACKBONES[backbone].imagenet
    if imagenet is None:
        raise StudyError(
            f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path"
        )
    project_files = sorted((project_root() / OWN_FILES).glob(f"{backbone}.*"))
    return project_files[0] if project_files else keras_home() / "models" / imagenet.file


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
            f"{path.parent}; or run only architectures that need no download (ARCHITECTURES=...); "
            "or set `weights: <path of a file>` in params/, or `weights: none`, `train: all`, "
            "`head_epochs: 0` and `epochs`"
        ) from error
    return path


def register_backbone(study: str, architecture: str, parameters: dict, folder: Path) -> None:
    """Record the backbone that a run has trained, so that `study:<study>` finds it."""
    entry = {name: parameters[name] for name in ("backbone", "pixels")}
    entry["path"] = (folder / BACKBONE_FILE).relative_to(project_root()).as_posix()
    index = project_root() / INDEX / study
    index.mkdir(parents=True, exist_ok=True)
    write_text(index / f"{architecture}.json", json.dumps(entry))


def _find_in_study(backbone: str, weights: str) -> Weights:
    study, _, architecture = weights.removeprefix(STUDY_PREFIX).partition("/")
    entries = {}
    for path in sorted((project_root() / INDEX / study).glob(f"{architecture or '*'}.json")):
        try:
            entry = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise StudyError(
                f"weights: {weights}: {path} is damaged: delete reports/{study}/{path.stem} and "
                f"run `{report_command(study)}`, which uses cached steps"
            ) from error
        if entry["backbone"] == backbone:
            entries[path.stem] = entry
    if not entries:
        raise StudyError(
            f"weights: {weights}: the study {study} has trained no "
            f"{architecture or 'architecture'} with the backbone {backbone}: run "
            f"`{report_command(study)}` first"
        )
    if len(entries) > 1:
        raise StudyError(
            f"weights: {weights}: {', '.join(entries)} all have the backbone {backbone}: name "
            f"one, as in study:{study}/{next(iter(entries))}"
        )
    (entry,) = entries.values()
    path = project_root() / entry["path"]
    if read(path.parent) is None:
        raise StudyError(
            f"weights: {weights}: {path} is missing or damaged: run `{report_command(study)}`"
        )
    return Weights(weights, path, file_digest(path), entry["pixels"])
