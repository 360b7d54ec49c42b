"""The examples that a newcomer copies: they run as they are printed."""

import re
import textwrap

import pytest
from conftest import ROOT

import cbir


def test_the_metrics_example_of_the_readme_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    exec(example, {})
    assert "average_precision" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_the_package_leads_from_images_to_metrics(project, capsys):
    example = textwrap.dedent(cbir.__doc__.split("not set here:\n")[1])
    exec(example.replace('"epochs": 5', '"epochs": 1'), {})
    mean_average_precision = float(capsys.readouterr().out.splitlines()[-1])
    assert 0.3 < mean_average_precision <= 1  # 0.1 by chance
