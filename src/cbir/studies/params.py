"""The parameters of a study, defined once.

`PARAMETERS` has a row per parameter: its group, type, default, bounds and description. Checks,
defaults, error messages and `docs/parameters.md` are derived from it.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from cbir import StudyError
from cbir.images.pictures import MAX_MEGAPIXELS
from cbir.images.protocols import PROTOCOLS
from cbir.networks import choices
from cbir.networks.backbones import BACKBONES
from cbir.networks.baselines import BASELINES
from cbir.networks.vector_files import SUFFIXES, VECTORS

# Set from the path of the file, params/<study>/<architecture>.yaml, and from the point of a grid.
PLACED = ("study", "architecture", "variant")
GROUPS = {
    "data": "The images. All architectures of a study share these parameters, except `learn_from`.",
    "network": "How the network is built.",
    "training": "How the network is trained. If `head_epochs` is not 0, only the head is trained "
    "first.",
    "embedding": "How embeddings are made from the trained network.",
    "measurement": "What is measured.",
    "baseline": "What replaces the network: a fixed rule, or vectors that another program made.",
}


# Limits far beyond what makes sense, so that a typing error is reported at once.
MOST_PIXELS, MOST_EPOCHS, MOST_VALUES = 4096, 100_000, 100
MOST_SEED = 2**32 - 1  # NumPy and Keras accept no larger one.
# The number of characters of a value in an error message.
MOST_SHOWN = 80
# Control characters, and halves of a surrogate pair, which no file's name contains.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Bound(NamedTuple):
    """A condition on a value beyond its type; `rule` follows the parameter's name in errors."""

    holds: Callable[[Any], bool]
    rule: str


@dataclass(frozen=True)
class Parameter:
    """A row of `PARAMETERS`: one sentence in Markdown describes it.

    `type` is written as an annotation, such as "list[int]". Without a `default`, the study must set
    it; without a `bound`, every value of the type is valid.
    """

    group: str
    type: str
    description: str
    default: Any = None
    bound: Bound | None = None

    def error(self, value) -> str:
        """Why a value is invalid, to follow the parameter's name; empty if it is valid."""
        if not _is_of(value, self.type):
            return f"must be {self.type}, not {shortened(value)}"
        if self.type == "str" and CONTROL.search(value):
            return f"must not contain control characters, not {shortened(value)}"
        if self.bound and not self.bound.holds(value):
            return f"{self.bound.rule}, not {shortened(value)}"
        return ""


def _one_of(*names: str) -> Bound:
    return Bound(lambda value: value in names, f"must be one of {', '.join(names)}")


def _some_of(*names: str) -> Bound:
    return Bound(
        lambda value: set(value) <= set(names) and len(set(value)) == len(value),
        f"must contain only {', '.join(names)}, without duplicates",
    )


def _between(least: int, most: int, unit: str = "") -> Bound:
    return Bound(lambda value: least <= value <= most, f"must be from {least} to {most:,}{unit}")


def _all_between(least: int, most: int, noun: str, fewest: int = 1) -> Bound:
    return Bound(
        lambda value: (
            fewest <= len(value) <= MOST_VALUES
            and all(least <= item <= most for item in value)
            and len(set(value)) == len(value)
        ),
        f"must contain {fewest} to {MOST_VALUES} {noun} from {least} to {most:,}, "
        "without duplicates",
    )


_SIZE = _between(1, 65_536)
_EPOCHS = _between(0, MOST_EPOCHS)
_IMAGES = _between(0, 10**9)
_FRACTION = Bound(lambda value: 0 < value < 1, "must be greater than 0 and less than 1")
_SHARE = Bound(lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
_RATE = Bound(lambda value: 0 < value <= 100, "must be greater than 0 and at most 100")

# fmt: off
PARAMETERS = {
    # The images.
    "dataset": Parameter("data", "str",
        "`digits`, `cifar10`, or the path of a folder of pictures, or of a CSV file of them.",
        bound=Bound(bool, "must be digits, cifar10 or the path of a folder or CSV file")),
    "image_size": Parameter("data", "int",
        "Side length in pixels of the square images, made by a centre crop.",
        32, _between(8, MOST_PIXELS, " (pixels)")),
    "training_images": Parameter("data", "int",
        "Training images to keep, in equal shares of all classes; 0 keeps all.", 0, _IMAGES),
    "test_images": Parameter("data", "int",
        "Test images to keep, in equal shares of all classes; 0 keeps all.", 0, _IMAGES),
    "min_images": Parameter("data", "int",
        "Classes with fewer images, or too few to be split, are left out; 0 keeps all classes, and "
        "refuses the study if one has too few.", 0, _IMAGES),
    "damaged": Parameter("data", "str",
        "Damaged files, such as those cut off: `use` reads them as far as they go, `skip` leaves "
        "them out; both list them.", "use", _one_of("use", "skip")),
    "max_megapixels": Parameter("data", "int",
        "Pictures of more megapixels are left out.",
        MAX_MEGAPIXELS, _between(1, 10_000, " (million pixels)")),
    "test_fraction": Parameter("data", "float",
        "Share of each class that becomes test images, if the data set has no test images.",
        0.2, _FRACTION),
    "validation_fraction": Parameter("data", "float",
        "Share of each class's training images set apart for validation, if the data set has no "
        "validation images.", 0.1, _FRACTION),
    "split_seed": Parameter("data", "int",
        "Seed of every choice of images, independent of the training seeds.",
        0, _between(0, MOST_SEED)),
    "learn_from": Parameter("data", "int",
        "Training images used for training and validation, in equal shares of all classes; 0 uses "
        "all. The gallery keeps all of them. May differ between architectures.",
        0, _IMAGES),
    # How the network is built.
    "backbone": Parameter("network", "str",
        "The network below the head.", bound=_one_of(*BACKBONES)),
    "weights": Parameter("network", "str",
        "Initial weights of the backbone: `none` (random), `imagenet`, `study:<study>` (as trained "
        "in another study) or the path of a weights file.", "none",
        Bound(lambda value: value not in ("", "study:"),
              "must be none, imagenet, study:<study> or the path of a weights file")),
    "train": Parameter("network", "str",
        "What is trained: `all`; `last_blocks:<n>`, the head and the last n blocks of the "
        "backbone; `head`, which keeps the backbone frozen.", "all",
        Bound(lambda value: re.fullmatch("head|all|last_blocks:[1-9][0-9]{0,2}", value) is not None,
              "must be head, last_blocks:<n> or all")),
    "input_size": Parameter("network", "int",
        "Side length in pixels of the backbone's input; the network resizes images itself.",
        32, _between(32, MOST_PIXELS, " (pixels)")),
    "pooling": Parameter("network", "str",
        "Turns feature maps into one vector; `gem` is the generalised mean, `attention` a learnt "
        "weighted mean.", "avg", _one_of(*choices.POOLINGS)),
    "feature_maps": Parameter("network", "bool",
        "Whether to cache a frozen backbone's feature maps instead of its pooled features, so "
        "that heads with different poolings share them.", False),
    "embedding": Parameter("network", "str",
        "The layer whose output is the embedding: `penultimate`, a dense layer with ReLU before "
        "the classifier; `projection`, one without ReLU; `pooled`, the pooled features.",
        "penultimate", _one_of(*choices.EMBEDDINGS)),
    "embedding_dim": Parameter("network", "int",
        "Units of that dense layer; not used with `pooled`.", 256, _SIZE),
    "dropout": Parameter("network", "float",
        "Dropout rate of the embedding. The stages of the plain CNN, and the features on which a "
        "head is trained first, use half this rate.", 0.0, _SHARE),
    "mixed_precision": Parameter("network", "bool",
        "Whether a GPU computes in half precision where possible; a CPU never does.", True),
    # How it is trained.
    "head_epochs": Parameter("training", "int",
        "Maximum number of epochs in which only the head is trained, on features of the frozen "
        f"backbone, before `epochs`. Each has at least {choices.HEAD_STEPS} steps. Training stops "
        f"after `early_stopping` epochs ({choices.HEAD_PATIENCE} if that is 0) without a better "
        "validation accuracy.",
        0, _EPOCHS),
    "head_batch_size": Parameter("training", "int",
        "Images per step in those epochs.", 256, _SIZE),
    "head_learning_rate": Parameter("training", "float",
        "Highest learning rate in those epochs.", 1e-3, _RATE),
    "epochs": Parameter("training", "int",
        "Epochs in which the backbone is trained with its head; not used with `train: head`.",
        0, _EPOCHS),
    "measured_epochs": Parameter("training", "list[int]",
        "Epochs after which the network is measured, in addition to the last one.", [],
        _all_between(1, MOST_EPOCHS, "epochs", fewest=0)),
    "batch_size": Parameter("training", "int", "Images per step.", 64, _SIZE),
    "optimizer": Parameter("training", "str",
        "`sgd` has a Nesterov momentum of 0.9.", "adam", _one_of(*choices.OPTIMIZERS)),
    "learning_rate": Parameter("training", "float", "Highest learning rate.", 1e-3, _RATE),
    "schedule": Parameter("training", "str",
        "How the learning rate changes; `cosine` begins with a warm-up epoch.",
        "cosine", _one_of(*choices.SCHEDULES)),
    "weight_decay": Parameter("training", "float",
        "Share of each weight subtracted per step, multiplied by the learning rate.", 0.0, _SHARE),
    "augmentation": Parameter("training", "list[str]",
        "Random changes of each training image, different in each epoch.", [],
        _some_of(*choices.AUGMENTATIONS)),
    "label_smoothing": Parameter("training", "float",
        "Share of the target probability spread over all classes.", 0.0, _SHARE),
    "early_stopping": Parameter("training", "int",
        "Training ends after this many epochs without a better validation accuracy, and the "
        "weights of the best epoch are restored; 0 trains for all epochs.", 0, _EPOCHS),
    # How embeddings are made.
    "test_time_flips": Parameter("embedding", "bool",
        "Whether an embedding is the mean over an image and its mirror image.", False),
    "whitening": Parameter("embedding", "int",
        "Dimensions kept by PCA whitening, which is fitted on the training images; 0 disables it.",
        0, _between(0, 65_536)),
    # What is measured.
    "seeds": Parameter("measurement", "list[int]",
        "Seeds of initial weights, image order and dropout; each seed trains a new network.",
        bound=_all_between(0, MOST_SEED, "seeds")),
    "protocols": Parameter("measurement", "list[str]",
        "Which images form the gallery and the queries; architectures are compared under the "
        "first. `hashing_1k` requires `cifar10`.",
        bound=Bound(lambda value: value and _some_of(*PROTOCOLS).holds(value)
                    and value[0] != "unseen_classes",
                    f"must contain one or more of {', '.join(PROTOCOLS)}, without "
                    "duplicates and with unseen_classes not first")),
    "unseen": Parameter("measurement", "int",
        "Number of classes that the protocol `unseen_classes` leaves out of training.",
        2, _between(1, 10**6)),
    "draws": Parameter("measurement", "int",
        "How often that protocol draws these classes; each draw trains a new network.",
        3, _between(1, 1000)),
    "ks": Parameter("measurement", "list[int]",
        "Depths at which rankings are measured.", [1, 5, 10, 100],
        _all_between(1, 10**9, "depths")),
    # What can replace a network.
    "baseline": Parameter("baseline", "str",
        "Embeddings made without a network of the study; set instead of `backbone`.",
        bound=_one_of(*BASELINES, VECTORS)),
    "vectors": Parameter("baseline", "str",
        "Path of the file with the embeddings, only for `baseline: vectors`. Its columns (Parquet) "
        "or arrays (`numpy.savez`) are `path`, the names of the images or paths that end in them, "
        "`vector` and optionally `probabilities`, one for each class in their order.",
        bound=Bound(lambda value: value.endswith(SUFFIXES),
                    f"must end in {' or '.join(SUFFIXES)}")),
}
# fmt: on
# The end of docs/parameters.md: keys of a study's files that are not parameters of a run.
OTHER_KEYS = """

## Other keys

| key | file | meaning |
|---|---|---|
| `notebook` | `<architecture>.yaml` | Name of the notebook in `notebooks/` that runs the \
architecture, without `.ipynb`; by default the one named like the file, else `architecture`, and \
`baseline` for baselines. |
| `grid` | `study.yaml`, `<architecture>.yaml` | Lists of values for some parameters. The \
architecture runs once per combination, and `index.html` compares the combinations. A grid in \
`<architecture>.yaml` replaces that of `study.yaml`. |
| `pages` | `study.yaml` | Names of further notebooks in `notebooks/`, each with its parameters. \
They run after all others, and each makes a page of the report. |

This grid runs each architecture four times, at two input sizes and with a frozen and a trained
backbone:

```yaml
grid:
  input_size: [32, 64]
  train: [head, all]
```

A list of grids over the same parameters, in the same order, runs the combinations of each of them.
This one leaves out `train: all` at 64 pixels:

```yaml
grid:
  - {input_size: [32, 64], train: [head]}
  - {input_size: [32], train: [all]}
```

Values in a grid override those in the files, and a parameter set by `SET` is not varied. A grid
cannot vary the parameters of [data](#data), except `learn_from`, or those of
[measurement](#measurement).

A page with its parameters, as in `params/scale/study.yaml`:

```yaml
pages:
  scale:
    sizes: [10000, 100000]
```
"""
# Parameters of the backbone; those of the head have the prefix `head_`.
NOT_OF_HEAD = ("epochs", "batch_size", "learning_rate")


def names_in(*groups: str) -> tuple[str, ...]:
    """The parameters of the given groups, in the order of `PARAMETERS`."""
    return tuple(name for name, row in PARAMETERS.items() if row.group in groups)


# The parameters that select the images, the same for all runs of a study, and those of measurement.
DATA = tuple(name for name in names_in("data") if name != "learn_from")
MEASUREMENT = names_in("measurement")
OF_BASELINES = (*DATA, *MEASUREMENT, "baseline")
OF_NETWORKS = names_in("data", "network", "training", "embedding", "measurement")


def names_for(parameters: Mapping) -> tuple[str, ...]:
    """The names of all parameters of a run, given some of them: of a network or of a baseline."""
    if "baseline" not in parameters:
        return OF_NETWORKS
    return OF_BASELINES + (("vectors",) if parameters["baseline"] == VECTORS else ())


def merge(layers: Mapping[str, Mapping], names: Collection[str]) -> dict:
    """Check parameters, and merge defaults and layers, each of which overrides the previous ones.

    Layers are named as error messages name them; `names` are the parameters to return, in this
    order. StudyError if a parameter is unknown, missing, ill-typed or out of bounds.
    """
    rows = {name: PARAMETERS[name] for name in names}
    values = {name: row.default for name, row in rows.items() if row.default is not None}
    for source, layer in layers.items():
        for key, value in layer.items():
            if key not in rows:
                raise StudyError(
                    f"{source}: unknown parameter {shortened(key)}{_nearest(key, names)}"
                )
            if error := rows[key].error(value):
                raise StudyError(f"{source}: {key} {error}")
        values |= layer
    if missing := ", ".join(name for name in names if name not in values):
        raise StudyError(f"{' or '.join(layers)}: missing parameter {missing}: add it")
    return {
        name: float(values[name]) if row.type == "float" else values[name]
        for name, row in rows.items()
    }


@dataclass(frozen=True)
class Settings:
    """Complete parameters by group; those of a network are empty for a baseline."""

    data: dict
    network: dict
    training: dict
    embedding: dict
    measurement: dict


def complete(
    *,
    data: dict,
    network: dict | None = None,
    training: dict | None = None,
    embedding: dict | None = None,
    measurement: dict,
    baseline: str | None = None,
    vectors: str = "",
) -> Settings:
    """Check the groups of parameters of a notebook and fill in defaults.

    `baseline` is the name of a baseline that replaces the network, `vectors` its file. StudyError
    as for `merge`, or if a parameter contradicts another.
    """
    groups = {"data": data, "network": network, "training": training, "embedding": embedding}
    groups |= {"measurement": measurement}
    if baseline is not None:
        of_baseline = {"baseline": baseline} | ({"vectors": vectors} if vectors else {})
        names = [name for name in names_in("baseline") if name in names_for(of_baseline)]
        merge({"this notebook": of_baseline}, names)
    completed = {}
    for group, parameters in groups.items():
        for key in parameters or ():
            if key in PARAMETERS and PARAMETERS[key].group != group:
                raise StudyError(f"{group}: {key} belongs to {PARAMETERS[key].group}")
        names = names_in(group) if baseline is None or group in ("data", "measurement") else ()
        completed[group] = merge({group: parameters or {}}, names)
    settings = Settings(**completed)
    if broken := conflict(settings.network | settings.training | settings.embedding):
        raise StudyError(broken)
    return settings


def conflict(parameters: Mapping) -> str:
    """The first contradiction between parameters; empty if there is none, as for a baseline."""
    if "backbone" not in parameters:
        return ""
    train, weights, backbone = parameters["train"], parameters["weights"], parameters["backbone"]
    blocks, n_trained = BACKBONES[backbone].blocks, int(train.partition(":")[2] or 0)
    epochs, head_epochs, measured = (
        parameters[name] for name in ("epochs", "head_epochs", "measured_epochs")
    )
    whitening, width = parameters["whitening"], parameters["embedding_dim"]
    is_frozen, is_random, trained_head = train == "head", weights == "none", head_epochs > 0
    beyond = [epoch for epoch in measured if epoch > epochs][:1]
    # fmt: off
    rules = [
        (weights == "imagenet" and not BACKBONES[backbone].imagenet,
         f"weights: {backbone} has no ImageNet weights: use none, study:<study> or a path"),
        (is_frozen and measured,
         "measured_epochs: must be [] if train is head, because they count epochs of the backbone"),
        (is_frozen and not trained_head,
         "head_epochs: must be greater than 0 if train is head"),
        (not is_frozen and not epochs,
         f"epochs: must be greater than 0 if train is {train}"),
        (not is_frozen and is_random and trained_head,
         "head_epochs: must be 0 if weights is none, because training a head on random features "
         "does not help the backbone"),
        (not is_frozen and not is_random and not trained_head,
         f"head_epochs: must be greater than 0 if weights is {weights} and train is {train}, "
         "because gradients through an untrained head would spoil the backbone"),
        (beyond,
         f"measured_epochs: {beyond} is greater than epochs: {epochs}"),
        (measured and parameters["early_stopping"],
         "measured_epochs: must be [] with early_stopping, which decides the number of epochs"),
        (n_trained > len(blocks),
         f"train: {train}: {backbone} has only {len(blocks)} blocks: {', '.join(blocks)}"),
        (n_trained and is_random,
         f"train: {train}: must be all if weights is none, because the other blocks would keep "
         "random weights"),
        (is_frozen and parameters["augmentation"],
         "augmentation: impossible with a frozen backbone, which processes each image only once: "
         "set augmentation: [] or train: all"),
        (parameters["embedding"] != "pooled" and whitening > width,
         f"whitening: {whitening} is greater than embedding_dim: {width}"),
    ]
    # fmt: on
    return next((message for is_broken, message in rules if is_broken), "")


def unused(parameters: Mapping) -> set[str]:
    """The parameters of a network that have no effect, given the others."""
    names = set(NOT_OF_HEAD) if parameters["train"] == "head" else set()
    if not parameters["head_epochs"]:
        names |= {"head_batch_size", "head_learning_rate"}
    if parameters["embedding"] == "pooled":
        names.add("embedding_dim")
    return names


def _is_of(value, kind: str) -> bool:
    """Whether a value is of a type; an int is accepted as a float, a bool only as a bool."""
    if kind.startswith("list["):
        return isinstance(value, list) and all(_is_of(item, kind[5:-1]) for item in value)
    return type(value).__name__ == kind or (kind == "float" and type(value) is int)


def shortened(value) -> str:
    """A value in an error message, shortened so that the message stays one line."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _nearest(key, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(key)[:MOST_SHOWN], names, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def document() -> str:
    """The text of docs/parameters.md."""
    lines = [
        "# Parameters",
        "",
        "This page lists every parameter of a run, and the [other keys](#other-keys) of a study's "
        "files; `make docs` writes it from `src/cbir/studies/params.py`. "
        "`params/<study>/study.yaml` sets the parameters that the architectures of a study share, "
        "`params/<study>/<architecture>.yaml` those of a single "
        'architecture, and `make report SET="key=value"` overrides both. A parameter without a '
        "default must be set.",
    ]
    for group, text in GROUPS.items():
        lines += ["", f"## {group.capitalize()}", "", text, ""]
        lines += ["| parameter | type | default | bounds | meaning |", "|---|---|---|---|---|"]
        for name in names_in(group):
            row = PARAMETERS[name]
            default = yaml.safe_dump([row.default], default_flow_style=True).strip()[1:-1]
            default = "" if row.default is None else f"`{default}`"
            bounds = row.bound.rule.replace("<", "\\<") if row.bound else ""
            lines.append(f"| `{name}` | `{row.type}` | {default} | {bounds} | {row.description} |")
    return "\n".join(lines) + OTHER_KEYS
