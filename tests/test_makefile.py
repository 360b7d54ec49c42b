"""make lists its commands, rejects unsupported Pythons, and installs the locked packages."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = re.search(r"^COMMANDS := (.+)$", MAKEFILE, re.MULTILINE)[1].split()
SUPPORTED = ["3.11", "3.12", "3.13"]

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

# Runs `-c CODE` as another version of Python, and only records all other calls.
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then
    exec "{python}" -c "import sys; sys.version_info = ({version}, 0, 'final', 0)
$2"
fi
echo "python $*" >> "{calls}"
exit 99
"""
UV = """#!/bin/sh
echo "uv $*" >> "{calls}"
mkdir -p .venv
"""


@pytest.fixture
def project_copy(tmp_path) -> Path:
    """A folder with the files of an installation and a uv that only records its calls."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    write_script(tmp_path / "bin" / "uv", UV.format(calls=tmp_path / "calls"))
    return tmp_path


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def write_python(folder: Path, version: str) -> Path:
    path = folder / "bin" / f"python{version}"
    text = PYTHON.format(
        python=sys.executable, version=version.replace(".", ", "), calls=folder / "calls"
    )
    write_script(path, text)
    return path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run make without the variables of the process that runs the tests."""
    prefixes = ("MAKE", "MFLAGS", "CONDA", "VIRTUAL_ENV", "UV_", "PIP_")
    variables = ("STUDY", "ARCHITECTURES", "DATA", "SET", "PYTHON", "BIN", "STAMP")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(prefixes) and key not in variables
    }
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


@needs_make
def test_make_without_target_describes_every_target(project_copy):
    process = make(project_copy)
    assert process.returncode == 0
    descriptions = dict(re.findall(r"^  make ([\w-]+) +(\S.*)$", process.stdout, re.MULTILINE))
    assert sorted(descriptions) == sorted(TARGETS)
    assert "report" in descriptions
    assert "reports/<study>/index.html" in descriptions["report"]
    assert all(len(text) > 5 for text in descriptions.values())


@needs_make
def test_make_without_target_lists_variables_and_installs_nothing(project_copy):
    process = make(project_copy)
    for variable in ("STUDY", "ARCHITECTURES", "DATA", "SET"):
        assert re.search(rf"^ +{variable}=\S+", process.stdout, re.MULTILINE)
    assert calls(project_copy) == []
    assert not (project_copy / ".venv").exists()


COMMAND = """#!/bin/sh
printf '%s\\n' "$@"
"""


@pytest.fixture
def installed(project_copy) -> Path:
    """The same folder with a finished installation whose command prints its arguments."""
    (project_copy / ".venv" / "bin").mkdir(parents=True)
    write_script(project_copy / ".venv" / "bin" / "python", COMMAND)
    (project_copy / ".venv" / ".cbir-installed").touch()
    return project_copy


@needs_make
def test_values_with_special_characters_reach_the_command(installed):
    for value in ("dol$HOME", 'q"uote', "it's", "a b", "`id`", "x#y", r"a\b", "-x", "猫", "%;&|(,"):
        process = make(installed, "plan", f"DATA={value}", "SET=ks=[1,2] epochs=3", "STUDY=digits")
        assert process.stdout.splitlines()[2:] == [
            "plan", "--study=digits", "--architectures=", f"--data={value}",
            "--set=ks=[1,2] epochs=3",
        ], process.stderr  # fmt: skip
    process = make(installed, "export", "STUDY=dol$HOME")
    assert process.stdout.splitlines()[2:] == ["export", "--study=dol$HOME"]


@needs_make
def test_values_never_run_commands(installed):
    process = make(installed, "plan", "DATA=$(shell touch ran)$$(touch ran)", "SET=`touch ran`")
    assert "--data=$(shell touch ran)$$(touch ran)" in process.stdout.splitlines()
    assert not (installed / "ran").exists()


@needs_make
@pytest.mark.parametrize(
    "arguments",
    [("plan", "data=x"), ("DATA=x",), ("export", "STUDY=digits", "DATA=x"), ("test", "STUDY=x")],
)
def test_a_variable_without_effect_is_reported_in_one_line(installed, arguments):
    process = make(installed, *arguments)
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert f"{arguments[-1].partition('=')[0]} has no effect here" in line
    assert "`make plan` use STUDY, ARCHITECTURES, DATA and SET" in line


@needs_make
@pytest.mark.parametrize("commands", [["report", "holiday"], ["holiday"]])
def test_an_unknown_command_is_reported_before_anything_runs(installed, commands):
    process = make(installed, *commands)
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert "holiday is no command: `make` lists them" in line


@needs_make
@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14", "3.15", "4.0"])
@pytest.mark.parametrize("target", ["report", "test"])
def test_an_unsupported_python_is_rejected_with_the_supported_versions(
    project_copy, version, target
):
    python = write_python(project_copy, version)
    process = make(project_copy, target, f"PYTHON={python}")
    assert process.returncode != 0
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert f"Python {version}:" in line
    assert all(supported in line for supported in SUPPORTED)
    assert "Traceback" not in process.stderr
    assert calls(project_copy) == []
    assert not (project_copy / ".venv").exists()


@needs_make
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_supported_python_installs_locked_packages_with_hashes(project_copy, version):
    python = write_python(project_copy, version)
    process = make(project_copy, ".venv/.cbir-installed", f"PYTHON={python}")
    assert process.returncode == 0, process.stderr
    created, requirements, package = calls(project_copy)
    assert created.startswith("uv venv ")
    assert created.endswith(f"--python {python} .venv")
    assert "--require-hashes -r requirements.lock" in requirements
    assert "--no-deps" in package
    assert package.endswith("--editable .")
    assert (project_copy / ".venv" / ".cbir-installed").exists()


@needs_make
def test_a_second_make_installs_nothing(project_copy):
    python = write_python(project_copy, "3.12")
    for _ in range(2):
        process = make(project_copy, ".venv/.cbir-installed", f"PYTHON={python}")
        assert process.returncode == 0, process.stderr
    assert len(calls(project_copy)) == 3


@needs_make
def test_a_failed_installation_is_not_marked_as_finished(project_copy):
    write_script(project_copy / "bin" / "uv", "#!/bin/sh\nmkdir -p .venv\nexit 1\n")
    process = make(
        project_copy, ".venv/.cbir-installed", f"PYTHON={write_python(project_copy, '3.12')}"
    )
    assert process.returncode != 0
    assert not (project_copy / ".venv" / ".cbir-installed").exists()


def test_makefile_and_pyproject_agree_on_supported_versions():
    first, last = SUPPORTED[0], SUPPORTED[-1]
    beyond = f"3.{int(last.split('.')[1]) + 1}"
    assert PROJECT["requires-python"] == f">={first},<{beyond}"


def normalised(name: str) -> str:
    """The normalised name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_requirements() -> dict[str, str]:
    """The requirements of the lock file: first lines, with the lines that follow each."""
    requirements, head = {}, ""
    for line in LOCK.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if not line[0].isspace():
            head = line.rstrip("\\ ")
            assert head not in requirements
            requirements[head] = ""
        else:
            requirements[head] += line
    return requirements


def test_every_requirement_is_locked_to_one_version_with_hashes():
    requirements = locked_requirements()
    assert len(requirements) > 50
    for head, rest in requirements.items():
        assert re.match(r"[A-Za-z0-9._-]+==[^\s=*]+( ;.*)?$", head), head
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), head


def test_lock_contains_no_addresses():
    assert "://" not in LOCK
    assert not re.search(r"^ *(--index|--extra-index|--find-links|-f |-i )", LOCK, re.MULTILINE)
    assert not re.search(r"@ (http|git|file)", LOCK)


def test_dependencies_are_locked():
    names = {normalised(re.split("==", head)[0]) for head in locked_requirements()}
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    dependencies = {
        normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in requirements
    }
    assert len(dependencies) > 10
    # With --no-build-isolation, setuptools of the environment builds the package.
    assert dependencies | {"setuptools"} <= names


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports at any place."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parents = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in modules + parents}


def test_imported_packages_are_dependencies():
    modules = set().union(*(imported(path) for path in (ROOT / "src" / "cbir").rglob("*.py")))
    # The lock file has one of Keras' backends. The others and the extras are optional.
    extras = {"faiss", "pymilvus", "milvus_lite", "grpc", "ray", "openvino", "pillow_heif"}
    required_modules = modules - {*sys.stdlib_module_names, "cbir", "torch", "jax", *extras}
    by_module = packages_distributions()
    names = {normalised(by_module[module][0]) for module in required_modules}
    assert {"keras", "numba", "pandas", "pillow", "scikit-image"} <= names
    dependencies = {
        normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0])
        for requirement in PROJECT["dependencies"]
    }
    assert names <= dependencies
