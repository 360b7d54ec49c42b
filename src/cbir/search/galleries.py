"""Folders of one's own pictures as galleries, embedded by a network that a study has trained.

`artifacts/galleries/<name>/pictures.npz` holds one. Bringing it up to date writes each batch beside
it, and then all as one: what is killed loses the batch that it was at, the same command goes on
from there, and until it is done the gallery is as it was. A picture is embedded again only where
its size or its time of change is another, or another network is asked.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbir import StudyError, project_root
from cbir.images.pictures import Unreadable, file_state, files_below, read_square, read_squares
from cbir.progress import Ticker
from cbir.search.engine import Engine, Gallery, open_engine

WHOLE = "pictures.npz"
BATCH = 256


@dataclass
class Changes:
    """What bringing a gallery up to date did.

    Attributes:
        embedded, kept, dropped: how many pictures are new or changed, as before, gone.
        skipped: "name: reason" of files that could not be read.
    """

    embedded: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _EmbeddedPicture:
    """An embedded picture: its file's state, its vector, the class that is predicted for it."""

    state: str
    vector: np.ndarray
    label: int


def index_folder(folder: Path, engine: Engine, name: str = "") -> tuple[str, Changes]:
    """Bring the gallery of a folder up to date: embed what is new or changed, drop what is gone.

    Args:
        folder: pictures at any depth, without classes.
        engine: what embeds them.
        name: of the gallery; the folder's by default.

    Returns:
        The gallery's name, and what was done.

    Raises:
        StudyError: no such folder, nothing readable in it, or the name is of another folder.
    """
    folder = folder.expanduser().resolve()
    if re.search(r"[^\w.-]|^\.", name):
        raise StudyError(f"--name: {name!r}: letters, digits, dots, hyphens and _ alone")
    name = name or re.sub(r"[^\w.-]+|^\.+", "-", folder.name) or "pictures"
    home = _home(name)
    files = _files(folder)
    about, known = _read(home / WHOLE)
    if about and about["folder"] != str(folder):
        raise StudyError(
            f"the gallery {name!r} is of {about['folder']}: give this one another name with --name"
        )
    about = {
        "folder": str(folder),
        "study": engine.study,
        "architecture": engine.architecture,
        "key": engine.key,
    }
    changes, rows = Changes(dropped=len(known.keys() - files.keys())), {}
    for path in [home / WHOLE, *_batches(home)]:
        made_by, found = _read(path)
        if made_by and (made_by["folder"], made_by["key"]) == (about["folder"], about["key"]):
            rows |= found
    rows = {each: row for each, row in rows.items() if files.get(each) == row.state}
    changes.kept = len(rows)
    waiting = {each: state for each, state in files.items() if each not in rows}
    home.mkdir(parents=True, exist_ok=True)
    first = len(_batches(home))
    embedded = _embedded(folder, waiting, engine, changes.skipped)
    for number, batch in enumerate(embedded, start=first):
        _write(home / f"batch-{number:06d}.npz", about, batch)
        rows |= batch
    changes.embedded = len(rows) - changes.kept
    if not rows:
        for path in (home / WHOLE, *_batches(home)):
            path.unlink(missing_ok=True)
        raise StudyError(f"none of the {len(files):,} files in {folder} is a picture")
    _write(home / WHOLE, about, dict(sorted(rows.items())))
    for path in _batches(home):
        path.unlink()
    return name, changes


def open_gallery(name: str) -> tuple[Engine, Gallery]:
    """A gallery, and the engine that embedded it.

    Raises:
        StudyError: no such gallery, or the network was trained anew since.
    """
    home = _home(name)
    about, rows = _read(home / WHOLE)
    if not about:
        known = sorted(path.parent.name for path in home.parent.glob(f"*/{WHOLE}"))
        raise StudyError(
            f"no gallery {name!r}: "
            + (f"there are {', '.join(known)}" if known else "make one with `cbir index FOLDER`")
        )
    engine = open_engine(about["study"], about["architecture"])
    if engine.key != about["key"]:
        raise StudyError(
            f"{about['architecture']} of {about['study']} was trained anew since the gallery was "
            f"made: run `cbir index {about['folder']} --name {name} --study {about['study']} "
            f"--architecture {about['architecture']}` again"
        )
    folder, names = Path(about["folder"]), list(rows)
    return engine, Gallery(
        name,
        np.stack([row.vector for row in rows.values()]),
        np.array([row.label for row in rows.values()]),
        [str(folder / each) for each in names],
        lambda position: _thumbnail(folder / names[position], engine.image_size),
        kind="predicted class",
    )


def _home(name: str) -> Path:
    return project_root() / "artifacts" / "galleries" / name


def _batches(home: Path) -> list[Path]:
    return sorted(home.glob("batch-*.npz"))


def _files(folder: Path) -> dict[str, str]:
    """Name and state of every file of the folder."""
    if not folder.is_dir():
        raise StudyError(f"no folder {folder}")
    try:
        found = files_below(folder)
    except OSError as error:
        raise StudyError(f"cannot read {error.filename} ({error.strerror})") from None
    return {path.relative_to(folder).as_posix(): file_state(path) for path in found}


def _embedded(
    folder: Path, files: dict[str, str], engine: Engine, skipped: list[str]
) -> Iterator[dict[str, _EmbeddedPicture]]:
    """The readable ones of the files, embedded batch by batch; the rest joins `skipped`."""
    names, ticker = list(files), Ticker(len(files), "pictures")
    found = read_squares([folder / name for name in names], engine.image_size)
    for start in range(0, len(names), BATCH):
        pairs = list(zip(names[start : start + BATCH], found, strict=False))
        images = {name: image for name, image in pairs if isinstance(image, np.ndarray)}
        skipped += [f"{name}: {reason}" for name, reason in pairs if name not in images]
        if images:
            vectors, probabilities = engine.encode(np.stack(list(images.values())))
            labels = probabilities.argmax(axis=1)
            yield {
                name: _EmbeddedPicture(files[name], vector, label)
                for name, vector, label in zip(images, vectors, labels, strict=True)
            }
        ticker.reached(min(start + BATCH, len(names)))


def _write(path: Path, about: dict, rows: dict[str, _EmbeddedPicture]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            about=json.dumps(about),
            names=list(rows),
            states=[row.state for row in rows.values()],
            vectors=np.stack([row.vector for row in rows.values()]),
            labels=[row.label for row in rows.values()],
        )
    os.replace(temporary, path)


def _read(path: Path) -> tuple[dict | None, dict[str, _EmbeddedPicture]]:
    """What a file was made with, and its rows; None and nothing where there is none."""
    if not path.exists():
        return None, {}
    with np.load(path) as file:
        columns = [file[name] for name in ("names", "states", "vectors", "labels")]
        about = json.loads(str(file["about"]))
    rows = zip(*columns, strict=True)
    return about, {str(name): _EmbeddedPicture(str(state), *rest) for name, state, *rest in rows}


def _thumbnail(path: Path, size: int) -> np.ndarray:
    try:
        return read_square(path, size)
    except Unreadable:  # gone since it was embedded
        return np.full((size, size, 3), 255, np.uint8)
