"""What a report would take: which notebooks would run, what is cached, what must be downloaded."""

import json

from cbir import StudyError, project_root
from cbir.cache import Artifact, backend, find, finished, is_current, keras_home
from cbir.images import protocols
from cbir.images.dataset import is_decoded
from cbir.images.pictures import list_folder
from cbir.networks import weights
from cbir.networks.backbones import BACKBONES
from cbir.progress import duration
from cbir.reporting.runs import machine
from cbir.studies import params
from cbir.studies.study import Study, run_key

# Starting a notebook, drawing its figures, writing its page.
NOTEBOOK_SECONDS = 40
# Embeddings that test the maps of `explain.of` with its usual settings, and those for the maps.
EXPLAINED = 2_500


def describe(study: Study) -> str:
    """The plan of a report, as lines of text; nothing is made or downloaded for it."""
    first = study.runs[0].parameters
    decoded = _is_decoded(first)
    # What is not all there would be made by reading it.
    is_read = decoded and _is_split(first)
    gpus = machine()["gpus"]
    images = "decoded before" if decoded else _describe_images(first["dataset"])
    lines = [
        f"report    reports/{study.name}/index.html",
        f"images    {first['dataset']}: {images}",
        f"backend   {backend()}, GPU: {', '.join(gpus) or 'none found'}",
    ]
    shared = {
        key: value
        for key, value in first.items()
        if all(run.parameters.get(key) == value for run in study.runs)
    }
    usual = {key: row.default for key, row in params.PARAMETERS.items()}
    lines.append(f"shared    {_join(shared, usual)}")
    lines += ["          the defaults of docs/parameters.md for all else", ""]
    total, passed = 0.0, set()
    for run in study.runs:
        given = run.parameters
        own = {key: value for key, value in given.items() if key not in shared}
        lines.append(f"{run.architecture}: notebooks/{run.notebook.name}")
        if described := _join(own, usual) or run.parameters["variant"]:
            lines.append(f"  {described}")
        missing = weights.missing(*run.weights)
        lacking = "" if missing else _lacking(run)
        if missing:
            lines.append(f"  will download {missing}")
        if run.architecture not in study.chosen:
            lines.append("  left out")
        elif lacking:
            lines.append(f"  cannot run: {lacking}")
        elif (
            is_read
            and not missing
            and is_current(study.folder / run.architecture, run_key(study, run))
        ):
            lines.append("  up to date")
        else:
            seconds = NOTEBOOK_SECONDS
            if not run.is_baseline:
                wanted = _trainings(study, run, is_read)
                # A training is found by the SHA-256 of its weights, which must be there for that.
                is_known = is_read and not missing
                cached = sum(_trained(study, run, *each) for each in wanted) if is_known else 0
                left = len(wanted) - cached
                counts = _count_images(study, is_read)
                seconds += sum(_estimate(given, counts, passed) for _ in range(left))
                seconds += EXPLAINED / _embedding_rate(given)
                lines.append(f"  trainings: {cached} cached, {left} to be done")
            lines.append(f"  will run, about {duration(seconds)}")
            total += seconds
    lines += ["", f"about {duration(total + NOTEBOOK_SECONDS) if total else '0 s'} in all"]
    if total:
        lines[-1] += ": a rough estimate, from the speed of a machine with two cores and no GPU"
    return "\n".join(lines)


def _lacking(run: params.RunConfig) -> str:
    """Why the weights of a run cannot be had; empty where they can."""
    try:
        weights.find(*run.weights)
    except StudyError as error:
        return str(error)
    return ""


def _join(parameters: dict, usual: dict) -> str:
    return ", ".join(
        f"{key}={value}"
        for key, value in parameters.items()
        if key not in params.PLACED and usual.get(key) != value
    )


def _is_decoded(given: dict) -> bool:
    return is_decoded(**{key: given[key] for key in params.DATA if key != "validation_fraction"})


def _is_split(given: dict) -> bool:
    """Whether the decoded images are split into training and validation images as asked."""
    wanted = {key: given[key] for key in params.DATA if key != "validation_fraction"}
    split = {key: given[key] for key in ("validation_fraction", "split_seed")}
    package = "images"
    decoded = [
        each for each in finished("images", package) if each.manifest["parameters"] == wanted
    ]
    content = [json.loads((each.folder / "content.json").read_text("utf-8")) for each in decoded]
    return all(
        find("split", parameters=split, reads=[each["fingerprint"]], package=package)
        for each in content
    )


def _describe_images(dataset: str) -> str:
    if dataset == "digits":
        return "part of scikit-learn, no download"
    folder = project_root() / ("data/cifar10" if dataset == "cifar10" else dataset)
    if dataset == "cifar10" and not folder.is_dir():
        if any((keras_home() / "datasets").glob("cifar-10-batches-py*_archive")):
            return "as Keras has downloaded it"
        return "will be downloaded by Keras (about 170 MB)"
    found = list_folder(folder)
    count = sum(len(paths) for classes in found.values() for paths in classes.values())
    return f"{count:,} pictures, {len(found['train'])} classes"


def _count_images(study: Study, is_read: bool) -> tuple[int, int]:
    """Number of training images and of all images, known or guessed without reading them."""
    if is_read:
        dataset = study.dataset
        return len(dataset.train), len(dataset.labels)
    given = study.runs[0].parameters
    name = given["dataset"]
    known = {"digits": (1_294, 1_797), "cifar10": (45_000, 60_000)}
    if name in known:
        n_train, n_all = known[name]
        n_test = min(10_000, given["test_images"] or 10_000) if name == "cifar10" else 360
        kept = given["training_images"] or n_all
        return min(n_train, kept), min(n_all, kept + n_test)
    found = list_folder(project_root() / name)
    count = sum(len(paths) for classes in found.values() for paths in classes.values())
    return round(0.7 * count), count


def _trainings(study: Study, run: params.RunConfig, is_read: bool) -> list[tuple[int, str]]:
    """The seed and the split of every training that a run needs; splits are known once read."""
    given, wanted = run.parameters, []
    for seed in given["seeds"]:
        for protocol in given["protocols"]:
            draws = range(given["draws"]) if protocol == "unseen_classes" else [None]
            if protocol == "unseen_classes" and seed != given["seeds"][0]:
                continue
            for draw in draws:
                split = f"{protocol} {draw}".replace("held_out_gallery", "closed")
                if is_read:
                    images, unseen = study.dataset_of(run), given["unseen"]
                    view = protocols.view(images, protocol, unseen=unseen, draw=draw)
                    split = view.split_fingerprint
                wanted.append((seed, split))
    return list(dict.fromkeys(wanted))


def _trained(study: Study, run: params.RunConfig, seed: int, split: str) -> bool:
    """Whether a training would be served from the cache, and that of its head before it."""
    given, row = run.parameters, BACKBONES[run.parameters["backbone"]]
    train = given["train"]
    known = given | {
        "seed": seed,
        "training_seed": seed,
        "n_classes": len(study.dataset.classes),
        "constructor": [row.constructor, row.arguments, row.preprocess],
        "first_trained": row.blocks[-int(train.partition(":")[2])] if ":" in train else None,
        "was_frozen": given["head_epochs"] > 0,
        "measured_epochs": sorted(given["measured_epochs"]),
    }
    del known["feature_maps"]  # which pooling decides too
    reads = [split, weights.find(*run.weights).sha256]
    heads = [""]
    if given["head_epochs"]:
        own = ("epochs", "batch_size", "learning_rate")
        of_head = {name: given[f"head_{name}"] for name in own}
        of_head |= {"train": "head", "first_trained": None}
        of_head |= {"measured_epochs": [], "augmentation": []}
        heads = [each.key for each in _finished_trainings(known | of_head, reads)]
    if train == "head":
        return bool(heads)
    # The fourth of what a training reads is the training of its head.
    return any(each.manifest["reads"][3] in heads for each in _finished_trainings(known, reads))


def _finished_trainings(known: dict, reads: list[str]) -> list[Artifact]:
    """Trainings that the cache would serve, as far as is known without building a network."""
    return [
        each
        for each in finished("training", "networks")
        if each.manifest["reads"][:2] == reads
        and all(
            known.get(key, value) == value for key, value in each.manifest["parameters"].items()
        )
    ]


def _estimate(given: dict, counts: tuple[int, int], passed: set[tuple]) -> float:
    """Seconds to train and embed, from the rates, which fall with the number of pixels.

    Args:
        given: the parameters of a run.
        counts: from `_count_images`.
        passed: frozen backbones that have seen the images already; the run's own joins them.
    """
    train, _ = BACKBONES[given["backbone"]].rates
    pixels = (given["input_size"] / 32) ** 2
    n_train, n_all = counts
    n_train = min(n_train, given["learn_from"] or n_train)
    one_pass, seconds = n_all / _embedding_rate(given), 0.0
    if given["head_epochs"]:
        has_maps = given["feature_maps"] or given["pooling"] in params.POOLINGS_THAT_LEARN
        frozen = given["backbone"], given["weights"], given["input_size"]
        frozen += ("maps" if has_maps else given["pooling"],)
        # Random weights are other ones with each seed.
        is_passed = frozen in passed and given["weights"] != "none"
        seconds += given["head_epochs"] * n_train / 50_000 + one_pass * (not is_passed)
        passed.add(frozen)
    if given["train"] == "head":
        return seconds
    return seconds + n_train * given["epochs"] * pixels / train + one_pass


def _embedding_rate(given: dict) -> float:
    """Images a second, of which there are fewer the more pixels each has."""
    return BACKBONES[given["backbone"]].rates[1] / (given["input_size"] / 32) ** 2
