"""Cached steps: folders of results, each named by a key of everything that determines the result.

A key is a hash of a step's parameters, the keys of its inputs (data and weights have
fingerprints), the versions of the packages that compute it, and its code. A manifest marks a folder
as finished and records its key, and the size and SHA-256 of its files. Nothing else determines
whether something is up to date, from a network's weights to a whole report: a folder whose files do
not fit its manifest counts as unfinished, and its step runs again.
"""

import ast
import contextlib
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cbir import StudyError, project_root

MANIFEST = "manifest.json"
# A step keeps here what only its resumption after an interruption needs.
SCRATCH = "scratch"
# A folder's name before its step is finished.
PARTIAL = ".partial"
# The size in bytes of the files that a quick check still reads.
SMALL = 1_000_000
# The packages whose versions can change a number; `versions` adds the backend.
PACKAGES = ("keras", "numba", "numpy", "pandas", "pillow", "scikit-image", "scikit-learn", "scipy")
SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_NUM_INTRAOP_THREADS")
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
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    settings = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "keras.json"
    try:
        stored = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
        return stored.get("backend", "tensorflow")
    except (ValueError, AttributeError) as error:
        raise StudyError(
            f"{settings} is not the settings of Keras: correct or delete it"
        ) from error


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
    return named | {name: os.environ[name] for name in SETTINGS if name in os.environ}


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
    """The result of a step: read from `artifacts/<step>/<key>/` if it is whole, else computed.

    Args:
        step: the step's name, and that of its folder in `artifacts/`.
        make: writes the result into a given folder. After an interruption, it gets the same folder
            again, with the files it has already written, and may resume. At the end, its folder
            `SCRATCH` is deleted.
        parameters, reads: as for `make_key`.
        package: the name in `WAY` of the package that makes the result.

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
        if (artifact := read(folder)) is None:
            partial = folder.with_name(folder.name + PARTIAL)
            partial.mkdir(exist_ok=True)
            # Its manifest is the last thing that a step writes.
            if read(partial) is None:
                started = time.perf_counter()
                make(partial)
                cost = {"seconds": time.perf_counter() - started}
                cost |= {"peak_memory_bytes": peak_memory()}
                files = [path for path in partial.iterdir() if path.is_file()]
                write_manifest(partial, files, key=key, **made_from, **cost)
            shutil.rmtree(partial / SCRATCH, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            _synchronise(folder.parent)
            artifact = Artifact(folder, read_manifest(folder))
    return artifact


def find(
    step: str, *, parameters: dict, reads: Iterable[str] = (), package: str
) -> Artifact | None:
    """The result of a step if it is cached, else None; arguments as for `cached`."""
    return read(_folder_of(step, make_key(step, parameters, reads, package_digest(package))))


def read(folder: Path, *, thorough: bool = True) -> Artifact | None:
    """The finished result in a folder, or None if it is missing, unfinished or damaged.

    A message names a damaged result. Its manifest is deleted, so that its step runs again.

    Args:
        thorough: whether to read all files, not only those of less than `SMALL` bytes. For the
            others, their size is compared. Results are computed only from what was read thoroughly.
    """
    manifest = read_manifest(folder)
    # An earlier version of the project recorded no files; it can still use its folders.
    if (manifest and "files" not in manifest) or not (folder / MANIFEST).exists():
        return None
    if damage := _damage(folder, manifest, thorough):
        print(f"{folder}: {damage}: it counts as unfinished and is computed again", flush=True)
        with contextlib.suppress(OSError):  # A folder that cannot be written is no use either.
            (folder / MANIFEST).unlink()
        return None
    return Artifact(folder, manifest)


def _damage(folder: Path, manifest: dict, thorough: bool) -> str:
    """In what a folder does not fit its manifest, in words; empty if it fits."""
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
            (thorough or size < SMALL) and _stored_digest(path) != expected["sha256"]
        ):
            return f"{name} is damaged"
    return ""


def is_current(folder: Path, key: str) -> bool:
    """Whether a folder holds the finished result with this key."""
    artifact = read(folder)
    return artifact is not None and artifact.key == key


def read_manifest(folder: Path) -> dict:
    """The content of a folder's manifest; empty if it has none, or if it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_manifest(folder: Path, files: Iterable[Path], **content) -> None:
    """Mark a folder as finished.

    Args:
        files: those in it, or elsewhere, that belong to the result.
        content: `key`, `seconds` and further information for readers.
    """
    recorded = {}
    for path in sorted(set(files) - {folder / MANIFEST}):
        _synchronise(path)
        name = Path(os.path.relpath(path, folder)).as_posix()
        recorded[name] = {"bytes": path.stat().st_size, "sha256": _stored_digest(path)}
    content |= {"folder": folder.name.removesuffix(PARTIAL), "files": recorded}
    content |= {"versions": versions(), "machine": machine()}
    # As it will be read: JSON has no tuples.
    content = json.loads(json.dumps({**content, "sha256": ""}))
    write_text(folder / MANIFEST, json.dumps(content | {"sha256": digest(content)}, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and move it into place."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name, for a file that is moved to its place when it is complete and on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        _synchronise(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # A full disk needs its space.
        raise


def create_array(path: Path, dtype: type, shape: tuple[int, ...]):
    """A new `.npy` file as a memory-mapped array.

    Its space is reserved first. Otherwise, a full disk would kill the process when it writes to
    the array, instead of raising OSError here.
    """
    from numpy.lib.format import open_memmap  # few commands need it

    array = open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has no such function
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a folder; wait for one that writes it, and name it."""
    path = folder.with_name(f"{folder.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError):  # released in this moment
            print(f"waiting for {folder}, in use by {path.read_text('utf-8')}", flush=True)
        lock.acquire()
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", "utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise a StudyError that names the folder if the disk is full or read-only."""
    try:
        yield
    except OSError as error:
        raise as_study_error(error, folder) from error


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_digests: dict[tuple, str] = {}


def _stored_digest(path: Path) -> str:
    """`file_digest` of a file, computed once in this process unless it changes."""
    stat = path.stat()
    state = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if state not in _digests:
        _digests[state] = file_digest(path)
    return _digests[state]


def _folder_of(step: str, key: str) -> Path:
    return project_root() / "artifacts" / step / key[:20]


def keras_home() -> Path:
    """The folder of Keras' downloads, created if missing: otherwise, Keras would use another."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    home.mkdir(parents=True, exist_ok=True)
    return home


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
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or "No space left" in str(error):
        return StudyError(
            f"disk full while writing {folder}: free some space and run again; "
            "finished steps are kept"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return StudyError(f"cannot write {folder}: make it writable and run again")
    return error
