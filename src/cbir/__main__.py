"""The command line: `python -m cbir report`, `python -m cbir plan`; `make` calls it."""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

from cbir import StudyError, project_root
from cbir.cache import as_study_error
from cbir.progress import own_stderr


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 where it succeeded, 1 where it could not, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="cbir", description="Image retrieval, compared.")
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
    asked = parser.parse_args(arguments)
    # A log that is not a terminal shows each line when it is printed.
    sys.stdout.reconfigure(line_buffering=True)
    with own_stderr(Path(os.devnull)):
        return _run(asked)


def _run(asked: argparse.Namespace) -> int:
    try:
        # Imported late, so that a wrong call is answered at once.
        from cbir import plan, report, study

        opened = study.open_study(
            project_root(), asked.study, asked.architectures, asked.data, asked.set
        )
        if asked.command == "plan":
            print(plan.describe(opened))
            return 0
        return 0 if report.bring_up_to_date(opened) else 1
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
