"""Content-based image retrieval, compared: the machinery that the notebooks import.

The data takes one way, and each module stands at one place on it:

    data -> models -> training -> embeddings -> retrieval -> metrics -> results -> plots

`data` reads images and splits them, `models` builds networks, `training` fits them,
`embeddings` turns images into vectors, `retrieval` ranks the gallery for each query, `metrics`
scores rankings per query, `results` writes and reads the files of a run, `plots` draws them.

Beside the way stand, in its order: `sources` and `splits` (where pictures come from, which are set
apart), `protocols` (which images are searched with which), `leaks` (which stand on both sides);
`backbones`, `networks`, `pooling`, `weights` and `precision` (what a network is made of);
`optimisers`, `batches` and `checkpoints` (what drives, feeds and keeps a training), `recipe` (an
architecture's settings as one thing), `inference` (many images through a network), `controls`
(embeddings without one); `searches` (the ways of searching), `uncertainty` (intervals and tests),
`definitions` (what mAP@k means elsewhere), `evaluation`; `tidy`, `comparison`, `claims`, `origins`,
`grid_report`, `grid_plots` and `pictures` (rows, tables, sentences, figures), `published`.

Around it stand `params`, `limits`, `cells` and `grids` (what a study asks for), `cache` (what is
already done), `study` (what the command line asked for), `plan` (what it would take), `report`
(runs the notebooks), `pages` (notebooks to HTML), `progress` (what is seen meanwhile) and
`__main__` (the command line).
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
