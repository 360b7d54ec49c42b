"""The command line, `cbir` or `python -m cbir`; `make` calls it too."""

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


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 where it succeeded, 1 where it could not, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="cbir",
        description="Image retrieval, compared: make a study's report, then search with pictures "
        "of your own. It works in the project's folder and those below it.",
        epilog="examples: cbir report; cbir search cat.jpg; cbir COMMAND --help. Ends with 0 where "
        "all was done, 1 where it could not be, 2 for a wrong call, 130 when interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("report", "bring a study's report up to date"),
        ("plan", "say what report would do, without doing it"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument(
            "--study", default="", help="a folder in params/ (default: digits)", metavar="NAME"
        )
        command.add_argument(
            "--architectures", default="", metavar="NAMES",
            help="those to bring up to date, separated by spaces (default: all of the study)",
        )  # fmt: skip
        command.add_argument(
            "--data", default="", help="a folder of pictures to study instead", metavar="FOLDER"
        )
        command.add_argument(
            "--set", default="", metavar="KEY=VALUE",
            help="parameters of a trial, separated by spaces; it gets a report of its own",
        )  # fmt: skip
    publishing = "copy a study's results into reports/published/"
    command = commands.add_parser("publish", help=publishing, description=publishing.capitalize())
    command.add_argument("--study", required=True, help="a folder in reports/", metavar="NAME")
    writing = "write docs/results.md from reports/published/"
    commands.add_parser("results", help=writing, description=writing.capitalize())
    documenting = "write docs/parameters.md from the list of parameters"
    commands.add_parser("docs", help=documenting, description=documenting.capitalize())
    cli.add_commands(commands)
    asked = parser.parse_args(arguments)
    # A log that is not a terminal shows each line when it is printed.
    sys.stdout.reconfigure(line_buffering=True)
    with own_stderr(Path(os.devnull)):
        return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    try:
        return 0 if _work(asked) else 1
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError):
            error = as_study_error(error, Path(error.filename or "the project's folder"))
        what = "" if isinstance(error, StudyError) else f"{type(error).__name__}: "
        print(f"error: {what}{' '.join(str(error).split())[:300]}{_log()}", file=sys.stderr)
        return 1


def _work(asked: argparse.Namespace) -> bool:
    """Do what the command asks; whether all of it could be done."""
    # Imported late, so that a wrong call is answered at once.
    root = project_root()
    if asked.command in ("search", "index"):
        return asked.run(asked)
    if asked.command == "publish":
        from cbir.reporting import publish

        folder = publish.publish_study(root, asked.study)
        print(f"{folder.relative_to(root)} written; now `make results`")
    elif asked.command == "results":
        from cbir.reporting import publish

        is_new = publish.write_results(root)
        print(
            "docs/results.md written" if is_new else "nothing to do: docs/results.md is up to date"
        )
    elif asked.command == "docs":
        from cbir.studies import params

        path = root / "docs" / "parameters.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(params.document(), "utf-8")
        print(f"{path.relative_to(root)} written")
    else:
        from cbir.studies.study import open_study

        opened = open_study(root, asked.study, asked.architectures, asked.data, asked.set)
        # What runs notebooks takes seconds to import: an error need not wait for it.
        if asked.command == "report":
            from cbir.studies import run

            return run.bring_up_to_date(opened)
        from cbir.studies import plan

        print(plan.describe(opened))
    return True


def _log() -> str:
    """Write the traceback of what is being handled to a file, and say where it stands."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cbir-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(traceback.format_exc())
    except OSError:
        return ""
    return f" (the traceback stands in {log.name})"


if __name__ == "__main__":
    sys.exit(main())
