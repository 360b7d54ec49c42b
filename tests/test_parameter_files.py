"""Parameter files with any content are read, or rejected in one line."""

import contextlib
import os
import shutil
import string
import time

import pytest
import yaml
from conftest import CNN, ROOT, STUDY, write_study
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cbir import StudyError
from cbir.studies import configs, params

# The number of documents, which the variable overrides.
DOCUMENTS = int(os.environ.get("CBIR_DOCUMENTS", "1500"))
NAMES = st.sampled_from(
    [*params.PARAMETERS, "grid", "notebook", "<<", "seed", "'epochs'", "? epochs"]
)
ODD = [
    "032", "1:30", "0x1F", "0b11", "1_000", "0o17", ".inf", "-.INF", ".nan", "1e3", "1e999", "-0",
    "+7", "~", "null", "yes", "off", "2001-99-99", "=", "!", "|", "@a", "`a`", "%a", "#", "''", "",
    "../..", "study:", "---", "\t", "- a", "? a", "a: b", "&a 1", "*a", "&a [*a]", "!!int '032'",
    "!!set", "!!python/object/apply:os.system ['true']", r"'\0'", r'"\0"', r'"\ud800"', r'"\uFEFF"',
    "1" + "0" * 22, "9" * 5000, "[" * 3000, "{" * 3000, "- " * 300, "last_blocks:" + "9" * 5000,
]  # fmt: skip
SCALARS = st.one_of(
    st.integers(0, len(ODD) - 1).map(ODD.__getitem__),
    st.integers().map(str),
    st.integers(0, 64).map(str),
    st.floats().map(str),
    st.text(string.printable, max_size=12),
    st.text(max_size=12),
    st.sampled_from([*CNN.values(), *STUDY.values()]).map(lambda value: yaml.safe_dump(value)[:-1]),
)
VALUES = st.recursive(
    SCALARS,
    lambda items: st.one_of(
        st.lists(items, max_size=4).map(lambda values: f"[{', '.join(values)}]"),
        st.lists(st.tuples(NAMES, items), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=6,
)
LINES = st.lists(st.tuples(NAMES, VALUES).map(": ".join), max_size=3)


VALID = {"cnn.yaml": yaml.safe_dump(CNN), "study.yaml": yaml.safe_dump(STUDY)}


@st.composite
def documents(draw) -> bytes:
    """A valid file with added, removed or changed parts, or random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    valid = draw(st.sampled_from([*VALID.values()])).splitlines()
    remaining = draw(st.lists(st.sampled_from(valid), unique=True))
    text = "\n".join(remaining + draw(LINES)).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        return text
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.binary(max_size=3)) + text[start + draw(st.integers(0, 8)) :]


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    write_study(tmp_path, "tiny", STUDY, {"cnn": CNN})
    return tmp_path


def is_sensible(value) -> bool:
    """Whether a person could mean this value."""
    if isinstance(value, list):
        return len(value) <= 100 and all(map(is_sensible, value))
    if isinstance(value, str):
        return value.encode("utf-8") and "\0" not in value
    return isinstance(value, bool) or 0 <= value <= 2**32


def check(project, file: str, **arguments) -> None:
    """Check that a study is read with sensible values, or rejected with a line naming the file."""
    start = time.process_time()
    try:
        runs = configs.load(project, "tiny", **arguments)
    except StudyError as error:
        message = str(error)
        assert not params.CONTROL.search(message)
        assert len(message) < 1000
        assert file in message or message.startswith("cnn: ")
    else:
        documents_of_runs = [yaml.safe_dump(run.parameters) for run in runs]
        assert all(yaml.safe_load(text) for text in documents_of_runs)
        values = [value for run in runs for key, value in run.parameters.items()
                  if key not in ("variant", "study", "architecture")]  # fmt: skip
        assert all(map(is_sensible, values))
    if time.process_time() - start >= 1:  # this may be a pause of Python's garbage collector
        start = time.process_time()
        with contextlib.suppress(StudyError):
            configs.load(project, "tiny", **arguments)
        assert time.process_time() - start < 1


SLOW = settings(
    max_examples=DOCUMENTS // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.faults
@SLOW
@given(content=documents(), file=st.sampled_from([*VALID]))
@example(content=b"a: &a [*a]", file="cnn.yaml")
@example(content=b"grid: {learn_from: [" + b"1, " * 20_000 + b"1]}", file="study.yaml")
def test_any_file_is_read_or_rejected(project, content, file):
    for name, text in VALID.items():
        (project / "params" / "tiny" / name).write_bytes(content if name == file else text.encode())
    check(project, "params/tiny/")


@pytest.mark.faults
@SLOW
@given(pairs=st.lists(st.tuples(NAMES, VALUES).map("=".join), max_size=3))
def test_any_override_is_read_or_rejected(project, pairs):
    check(project, "SET", overrides=" ".join(pairs))
