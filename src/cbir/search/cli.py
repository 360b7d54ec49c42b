"""The commands `cbir search` and `cbir index`: their arguments and what they print."""

import argparse
import contextlib
import functools
import json
import sys
from pathlib import Path

from cbir import StudyError
from cbir.cache import write_text
from cbir.progress import NOTED, describe_skipped

# The maximum number of a study's classes that are listed.
MOST_CLASSES = 10
# Side of the pictures on an HTML page, in pixels.
THUMBNAIL = 96


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `search` and `index` to the commands of the program."""
    search = commands.add_parser(
        "search",
        help="find the gallery images that are most similar to your pictures",
        description="Predict the class of your own pictures, and find the most similar images in "
        "the gallery of a study or in a folder embedded by `cbir index`. The results contain "
        "neither the picture itself nor pictures given with --like or --unlike.",
        epilog="examples: cbir search cat.jpg --study holiday; cbir search new/ --study cifar10 "
        "-k 5 --html results.html; cbir search --like a.png b.png --unlike c.png --gallery holiday",
    )
    index = commands.add_parser(
        "index",
        help="embed a folder of your own pictures for `search --gallery`",
        description="Embed a folder of pictures with a trained network of a study. If the folder "
        "was embedded before, embed only new and changed pictures, and remove deleted ones.",
    )
    # fmt: off
    for command in (search, index):
        command.add_argument("--study", default="", metavar="NAME",
            help="a finished study (default: digits)")
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
    search.add_argument("--html", metavar="FILE", type=Path, help="also write an HTML page")
    search.add_argument("--json", action="store_true", help="print JSON instead of tables")
    search.set_defaults(run=run_search, usage_error=search.error)
    index.add_argument("folder", metavar="FOLDER", type=Path,
        help="a folder with pictures, at any depth")
    index.add_argument("--name", default="", metavar="NAME",
        help="name of the gallery (default: the name of the folder)")
    index.set_defaults(run=run_index)
    # fmt: on


def _positive_integer(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, not {text!r}")
    return int(text)


def run_search(arguments: argparse.Namespace) -> bool:
    """Print the results for each picture; return False if no picture could be read.

    Raises:
        StudyError: a picture, study or gallery does not exist.
        SystemExit: neither a picture nor a positive example is given.
    """
    if not (arguments.pictures or arguments.like):
        arguments.usage_error("nothing to search for: give a PICTURE, or --like PICTURE")
    html = arguments.html
    if html and not html.absolute().parent.is_dir():
        raise StudyError(
            f"--html: cannot write {html.name}: the folder {html.parent} does not exist"
        )
    # Progress lines must not mix with JSON.
    with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        engine, gallery = _open(arguments)
        answers, skipped = _search(arguments, engine, gallery)
    run, has_feedback = engine.run, bool(arguments.like or arguments.unlike)
    classes = ", ".join(engine.classes[:MOST_CLASSES])
    classes += ", …" if len(engine.classes) > MOST_CLASSES else ""
    heading = (
        f"Searched {len(gallery.names):,} images of {gallery.name} with {run.architecture} "
        f"of the study {run.study} (classes: {classes})"
        + (f", within {arguments.within}" if arguments.within else "")
        + (f", weights: {engine.describe_feedback_weights()}" if has_feedback else "")
    )
    if html:
        write_text(html, html_page(answers, skipped, heading))
    if arguments.json:
        content = {"study": run.study, "architecture": run.architecture}
        content |= {"gallery": gallery.name, "images": len(gallery.names)}
        content |= {"weights": vars(engine.feedback_weights)} if has_feedback else {}
        content |= {"answers": [as_json(answer) for answer in answers], "skipped": skipped}
        print(json.dumps(content, indent=1))
    else:
        print("\n\n".join([heading, *map(text_table, answers)]))
        if skipped:
            print(f"\n{describe_skipped(skipped)}")
        if html:
            print(f"\n{html} written")
    if not answers:
        print("error: none of the pictures could be read", file=sys.stderr)
    return bool(answers)


def run_index(arguments: argparse.Namespace) -> bool:
    """Bring the gallery of a folder up to date, and print what changed."""
    from cbir.search import galleries
    from cbir.search.engine import open_engine

    engine = open_engine(arguments.study, arguments.architecture)
    name, changes = galleries.index_folder(arguments.folder, engine, arguments.name)
    total = changes.embedded + changes.kept
    print(
        f"{name}: {total:,} pictures, embedded by {engine.run.architecture} of the study "
        f"{engine.run.study}: {changes.embedded:,} new or changed, {changes.kept:,} unchanged, "
        f"{changes.removed:,} removed"
    )
    if changes.skipped:
        print(describe_skipped(changes.skipped))
    if changes.remarks:
        print(describe_skipped(changes.remarks, NOTED))
    print(f"search it with `cbir search PICTURE --gallery {name}`")
    return True


def _open(arguments: argparse.Namespace):
    """The engine and the gallery that the arguments name."""
    from cbir.search import galleries
    from cbir.search.engine import open_engine

    if not arguments.gallery:
        engine = open_engine(arguments.study, arguments.architecture)
        return engine, engine.gallery
    engine, gallery = galleries.open_gallery(arguments.gallery)
    for option in ("study", "architecture"):
        used = getattr(engine.run, option)
        if getattr(arguments, option) not in ("", used):
            raise StudyError(
                f"the gallery {arguments.gallery!r} was made with the {option} {used}: omit "
                f"--{option}, or index the folder again with another --name"
            )
    return engine, gallery


def _search(arguments: argparse.Namespace, engine, gallery) -> tuple[list, list[str]]:
    """An answer for each readable picture, and "name: reason" of each unreadable one."""
    from cbir.search import answers

    queries, skipped = answers.read_pictures(engine, arguments.pictures)
    positive, skipped_positive = answers.read_pictures(engine, arguments.like)
    negative, skipped_negative = answers.read_pictures(engine, arguments.unlike)
    if not arguments.pictures and positive:
        queries = [answers.mean_picture(positive)]
    search = functools.partial(
        answers.search, engine, gallery, k=arguments.k, search=arguments.within or "unrestricted",
        positive=[example.vector for example in positive],
        negative=[example.vector for example in negative],
    )  # fmt: skip
    example_paths = [Path(picture.name) for picture in (*positive, *negative)]
    results = [
        search(picture=query, left_out=gallery.positions([Path(query.name), *example_paths]))
        for query in queries
    ]
    return results, skipped + skipped_positive + skipped_negative


def as_json(answer) -> dict:
    """An `answers.Answer` as JSON values; pictures are named by their paths."""
    return {
        "picture": answer.picture.name,
        "predicted": answer.predicted,
        "probabilities": answer.probabilities,
        "results": [
            {
                "place": result.rank,
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
    return "\n".join(lines if answer.results else [lines[0], "  no results"])


def html_page(answers: list, skipped: list[str], heading: str) -> str:
    """A self-contained HTML page of `answers.Answer` objects.

    Args:
        skipped: "name: reason" of each unreadable picture.
        heading: one line that describes the search.
    """
    from cbir.reporting.display import TEMPLATES
    from cbir.search.answers import data_url

    return TEMPLATES.get_template("search.html.j2").render(
        answers=answers, skipped=skipped, heading=heading, side=THUMBNAIL, data_url=data_url
    )
