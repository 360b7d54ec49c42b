"""Trained networks as exported graphs, which OpenVINO runs without Keras and TensorFlow.

TensorFlow takes seconds to start, far longer than embedding a few pictures. If the package
`openvino` is installed (an optional extra), the first search with a network exports it, and later
searches only read the graph. Components of embeddings differ from those of Keras by less than 1e-5.
"""

import importlib.metadata
from pathlib import Path

import numpy as np

from cbir import StudyError
from cbir.cache import cached, find
from cbir.networks.embeddings import Encode, batched
from cbir.reporting.runs import Run

GRAPH = "graph.xml"


def graph_encoder(run: Run) -> Encode | None:
    """As `inference.make_encoder`; None if OpenVINO is missing or cannot run the network."""
    try:
        version = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None

    def make(folder: Path) -> None:
        from cbir.networks.inference import encoder_of

        print("exporting the network, so that later searches start faster (only once)", flush=True)
        model = encoder_of(run.network, run.embeddings)
        model.export(str(folder / GRAPH), format="openvino", verbose=False)

    step = {"parameters": {"openvino": version}, "reads": [run.embeddings.artifact.key]}
    step |= {"step": "graph", "package": "networks"}
    try:
        graph = find(**step) or cached(make=make, **step)
    except StudyError:  # the folder cannot be written
        return None
    except Exception as error:  # OpenVINO does not document what it raises for unknown layers
        reason = " ".join(str(error).split())[:200]
        print(f"the network cannot be exported ({reason}): searching with Keras", flush=True)
        return None

    import openvino

    model = openvino.Core().compile_model(
        graph.folder / GRAPH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def predict(images: np.ndarray) -> list[np.ndarray]:
        outputs = model(np.asarray(images, np.float32))
        return [outputs[0], outputs[1]]

    return batched(predict, run.embeddings.whitening)
