"""The commands `search` and `index`: what is asked for on the command line, and what is printed."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from cbir import StudyError
from cbir.cache import write_text
from cbir.images.pictures import describe_skipped

# How many classes of a study are named.
NAMED = 10


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add both commands to the program's."""
    searching = commands.add_parser(
        "search",
        help="find what resembles a picture of your own",
        description="Predict the class of pictures of your own, and find the images of a study's "
        "gallery, or of a folder that `cbir index` has embedded, that resemble them most. "
        "What is asked with is not returned, by its path, nor is what --like and --unlike name.",
        epilog="examples: cbir search cat.jpg --study holiday; cbir search new/ --study cifar10 "
        "-k 5 --html found.html; cbir search --like a.png b.png --unlike c.png --gallery holiday",
    )
    searching.add_argument(
        "pictures", nargs="*", metavar="PICTURE",
        help="a file, a folder, a pattern such as '*.jpg', or - for standard input",
    )  # fmt: skip
    _add_network(searching)
    searching.add_argument("-k", type=_count, default=10, help="how many results (default: 10)")
    searching.add_argument(
        "--within", choices=("predicted_class", "soft"),
        help="search only the class that is predicted, or the most probable ones",
    )  # fmt: skip
    searching.add_argument(
        "--gallery", default="", metavar="NAME",
        help="search a folder that `cbir index` has embedded (default: the study's own gallery)",
    )  # fmt: skip
    for name, meaning in (("like", "positive"), ("unlike", "negative")):
        searching.add_argument(
            f"--{name}", nargs="+", default=[], metavar="PICTURE",
            help=f"{meaning} examples: the search moves accordingly",
        )  # fmt: skip
    searching.add_argument("--html", metavar="FILE", type=Path, help="write a page, too")
    searching.add_argument("--json", action="store_true", help="print JSON in the place of tables")
    searching.set_defaults(run=run_search, wrong=searching.error)

    indexing = commands.add_parser(
        "index",
        help="embed a folder of your own pictures, so that `search --gallery` finds in it",
        description="Embed a folder of pictures with a network that a study has trained. Run "
        "again, it embeds only what is new or changed and drops what is gone.",
    )
    indexing.add_argument("folder", metavar="FOLDER", type=Path, help="pictures, at any depth")
    _add_network(indexing)
    indexing.add_argument(
        "--name", default="", help="of the gallery (default: that of the folder)", metavar="NAME"
    )
    indexing.set_defaults(run=run_index)


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--study", default="", metavar="NAME", help="a finished study (default: digits)"
    )
    command.add_argument(
        "--architecture", default="", metavar="NAME",
        help="one of it (default: the one of the highest mAP)",
    )  # fmt: skip


def _count(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return number


def run_search(asked: argparse.Namespace) -> bool:
    """Print what was found for each picture; False where none could be read.

    Raises:
        StudyError: what is asked for cannot be found.
        SystemExit: nothing is asked for.
    """
    pass

    from cbir.search import output

    if not (asked.pictures or asked.like):
        asked.wrong("nothing to search for: give a PICTURE, or --like PICTURE")
    if asked.html and not asked.html.absolute().parent.is_dir():
        raise StudyError(f"--html: no folder {asked.html.parent} to write {asked.html.name} into")
    # Lines of progress are no JSON.
    with contextlib.redirect_stdout(sys.stderr if asked.json else sys.stdout):
        opened, gallery = _open(asked)
        found, skipped = _find(asked, opened, gallery)
    classes = ", ".join(opened.classes[:NAMED]) + (" …" if len(opened.classes) > NAMED else "")
    about = f"Searched: {len(gallery.names):,} images of {gallery.name}, " + (
        f"by {opened.architecture} of the study {opened.study} (which knows {classes})"
    )
    if asked.within:
        about += f", within {asked.within}"
    if is_marked := bool(asked.like or asked.unlike):
        about += f", for {opened.told_weights}"
    if asked.html:
        write_text(asked.html, output.html_page(found, skipped, about))
    if asked.json:
        searched = {"study": opened.study, "architecture": opened.architecture}
        searched |= {"gallery": gallery.name, "images": len(gallery.names)}
        if is_marked:
            searched |= {"weights": vars(opened.weights)}
        told = [output.as_json(each) for each in found]
        print(json.dumps(searched | {"answers": told, "skipped": skipped}, indent=1))
    else:
        print("\n\n".join([about, *map(output.text_table, found)]))
        if skipped:
            print(f"\n{describe_skipped(skipped)}")
        if asked.html:
            print(f"\n{asked.html} written")
    if not found:
        print("error: none of the pictures could be read", file=sys.stderr)
    return bool(found)


def _open(asked: argparse.Namespace):
    """The engine and the gallery that are asked for."""

    from cbir.search import engine, galleries

    if not asked.gallery:
        opened = engine.open_engine(asked.study, asked.architecture)
        return opened, opened.gallery
    opened, gallery = galleries.open_gallery(asked.gallery)
    for name in ("study", "architecture"):
        if getattr(asked, name) not in ("", made_with := getattr(opened, name)):
            raise StudyError(
                f"the gallery {asked.gallery!r} was made with the {name} {made_with}: leave out "
                f"--{name}, or index the folder again under another --name"
            )
    return opened, gallery


def _find(asked: argparse.Namespace, opened, gallery) -> tuple[list, list[str]]:
    """An answer for each picture that could be read, and what could not."""

    from cbir.search import answers

    skipped, given = [], {}
    for part in ("pictures", "like", "unlike"):
        images, unread = answers.read_pictures(getattr(asked, part), opened.image_size)
        given[part] = answers.embed_pictures(opened, images)
        skipped += unread
    pictures = given["pictures"]
    if not asked.pictures and given["like"]:
        pictures = [answers.mean_picture(given["like"])]
    marked = [*given["like"], *given["unlike"]]
    return [
        answers.search(
            opened,
            gallery,
            picture,
            asked.k,
            search=asked.within or "unrestricted",
            positive=[each.vector for each in given["like"]],
            negative=[each.vector for each in given["unlike"]],
            left_out=gallery.positions(Path(each.name) for each in (picture, *marked)),
        )
        for picture in pictures
    ], skipped


def run_index(asked: argparse.Namespace) -> bool:
    """Bring the gallery of a folder up to date, and say what was done."""

    from cbir.search import engine, galleries

    opened = engine.open_engine(asked.study, asked.architecture)
    name, changes = galleries.index_folder(asked.folder, opened, asked.name)
    total = changes.embedded + changes.kept
    print(
        f"{name}: {total:,} pictures, embedded by {opened.architecture} of the study "
        f"{opened.study}: {changes.embedded:,} new or changed, {changes.kept:,} as before, "
        f"{changes.dropped:,} gone"
    )
    if changes.skipped:
        print(describe_skipped(changes.skipped))
    print(f"search it with `cbir search PICTURE --gallery {name}`")
    return True
