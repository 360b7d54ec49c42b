"""Cached steps: each artifact is a folder named by a key of everything that determines it.

`cached` runs a step once and keeps its artifact. The key is a hash of the step's parameters, the
keys of its inputs (data and weights have fingerprints), its code, and the versions of the packages
that compute it. The manifest is written last: it marks the folder as finished, and records the size
and SHA-256 of each file. A folder that does not match its manifest counts as unfinished, and its
step runs again. Reports have manifests, too.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cbir import project_root

# Other modules also import from here what writes files and describes the machine.
from cbir.files import (  # noqa: F401
    create_array,
    disk_errors,
    file_digest,
    locked,
    replacing,
    synchronise,
    write_text,
)
from cbir.machine import (  # noqa: F401
    backend,
    git_state,
    keras_home,
    machine,
    peak_memory,
    versions,
)

MANIFEST = "manifest.json"
# A step keeps here what only its resumption after an interruption needs.
SCRATCH = "scratch"
# A folder's name before its step is finished.
PARTIAL = ".partial"
# A quick check reads only files smaller than this, in bytes.
SMALL = 1_000_000
# The data passes through these in turn, so what one computes depends on the code of those before.
WAY = ("images", "networks", "retrieval", "explain", "reporting")
# No digest covers this module. Its rows are parameters of the steps that use them, so that a new
# row changes no key.
TABLE_OF_ROWS = "networks/backbones.py"


# Steps


@dataclass(frozen=True)
class Artifact:
    """The output of a finished step: its folder, and the manifest of what it was made from."""

    folder: Path
    manifest: dict

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def seconds(self) -> float:
        return self.manifest["seconds"]


def cached(
    step: str,
    make: Callable[[Path], None],
    *,
    parameters: dict,
    reads: Iterable[str] = (),
    package: str,
) -> Artifact:
    """The artifact of a step: read from `artifacts/<step>/<key>/` if it is intact, else made.

    Args:
        make: writes the artifact into a given folder. After an interruption, it gets the same
            folder again, with the files it has already written, and may resume. At the end, its
            folder `SCRATCH` is deleted.
        parameters, reads: as for `make_key`.
        package: the name in `WAY` of the package that makes the artifact.

    Raises:
        StudyError: the disk is full or read-only. Finished steps are kept.
    """
    made_from = {"step": step, "parameters": parameters, "reads": list(reads)}
    key = make_key(**made_from, code=package_digest(package))
    folder = _folder_of(step, key)
    if artifact := read(folder):
        return artifact
    with disk_errors(folder), locked(folder):
        # Another process may have made it meanwhile.
        if artifact := read(folder):
            return artifact
        partial = folder.with_name(folder.name + PARTIAL)
        partial.mkdir(exist_ok=True)
        # With a manifest, it is complete, and was interrupted before its move.
        if read(partial) is None:
            started = time.perf_counter()
            make(partial)
            cost = {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory()}
            files = [path for path in partial.iterdir() if path.is_file()]
            write_manifest(partial, files, key=key, **made_from, **cost)
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        synchronise(folder.parent)
        return Artifact(folder, read_manifest(folder))


def find(
    step: str, *, parameters: dict, reads: Iterable[str] = (), package: str
) -> Artifact | None:
    """The artifact of a step if it is cached, else None; arguments as for `cached`."""
    return read(_folder_of(step, make_key(step, parameters, reads, package_digest(package))))


def _folder_of(step: str, key: str) -> Path:
    return project_root() / "artifacts" / step / key[:20]


# Keys


def make_key(step: str, parameters: dict, reads: Iterable[str], code: str) -> str:
    """The key of a step: 64 hexadecimal digits, equal only if the artifacts must be equal.

    Args:
        parameters: all of its parameters, as JSON content.
        reads: keys or fingerprints of all its inputs.
        code: digest of the code that it runs, as from `package_digest`.
    """
    return digest([step, parameters, list(reads), code, versions()])


def digest(content) -> str:
    """SHA-256, in hexadecimal, of any JSON content; the order of keys is ignored."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def package_digest(package: str) -> str:
    """SHA-256 of the code of a package in `WAY` and of those before it."""
    root, digests = Path(__file__).parent, {}
    for name in WAY[: WAY.index(package) + 1]:
        module = root / f"{name}.py"
        for path in [module] if module.exists() else sorted((root / name).rglob("*.py")):
            if (file := path.relative_to(root).as_posix()) != TABLE_OF_ROWS:
                digests[file] = source_digest(path.read_text("utf-8"))
    return digest(digests)


def source_digest(source: str) -> str:
    """SHA-256 of Python code without its comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_body and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


# Manifests


def write_manifest(folder: Path, files: Iterable[Path], **content) -> None:
    """Mark a folder as finished, with the files that belong to it, and further content."""
    recorded = {}
    for path in sorted(set(files) - {folder / MANIFEST}):
        synchronise(path)
        name = Path(os.path.relpath(path, folder)).as_posix()
        recorded[name] = {"bytes": path.stat().st_size, "sha256": _remembered_digest(path)}
    content |= {"folder": folder.name.removesuffix(PARTIAL), "files": recorded}
    content |= {"versions": versions(), "machine": machine(), "git": git_state(project_root())}
    # As it will be read: JSON has no tuples.
    content = json.loads(json.dumps({**content, "sha256": ""}))
    write_text(folder / MANIFEST, json.dumps(content | {"sha256": digest(content)}, indent=1))


def read_manifest(folder: Path) -> dict:
    """The content of a folder's manifest; empty if it has none, or if it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read(folder: Path, *, thorough: bool = True) -> Artifact | None:
    """The finished artifact in a folder, or None if it is missing, unfinished or damaged.

    A message names a damaged artifact. Its manifest is deleted, so that its step runs again.

    Args:
        thorough: whether to read all files, not only those of less than `SMALL` bytes. For the
            others, their size is compared. Steps read only artifacts that were checked thoroughly.
    """
    manifest = read_manifest(folder)
    # An earlier version of the project recorded no files; it can still use its folders.
    if (manifest and "files" not in manifest) or not os.path.lexists(folder / MANIFEST):
        return None
    try:
        damage = _damage(folder, manifest, thorough)
    except OSError as error:
        damage = f"{Path(error.filename).name} cannot be read ({error.strerror})"
    if damage:
        print(f"{folder}: {damage}: it counts as unfinished and is computed again", flush=True)
        with contextlib.suppress(OSError):  # A folder that cannot be written is no use either.
            (folder / MANIFEST).unlink()
        return None
    return Artifact(folder, manifest)


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds the finished artifact with this key."""
    artifact = read(folder)
    return artifact is not None and artifact.key == key


def _damage(folder: Path, manifest: dict, thorough: bool) -> str:
    """How a folder differs from its manifest, in words; empty if it matches."""
    if manifest.get("sha256") != digest({**manifest, "sha256": ""}):
        return f"{MANIFEST} is damaged"
    if manifest["folder"] != folder.name.removesuffix(PARTIAL):
        return f"it contains the files of {manifest['folder']}"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["bytes"] or (
            (thorough or size < SMALL) and _remembered_digest(path) != expected["sha256"]
        ):
            return f"{name} is damaged"
    return ""


_digests: dict[tuple, str] = {}


def _remembered_digest(path: Path) -> str:
    """`file_digest` of a file, computed once in this process unless it changes."""
    stat = path.stat()
    state = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    if state not in _digests:
        _digests[state] = file_digest(path)
    return _digests[state]
