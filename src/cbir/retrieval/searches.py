"""Ways of searching: what a query is compared with, and which classes of the gallery it may find.

| search | what is ranked | by |
|---|---|---|
| `unrestricted` | the whole gallery | similarity of embeddings |
| `predicted_class` | the class that the classifier predicts: the paper's way | similarity |
| `soft` | the most probable classes, as many as reach a probability of `mass` | similarity |
| `label_lookup` | the whole gallery, no embedding used | the query's predicted probability of \
each image's label, in random order within a class |
| `oracle_class` | the query's true class, which no system knows | similarity |

`label_lookup` is what the classifier alone can do: what `unrestricted` reaches beyond it, the
embedding knows (Sablayrolles et al., "How should we evaluate supervised hashing?", 2017).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cbir.cache import cached
from cbir.networks.embeddings import Embeddings
from cbir.retrieval import metrics

SEARCHES = ("unrestricted", "predicted_class", "soft", "label_lookup", "oracle_class")
# Masses to choose from; the least searches hardly more than the predicted class, 1 everything.
MASSES = (0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)
LOOKUP_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """What `soft` needs to know, from validation images alone.

    Attributes:
        temperature: logits are divided by it, so that probabilities mean what they say.
        mass: the probability that the searched classes must reach together.
        scores: mean average precision on the validation images for each mass tried.
    """

    temperature: float
    mass: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Question:
    """What is ranked for a way of searching, as `metrics.evaluate_retrieval` takes it.

    Attributes:
        query, gallery: (n_queries, d) and (n_gallery, d).
        order: (n_gallery,) the gallery position of each row of `gallery`.
        restrict_to: (n_queries, n_classes) bool, or None where all classes are searched.
    """

    query: np.ndarray
    gallery: np.ndarray
    order: np.ndarray
    restrict_to: np.ndarray | None = None


def of(embeddings: Embeddings) -> list[str]:
    """The ways that embeddings can be searched in, `unrestricted` first.

    Without a classifier, or with one that was not taught the queries' classes, it is the only one.
    """
    is_taught = embeddings.dataset.protocol != "unseen_classes"
    return list(SEARCHES if embeddings.probabilities is not None and is_taught else SEARCHES[:1])


def question(embeddings: Embeddings, search: str) -> Question:
    """What is ranked for a way of searching (a name in `SEARCHES`)."""
    classes = np.arange(len(embeddings.dataset.classes))
    order = np.arange(len(embeddings.gallery))
    if search == "label_lookup":
        # Equal rows stand in gallery order, so the gallery is shuffled.
        order = np.random.default_rng(LOOKUP_SEED).permutation(order)
        one_hot = np.eye(len(classes), dtype=np.float32)[embeddings.dataset.gallery_labels[order]]
        return Question(embeddings.query_probabilities, one_hot, order)
    restrict_to = None
    if search == "predicted_class":
        restrict_to = embeddings.query_predictions[:, None] == classes
    elif search == "oracle_class":
        restrict_to = embeddings.dataset.query_labels[:, None] == classes
    elif search == "soft":
        known = calibrate(embeddings)
        restrict_to = probable(embeddings.query_probabilities, known.temperature, known.mass)
    return Question(embeddings.query, embeddings.gallery, order, restrict_to)


def calibrate(embeddings: Embeddings) -> Calibration:
    """Temperature and mass, chosen on the validation images; the training images are the gallery.

    The temperature makes the cross-entropy least (Guo et al., "On calibration of modern neural
    networks", 2017); the mass gives the best mean average precision, the smallest of equals.
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        labels = dataset.labels[dataset.validation]
        probabilities = np.asarray(embeddings.probabilities[dataset.validation])
        temperature = fit_temperature(probabilities, labels)
        scores = {}
        for mass in MASSES:
            per_query = metrics.evaluate_retrieval(
                embeddings.vectors[dataset.validation],
                labels,
                embeddings.vectors[dataset.train],
                dataset.labels[dataset.train],
                ks=(),
                restrict_to=probable(probabilities, temperature, mass),
            )
            scores[str(mass)] = float(per_query["average_precision"].mean())
        best = max(MASSES, key=lambda mass: (scores[str(mass)], -mass))
        text = json.dumps(asdict(Calibration(temperature, best, scores)))
        (folder / "calibration.json").write_text(text, encoding="utf-8")

    artifact = cached(
        "calibration",
        make,
        parameters={},
        reads=[embeddings.artifact.key, dataset.split_fingerprint],
        package="retrieval",
    )
    return Calibration(**json.loads((artifact.folder / "calibration.json").read_text("utf-8")))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature between 1/20 and 20 that makes the cross-entropy of the labels least.

    1 where every label is the most probable one: no temperature is low enough then, and nothing
    says how sure the classifier may be.

    Args:
        probabilities: (n, n_classes) of a softmax.
        labels: (n,) int.
    """
    from scipy.optimize import minimize_scalar  # takes half a second to import

    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        softened = calibrated(probabilities, np.exp(log_temperature))
        return -np.log(np.maximum(softened[rows, labels], 1e-300)).mean()

    bounds = (-np.log(20), np.log(20))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n, n_classes) float64 probabilities, as if the logits had been divided by temperature."""
    # A softmax that has run out of digits says 0; its logit is at most this.
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-45)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def probable(probabilities: np.ndarray, temperature: float, mass: float) -> np.ndarray:
    """(n, n_classes) bool: the fewest classes whose calibrated probabilities reach the mass.

    The most probable class is always among them; a mass of 1 takes all.
    """
    if mass >= 1:
        return np.ones(probabilities.shape, bool)
    softened = calibrated(probabilities, temperature)
    order = np.argsort(-softened, axis=1, kind="stable")
    falling = np.take_along_axis(softened, order, axis=1)
    # A class is needed where those before it do not reach the mass.
    needed = np.cumsum(falling, axis=1) - falling < mass
    chosen = np.zeros(probabilities.shape, bool)
    np.put_along_axis(chosen, order, needed, axis=1)
    return chosen
