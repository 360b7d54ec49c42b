"""Kernels that start ahead run the requested notebook, and are stopped when not needed."""

import signal

import nbformat
import papermill
import pytest

from cbir.studies import kernels


@pytest.fixture
def notebooks(tmp_path):
    """Two notebooks with imports, the second of which fails to import."""
    paths = []
    for module in ("json", "no_such_module"):
        cells = [nbformat.v4.new_code_cell(f"import {module}"),
                 nbformat.v4.new_code_cell('print("json" in globals(), __name__)')]  # fmt: skip
        paths.append(tmp_path / f"{module}.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=cells), paths[-1])
    yield paths
    kernels.stop_waiting()


def test_a_waiting_kernel_has_run_the_imports_and_runs_the_notebook(notebooks, tmp_path):
    arguments = (notebooks[0], tmp_path / "kernel.log", tmp_path)
    kernels.start_ahead(*arguments)
    (waiting,) = kernels._waiting.values()
    kernel = kernels.take(*arguments)
    assert kernel is waiting
    executed = papermill.execute_notebook(
        arguments[0], None, kernel_name="python3", km=kernel.manager, progress_bar=False
    )
    assert [cell.execution_count for cell in executed.cells] == [1, 2]
    assert executed.cells[1].outputs[0].text == "True __main__\n"
    kernel.stop()
    assert not kernel.manager.has_kernel


def test_a_kernel_for_another_notebook_waits_until_all_are_stopped(notebooks, tmp_path):
    log = tmp_path / "kernel.log"
    kernels.start_ahead(notebooks[1], log, tmp_path)
    kernels.start_ahead(notebooks[1], log, tmp_path)
    (waiting,) = kernels._waiting.values()
    kernel = kernels.take(notebooks[0], log, tmp_path)
    assert kernel is not waiting
    assert waiting.manager.has_kernel
    kernels.stop_waiting()
    assert not waiting.manager.has_kernel
    assert kernel.manager.has_kernel
    kernel.stop()
    assert not kernels._waiting
    assert not kernels._running


@pytest.mark.slow
def test_the_kernel_of_an_interrupted_notebook_ends_silently(notebooks, tmp_path, capfd):
    cells = [nbformat.v4.new_code_cell("import time\ntime.sleep(60)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebooks[0])
    kernel = kernels.Kernel(notebooks[1], tmp_path / "kernel.log", tmp_path)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        with pytest.raises(KeyboardInterrupt):
            papermill.execute_notebook(
                notebooks[0], None, kernel_name="python3", km=kernel.manager, progress_bar=False
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        kernel.stop()
    assert not kernel.manager.has_kernel
    assert capfd.readouterr().err == ""
