"""The processes of one command, as `torchrun` and `accelerate launch` start them; a process is a *rank*.

A command that can use several processes opens `ranks(device)` and uses the `Ranks` it gets to sum, gather
and compare. For a single process all of these are trivial, so that callers need only one code path.

A rank that dies is named. A thread of every rank increments a heartbeat in the launcher's key-value store,
and a rank that leaves deliberately writes a note there. When the others fail, because a collective lost its
peer or because the launcher terminates them, they look for heartbeats that have stopped.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ecstruct.errors import InputError, LostRank
from ecstruct.io.launch import NEEDED, launched
from ecstruct.io.values import shortened

T = TypeVar("T")

_BEAT = 0.5
"""Seconds between two beats."""

_STILL = 4.0
"""Seconds without a beat after which a rank counts as dead; checked only after a failure."""

_PATIENCE = 12.0
"""Seconds that a terminated rank gets to notice itself that it lost a peer. `torchrun` kills after 30."""

_TIMEOUT = timedelta(hours=6)
"""The timeout of collectives. It is long, as a rank may have more work; heartbeats find dead ranks."""

_MEETING = timedelta(minutes=10)
"""The time within which all ranks have to connect."""

_uses = itertools.count()


@dataclass(frozen=True)
class Ranks:
    """This process as one of the `size` processes of its command.

    `rank` counts from 0 to `size` - 1; `device` is as for `ecstruct.load`, and each of several processes
    has its own. All ranks must call the same methods, in the same order.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of any shape over all ranks, in place; return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all ranks, in order, on the first rank; `None` on the others."""
        if self.size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, gathered)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return the first rank's value on all ranks."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Do work on the first rank only, and return its result on all ranks.

        Raises:
            InputError: the work raised it; it is raised on all ranks.
        """
        value: Any = None
        if self.first:
            try:
                value = work()
            except InputError as error:
                value = error
        value = self.broadcast(value)
        if isinstance(value, InputError):
            raise value
        return value

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def agree(self, what: Mapping[str, str]) -> None:
        """Raise `InputError` on all ranks unless all have the same mapping."""
        if self.size == 1:
            return
        all_given: list[Any] = [None] * self.size
        dist.all_gather_object(all_given, dict(what))
        first = all_given[0]
        for rank, given in enumerate(all_given):
            for key in {**first, **given}:
                one, other = first.get(key, "nothing"), given.get(key, "nothing")
                if one != other:
                    raise InputError(
                        f"the ranks differ in {key}: {shortened(one)} on rank 0, {shortened(other)} on "
                        f"rank {rank}; start the same command with the same code on all of them."
                    )


@contextmanager
def ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the other processes of this command; leave them at the end, also after an exception.

    Args:
        device: as for `ecstruct.load`. With several processes, `"cuda"`, or None where there are GPUs,
            gives each process the GPU of its local rank (NCCL), and anything else the CPU (gloo).

    Raises:
        InputError: the ranks run different code of ecstruct, or other versions of what decides the numbers;
            there is no GPU for a rank.
        LostRank: another rank died or failed in the meantime; it is named.
    """
    if not launched():
        yield Ranks(device=device)
        return
    own, backend = _own_device(device)
    store, rank, size = _rendezvous()
    joined = Ranks(rank, size, own)
    use = f"ecstruct/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_uses)}"
    with _Heartbeat(joined, use) as heart:
        try:
            shared = PrefixStore(f"{use}/group", store)
            dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=_TIMEOUT)
            joined.agree(_code())
            yield joined
        except (InputError, LostRank) as error:
            heart.leave(str(error))
            raise
        except BaseException as error:
            # torch says with a RuntimeError, or one of its own that is no Exception, that a peer is gone;
            # and the launcher terminates those that are left.
            ours = isinstance(error, Exception) and not isinstance(error, RuntimeError)
            if not ours and (lost := _ignoring_sigterm(heart.lost)):
                raise LostRank(lost) from error
            ended = isinstance(error, KeyboardInterrupt | SystemExit)
            heart.leave("" if ended else f"{type(error).__name__}: {error}")
            raise
        finally:
            heart.leave("")
            # With a member dead, NCCL may wait for it here.
            if dist.is_initialized() and (backend == "gloo" or sys.exc_info()[0] is None):
                dist.destroy_process_group()


def _rendezvous() -> tuple[Any, int, int]:
    """Wait for all ranks; return the launcher's key-value store, the number of this rank, and their number.
    Raise `InputError` if not all of them connect in time."""
    try:
        return next(iter(rendezvous("env://", timeout=_MEETING)))
    except (dist.DistError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"the {os.environ['WORLD_SIZE']} processes that WORLD_SIZE says do not meet at {place} within "
            f"{_MEETING.total_seconds() / 60:g} minutes: start them with torchrun, or unset "
            f"{', '.join(NEEDED)}."
        ) from error


def _ignoring_sigterm(lost: Callable[[], str]) -> str:
    """Return `lost()`, and ignore the SIGTERM by which the launcher, which has noticed too, ends this rank:
    the rank is ending anyway, and has time to say why."""
    if threading.current_thread() is not threading.main_thread():
        return lost()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not (found := lost()):
        signal.signal(signal.SIGTERM, before)
    return found


def _own_device(device: str | None) -> tuple[str, str]:
    """Make the device of this rank the current one; return its name, and the backends of
    torch.distributed that go with it.

    Raises:
        InputError: `device` cannot be shared by processes, or there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if not (device or ("cuda" if gpus else "cpu")).startswith("cuda"):
        if device not in (None, "cpu"):
            raise InputError(f"several processes share GPUs or the CPU, not {device!r}: use cuda or cpu.")
        return "cpu", "gloo"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= gpus:
        raise InputError(
            f"there is no GPU for process {local} of this machine, which has {gpus}: start at most as many "
            "processes, or use --device cpu."
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}", "cpu:gloo,cuda:nccl"


def _code() -> dict[str, str]:
    """Return what has to be the same on all ranks for their results to be consistent."""
    digest = xxhash.xxh3_128()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    libraries = ("torch", "transformers", "transformer-lens")
    return {"the code of ecstruct": digest.hexdigest(), **{f"{n}'s version": version(n) for n in libraries}}


class _Heartbeat:
    """A heartbeat in the launcher's store, which lets other ranks tell a slow rank from a dead one."""

    def __init__(self, joined: Ranks, use: str) -> None:
        self._own, self._size = joined.rank, joined.size
        # A connection of its own: on the group's, a beat would wait for whatever waits there.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, is_master=False, timeout=timedelta(seconds=60)
        )
        self._store = PrefixStore(use, store)
        self._left = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="ecstruct-heart")
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._in_main = threading.current_thread() is threading.main_thread()
        self._before = -1

    def __enter__(self) -> _Heartbeat:
        if self._in_main:
            self._before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._in_main:
            signal.set_wakeup_fd(self._before)
        self._signals.close()
        self._wakeup.close()

    def leave(self, fault: str) -> None:
        """Write a note that this rank leaves, with the fault if there is one. Only the first note
        counts."""
        if not self._left:
            self._left = True
            with suppress(RuntimeError):
                self._store.set(f"left {self._own}", textwrap.shorten(fault, 300, placeholder=" ..."))

    def lost(self) -> str:
        """Say which ranks died or failed; "" if all others live or left without a fault. This takes
        `_STILL` seconds, unless a note tells earlier. Only a rank that is about to leave calls it."""
        try:
            before, since = self._beats(), time.monotonic()
            while time.monotonic() < since + _STILL:
                if failed := [f"rank {r} of {self._size} failed ({n})" for r, n in self._notes() if n]:
                    return failed[0]
                self._store.add(f"beat {self._own}", 1)  # also where the thread that beats is asking
                time.sleep(_BEAT)
            now, left = self._beats(), [r for r, _ in self._notes()]
            dead = [str(r) for r in before if now[r] == before[r] and r not in left]
            if dead:
                self.leave("")  # before this one stops beating
        except RuntimeError:  # the store went with the process that had it
            by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
            return "the launcher died" if by_launcher else f"rank 0 of {self._size} died"
        return f"rank {' and rank '.join(dead)} of {self._size} died" if dead else ""

    def _beats(self) -> dict[int, int]:
        return {r: self._store.add(f"beat {r}", 0) for r in self._others()}

    def _notes(self) -> list[tuple[int, str]]:
        left = [r for r in self._others() if self._store.check([f"left {r}"])]
        return [(r, self._store.get(f"left {r}").decode()) for r in left]

    def _others(self) -> list[int]:
        return [r for r in range(self._size) if r != self._own]

    def _beat(self) -> None:
        ending = math.inf
        while not self._stop.is_set():
            with suppress(RuntimeError):
                self._store.add(f"beat {self._own}", 1)
            if select.select([self._signals], [], [], _BEAT)[0] and signal.SIGTERM in self._signals.recv(
                64
            ):
                ending = min(ending, time.monotonic() + _PATIENCE)
            if time.monotonic() > ending:
                ending = math.inf
                # The main thread may wait for a GPU that waits for the dead: there it sees no signal.
                if lost := self.lost():
                    os.write(2, f"error: {LostRank(lost)}\n".encode())  # whole, among those of others
                    os._exit(1)
