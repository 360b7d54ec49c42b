"""The plan of a report: what is up to date, what would run and how long, what is downloaded."""

import numpy as np

from cbir import StudyError
from cbir.cache import is_current
from cbir.images.dataset import SELECTION, Dataset, is_cached, select
from cbir.images.folders import LeftOut, data_place, describe_files, list_pictures, short_list
from cbir.machine import backend, keras_home, machine
from cbir.networks import vector_files, weights
from cbir.networks.backbones import BACKBONES
from cbir.networks.choices import HEAD_STEPS
from cbir.progress import duration
from cbir.studies.configs import RunConfig
from cbir.studies.study import INDEX, PAGES, Study, page_inputs, run_key

# The time to start a notebook, draw its figures and write its page.
NOTEBOOK_SECONDS = 25
# The features per second in the training of a head, with the 512 channels of VGG16, on two cores.
HEAD_RATE = 40_000
INDENT = " " * 10
LEFT_OUT, CANNOT_RUN = "left out", "cannot run: "
# The number of masked images that are embedded to test a network's explanations.
MASKED_IMAGES = 2_500


def plan_text(study: Study) -> str:
    """The plan as lines of text; computes and downloads nothing."""
    are_images_cached = is_cached(**study.data)
    images, n_train, n_images = _describe_images(study, are_images_cached)
    lines = [
        f"report    reports/{study.name}/index.html",
        f"images    {study.data['dataset']}: {images}",
        f"backend   {backend()}, GPU: {', '.join(machine()['gpus']) or 'none found'}",
    ]
    run_keys, missing, is_known, total = {}, [], True, 0.0
    for run in study.runs:
        name = run.architecture
        state, key = _state(study, run, are_images_cached)
        is_known &= key is not None
        if key:
            run_keys[name] = key
        else:
            reason = "not run" if state == LEFT_OUT else state.removeprefix(CANNOT_RUN)
            missing.append(f"{name}: {reason}")
        if state.startswith("will"):
            seconds = _estimate(run, n_train, n_images)
            state += f", about {duration(seconds)}"
            total += seconds
        lines.append(f"{name}: {run.notebook.relative_to(study.root)}: {state}")
    for page in study.pages:
        key = is_known and page_inputs(study, page, run_keys, missing)[0]
        is_up_to_date = key and is_current(study.folder / page.folder, key)
        total += 0 if is_up_to_date else NOTEBOOK_SECONDS
        state = "up to date" if is_up_to_date else "will run"
        if page.name not in INDEX | PAGES and not is_up_to_date:
            state += ", its measurements not estimated"
        lines.append(f"{page.name}: {page.notebook.relative_to(study.root)}: {state}")
    if not total:
        return "\n".join([*lines, "nothing to run"])
    lines.append(
        f"about {duration(total)} in total on two cores without a GPU (a rough estimate; less if "
        "steps are cached or shared by several runs)"
    )
    return "\n".join(lines)


def _state(study: Study, run: RunConfig, are_images_cached: bool) -> tuple[str, str | None]:
    """The state of a run in words, and its key: empty without results, None if it is not known."""
    is_chosen = run.architecture in study.chosen
    if missing := weights.missing(*run.weights):
        return (f"will download {missing} and run", None) if is_chosen else (LEFT_OUT, "")
    # The key contains the fingerprint of the images, which only cached images have.
    try:
        key = run_key(study, run) if are_images_cached else None
        weights.find(*run.weights)
        if run.vectors:
            vector_files.find(run.vectors)
    except StudyError as error:
        return (f"{CANNOT_RUN}{error}", "") if is_chosen else (LEFT_OUT, "")
    is_up_to_date = key and is_current(study.folder / run.architecture, key)
    if not is_chosen:
        return LEFT_OUT, key if is_up_to_date else key and ""
    return "up to date" if is_up_to_date else "will run", key


def _describe_images(study: Study, are_cached: bool) -> tuple[str, int, int]:
    """The images in words, and the approximate numbers of training images and of all images.

    Images in a folder are counted, but not decoded, unless they are cached.
    """
    name, path = study.data["dataset"], data_place(study.data["dataset"])
    if are_cached:
        dataset = study.dataset
        lines = _describe_classes(
            dataset.classes, dataset.labels, dataset.layout, dataset.left_out, dataset.remarks
        )
        return "cached, " + lines, len(dataset.train), len(dataset.labels)
    if name == "digits":
        return "part of scikit-learn, no download", 1_294, 1_797
    if name == "cifar10" and not path.is_dir():
        is_downloaded = any((keras_home() / "datasets").glob("cifar-10-batches-py*_archive"))
        description = "will be downloaded (170 MB; its host is slow at times: up to 35 min)"
        description = "already downloaded by Keras" if is_downloaded else description
        n_train = min(45_000, study.data["training_images"] or 45_000)
        return description, n_train, n_train + min(15_000, study.data["test_images"] or 15_000)
    pictures = list_pictures(path)
    selection = {key: study.data[key] for key in SELECTION}
    rows, n_gallery, not_selected = select(pictures, pictures.unreadable, **selection)
    unreadable = [LeftOut(pictures.names[row], why) for row, why in pictures.unreadable.items()]
    left_out = pictures.left_out + unreadable + not_selected
    lines = _describe_classes(
        pictures.classes, pictures.labels[rows], pictures.layout, left_out, use="not decoded yet"
    )
    kept_labels, labels = np.unique(pictures.labels[rows], return_inverse=True)
    classes, gallery = [pictures.classes[label] for label in kept_labels], np.arange(n_gallery)
    study.check_protocols(
        Dataset(
            study.data, classes, np.empty((len(rows), 0)), labels, pictures.names, train=gallery,
            validation=gallery[:0], gallery=gallery, queries=np.arange(n_gallery, len(rows)),
            fingerprint="",
        )
    )  # fmt: skip
    lines += f"\n{INDENT}Damaged pictures are found when they are decoded; the report lists every "
    lines += "such file in files.csv."
    return lines, round(n_gallery * (1 - study.data["validation_fraction"])), len(rows)


def _describe_classes(
    classes: list[str],
    labels: np.ndarray,
    layout: str,
    left_out: list[LeftOut],
    remarks: list[LeftOut] = (),
    *,
    use: str = "used",
) -> str:
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    names = [f"{name} ({count:,})" for name, count in zip(classes, counts, strict=True) if count]
    images = "images" if use == "used" else "pictures, not decoded yet,"
    lines = [f"{len(labels):,} {images} in {len(names)} classes: {short_list(names)}", layout]
    lines += describe_files(len(labels), left_out, remarks, use).splitlines()
    return f"\n{INDENT}".join(line for line in lines if line)


def _estimate(run: RunConfig, n_train: int, n_images: int) -> float:
    """Seconds that a run takes if no step is cached; numbers as from `_describe_images`."""
    if run.is_baseline:
        return NOTEBOOK_SECONDS
    settings = run.parameters
    # Rates are measured at 32 pixels and fall with the number of pixels.
    images_trained, images_embedded = (
        rate / (settings["input_size"] / 32) ** 2 for rate in BACKBONES[settings["backbone"]].rates
    )
    n_train = min(n_train, settings["learn_from"] or n_train)
    # These two protocols use the same network.
    splits = {protocol.replace("held_out_gallery", "closed") for protocol in settings["protocols"]}
    n_trainings = sum(
        settings["draws"] if split == "unseen_classes" else len(settings["seeds"])
        for split in splits
    )
    seconds = NOTEBOOK_SECONDS + MASKED_IMAGES / images_embedded
    if settings["head_epochs"]:
        # The frozen backbone embeds each image once for all trainings of the head.
        seconds += n_images / images_embedded
        rows = max(n_train, HEAD_STEPS * settings["head_batch_size"])
        seconds += n_trainings * settings["head_epochs"] * rows / HEAD_RATE
    if settings["train"] != "head":
        one_training = settings["epochs"] * n_train / images_trained + n_images / images_embedded
        seconds += n_trainings * one_training
    return seconds
