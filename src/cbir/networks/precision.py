"""Half precision where the machine has it: on a GPU, never on a CPU, where it would only be slow.

Whether XLA compiles is left to Keras (`jit_compile="auto"`). With TensorFlow it does not, not even
on a GPU and not even where it is asked for: `TF_DETERMINISTIC_OPS`, by which the same seeds give
the same numbers, excludes it, since XLA has not all operations in a deterministic form. With
`TF_DETERMINISTIC_OPS=0` in the environment Keras compiles on a GPU whatever has no layer that it
cannot compile, as some augmentations are. What that gains, and whether numbers then still repeat,
has not been measured.
"""

import contextlib
import subprocess
from collections.abc import Iterator

import keras

FULL = "float32"


@contextlib.contextmanager
def use_precision(mixed: bool) -> Iterator[str]:
    """Layers made within compute in this precision; gives the name of Keras' policy.

    Args:
        mixed: whether half precision is wanted.
    """
    before = keras.config.dtype_policy()
    policy = best() if mixed else FULL
    keras.config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


def best() -> str:
    """bfloat16 from NVIDIA's Ampere on, float16 from Volta on, float32 anywhere else."""
    if not _sees_gpu():
        return FULL
    capability = _compute_capability()
    if capability >= 8:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= 7 else FULL


def _sees_gpu() -> bool:
    """Whether the backend can use a GPU."""
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except AttributeError:  # Keras lists no devices for PyTorch, which takes any GPU there is
        return _compute_capability() > 0


def _compute_capability() -> float:
    """Of the weakest GPU; 0 where the driver does not tell."""
    try:
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
        return min(float(line) for line in told.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
