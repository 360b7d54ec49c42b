"""Content-based image retrieval, compared: the machinery that the notebooks import.

The data takes one way, and each package stands at one place on it:

    images -> networks -> retrieval -> reporting

`images` reads pictures and says which of them serve what, `networks` builds networks, trains them
and turns images into embeddings, `retrieval` ranks the gallery for each query and scores the
rankings, `reporting` makes tables, sentences, figures and pages of the scores. Two packages stand
over them: `studies` (what is asked for, what it would take, and running the notebooks) and `asking`
(a finished study as a search engine). `explain` says why two images match; `cache` (what is already
done) and `progress` (what is seen meanwhile) serve all.
"""

import logging
import os
from pathlib import Path

# TensorFlow reads these once, when it is first imported, so they stand before any Keras import.
# oneDNN is off by default on CPUs without AVX-512 and makes training there several times faster.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# In a notebook TensorFlow warns on standard output, between the lines of a training. It sets its
# logger's level itself, so the level cannot say what passes.
logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)

__version__ = "0.1.0"


class StudyError(Exception):
    """What the person who runs a study can mend; its text is one line that says how."""


def project_root() -> Path:
    """The nearest folder, from the working directory up, that holds `params/` and `notebooks/`.

    Raises:
        StudyError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise StudyError(
        f"no project at {here}: go to the folder that holds params/ and notebooks/, and run again"
    )
