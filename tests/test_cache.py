"""Cached steps: computed once, with a key of all inputs, and never found half finished."""

import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from cbir import StudyError, cache, files, machine

# The package whose code enters the keys of the steps below.
PACKAGE = "retrieval"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty project."""
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A small package instead of the real one, with a module in each package of `WAY`."""
    folder = tmp_path / "package"
    for name in ("images", "networks", "retrieval", "reporting", "search"):
        (folder / name).mkdir(parents=True)
        (folder / name / "module.py").write_text('"""What it does."""\n\nFACTOR = 2\n')
    for name in ("explain", "progress"):
        (folder / f"{name}.py").write_text("FACTOR = 2\n")
    (folder / "networks" / "backbones.py").write_text("ROWS = {'cnn': 1}\n")
    monkeypatch.setattr(cache, "__file__", str(folder / "cache.py"))
    cache.package_digest.cache_clear()
    yield folder
    cache.package_digest.cache_clear()


def write(folder: Path, text: str = "done") -> None:
    (folder / "result.txt").write_text(text)


def make_once(make=write, step="step", **parameters) -> cache.Artifact:
    return cache.cached(step, make, parameters=parameters, reads=["data"], package=PACKAGE)


def find(step="step", **parameters) -> cache.Artifact | None:
    return cache.find(step, parameters=parameters, reads=["data"], package=PACKAGE)


def no_make(folder: Path) -> None:
    raise AssertionError("made again")


def raising(error: BaseException):
    def make(folder: Path) -> None:
        write(folder, "half")
        raise error

    return make


def test_a_step_is_computed_once(root):
    first = make_once(size=3)
    assert (first.folder / "result.txt").read_text() == "done"
    second = make_once(no_make, size=3)
    assert second == first
    assert first.folder.parent == root / "artifacts" / "step"


def test_a_result_is_found_from_a_subfolder_of_the_project(root, monkeypatch):
    first = make_once()
    monkeypatch.chdir(root / "notebooks")
    assert make_once(no_make) == first


def test_the_manifest_records_the_inputs_of_a_result(root):
    artifact = make_once(size=3)
    content = json.loads((artifact.folder / "manifest.json").read_text())
    assert content == artifact.manifest
    assert (content["step"], content["parameters"], content["reads"]) == (
        "step", {"size": 3}, ["data"],
    )  # fmt: skip
    assert content["versions"] == cache.versions()
    assert artifact.key == content["key"]
    assert artifact.folder.name == artifact.key[:20]


def test_seconds_are_the_time_of_make(root):
    assert 0.05 <= make_once(lambda folder: time.sleep(0.05)).seconds < 5


def test_only_the_result_remains_in_the_folder_of_a_step(root):
    artifact = make_once()
    assert sorted(path.name for path in artifact.folder.iterdir()) == [
        "manifest.json", "result.txt",
    ]  # fmt: skip
    assert [path for path in artifact.folder.parent.iterdir() if path.is_dir()] == [artifact.folder]


CHANGES = {
    "step": {"step": "other"},
    "parameters": {"parameters": {"size": 4}},
    "one more parameter": {"parameters": {"size": 3, "more": None}},
    "type of a parameter": {"parameters": {"size": "3"}},
    "reads": {"reads": ["one", "three"]},
    "order of reads": {"reads": ["two", "one"]},
    "fewer reads": {"reads": ["one"]},
    "code": {"code": "other"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_changes_with_each_input(change):
    inputs = {"step": "step", "parameters": {"size": 3}, "reads": ["one", "two"], "code": "code"}
    assert cache.make_key(**inputs) == cache.make_key(**inputs)
    assert cache.make_key(**inputs | change) != cache.make_key(**inputs)


@pytest.mark.parametrize(
    "package",
    [
        "python",
        "backend",
        "keras",
        "numba",
        "numpy",
        "pillow",
        "scikit-image",
        "scipy",
        "tensorflow",
    ],
)
def test_the_key_changes_with_the_version_of_each_computing_package(package, monkeypatch):
    monkeypatch.setattr(machine, "backend", lambda: "tensorflow")
    versions = machine.versions.__wrapped__()
    assert package in versions
    monkeypatch.setattr(cache, "versions", lambda: versions)
    before = cache.make_key("step", {}, [], "code")
    monkeypatch.setattr(cache, "versions", lambda: versions | {package: "0.0.1"})
    assert cache.make_key("step", {}, [], "code") != before


def test_the_key_does_not_depend_on_the_order_of_parameters():
    first, reordered = {"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}
    assert cache.make_key("step", first, [], "") == cache.make_key("step", reordered, [], "")


def test_other_parameters_reads_or_code_are_computed_again(root, monkeypatch):
    artifacts = [make_once(size=3), make_once(size=4)]
    artifacts.append(
        cache.cached("step", write, parameters={"size": 3}, reads=["else"], package=PACKAGE)
    )
    monkeypatch.setattr(cache, "package_digest", lambda module: "other code")
    artifacts.append(make_once(size=3))
    assert len({artifact.folder for artifact in artifacts}) == 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1\n", "# why\nx = 1  # so\n"),
        ("x = 1\n", '"""Explained."""\nx = 1\n'),
        ('"""Explained."""\nx = 1\n', '"""Explained better."""\n\n\nx = (1)\n'),
        ("def f(a):\n    return a\n", 'def f(a):\n    """What a is."""\n    return a\n'),
        ("class A:\n    b = 1\n", 'class A:\n    """An A."""\n\n    b = 1\n'),
        (
            "class A:\n    def f(self):\n        return 1\n",
            'class A:\n    def f(self):\n        """One."""\n        return 1  # one\n',
        ),
        ("f(a, b)\n", "f(\n    a,\n    b,\n)\n"),
    ],
)
def test_comments_layout_and_docstrings_do_not_change_the_digest(before, after):
    assert cache.source_digest(before) == cache.source_digest(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1\n", "x = 2\n"),
        ("x = 1\n", "x = 1.0\n"),
        ("x = 'a'\n", "x = 'b'\n"),
        ("def f(a=1):\n    return a\n", "def f(a=2):\n    return a\n"),
        ("f(a, b)\n", "f(b, a)\n"),
        ('x = f("text")\n', 'x = f("another text")\n'),
        ("import os\n", "import sys\n"),
    ],
)
def test_other_code_has_another_digest(before, after):
    assert cache.source_digest(before) != cache.source_digest(after)


def digests() -> dict[str, str]:
    cache.package_digest.cache_clear()
    return {name: cache.package_digest(name) for name in cache.WAY}


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("images/module.py", {"images", "networks", "retrieval", "explain", "reporting"}),
        ("networks/module.py", {"networks", "retrieval", "explain", "reporting"}),
        ("retrieval/module.py", {"retrieval", "explain", "reporting"}),
        ("explain.py", {"explain", "reporting"}),
        ("reporting/module.py", {"reporting"}),
        ("search/module.py", set()),
        ("progress.py", set()),
        ("networks/backbones.py", set()),
        ("images/backbones.py", {"images", "networks", "retrieval", "explain", "reporting"}),
    ],
)
def test_changed_code_changes_the_digests_of_later_steps(code, module, changed):
    before = digests()
    (code / module).write_text("FACTOR = 3\n")
    after = digests()
    assert {name for name in cache.WAY if before[name] != after[name]} == changed


def test_changed_docstrings_and_comments_change_no_package_digest(code):
    before = digests()
    (code / "images" / "module.py").write_text('"""What it does, in short."""\n# why\nFACTOR = 2\n')
    assert digests() == before


def test_a_new_or_renamed_module_changes_the_digest(code):
    before = cache.package_digest("images")
    (code / "images" / "other.py").write_text("")
    cache.package_digest.cache_clear()
    assert cache.package_digest("images") != before


def test_every_name_in_way_is_a_package_or_module():
    root = Path(cache.__file__).parent
    for name in cache.WAY:
        assert (root / name).is_dir() or (root / f"{name}.py").is_file()
    assert (root / cache.TABLE_OF_ROWS).is_file()


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.file_digest(tmp_path / "file") == expected


def test_backend_is_the_one_keras_would_use(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "keras"})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert machine.backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert machine.backend() == "jax"
    (tmp_path / "keras.json").write_text('{"backend')
    with pytest.raises(StudyError, match="keras.json is not a valid configuration of Keras"):
        machine.backend()
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert machine.backend() == "torch"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), StudyError("no")])
def test_an_interrupted_step_continues_in_the_same_folder(root, error):
    with pytest.raises(type(error)):
        make_once(raising(error))
    assert find() is None

    def go_on(folder: Path) -> None:
        write(folder, (folder / "result.txt").read_text() + " and whole")

    artifact = make_once(go_on)
    assert (artifact.folder / "result.txt").read_text() == "half and whole"
    assert make_once(no_make) == artifact


def test_an_unfinished_result_is_not_found(root):
    results = []

    def look(folder: Path) -> None:
        write(folder, "half")
        results.append(find())
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        make_once(look)
    assert results == [None]
    assert find() is None


def test_a_result_interrupted_before_its_last_move_is_not_found(root, monkeypatch):
    replace = os.replace

    def stopped(source, target):
        if Path(source).is_dir():
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stopped)
        make_once()
    assert find() is None
    assert make_once() == find()


def test_a_folder_without_a_manifest_is_computed_again(root):
    (make_once().folder / "manifest.json").unlink()
    assert find() is None
    artifact = make_once(functools.partial(write, text="again"))
    assert (artifact.folder / "result.txt").read_text() == "again"


def test_find_computes_nothing(root):
    assert find(size=3) is None
    assert not (root / "artifacts").exists()
    artifact = make_once(size=3)
    assert find(size=3) == artifact
    assert find(size=4) is None


@pytest.mark.parametrize("change", ["package_digest", "versions"])
def test_results_of_other_code_or_versions_are_not_found(root, monkeypatch, change):
    make_once()
    assert find() is not None
    changed = {"package_digest": lambda package: "other", "versions": lambda: {"keras": "0"}}
    monkeypatch.setattr(cache, change, changed[change])
    assert find() is None


def test_is_current_requires_the_same_key(tmp_path):
    assert not cache.is_current(tmp_path, "key")
    cache.write_manifest(tmp_path, [], key="key", seconds=1)
    assert cache.is_current(tmp_path, "key")
    assert not cache.is_current(tmp_path, "other")


def test_text_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "text"
    files.write_text(path, "before ü")

    def half(self, text, encoding=None):
        self.write_bytes(b"aft")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "after")
    assert path.read_text("utf-8") == "before ü"


FULL = {
    "by number": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    # Without an error number.
    "by h5py": OSError("Can't write data (No space left on device)"),
    "by NumPy": OSError("147456 requested and 98272 written"),
}
READ_ONLY = {
    name: OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    for name in ("EACCES", "EROFS", "EPERM")
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_reported_in_one_line_and_keeps_finished_results(root, error):
    before = make_once(size=1)
    with pytest.raises(StudyError, match="^disk full while writing .*free some space") as caught:
        make_once(raising(error), size=2)
    assert "\n" not in str(caught.value)
    assert make_once(no_make, size=1) == before
    assert find(size=2) is None
    after = make_once(size=2)
    assert (after.folder / "result.txt").read_text() == "done"


def test_a_full_disk_while_writing_the_manifest_is_reported(root, monkeypatch):
    def full(path, text):
        path.write_text(text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_text", full)
    with pytest.raises(StudyError, match="^disk full"):
        make_once()
    assert find() is None


@pytest.mark.parametrize("error", READ_ONLY.values(), ids=READ_ONLY)
def test_a_read_only_disk_is_reported_in_one_line(root, error):
    with pytest.raises(StudyError, match="^no access to .*make it readable and writable") as caught:
        make_once(raising(error))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", READ_ONLY.values(), ids=READ_ONLY)
def test_a_read_only_project_is_reported_before_computing(root, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StudyError, match="^no access to "):
        make_once(no_make)


@pytest.mark.parametrize("ending", ["", ".partial", ".lock", "/.."])
@pytest.mark.parametrize("make_it", [lambda path: path.write_text("x"), Path.mkdir, None])
def test_a_file_in_the_way_of_a_result_is_replaced_or_reported(root, ending, make_it):
    folder = make_once().folder
    shutil.rmtree(folder if ending != "/.." else folder.parent)
    path = Path(os.path.normpath(f"{folder}{ending}"))
    if make_it:
        make_it(path)
    else:
        path.symlink_to("nowhere")
    try:
        assert make_once() == find()
    except StudyError as error:
        expected = f"cannot write {folder}: {path} is in the way: move it and run again"
        assert str(error) == expected
        path.unlink() if make_it != Path.mkdir else path.rmdir()
        assert make_once() == find()


def test_other_errors_are_raised_unchanged(root):
    with pytest.raises(FileNotFoundError, match="weights"):
        make_once(raising(FileNotFoundError(errno.ENOENT, "no file", "weights")))
    with pytest.raises(ZeroDivisionError):
        make_once(raising(ZeroDivisionError()))


def test_concurrent_threads_compute_once(root):
    calls, results, barrier = [], [], threading.Barrier(4)

    def slowly(folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        write(folder)

    def start() -> None:
        barrier.wait()
        results.append(make_once(slowly))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1
    assert len({result.folder for result in results}) == 1
    assert len(results) == 4


def test_steps_of_different_keys_do_not_wait_for_each_other(root):
    barrier, results = threading.Barrier(2), []

    def meet(folder: Path) -> None:
        barrier.wait(20)

    def start(size: int) -> None:
        results.append(make_once(meet, size=size))

    threads = [threading.Thread(target=start, args=[size]) for size in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 2


PROCESS = """
import os, sys, time
from pathlib import Path
from cbir import cache

def make(folder):
    with open("calls", "a") as calls:
        calls.write("made\\n")
    (folder / "result.txt").write_text("half")
    time.sleep(float(sys.argv[1]))
    (folder / "result.txt").write_text("done")

cache.versions()
Path(f"ready-{os.getpid()}").touch()
while not Path("go").exists():
    time.sleep(0.005)
artifact = cache.cached("step", make, parameters={}, reads=["data"], package="retrieval")
print((artifact.folder / "result.txt").read_text())
"""


def start_process(seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(seconds)], stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_concurrent_processes_compute_once(root):
    processes = [start_process(0.5) for _ in range(2)]
    wait_for(lambda: len(list(root.glob("ready-*"))) == 2, processes[0])
    (root / "go").touch()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [output.splitlines()[-1] for output in outputs] == ["done", "done"]
    waiting = [line for output in outputs for line in output.splitlines()[:-1]]
    assert len(waiting) == 1
    (maker,) = {str(process.pid) for process in processes} & set(waiting[0].split())
    assert re.search(rf"in use by process {maker} on \S+ since 20\d\d-", waiting[0])
    assert (root / "calls").read_text() == "made\n"


def test_the_process_that_holds_a_lock_is_reported(tmp_path, capsys):
    path, is_locked = tmp_path / "step.lock", threading.Event()

    def lock() -> None:
        with FileLock(path):
            is_locked.set()
            time.sleep(0.1)
            path.write_text("process 7 on here")
            time.sleep(0.1)

    thread = threading.Thread(target=lock)
    thread.start()
    is_locked.wait()
    with files.locked(tmp_path / "step"):
        thread.join()
    assert capsys.readouterr().out == f"waiting for {tmp_path}/step, in use by process 7 on here\n"


def test_the_step_of_a_killed_process_continues_in_its_folder(root):
    (root / "go").touch()
    process = start_process(60)
    wait_for(lambda: any(root.glob("artifacts/step/*/result.txt")), process)
    process.kill()
    process.communicate(timeout=60)
    assert find() is None

    def go_on(folder: Path) -> None:
        write(folder, (folder / "result.txt").read_text() + " and whole")

    assert (make_once(go_on).folder / "result.txt").read_text() == "half and whole"


# Damage

FILES = ("result.txt", "manifest.json")


def flip(path: Path, fraction: float = 0.5) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(fraction * len(content))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "other content": lambda path: path.write_text("gone"),
    "brackets": lambda path: path.write_text("[" * 100_000),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" x"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_reported_and_computed_again(root, capsys, name, damage):
    first = make_once(size=3)
    damage(first.folder / name)
    assert find(size=3) is None
    assert f"{first.folder}: {name} is damaged" in capsys.readouterr().out
    second = make_once(functools.partial(write, text="again"), size=3)
    assert (second.folder / "result.txt").read_text() == "again"
    assert make_once(no_make, size=3) == second
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["seconds", "parameters", "reads", "step", "key", "files"])
def test_an_edited_manifest_counts_as_damaged(root, key):
    path = make_once(size=3).folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: {} if key == "files" else "edited"}))
    assert find(size=3) is None


def test_a_result_with_a_missing_file_is_computed_again(root, capsys):
    first = make_once()
    (first.folder / "result.txt").unlink()
    assert find() is None
    assert f"{first.folder}: result.txt is missing" in capsys.readouterr().out
    assert make_once().folder == first.folder


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_result_with_an_unreadable_file_is_computed_again(root, capsys, monkeypatch, error):
    first = make_once()

    def refuse(path):
        raise OSError(error, os.strerror(error), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_digests", {})
        patched.setattr(cache, "file_digest", refuse)
        assert find() is None
    reason = f"result.txt cannot be read ({os.strerror(error)})"
    assert f"{first.folder}: {reason}: it counts as unfinished" in capsys.readouterr().out
    assert make_once().folder == first.folder
    (first.folder / "manifest.json").unlink()
    (first.folder / "manifest.json").mkdir()  # raises an error when it is read
    assert make_once() == find()


def test_exchanged_folders_are_computed_again(root):
    first, second = make_once(size=1).folder, make_once(size=2).folder
    first.rename(root / "aside")
    second.rename(first)
    (root / "aside").rename(second)
    for size, folder in ((1, first), (2, second)):
        assert find(size=size) is None
        assert make_once(functools.partial(write, text="again"), size=size).folder == folder


def test_a_quick_check_reads_small_files_and_sizes_of_large_files(root):
    def large(folder: Path) -> None:
        (folder / "large").write_bytes(bytes(cache.SMALL + 10))
        write(folder)

    folder = make_once(large).folder
    flip(folder / "large")
    assert cache.read(folder, thorough=False) is not None
    assert cache.read(folder) is None
    folder = make_once(large).folder
    os.truncate(folder / "large", cache.SMALL)
    assert cache.read(folder, thorough=False) is None
    folder = make_once(large).folder
    flip(folder / "result.txt")
    assert cache.read(folder, thorough=False) is None


def test_a_result_of_an_earlier_version_is_ignored_and_kept(root):
    folder = root / "artifacts" / "step" / "abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"key": "abc"}')
    assert cache.read(folder) is None
    assert (folder / "manifest.json").exists()


def test_a_step_killed_before_its_last_move_is_not_computed_again(root, monkeypatch):
    def stopped(source, target):
        if Path(source).is_dir():
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stopped)
        make_once()
    assert make_once(no_make) == find()


def test_scratch_files_are_deleted_at_the_end(root):
    def in_scratch(folder: Path) -> None:
        (folder / cache.SCRATCH).mkdir()
        write(folder / cache.SCRATCH)
        write(folder)

    folder = make_once(in_scratch).folder
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_files_are_synchronised_before_they_are_renamed(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("synchronised"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("moved"), replace(*names)))
    files.write_text(tmp_path / "text", "text")
    assert events == ["synchronised", "moved"]


def test_a_manifest_covers_files_beside_its_folder(tmp_path):
    folder, page = tmp_path / "index", tmp_path / "index.html"
    folder.mkdir()
    page.write_text("a page")
    cache.write_manifest(folder, [page], key="key", seconds=1)
    assert cache.is_current(folder, "key")
    flip(page)
    assert not cache.is_current(folder, "key")


def test_the_lock_of_a_killed_process_is_released(root, capsys):
    (root / "go").touch()
    process = start_process(60)
    wait_for(lambda: any(root.glob("artifacts/step/*/result.txt")), process)
    (lock,) = (root / "artifacts" / "step").glob("*.lock")
    assert lock.read_text().startswith(f"process {process.pid} on ")
    process.kill()
    process.communicate(timeout=60)
    make_once()
    assert "waiting" not in capsys.readouterr().out
    assert not lock.exists()


@pytest.mark.parametrize("error", files.WITHOUT_LOCKS)
def test_a_file_system_without_locks_is_reported_before_computing(root, monkeypatch, error):
    def refuse(*arguments):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StudyError, match=r"/step/\w+ is on a file system without locks: move"):
        make_once(no_make)


# Runs on a tmpfs of one megabyte in a mount namespace, which needs no privileges.
FULL_DISK = """
import numpy as np
from cbir import StudyError, cache, files

def map_array(folder):
    files.create_array(folder / "array.npy", "f4", (1_000_000,))[:] = 1

def save_array(folder):
    np.save(folder / "array.npy", np.ones(1_000_000, "f4"))

for make in (map_array, save_array):
    try:
        cache.cached(make.__name__, make, parameters={}, package="retrieval")
    except StudyError as error:
        print(error)
"""


def test_an_array_larger_than_the_disk_is_reported_in_one_line(root):
    (root / "artifacts").mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs artifacts || exit 77; exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, FULL_DISK]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if process.returncode == 77 or "unshare" in process.stderr:
        pytest.skip("no file system can be mounted here")
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("disk full while writing ") for line in lines)
