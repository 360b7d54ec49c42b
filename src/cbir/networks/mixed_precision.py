"""Half precision on a GPU, never on a CPU, where it would be slower."""

import contextlib
import subprocess
from collections.abc import Iterator

import keras

FULL = "float32"


@contextlib.contextmanager
def use_precision(mixed: bool) -> Iterator[str]:
    """Layers built in this context use `best()` if `mixed`, else float32; yields Keras' policy."""
    before = keras.config.dtype_policy()
    policy = best() if mixed else FULL
    keras.config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


def best() -> str:
    """bfloat16 on NVIDIA's Ampere and later, float16 on Volta and Turing, float32 elsewhere."""
    try:
        has_gpu = bool(keras.distribution.list_devices("gpu"))
    except AttributeError:  # Keras lists no devices for PyTorch, which takes any GPU there is
        has_gpu = True
    capability = _compute_capability() if has_gpu else 0
    if capability < 7:
        return FULL
    return "mixed_bfloat16" if capability >= 8 else "mixed_float16"


def _compute_capability() -> float:
    """The compute capability of the weakest GPU; 0 if the driver reports none."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return min(float(line) for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
