"""Cached steps: folders of results, each named by a key of everything that determines the result.

A key is a hash of a step's parameters, the keys of its inputs (data and weights have
fingerprints), the versions of the packages that compute it, and its code. Nothing else determines
whether something is up to date, from a network's weights to a whole report.
"""

import ast
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from cbir import StudyError, project_root

MANIFEST = "manifest.json"
# The packages whose versions can change a number; `versions` adds the backend.
PACKAGES = ("keras", "numba", "numpy", "pandas", "pillow", "scikit-image", "scikit-learn", "scipy")
SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS")
# The data passes through these in turn, so what one computes depends on the code of those before.
WAY = ("images", "networks", "retrieval", "explain", "reporting")
# No digest covers this module. Its rows are parameters of the steps that use them, so that a new
# row changes no key.
TABLE_OF_ROWS = "networks/backbones.py"


@dataclass(frozen=True)
class Artifact:
    """A finished step: its folder, and the manifest that records what it was made from."""

    folder: Path
    manifest: dict

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def seconds(self) -> float:
        return self.manifest["seconds"]


def backend() -> str:
    """The name of the Keras backend that this process uses or would use."""
    if "keras" in sys.modules:
        return sys.modules["keras"].backend.backend()
    return os.environ.get("KERAS_BACKEND") or _keras_settings()["backend"]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and the packages that compute results, and settings of their numerics."""
    named = {"python": "{}.{}.{}".format(*sys.version_info[:3]), "backend": backend()}
    for package in (*PACKAGES, backend()):
        try:
            named[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise StudyError(
                f"{package} is not installed: install it, or select another Keras backend "
                "with KERAS_BACKEND"
            ) from None
    named |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return named | {name: str(_keras_settings().get(name)) for name in ("floatx", "epsilon")}


def digest(content) -> str:
    """SHA-256, in hexadecimal, of any JSON content; the order of keys is ignored."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(source: str) -> str:
    """SHA-256 of Python code without its comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_body and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


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


def make_key(step: str, parameters: dict, reads: Iterable[str], code: str) -> str:
    """The key of a step: 64 hexadecimal digits, equal only if the result must be equal.

    Args:
        step: the step's name.
        parameters: all of its parameters, as JSON content.
        reads: keys or fingerprints of all its inputs.
        code: digest of the code that it runs, as from `package_digest`.
    """
    return digest([step, parameters, list(reads), code, versions()])


def cached(
    step: str,
    make: Callable[[Path], None],
    *,
    parameters: dict,
    reads: Iterable[str] = (),
    package: str,
) -> Artifact:
    """The result of a step: read from `artifacts/<step>/<key>/` if it exists, else computed.

    Args:
        step: the step's name, and that of its folder in `artifacts/`.
        make: writes the result into a given folder. After an interruption, it gets the same folder
            again, with the files it has already written, and may resume.
        parameters, reads: as for `make_key`.
        package: the name in `WAY` of the package that makes the result.

    Raises:
        StudyError: the disk is full or read-only. Finished steps are kept.
    """
    made_from = {"step": step, "parameters": parameters, "reads": list(reads)}
    key = make_key(**made_from, code=package_digest(package))
    folder = _folder_of(step, key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # If two notebooks start at once, the second one waits here and then reads the result.
        with FileLock(folder.with_suffix(".lock")):
            if (artifact := read(folder)) is None:
                partial = folder.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                # A manifest marks a folder as finished only after the folder was moved into place.
                (partial / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                started = time.perf_counter()
                make(partial)
                cost = {"seconds": time.perf_counter() - started}
                cost |= {"peak_memory_bytes": peak_memory()}
                write_manifest(partial, key=key, **made_from, **cost)
                os.replace(partial, folder)
                artifact = read(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)
    except OSError as error:
        raise as_study_error(error, folder) from error
    return artifact


def find(
    step: str, *, parameters: dict, reads: Iterable[str] = (), package: str
) -> Artifact | None:
    """The result of a step if it is cached, else None; arguments as for `cached`."""
    return read(_folder_of(step, make_key(step, parameters, reads, package_digest(package))))


def read(folder: Path) -> Artifact | None:
    """The finished result in a folder, or None."""
    try:
        return Artifact(folder, json.loads((folder / MANIFEST).read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds the finished result with this key."""
    artifact = read(folder)
    return artifact is not None and artifact.key == key


def write_manifest(folder: Path, **content) -> None:
    """Mark a folder as finished, with `key`, `seconds` and further information for readers."""
    write_text(
        folder / MANIFEST,
        json.dumps({**content, "versions": versions(), "machine": machine()}, indent=1),
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and move it into place."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _folder_of(step: str, key: str) -> Path:
    return project_root() / "artifacts" / step / key[:20]


def keras_home() -> Path:
    """The folder of Keras' downloads, created if missing: otherwise, Keras would use another."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    home.mkdir(parents=True, exist_ok=True)
    return home


def _keras_settings() -> dict:
    """The user's keras.json over the defaults of Keras."""
    path = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    defaults = {"backend": "tensorflow", "floatx": "float32", "epsilon": 1e-07}
    return defaults | (json.loads(path.read_text("utf-8")) if path.exists() else {})


@functools.cache
def machine() -> dict:
    """Processor, number of cores, and the names of GPUs as reported by the driver."""
    cpu, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text())
        cpu = names[0].strip() if names else cpu
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        gpus = done.stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        gpus = []
    return {"system": platform.system(), "cpu": cpu, "cores": os.cpu_count(), "gpus": gpus}


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def as_study_error(error: OSError, folder: Path) -> Exception:
    """A StudyError for a full or read-only disk; any other error unchanged."""
    # h5py reports a full disk without a number.
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return StudyError(
            f"disk full while writing {folder}: free some space and run again; "
            "finished steps are kept"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StudyError(f"cannot write {folder}: make it writable and run again")
    return error
