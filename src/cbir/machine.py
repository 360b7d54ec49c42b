"""What computes the numbers: versions and settings, which keys contain, commit and hardware."""

import ctypes
import functools
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

from cbir import StudyError

# The packages whose versions can change a number; `versions` adds the backend.
PACKAGES = ("keras", "numba", "numpy", "pandas", "pillow", "scikit-image", "scikit-learn", "scipy")
SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS", "TF_NUM_INTRAOP_THREADS")


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
            f"{settings} is not a valid configuration of Keras: correct or delete it"
        ) from error


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
    cores, gpus = os.cpu_count(), nvidia_smi("name")
    return {"system": platform.system(), "cpu": cpu, "cores": cores, "gpus": gpus}


def nvidia_smi(field: str) -> list[str]:
    """What NVIDIA's driver reports of each GPU; empty without such a driver."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


@functools.cache
def git_state(root: Path) -> dict:
    """The commit of a project, and whether its working tree is clean; None without git."""
    git = functools.partial(subprocess.check_output, cwd=root, text=True, stderr=subprocess.DEVNULL)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).strip()
        return {"commit": commit, "clean": not git(["git", "status", "--porcelain"])}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "clean": None}


def keep_freed_memory() -> None:
    """Keep up to 1 GiB of freed memory in this process; without glibc, this does nothing.

    TensorFlow allocates new memory in each training step. By default, glibc returns it to the
    system after the step, and the system has to clear it again, which took up to a third of the
    training time of ResNet-50.
    """
    top_pad, trim_threshold, mmap_threshold = -2, -1, -3  # names in glibc's malloc.h
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(top_pad, 64 << 20)
    set_option(trim_threshold, 1 << 30)
    set_option(mmap_threshold, 1 << 30)


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
