"""The commands `cbir search` and `cbir index`: their arguments and what they print."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

from cbir import StudyError, cbir_command
from cbir.files import write_text

# The maximum number of a study's classes that are listed.
MOST_CLASSES = 10
# The value of --min-similarity that stands for `Searcher.usual_similarity`.
USUAL = "usual"
# Side of the pictures on an HTML page, in pixels.
THUMBNAIL = 96


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `search` and `index` to the commands of the program."""
    search = commands.add_parser(
        "search",
        help="find the gallery images that are most similar to your pictures",
        description="Predict the class of your own pictures, and find the most similar images in "
        "the gallery of a study or in a folder embedded by `cbir index`. The results contain "
        "neither the picture itself nor pictures given with --like or --unlike. Starting "
        "takes most of the time, so search for several pictures in one call.",
        epilog="examples: %(prog)s cat.jpg --study holiday; %(prog)s new/ --study cifar10 "
        "-k 5 --html results.html; %(prog)s --like a.png b.png --unlike c.png --gallery holiday",
    )
    index = commands.add_parser(
        "index",
        help="embed a folder of your own pictures for `search --gallery`",
        description="Embed a folder of pictures with a trained network of a study. If the folder "
        "was embedded before, embed only new and changed pictures, and remove deleted ones; the "
        "network stays the same unless --study or --architecture names another.",
    )
    # fmt: off
    for command in (search, index):
        command.add_argument("--study", default="", metavar="NAME",
            help="a finished study (default: digits)")
        command.add_argument("--engine", default="", metavar="ENGINE",
            help="what finds the nearest images: exact, faiss:HNSW32 or another faiss factory "
            "string, milvus:./folder, milvus:http://host:19530 (default: exact, or that of the "
            "gallery)")
        command.add_argument("--architecture", default="", metavar="NAME",
            help="one of its architectures (default: the one with the highest mAP)")
    search.add_argument("pictures", nargs="*", metavar="PICTURE",
        help="a file, a folder, a pattern such as '*.jpg', or - for standard input")
    search.add_argument("-k", type=_positive_integer, default=10,
        help="number of results (default: 10)")
    search.add_argument("--within", choices=("predicted_class", "soft"),
        help="search only the predicted class, or only the most probable classes")
    search.add_argument("--gallery", default="", metavar="NAME",
        help="search a folder embedded by `cbir index` (default: the gallery of the study)")
    search.add_argument("--like", nargs="+", default=[], metavar="PICTURE",
        help="positive examples: the query moves towards them")
    search.add_argument("--unlike", nargs="+", default=[], metavar="PICTURE",
        help="negative examples: the query moves away from them")
    search.add_argument("--min-similarity", type=_similarity, default=-1.0, metavar="S",
        help="leave out results with a lower similarity: a number from -1 to 1, or `usual` for "
        "the similarity to the nearest training image that 95 %% of the study's validation images "
        "reach")
    search.add_argument("--html", metavar="FILE", type=Path, help="also write an HTML page")
    search.add_argument("--json", action="store_true", help="print JSON instead of tables")
    search.set_defaults(run=run_search, usage_error=search.error)
    index.add_argument("folder", metavar="FOLDER", type=Path,
        help="a folder with pictures, at any depth")
    index.add_argument("--name", default="", metavar="NAME",
        help="name of the gallery (default: the name of the folder)")
    index.add_argument("--check", action="store_true",
        help="compare the content of all files, even if their sizes and times are unchanged")
    index.add_argument("--workers", choices=("ray",), default="",
        help="embed in parallel processes of Ray, on this machine or on the cluster at "
        "RAY_ADDRESS; setting RAY_ADDRESS alone also selects Ray")
    index.set_defaults(run=run_index)
    # fmt: on


def _positive_integer(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, not {text!r}")
    return int(text)


def _similarity(text: str) -> float | str:
    if text == USUAL:
        return text
    with contextlib.suppress(ValueError):
        if -1 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"must be a number from -1 to 1, or {USUAL}, not {text!r}")


def run_search(arguments: argparse.Namespace) -> bool:
    """Print the results for each picture; return False if no picture could be read.

    Raises:
        StudyError: a picture, study or gallery does not exist, or an example cannot be read.
        SystemExit: neither a picture nor a positive example is given.
    """
    from cbir.images.folders import describe_files
    from cbir.retrieval.engines import EXACT
    from cbir.search.answers import find_pictures

    if not (arguments.pictures or arguments.like):
        arguments.usage_error("nothing to search for: give a PICTURE, or --like PICTURE")
    html = arguments.html
    if html and not html.absolute().parent.is_dir():
        raise StudyError(
            f"--html: cannot write {html.name}: the folder {html.parent} does not exist"
        )
    if html and html.is_dir():
        raise StudyError(f"--html: {html} is a folder: name a file in it, as in {html}/page.html")
    # Progress lines must not mix with JSON.
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        # Before the study is opened, so that a missing picture is reported at once.
        named = [
            find_pictures(names) for names in (arguments.pictures, arguments.like, arguments.unlike)
        ]
        searcher, gallery = _open(arguments)
        answers, n_used, left_out, remarks = _search(arguments, named, searcher, gallery)
    run, has_feedback = searcher.run, bool(arguments.like or arguments.unlike)
    classes = ", ".join(searcher.classes[:MOST_CLASSES])
    classes += ", …" if len(searcher.classes) > MOST_CLASSES else ""
    heading = (
        f"Searched {len(gallery.names):,} images of {gallery.name} with {run.architecture} "
        f"of the study {run.study} (classes: {classes})"
        + (f", engine {gallery.engine}" if gallery.engine != EXACT else "")
        + (f", within {arguments.within}" if arguments.within else "")
        + (f", weights: {searcher.describe_feedback_weights()}" if has_feedback else "")
    )
    changes = "" if arguments.gallery else searcher.describe_changes()
    heading += f"\n{changes}" if changes else ""
    if html:
        write_text(html, html_page(answers, left_out, remarks, heading))
    if arguments.json:
        content = {"study": run.study, "architecture": run.architecture}
        content |= {"gallery": gallery.name, "images": len(gallery.names), "engine": gallery.engine}
        content |= {"changes": changes}
        content |= {"usual_similarity": searcher.usual_similarity}
        content |= {"weights": vars(searcher.feedback_weights)} if has_feedback else {}
        content |= {"answers": [as_json(answer) for answer in answers]}
        for key, files in (("left_out", left_out), ("remarks", remarks)):
            content[key] = [f"{one.name}: {one.reason}" for one in files]
        print(json.dumps(content, indent=1))
    else:
        print("\n\n".join([heading, *map(text_table, answers)]))
        if text := describe_files(n_used, left_out, remarks):
            print(f"\n{text}\nall of these files: --json or --html")
        if html:
            print(f"\n{html} written")
    if not answers:
        print("error: none of the pictures could be read", file=sys.stderr)
    return bool(answers)


def run_index(arguments: argparse.Namespace) -> bool:
    """Bring the gallery of a folder up to date, and print what changed."""
    from cbir.images.folders import describe_files
    from cbir.retrieval.engines import EXACT
    from cbir.search import galleries
    from cbir.search.searchers import open_searcher

    galleries.check_folder(arguments.folder)
    name = galleries.gallery_name(arguments.folder, arguments.name)
    previous = galleries.read_source(name)
    study = arguments.study or previous.get("study", "")
    architecture = arguments.architecture
    if study == previous.get("study"):
        architecture = architecture or previous["architecture"]
    searcher = open_searcher(study, architecture)
    name, changes = galleries.index_folder(
        arguments.folder, searcher, name, check=arguments.check,
        held_by=arguments.engine or previous.get("engine", EXACT),
        workers=arguments.workers or (galleries.RAY if os.environ.get("RAY_ADDRESS") else ""),
    )  # fmt: skip
    total = changes.embedded + changes.kept
    engine = galleries.read_source(name)["engine"]
    engine = f", engine {engine}" if engine != EXACT else ""
    print(
        f"{name}: {total:,} pictures, embedded by {searcher.run.architecture} of the study "
        f"{searcher.run.study}{engine}: {changes.embedded:,} new or changed, "
        f"{changes.kept:,} unchanged, {changes.removed:,} removed"
    )
    if text := describe_files(total, changes.left_out, changes.remarks):
        print(f"{text}\nall of these files: {changes.table}")
    print(f"search it with `{cbir_command('search', 'PICTURE', '--gallery', name)}`")
    return True


def _open(arguments: argparse.Namespace):
    """The searcher and the gallery that the arguments name."""
    from cbir.search import galleries
    from cbir.search.searchers import open_searcher

    if not arguments.gallery:
        searcher = open_searcher(arguments.study, arguments.architecture)
        # No gallery of a folder can have a name with a space.
        name = f"study {searcher.run.study}"
        return searcher, searcher.gallery.held_by(arguments.engine, name, searcher.key)
    searcher, gallery = galleries.open_gallery(arguments.gallery, arguments.engine)
    for option in ("study", "architecture"):
        used = getattr(searcher.run, option)
        if getattr(arguments, option) not in ("", used):
            folder = galleries.read_source(arguments.gallery)["folder"]
            name = galleries.free_name(arguments.gallery)
            study = arguments.study or searcher.run.study
            command = galleries.index_command(folder, name, study, arguments.architecture)
            raise StudyError(
                f"the gallery {arguments.gallery!r} was made with the {option} {used}: omit "
                f"--{option}, or make another gallery with `{command}`"
            )
    return searcher, gallery


def _search(
    arguments: argparse.Namespace, named: list, searcher, gallery
) -> tuple[list, int, list, list]:
    """The answers, the number of files used, those left out, and those used with a remark."""
    from cbir.search import answers

    groups, left_out, remarks = [], [], []
    for (files, not_listed), option in zip(named, ("", "--like", "--unlike"), strict=True):
        pictures, unreadable, new_remarks = answers.read_pictures(searcher, files, option)
        groups.append(pictures)
        left_out, remarks = left_out + not_listed + unreadable, remarks + new_remarks
    queries, *marked = groups
    examples = dict(zip(("like", "unlike"), marked, strict=True))
    n_used = len(queries) + sum(map(len, examples.values()))
    if not arguments.pictures:
        queries = [answers.mean_picture(examples["like"])]
    pictures = [*queries, *examples["like"], *examples["unlike"]]
    positions = gallery.positions([Path(picture.name) for picture in pictures])
    of_examples = set().union(*positions[len(queries) :])
    min_similarity = arguments.min_similarity
    if min_similarity == USUAL:
        min_similarity = searcher.usual_similarity
        if min_similarity is None:
            from cbir.search.searchers import MIN_VALIDATION  # imports Numba, which takes a second

            raise StudyError(
                f"--min-similarity: the study cannot say what is {USUAL}, which needs a network "
                f"and at least {MIN_VALIDATION} validation images: give a number"
            )
    results = answers.search_all(
        searcher, gallery, queries, arguments.k, search=arguments.within or "unrestricted",
        positive=[example.vector for example in examples["like"]],
        negative=[example.vector for example in examples["unlike"]],
        left_out=[of_query | of_examples for of_query in positions[: len(queries)]],
        min_similarity=min_similarity,
    )  # fmt: skip
    return results, n_used, left_out, remarks


def as_json(answer) -> dict:
    """An `answers.Answer` as JSON values; pictures are named by their paths."""
    return {
        "picture": answer.picture.name,
        "predicted": answer.predicted,
        "probabilities": answer.probabilities,
        "as_near_as_usual": answer.is_near,
        "results": [
            {
                "rank": result.rank,
                "path": result.name,
                answer.label_kind.replace(" ", "_"): result.label,
                "similarity": result.similarity,
            }
            for result in answer.results
        ],
    }


def text_table(answer) -> str:
    """An `answers.Answer` as lines for a terminal."""
    labels = [answer.label_kind, *(result.label for result in answer.results)]
    width = max(map(len, labels))
    lines = [f"{answer.picture.name}: {answer.prediction}"]
    lines.append(f"  {'':>4}  similarity  {answer.label_kind:<{width}}  picture")
    lines += [
        f"  {result.rank:>4}  {result.similarity:>10.3f}  {result.label:<{width}}  {result.name}"
        for result in answer.results
    ]
    lines = lines if answer.results else [lines[0], "  no results"]
    return "\n".join([*lines, *([f"  {answer.warning}"] if answer.warning else [])])


def html_page(answers: list, left_out: list, remarks: list, heading: str) -> str:
    """A self-contained HTML page of `answers.Answer` objects.

    Args:
        left_out, remarks: as from `answers.read_pictures`.
        heading: one line that describes the search.
    """
    from cbir.reporting.display import TEMPLATES
    from cbir.search.answers import data_url

    return TEMPLATES.get_template("search.html.j2").render(
        answers=answers, files={"Left out": left_out, "Used, with a remark": remarks},
        heading=heading, side=THUMBNAIL, data_url=data_url,
    )  # fmt: skip
