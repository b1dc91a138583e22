"""Processes of one gloo group: forked once, then given functions to run.

    with Ranks(2) as ranks:
        ranks.run(function, 1, b=2)       a list of what each rank returned
        ranks.outcomes(function)          the same, with exceptions as values
        ranks.agreed(function)            the one value, or exception, of all ranks

A function is one of a module, so that it can be pickled; arguments and results are pickled, too. A
fork has all modules of the test process at once, which a new process would import for seconds.
A rank that hangs or dies is an error that shows the stacks of all; the next call forks anew.
"""

import faulthandler
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
import torch.distributed as dist

# Before a fork, so that no rank has to import them.
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.optim
import torch.distributed.tensor.parallel
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["RankError", "Ranks", "mesh", "rank"]

# Seconds for a call, and for the other ranks once one has answered.
_LIMIT, _GRACE = 60.0, 20.0


class RankError(AssertionError):
    """A function failed on some rank, a rank hung or died, or ranks have answered differently."""


def rank() -> int:
    """The number of this process in its group."""
    return dist.get_rank()


@cache
def mesh(*shape: int, names: tuple[str, ...] = ()) -> DeviceMesh:
    """The mesh of all ranks, one for each shape; a line of them for no shape."""
    shape = shape or (dist.get_world_size(),)
    return init_device_mesh("cpu", shape, mesh_dim_names=names or None)


class Ranks:
    """The processes of one group.

    Args:
        count: the number of processes.
        limit: seconds that a call may take.
        grace: seconds that the other ranks may take once one has answered.
    """

    def __init__(self, count: int, *, limit: float = _LIMIT, grace: float = _GRACE) -> None:
        self.count, self.limit, self.grace = count, limit, grace
        self.processes: list[int] = []
        self._ends: list[Connection] = []
        self._folder = Path("no folder yet")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- calls ------------------------------------------------------------------------------

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """The result of each rank, in order.

        Raises:
            RankError: if the function raises on any of them.
        """
        found = self.outcomes(function, *args, **kwargs)
        failed = [(r, e) for r, e in enumerate(found) if isinstance(e, BaseException)]
        if failed:
            raise RankError("\n".join(f"rank {r}: {_traced(e)}" for r, e in failed))
        return found

    def agreed(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The value that all ranks return, or the exception that all raise, which is returned.

        Raises:
            RankError: unless the ranks agree: in the value, or in the type, the text and the fields
                of the exception.
        """
        found = self.outcomes(function, *args, **kwargs)
        if any(_told(one) != _told(found[0]) for one in found[1:]):
            raise RankError("\n".join(f"rank {r}: {_traced(e)}" for r, e in enumerate(found)))
        return found[0]

    def outcomes(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """The result, or the exception, of each rank.

        Raises:
            RankError: if a rank hangs or dies.
        """
        if not self._ends:
            self._start()
        call = pickle.dumps((function, args, kwargs))
        for end in self._ends:
            end.send_bytes(call)
        found = self._answers()
        raised = sum(isinstance(one, BaseException) for one in found)
        if 0 < raised < self.count:  # some are ahead of the others in the order of collectives
            self.stop()
        return found

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        until = time.monotonic() + self.limit
        while len(answers) < self.count:
            waiting = [e for r, e in enumerate(self._ends) if r not in answers]
            ready = wait(waiting, timeout=max(0.0, until - time.monotonic()))
            if not ready:
                self._give_up(answers, "did not answer")
            for end in waiting:
                if end not in ready:
                    continue
                number = self._ends.index(end)
                try:
                    answers[number] = pickle.loads(end.recv_bytes())
                except EOFError:
                    self._give_up(answers, f"did not answer: rank {number} is gone")
            until = min(until, time.monotonic() + self.grace)
        return [answers[number] for number in range(self.count)]

    def _give_up(self, answers: dict[int, Any], what: str) -> NoReturn:
        """Kill all ranks and raise an error with their answers, or their stacks."""
        silent = [r for r in range(self.count) if r not in answers]
        for number in silent:
            with suppress(ProcessLookupError):
                os.kill(self.processes[number], signal.SIGUSR1)  # writes its stack
        time.sleep(0.5)
        lines = [f"ranks {silent} of {self.count} {what}"]
        for number in range(self.count):
            answer = f"answered {_traced(answers[number])}" if number in answers else "is silent:"
            lines.append(f"rank {number} {answer}")
            if number not in answers:
                log = self._log(number).read_text(errors="replace")
                lines.append(log[log.rfind("most recent call first") :][:4000])
        self.stop()
        raise RankError("\n".join(lines))

    # --- processes --------------------------------------------------------------------------

    def _start(self) -> None:
        import torch._dynamo  # noqa: F401 - else DistributedDataParallel would, in each rank

        self._folder = Path(tempfile.mkdtemp(prefix="ranks"))
        for number in range(self.count):
            here, there = Pipe()
            with warnings.catch_warnings():
                # Python 3.12: a process with threads is forked. Those of pytest-xdist only wait.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                here.close()
                for end in self._ends:  # of the ranks before, whose end of file would never come
                    end.close()
                self._serve(number, there)
            there.close()
            self.processes.append(child)
            self._ends.append(here)

    def stop(self) -> None:
        """End all processes; the next call starts new ones."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        for end in self._ends:
            end.close()
        self.processes, self._ends = [], []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self, number: int) -> Path:
        return self._folder / f"rank{number}.log"

    def _serve(self, number: int, end: Connection) -> None:
        """Run functions until the test process is gone; never returns into its stack."""
        try:
            log = self._log(number).open("w")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stdout = sys.stderr = log
            faulthandler.enable(log)
            faulthandler.register(signal.SIGUSR1, log)
            torch.set_num_threads(1)
            if "lo" in dict(map(reversed, socket.if_nameindex())):  # no look-up of the host's name
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(str(self._folder / "store"), self.count),
                rank=number,
                world_size=self.count,
                timeout=timedelta(seconds=self.limit),
            )
            while True:
                function, args, kwargs = pickle.loads(end.recv_bytes())
                torch.manual_seed(0)
                answer: Any
                try:
                    answer = function(*args, **kwargs)
                except BaseException as error:
                    answer = error
                    answer.add_note("".join(traceback.format_exception(error)))
                end.send_bytes(_pickled(answer))
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(0)


def _pickled(answer: Any) -> bytes:
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)
    except Exception as error:
        data = pickle.dumps(RankError(f"an answer that cannot be pickled: {answer!r} ({error!r})"))
    return data


def _told(outcome: Any) -> Any:
    """The parts of an outcome that ranks have to agree in."""
    if not isinstance(outcome, BaseException):
        return "returned", repr(outcome) if isinstance(outcome, torch.Tensor) else outcome
    fields = {k: repr(v) for k, v in vars(outcome).items() if k != "__notes__"}
    return type(outcome), str(outcome), fields


def _traced(outcome: Any) -> str:
    notes = getattr(outcome, "__notes__", ()) if isinstance(outcome, BaseException) else ()
    return "\n".join([repr(outcome), *notes])
