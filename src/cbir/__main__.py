"""The command line: `cbir` or `python -m cbir`; the Makefile calls it."""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from cbir import StudyError, project_root
from cbir.cache import as_study_error
from cbir.progress import own_stderr
from cbir.search import cli

# The commands that need no more than a line here; `search` and `index` are in cbir.search.cli.
COMMANDS = {
    "report": "bring a study's report up to date",
    "plan": "say what report would do, without doing it",
    "publish": "copy a study's results into reports/published/",
    "results": "write docs/results.md from reports/published/",
    "docs": "write docs/parameters.md from the list of parameters",
}


def main(words: list[str] | None = None) -> int:
    """Run a command; 0 where it succeeded, 1 where it failed, 2 for a wrong call."""
    arguments = _parser().parse_args(words)
    # Lines appear as they are printed even where the output is no terminal.
    sys.stdout.reconfigure(line_buffering=True)
    with own_stderr(Path(os.devnull)):
        return _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cbir",
        description="Compare architectures for content-based image retrieval, and search with your "
        "own pictures. Run it in the project's folder or in a folder below it.",
        epilog="examples: cbir report; cbir search cat.jpg; cbir COMMAND --help. The exit status "
        "is 0 for success, 1 for a failure, 2 for a wrong call, 130 for an interruption.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {
        name: commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in COMMANDS.items()
    }
    for command in (parsers["report"], parsers["plan"]):
        command.add_argument(
            "--study", default="", metavar="NAME", help="a folder in params/ (default: digits)"
        )
        command.add_argument(
            "--architectures", default="", metavar="NAMES",
            help="names separated by spaces (default: all architectures of the study)",
        )  # fmt: skip
        command.add_argument(
            "--data", default="", metavar="FOLDER",
            help="a folder of your own pictures, <class>/... or {train,test}/<class>/...",
        )  # fmt: skip
        command.add_argument(
            "--set", default="", metavar="KEY=VALUE",
            help="parameters that override the study's, separated by spaces; the trial gets a "
            "report of its own",
        )  # fmt: skip
    parsers["publish"].add_argument(
        "--study", required=True, metavar="NAME", help="a folder in reports/"
    )
    cli.add_commands(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Run the command and report its errors in one line each; the exit status."""
    try:
        return 0 if _dispatch(arguments) else 1
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError):
            error = as_study_error(error, Path(error.filename or "the project's folder"))
        kind = "" if isinstance(error, StudyError) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())[:300]}{_log()}", file=sys.stderr)
        return 1


def _dispatch(arguments: argparse.Namespace) -> bool:
    """Run the command; whether all of it succeeded."""
    # Modules are imported late, so that a wrong call is answered at once.
    root = project_root()
    if arguments.command in ("search", "index"):
        return arguments.run(arguments)
    if arguments.command == "publish":
        from cbir.reporting import publish

        folder = publish.publish_study(root, arguments.study)
        print(f"{folder.relative_to(root)} written; now `make results`")
    elif arguments.command == "results":
        from cbir.reporting import publish

        is_new = publish.write_results(root)
        print(
            "docs/results.md written" if is_new else "nothing to do: docs/results.md is up to date"
        )
    elif arguments.command == "docs":
        from cbir.studies import params

        path = root / "docs" / "parameters.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(params.document(), "utf-8")
        print(f"{path.relative_to(root)} written")
    else:
        from cbir.studies.study import open_study

        study = open_study(
            root, arguments.study, arguments.architectures, arguments.data, arguments.set
        )
        # What runs notebooks takes seconds to import: an error need not wait for it.
        if arguments.command == "report":
            from cbir.studies import run

            return run.bring_up_to_date(study)
        from cbir.studies import plan

        print(plan.describe(study))
    return True


def _log() -> str:
    """Write the current traceback to a file; words that name the file."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cbir-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(traceback.format_exc())
    except OSError:
        return ""
    return f" (traceback: {log.name})"


if __name__ == "__main__":
    sys.exit(main())
