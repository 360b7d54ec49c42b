"""The examples in the documentation run as printed."""

import re
import textwrap

import pytest
import yaml
from conftest import ROOT

import cbir
from cbir.studies import configs


def test_the_metrics_example_of_the_readme_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    exec(example, {})
    assert "average_precision" in capsys.readouterr().out


def test_grids_in_the_list_of_parameters_have_the_listed_points(tmp_path):
    text = (ROOT / "docs" / "parameters.md").read_text("utf-8")
    examples = [yaml.safe_load(example) for example in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    (tmp_path / "params" / "documented").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "architecture.ipynb").touch()
    names = []
    for example in examples[:2]:
        study = {"dataset": "digits", "seeds": [0], "protocols": ["closed"]} | example
        network = {"backbone": "cnn", "epochs": 1, "head_epochs": 1, "weights": "study:digits"}
        for name, content in (("study", study), ("cnn", network)):
            path = tmp_path / "params" / "documented" / f"{name}.yaml"
            path.write_text(yaml.safe_dump(content), "utf-8")
        runs = configs.load(tmp_path, "documented")
        names.append([run.architecture for run in runs])
    assert names == [
        ["cnn-32-head", "cnn-32-all", "cnn-64-head", "cnn-64-all"],
        ["cnn-32-head", "cnn-64-head", "cnn-32-all"],
    ]


@pytest.mark.slow
def test_the_example_of_the_package_leads_from_images_to_metrics(project, capsys):
    example = textwrap.dedent(cbir.__doc__.split("not set here:\n")[1])
    exec(example.replace('"epochs": 5', '"epochs": 1'), {})
    mean_average_precision = float(capsys.readouterr().out.splitlines()[-1])
    assert 0.3 < mean_average_precision <= 1  # 0.1 by chance
