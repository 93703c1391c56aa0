"""Peak memory of a call.

On a CPU it is resident memory as Linux counts it, whose high-water mark can be set back (`VmHWM`; that of
`getrusage` cannot, and begins with the peak of the process that started this one); on a GPU, what PyTorch
allocated.
"""

import ctypes
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
TIMEOUT = 600
_PROC = Path("/proc/self")


def in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Call a function of a module in a new process, which has imported what it needs and done nothing else.

    Raises:
        TimeoutError: it takes longer than `TIMEOUT` seconds.
        EOFError: it failed; the process says why.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.models", "ecstruct.scores"])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, function, args))
    process.start()
    sending.close()
    try:
        if not receiving.poll(TIMEOUT):
            raise TimeoutError(f"{function.__name__} did not finish within {TIMEOUT} seconds")
        result = receiving.recv()
        process.join()  # killed, it would leave locks of libraries behind
        return result
    finally:
        process.kill()
        process.join()


def _send(sending: Connection, function: Callable[..., object], args: tuple[object, ...]) -> None:
    sending.send(function(*args))


def peak_during(function: Callable[[], object], device: str) -> tuple[float, float]:
    """MB in use before a call, and the most during it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return before / 1e6, torch.cuda.max_memory_allocated(device) / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before is used again, and does not count
    (_PROC / "clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    function()
    return before, resident("VmHWM")


def resident(what: str) -> float:
    """MB of this process: `VmRSS`, in use now, or `VmHWM`, the most so far."""
    lines = (_PROC / "status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{what}:"))
    return int(kilobytes) * 1024 / 1e6
