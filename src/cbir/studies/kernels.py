"""Notebook kernels: the next kernel starts and runs its imports while another notebook runs."""

import asyncio
import json
import logging
from pathlib import Path

# Kernels that wait for their notebooks, by the arguments they were made with; and those that run.
_waiting: dict[tuple[Path, Path, Path], "Kernel"] = {}
_running: list["Kernel"] = []


class Kernel:
    """A kernel that was started for a notebook and runs its imports first.

    Attributes:
        is_killed: whether `kill_running` has ended it.

    Args:
        notebook: the notebook that it is for.
        log: a file for what the kernel's libraries write to stderr.
        root: the kernel's working directory.
    """

    def __init__(self, notebook: Path, log: Path, root: Path):
        # These imports are slow, and few commands start a kernel.
        from jupyter_client import AsyncKernelManager, BlockingKernelClient
        from jupyter_core.utils import run_sync

        self.is_killed = False
        self.manager = AsyncKernelManager(kernel_name="python3")
        with log.open("w") as file:
            run_sync(self.manager.start_kernel)(cwd=str(root), stderr=file)
        self._run_sync = run_sync
        self._client = BlockingKernelClient()
        self._client.load_connection_info(self.manager.get_connection_info())
        self._client.start_channels(stdin=False, hb=False, control=False)
        self._client.execute(_imports(notebook), silent=True)

    def stop(self) -> None:
        """Stop the kernel immediately."""
        if self in _running:
            _running.remove(self)
        self._client.stop_channels()
        self._run_sync(self._end)()

    async def _end(self) -> None:
        # After an interruption, tasks that wait for replies would report the kernel's death.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.manager.shutdown_kernel(now=True)


def start_ahead(notebook: Path, log: Path, root: Path) -> None:
    """Start a kernel for a notebook, unless one already waits for it."""
    if (notebook, log, root) not in _waiting:
        _waiting[notebook, log, root] = Kernel(notebook, log, root)


def take(notebook: Path, log: Path, root: Path) -> Kernel:
    """Return the kernel that waits for a notebook, or a new one."""
    kernel = _waiting.pop((notebook, log, root), None) or Kernel(notebook, log, root)
    _running.append(kernel)
    return kernel


def stop_waiting() -> None:
    """Stop all waiting kernels."""
    while _waiting:
        _waiting.popitem()[1].stop()


def kill_running() -> None:
    """Kill all kernels that run notebooks in other threads, which then stop them."""
    logging.getLogger("papermill").disabled = True  # It would report that they died.
    for kernel in [*_running]:
        kernel.is_killed = True
        kernel.manager.provisioner.process.kill()


def _imports(notebook: Path) -> str:
    """The source of the cells that begin with an import."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(source for source in code if source.startswith(("import ", "from ")))
