"""A page says with which parameters its runs were made, and by which commands again."""

import json

import pytest
from conftest import empty_project

from cbir.reporting import provenance


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(empty_project(tmp_path))
    return tmp_path


def write_manifest(project, **changes) -> None:
    run = {"study": "tiny", "architecture": "cnn", "epochs": 3, "seeds": [0, 1]}
    content = {
        "command": "make report STUDY=tiny",
        "git": {"commit": "abc123", "clean": True},
        "architectures": {
            "cnn": {"parameters": run | {"feature_maps": False, "augmentation": []}},
            "random": {"parameters": {"study": "tiny", "architecture": "random", "seeds": [0]}},
        },
    }
    folder = project / "reports" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content | changes))


def test_parameters_stand_in_rows_and_runs_in_columns(project):
    write_manifest(project)
    table = provenance.parameters_table("tiny")
    assert table["cnn"].to_dict() == {
        "epochs": "3", "seeds": "[0, 1]", "feature_maps": "false", "augmentation": "[]",
    }  # fmt: skip
    assert table["random"].tolist() == ["–", "[0]", "–", "–"]


def test_the_commands_check_the_commit_out_and_run_the_study(project):
    write_manifest(project)
    assert provenance.commands("tiny") == "```\ngit checkout abc123\nmake report STUDY=tiny\n```"
    write_manifest(project, git={"commit": "abc123", "clean": False})
    assert provenance.commands("tiny").endswith("there were uncommitted changes.")
    write_manifest(project, git={"commit": None, "clean": None})
    assert provenance.commands("tiny") == "```\nmake report STUDY=tiny\n```"


def test_without_a_report_there_is_nothing_to_tell(project):
    assert provenance.commands("tiny") == ""
    assert provenance.parameters_table("tiny").empty
