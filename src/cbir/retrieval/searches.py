"""Ways of searching: which images of the gallery are ranked for a query, and by what.

docs/evaluation.md describes them and what each shows. `label_lookup` ranks by the query's predicted
probability of each image's class, in random order within a class.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cbir.cache import cached
from cbir.networks.embeddings import Embeddings
from cbir.retrieval import metrics, ranking

SEARCHES = ("unrestricted", "predicted_class", "soft", "label_lookup", "oracle_class")
# The masses to choose from. The smallest searches little more than the predicted class, and 1
# searches all classes.
MASSES = (0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999, 1.0)
LOOKUP_SEED = 0
# The share of validation images whose nearest image counts as near. The others show how often a
# picture of the study's kind is mistaken for one of another kind.
USUAL = 0.95
# The standard deviation of the prior of log(temperature), which keeps a few errors from moving the
# temperature far from 1.
TEMPERATURE_SPREAD = 0.25


@dataclass(frozen=True)
class Calibration:
    """What validation images, with the training images as gallery, say about further queries.

    Attributes:
        temperature: divisor of the logits, so that probabilities match frequencies.
        mass: the total probability that the classes searched by `soft` must reach.
        scores: mean average precision on the validation images for each of `MASSES`.
        usual_similarity: that which the nearest image reaches for `USUAL` of the images.
    """

    temperature: float
    mass: float
    scores: dict[str, float]
    usual_similarity: float


@dataclass(frozen=True)
class SearchInput:
    """The arrays that a search ranks, as for `metrics.evaluate_retrieval`; (n_gallery,) `order` is
    the gallery position of each row of `gallery`.
    """

    query: np.ndarray
    gallery: np.ndarray
    order: np.ndarray
    restrict_to: np.ndarray | None = None


def available(embeddings: Embeddings) -> list[str]:
    """The searches that are possible with these embeddings, `unrestricted` first.

    All others need a classifier that was trained on the classes of the queries.
    """
    is_trained_on = embeddings.dataset.protocol != "unseen_classes"
    if embeddings.probabilities is None or not is_trained_on:
        return ["unrestricted"]
    return list(SEARCHES)


def search_input(embeddings: Embeddings, search: str) -> SearchInput:
    """The arrays that a search (a name in `SEARCHES`) ranks."""
    classes = np.arange(len(embeddings.dataset.classes))
    order = np.arange(len(embeddings.gallery))
    if search == "label_lookup":
        # Ties keep the order of the gallery, so the gallery is shuffled.
        order = np.random.default_rng(LOOKUP_SEED).permutation(order)
        one_hot = np.eye(len(classes), dtype=np.float32)[embeddings.dataset.gallery_labels[order]]
        return SearchInput(embeddings.query_probabilities, one_hot, order)
    restrict_to = None
    if search == "predicted_class":
        restrict_to = embeddings.query_predictions[:, None] == classes
    elif search == "oracle_class":
        restrict_to = embeddings.dataset.query_labels[:, None] == classes
    elif search == "soft":
        fit = calibrate(embeddings)
        restrict_to = probable(embeddings.query_probabilities, fit.temperature, fit.mass)
    return SearchInput(embeddings.query, embeddings.gallery, order, restrict_to)


def calibrate(embeddings: Embeddings) -> Calibration:
    """Calibrate searches on the validation images, with the training images as gallery.

    The temperature minimises the cross-entropy (Guo et al., "On calibration of modern neural
    networks", 2017), with a prior that draws it towards 1 if there are few images. The mass
    maximises the mean average precision; among equal scores, the smallest mass is chosen. A query
    whose nearest image is farther than usual is probably of another kind (Sun et al.,
    "Out-of-distribution detection with deep nearest neighbors", 2022). Cached.
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        labels = dataset.labels[dataset.validation]
        probabilities = np.asarray(embeddings.probabilities[dataset.validation])
        temperature = fit_temperature(probabilities, labels)
        queries = embeddings.vectors[dataset.validation]
        gallery = ranking.prepare(embeddings.vectors[dataset.train])
        _, nearest = ranking.search(queries, gallery, 1)
        scores, searched = {}, (queries, labels, gallery, dataset.labels[dataset.train])
        for mass in MASSES:
            classes = probable(probabilities, temperature, mass)
            per_query = metrics.evaluate_retrieval(*searched, ks=(), restrict_to=classes)
            scores[str(mass)] = float(per_query["average_precision"].mean())
        best = max(MASSES, key=lambda mass: (scores[str(mass)], -mass))
        usual = float(np.quantile(nearest, 1 - USUAL))
        text = json.dumps(asdict(Calibration(temperature, best, scores, usual)))
        (folder / "calibration.json").write_text(text, encoding="utf-8")

    reads = [embeddings.artifact.key, dataset.split_fingerprint]
    artifact = cached("calibration", make, parameters={}, reads=reads, package="retrieval")
    return Calibration(**json.loads((artifact.folder / "calibration.json").read_text("utf-8")))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The most probable temperature, between 1/20 and 20, given the labels and a prior around 1.

    For (n, n_classes) probabilities and (n,) labels, it minimises the labels' mean cross-entropy
    plus log(T)² / (2 n `TEMPERATURE_SPREAD`²). It is 1 if every label is the most probable class,
    since only errors reveal overconfidence.
    """
    from scipy.optimize import minimize_scalar  # takes half a second to import

    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        softened = calibrated(probabilities, np.exp(log_temperature))
        cross_entropy = -np.log(np.maximum(softened[rows, labels], 1e-300)).mean()
        return cross_entropy + (log_temperature / TEMPERATURE_SPREAD) ** 2 / (2 * len(labels))

    bounds = (-np.log(20), np.log(20))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n, n_classes) float64 probabilities, as if the logits had been divided by temperature."""
    # A softmax may underflow to 0; 1e-45 is the smallest positive float32.
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-45)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def probable(probabilities: np.ndarray, temperature: float, mass: float) -> np.ndarray:
    """(n, n_classes) bool: the smallest set of classes whose calibrated probabilities reach `mass`.

    It always contains the most probable class; a mass of 1 selects all classes.
    """
    if mass >= 1:
        return np.ones(probabilities.shape, bool)
    softened = calibrated(probabilities, temperature)
    order = np.argsort(-softened, axis=1, kind="stable")
    falling = np.take_along_axis(softened, order, axis=1)
    # A class is needed if the more probable ones do not reach the mass.
    is_needed = np.cumsum(falling, axis=1) - falling < mass
    is_chosen = np.zeros(probabilities.shape, bool)
    np.put_along_axis(is_chosen, order, is_needed, axis=1)
    return is_chosen
