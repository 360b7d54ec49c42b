"""Notebook kernels: the next kernel starts and runs its imports while another notebook runs."""

import asyncio
import json
from pathlib import Path

_waiting: list["Kernel"] = []


class Kernel:
    """A kernel that was started for a notebook and runs its imports first.

    Args:
        notebook: the notebook that it is for.
        log: a file for what the kernel's libraries write to stderr.
        root: the kernel's working directory.
    """

    def __init__(self, notebook: Path, log: Path, root: Path):
        # These imports are slow, and few commands start a kernel.
        from jupyter_client import AsyncKernelManager, BlockingKernelClient
        from jupyter_core.utils import run_sync

        self.place = (notebook, log, root)
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
    """Start a kernel that waits for its notebook."""
    _waiting.append(Kernel(notebook, log, root))


def take(notebook: Path, log: Path, root: Path) -> Kernel:
    """Return the kernel that waits for a notebook, or a new one; stop all other waiting kernels."""
    wanted = [kernel for kernel in _waiting if kernel.place == (notebook, log, root)]
    for kernel in wanted[:1]:
        _waiting.remove(kernel)
    stop_waiting()
    return wanted[0] if wanted else Kernel(notebook, log, root)


def stop_waiting() -> None:
    """Stop all waiting kernels."""
    while _waiting:
        _waiting.pop().stop()


def _imports(notebook: Path) -> str:
    """The source of the cells that begin with an import."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(source for source in code if source.startswith(("import ", "from ")))
