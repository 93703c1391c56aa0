"""Several processes of one command: what they tell one another, and who is named when one is gone."""

from pathlib import Path

import pytest
import torch
from helpers.processes import forked, torchrun

from ecstruct.errors import InputError, LostRank
from ecstruct.io.distributed import Ranks, launched, ranks

TOGETHER = """
import torch
import ecstruct.io.distributed as distributed
from ecstruct.errors import InputError

def refused(call):
    try:
        call()
    except InputError as error:
        return str(error)

with distributed.ranks("cpu") as them:
    assert distributed.launched() and them.size == 3 and them.first == (them.rank == 0)
    assert them.device == "cpu"
    summed = them.all_reduce(torch.tensor([1.0, them.rank]))
    assert summed.tolist() == [3.0, 3.0]
    assert them.gather(them.rank) == ([0, 1, 2] if them.first else None)
    assert them.broadcast(f"from {them.rank}") == "from 0"
    assert them.on_first(lambda: them.rank) == 0
    them.barrier()

    def refuse():
        raise InputError(f"no, says {them.rank}")

    assert refused(lambda: them.on_first(refuse)) == "no, says 0"
    them.agree({"lr": "0.1"})
    given = {"lr": "0.1", "seed": "0"} if them.rank < 2 else {"lr": "0.1", "seed": "1" * 200}
    message = refused(lambda: them.agree(given))
    assert message.startswith("the ranks differ in seed: 0 on rank 0, 1"), message
    assert "on rank 2; start the same command" in message and len(message) < 200
    message = refused(lambda: them.agree({"a": "1"} if them.rank != 1 else {}))
    assert message.startswith("the ranks differ in a: 1 on rank 0, nothing on rank 1"), message

code = distributed._code()
if them.rank == 1:
    distributed._code = lambda: code | {"the code of ecstruct": "edited"}
message = refused(lambda: distributed.ranks("cpu").__enter__())
assert message.startswith("the ranks differ in the code of ecstruct: ") and "edited on rank 1" in message
print("all is well")
"""

DYING = """
import os, signal, sys, time
import torch
import ecstruct.io.distributed as distributed
from ecstruct.cli import app
from ecstruct.cli.flags import command_run

distributed._PATIENCE, distributed._STILL = 1.0, 2.0

@app.command()
def die(how: str, who: int) -> None:
    with command_run(quiet=True, debug=False):
        with distributed.ranks("cpu") as them:
            them.all_reduce(torch.ones(1))
            if them.rank == who:
                if how == "raises":
                    raise ValueError("something of its own")
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stuck":  # as in a GPU's driver, where no signal is seen
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
                ended = time.monotonic() + 60
                while time.monotonic() < ended:
                    try:
                        time.sleep(1)
                    except SystemExit:
                        pass
            them.all_reduce(torch.ones(1))

app()
"""


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def test_three_processes_work_together(tmp_path: Path) -> None:
    done = forked(3, script(tmp_path, TOGETHER))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all is well") == 3


@pytest.mark.parametrize(
    ("how", "who", "what"),
    [
        ("killed", 0, "rank 0 of 2 died"),
        ("raises", 2, "rank 2 of 3 failed (ValueError: something of its own)"),
        ("stuck", 1, "rank 1 of 3 died"),
    ],
)
def test_who_is_lost_is_named(tmp_path: Path, how: str, who: int, what: str) -> None:
    words = (script(tmp_path, DYING), "die", how, str(who))
    # Only the launcher's own processes end by themselves: it ends the forked ones.
    done = torchrun(2, *words).ended() if how == "killed" else forked(3, *words)
    survivors = 1 if how == "killed" else 2
    sentence = f"error: {what}: run the same command again, what is finished is kept"
    assert done.stderr.count(sentence) == survivors, done.stderr
    assert done.returncode == 1
    if how == "killed":
        assert done.stderr.count("exitcode  : 1 ") == survivors, done.stderr


def test_a_process_on_its_own_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    with ranks("cpu") as alone:
        assert alone == Ranks(0, 1, "cpu") and alone.first
        t = torch.ones(2)
        assert alone.all_reduce(t) is t and t.tolist() == [1.0, 1.0]
        assert alone.gather("a") == ["a"] and alone.broadcast("b") == "b"
        assert alone.on_first(lambda: "c") == "c"
        alone.barrier()
        alone.agree({"a": "1"})
    with pytest.raises(LostRank), ranks():
        raise LostRank("rank 1 of 2 died")


def test_one_process_under_a_launcher_is_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert not launched()
    with pytest.raises(InputError, match="no"), ranks() as alone:
        alone.on_first(lambda: (_ for _ in ()).throw(InputError("no")))
