"""make: it lists what it can do, refuses a Python that cannot work, and installs what is locked."""

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

# Answers `-c CODE` as another version would, and notes everything else instead of doing it.
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
def copy(tmp_path) -> Path:
    """What an installation needs, in a folder of its own, beside a uv that only takes notes."""
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
    """Run make as from a fresh shell, whatever these tests were started by."""
    ours = ("MAKE", "MFLAGS", "CONDA", "VIRTUAL_ENV", "UV_", "PIP_")
    named = ("STUDY", "ARCHITECTURES", "DATA", "SET", "PYTHON", "BIN", "STAMP")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(ours) and key not in named
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
def test_make_alone_lists_every_target_with_what_it_does(copy):
    done = make(copy)
    assert done.returncode == 0
    listed = dict(re.findall(r"^  make ([\w-]+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert sorted(listed) == sorted(TARGETS)
    assert "report" in listed
    assert "reports/<study>/index.html" in listed["report"]
    assert all(len(text) > 5 for text in listed.values())


@needs_make
def test_make_alone_lists_every_variable_and_installs_nothing(copy):
    done = make(copy)
    for variable in ("STUDY", "ARCHITECTURES", "DATA", "SET"):
        assert re.search(rf"^ +{variable}=\S+", done.stdout, re.MULTILINE)
    assert calls(copy) == []
    assert not (copy / ".venv").exists()


COMMAND = """#!/bin/sh
printf '%s\\n' "$@"
"""


@pytest.fixture
def installed(copy) -> Path:
    """The same folder, as if everything were installed; the command prints its arguments."""
    (copy / ".venv" / "bin").mkdir(parents=True)
    write_script(copy / ".venv" / "bin" / "python", COMMAND)
    (copy / ".venv" / ".cbir-installed").touch()
    return copy


@needs_make
def test_values_reach_the_command_whatever_they_contain(installed):
    for value in ("dol$HOME", 'q"uote', "it's", "a b", "`id`", "x#y", r"a\b", "-x", "猫", "%;&|(,"):
        done = make(installed, "plan", f"DATA={value}", "SET=ks=[1,2] epochs=3", "STUDY=digits")
        assert done.stdout.splitlines()[2:] == [
            "plan", "--study=digits", "--architectures=", f"--data={value}",
            "--set=ks=[1,2] epochs=3",
        ], done.stderr  # fmt: skip
    done = make(installed, "export", "STUDY=dol$HOME")
    assert done.stdout.splitlines()[2:] == ["export", "--study=dol$HOME"]


@needs_make
def test_values_never_run_commands(installed):
    done = make(installed, "plan", "DATA=$(shell touch ran)$$(touch ran)", "SET=`touch ran`")
    assert "--data=$(shell touch ran)$$(touch ran)" in done.stdout.splitlines()
    assert not (installed / "ran").exists()


@needs_make
@pytest.mark.parametrize(
    "arguments",
    [("plan", "data=x"), ("DATA=x",), ("export", "STUDY=digits", "DATA=x"), ("test", "STUDY=x")],
)
def test_variable_without_effect_is_named_in_one_line(installed, arguments):
    done = make(installed, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"{arguments[-1].partition('=')[0]} has no effect here" in line
    assert "`make plan` use STUDY, ARCHITECTURES, DATA and SET" in line


@needs_make
@pytest.mark.parametrize("commands", [["report", "holiday"], ["holiday"]])
def test_unknown_command_is_named_before_anything_runs(installed, commands):
    done = make(installed, *commands)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "holiday is no command: `make` lists them" in line


@needs_make
@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14", "3.15", "4.0"])
@pytest.mark.parametrize("target", ["report", "test"])
def test_unsupported_python_is_told_in_one_line_which_to_install(copy, version, target):
    python = write_python(copy, version)
    done = make(copy, target, f"PYTHON={python}")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"Python {version}:" in line
    assert all(supported in line for supported in SUPPORTED)
    assert "Traceback" not in done.stderr
    assert calls(copy) == []
    assert not (copy / ".venv").exists()


@needs_make
@pytest.mark.parametrize("version", SUPPORTED)
def test_supported_python_installs_what_is_locked_with_hashes(copy, version):
    python = write_python(copy, version)
    done = make(copy, ".venv/.cbir-installed", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    created, locked, package = calls(copy)
    assert created.startswith("uv venv ")
    assert created.endswith(f"--python {python} .venv")
    assert "--require-hashes -r requirements.lock" in locked
    assert "--no-deps" in package
    assert package.endswith("--editable .")
    assert (copy / ".venv" / ".cbir-installed").exists()


@needs_make
def test_second_make_installs_nothing(copy):
    python = write_python(copy, "3.12")
    for _ in range(2):
        done = make(copy, ".venv/.cbir-installed", f"PYTHON={python}")
        assert done.returncode == 0, done.stderr
    assert len(calls(copy)) == 3


@needs_make
def test_failed_installation_is_not_taken_for_a_finished_one(copy):
    write_script(copy / "bin" / "uv", "#!/bin/sh\nmkdir -p .venv\nexit 1\n")
    done = make(copy, ".venv/.cbir-installed", f"PYTHON={write_python(copy, '3.12')}")
    assert done.returncode != 0
    assert not (copy / ".venv" / ".cbir-installed").exists()


def test_makefile_and_pyproject_agree_on_supported_versions():
    first, last = SUPPORTED[0], SUPPORTED[-1]
    beyond = f"3.{int(last.split('.')[1]) + 1}"
    assert PROJECT["requires-python"] == f">={first},<{beyond}"


def plain(name: str) -> str:
    """A package's name in the one spelling that all indexes agree on."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    """Each requirement of the lock, by its first line, with all that follows it."""
    found, head = {}, ""
    for line in LOCK.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if not line[0].isspace():
            head = line.rstrip("\\ ")
            assert head not in found
            found[head] = ""
        else:
            found[head] += line
    return found


def test_every_requirement_is_locked_to_one_version_with_hashes():
    requirements = locked()
    assert len(requirements) > 50
    for head, rest in requirements.items():
        assert re.match(r"[A-Za-z0-9._-]+==[^\s=*]+( ;.*)?$", head), head
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), head


def test_lock_names_no_place_to_download_from():
    assert "://" not in LOCK
    assert not re.search(r"^ *(--index|--extra-index|--find-links|-f |-i )", LOCK, re.MULTILINE)
    assert not re.search(r"@ (http|git|file)", LOCK)


def test_every_dependency_is_locked():
    names = {plain(re.split("==", head)[0]) for head in locked()}
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    wanted = {plain(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in asked}
    assert len(wanted) > 10
    # setuptools builds the package, from the environment: --no-build-isolation.
    assert wanted | {"setuptools"} <= names


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports, wherever it does."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    whole = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in whole + parts}


def test_every_package_that_the_code_imports_is_asked_for():
    found = set().union(*(imported(path) for path in (ROOT / "src" / "cbir").rglob("*.py")))
    # The lock file has one of Keras' backends. The others and the extras are optional.
    extras = {"faiss", "pymilvus", "milvus_lite", "grpc", "ray", "openvino", "pillow_heif"}
    theirs = found - {*sys.stdlib_module_names, "cbir", "torch", "jax", *extras}
    by_module = packages_distributions()
    names = {plain(by_module[module][0]) for module in theirs}
    assert {"keras", "numba", "pandas", "pillow", "scikit-image"} <= names
    asked = {plain(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in PROJECT["dependencies"]}
    assert names <= asked
