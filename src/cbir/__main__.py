"""The command line: `cbir` or `python -m cbir`; the Makefile calls it."""

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

from cbir import StudyError, cbir_command, project_root
from cbir.files import as_study_error
from cbir.progress import own_stderr
from cbir.search import cli

# The options of `report` and `plan`.
OPTIONS = {
    "--study": ("NAME", "a folder in params/ (default: digits)"),
    "--architectures": ("NAMES", "names separated by spaces (default: all in the study)"),
    "--data": (
        "FOLDER",
        "your own pictures, <class>/... or {train,test}/<class>/..., or a CSV file of them",
    ),
    "--set": ("KEY=VALUE", "parameters that override the study's, in a trial with its own report"),
}


# The exit status of a program that a shell's pipe ends: 128 plus the number of SIGPIPE.
BROKEN_PIPE = 141


def main(words: list[str] | None = None) -> int:
    """Run a command; return 0 on success, 1 on failure, 2 for invalid arguments."""
    _replace_closed_streams()
    arguments = _parser().parse_args(words)
    # Lines appear as soon as they are printed, even if the output is not a terminal; characters
    # that it cannot show are escaped.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    with own_stderr(Path(os.devnull)):
        return _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=cbir_command(),
        description="Compare architectures for content-based image retrieval, and search with your "
        "own pictures. Run it in the project's folder or in a folder below it.",
        epilog="examples: %(prog)s report; %(prog)s search cat.jpg; %(prog)s COMMAND --help. The "
        "exit status is 0 on success, 1 on failure, 2 for invalid arguments, 130 after an "
        f"interruption, {BROKEN_PIPE} if the output is not read to its end.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (report, plan, export, publish, results, docs):
        text = run.__doc__
        command = commands.add_parser(
            run.__name__, description=text, help=f"{text[0].lower()}{text[1:].rstrip('.')}"
        )
        command.set_defaults(run=run)
        if run is report:
            command.add_argument(
                "--check", action="store_true",
                help="decode all pictures again, to find those replaced by others of the same "
                "size and modification time",
            )  # fmt: skip
        for option, (metavar, meaning) in OPTIONS.items() if run in (report, plan) else ():
            command.add_argument(option, default="", metavar=metavar, help=meaning)
        if run in (export, publish):
            meaning = "a folder in reports/" + (" (default: digits)" if run is export else "")
            study = {"default": "digits", "required": run is publish, "metavar": "NAME"}
            command.add_argument("--study", help=meaning, **study)
    cli.add_commands(commands)
    return parser


def _replace_closed_streams() -> None:
    """Open the null device for each standard stream that the caller has closed.

    Otherwise, the next file that is opened would get the stream's number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            if number:
                setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _run(arguments: argparse.Namespace) -> int:
    """Run the command, print an error as one line, and return the exit status."""
    try:
        return 0 if arguments.run(arguments) else 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it: discard the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError):
            error = as_study_error(error, Path(error.filename or "the project's folder"))
        message = str(error)
        if not isinstance(error, StudyError):
            message = f"{type(error).__name__}: {' '.join(message.split())[:300]}{_log()}"
        print(f"error: {message}", file=sys.stderr)
        return 1


# The commands. They import late, so that invalid arguments are reported at once.


def report(arguments: argparse.Namespace) -> bool:
    """Bring a study's report up to date."""
    study = _open_study(arguments)
    # Importing what runs notebooks takes seconds, so errors in the study are reported before it.
    from cbir.studies import runner

    return runner.bring_up_to_date(study, check=arguments.check)


def plan(arguments: argparse.Namespace) -> bool:
    """Show what report would do, without doing it."""
    study = _open_study(arguments)
    from cbir.studies import plan

    print(plan.plan_text(study))
    return True


def export(arguments: argparse.Namespace) -> bool:
    """Write a study's images and embeddings to Parquet files for other programs."""
    from cbir.reporting.export import export_study

    for path in export_study(arguments.study or "digits"):
        print(f"{path.relative_to(project_root())} written")
    return True


def publish(arguments: argparse.Namespace) -> bool:
    """Copy a study's results into reports/published/."""
    from cbir.reporting.publish import publish_study

    folder = publish_study(project_root(), arguments.study)
    print(f"{folder.relative_to(project_root())} written; now run `make results`")
    return True


def results(arguments: argparse.Namespace) -> bool:
    """Write docs/results.md from reports/published/."""
    from cbir.reporting.publish import write_results

    is_new = write_results(project_root())
    print("docs/results.md written" if is_new else "nothing to do: docs/results.md is up to date")
    return True


def docs(arguments: argparse.Namespace) -> bool:
    """Write docs/parameters.md from the list of parameters."""
    from cbir.studies import params

    (project_root() / "docs" / "parameters.md").write_text(params.document(), "utf-8")
    print("docs/parameters.md written")
    return True


def _open_study(arguments: argparse.Namespace):
    from cbir.studies.study import open_study

    return open_study(
        project_root(), arguments.study, arguments.architectures, arguments.data, arguments.set
    )


def _log() -> str:
    """Write the current traceback to a file; return a note that names the file."""
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile("w", prefix="cbir-", suffix=".log", delete=False) as log,
    ):
        traceback.print_exc(file=log)
        return f" (traceback: {log.name})"
    return ""


if __name__ == "__main__":
    sys.exit(main())
