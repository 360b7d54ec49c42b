"""Content-based image retrieval, compared.

Data flows in one direction, and each package is one stage:

    images -> networks -> retrieval -> reporting

`images` decodes pictures and splits them, `networks` trains networks and turns images into
embeddings, `retrieval` ranks the gallery and computes metrics per query, `reporting` turns them
into tables, figures and pages. `studies` runs whole studies, `search` searches a finished one,
and `explain` shows why two images match. All of them use `cache`, `files`,
`machine` and `progress`.

From images to metrics, with defaults for all parameters that are not set here:

    from cbir.images.dataset import load_dataset
    from cbir.networks.architecture import Architecture
    from cbir.retrieval.evaluation import evaluate
    from cbir.studies import params

    settings = params.complete(
        data={"dataset": "digits"}, measurement={"seeds": [0], "protocols": ["closed"]},
        network={"backbone": "cnn", "pooling": "flatten"}, training={"epochs": 5, "batch_size": 32},
    )
    dataset = load_dataset(**settings.data)
    architecture = Architecture(settings.network, settings.training, settings.embedding)
    embeddings = architecture.embed(dataset, seed=0)
    evaluation = evaluate(embeddings, "unrestricted", ks=[1, 10])
    print(evaluation.per_query["average_precision"].mean())
"""

import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

# TensorFlow reads these only when it is first imported, so they are set before any Keras import.
# oneDNN is off by default on CPUs without AVX-512 and makes training there several times faster.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
# Sums depend on how many threads share them, so the number is fixed, and part of every key.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# In a notebook, TensorFlow prints warnings between the lines of a training. It sets the level of
# its logger itself, so a filter drops them.
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)

__version__ = "0.1.0"


class StudyError(Exception):
    """An error that the user can fix; its message is one line that says how."""


def project_root() -> Path:
    """The nearest folder, from the working directory upwards, with `params/` and `notebooks/`.

    Raises:
        StudyError: no such folder exists.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise StudyError(
        f"no project found at {here}: change to the folder that contains params/ and notebooks/"
    )


def cbir_command(*words: str) -> str:
    """A command of this program for a shell in the working directory.

    It begins with the path of the program, unless the shell finds it by its name.
    """
    path, path_of_shell = Path(sys.executable).with_name("cbir"), shutil.which("cbir")
    is_found = path_of_shell and os.path.realpath(path_of_shell) == os.path.realpath(path)
    return shlex.join(
        ["cbir" if is_found else min(os.path.relpath(path), str(path), key=len), *words]
    )


def report_command(study: str, architecture: str = "") -> str:
    """The command that makes a report, or only one of its architectures, as a shell reads it.

    The name of a report is that of a study only if it is neither a trial nor a study of a folder.
    """
    from cbir.cache import read_manifest

    command = read_manifest(project_root() / "reports" / study).get("command", "")
    if not command:
        if not (project_root() / "params" / study).is_dir():
            return "make report DATA=path/to/folder"
        command = f"make report STUDY={shlex.quote(study)}"
    if architecture:
        command = command.partition(" ARCHITECTURES=")[0] + f' ARCHITECTURES="{architecture}"'
    return command
