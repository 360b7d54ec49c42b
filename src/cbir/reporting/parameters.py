"""With which parameters a study was run, folded away on its page, and how to run it again."""

import json
from html import escape

import pandas as pd
from IPython.display import display

from cbir.cache import MANIFEST
from cbir.reporting import plots
from cbir.reporting.results import folder_of

# They name the run; the table's columns do so already.
NAMES = ("study", "architecture")


def table(study: str) -> pd.DataFrame:
    """The parameters of a study's runs, a row a parameter, a column a run; empty without a report.

    A parameter that a run does not have, such as a control that of a network, is a dash.
    """
    runs = _manifest(study).get("architectures", {})
    columns = {
        name: {key: _text(value) for key, value in run["parameters"].items() if key not in NAMES}
        for name, run in runs.items()
    }
    return pd.DataFrame(columns).fillna("–").rename_axis("parameter")


def again(study: str) -> str:
    """The commands that make a study's report again, as Markdown; nothing without a report."""
    manifest = _manifest(study)
    if not manifest:
        return ""
    git, lines = manifest["git"], [manifest["command"]]
    if git["commit"]:
        lines.insert(0, f"git checkout {git['commit']}")
    said = "\n".join(["```", *lines, "```"])
    if git["clean"] is False:
        said += "\n\nThe commit alone does not make it: there were uncommitted changes."
    return said


def fold(frame: pd.DataFrame, summary: str) -> None:
    """Display a table that opens when its summary is clicked; nothing where it is empty."""
    if frame.empty:
        return
    table = plots.table(frame, f"{summary}.")
    html = f"<details><summary>{escape(summary)}</summary>{table.to_html()}</details>"
    display(table._repr_mimebundle_() | {"text/html": html}, raw=True)


def _manifest(study: str) -> dict:
    path = folder_of(study) / MANIFEST
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _text(value) -> str:
    """A parameter as YAML would have it, but for quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
