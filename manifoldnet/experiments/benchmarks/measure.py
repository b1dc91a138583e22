"""Times steps by turns, and writes ``benchmarks.csv``.

Within a cell everybody takes a step in turn, in an order that changes, so that a slow moment of the
machine is everybody's; what counts is the ratio of the medians. Peak memory is the process's own,
above what it had before the step; the first step, which makes buffers and compiles, is timed by
itself.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from manifoldnet.experiments.benchmarks.rows import BASE, Cell, Row
from manifoldnet.experiments.benchmarks.work import Step, steps
from manifoldnet.experiments.training import limited_threads

_LEAST = 5  # rounds, whatever they take
_SLOW = 3  # steps of somebody who alone takes as long as all are meant to


def measure(
    cell: Cell,
    seconds: float,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Times everybody who can do a cell.

    Args:
        cell: the work.
        seconds: to take steps for, about; each takes some in any case.
        on_progress: is told whose steps are next, and how many there are.
    """
    first: dict[str, float] = {}
    peaks: dict[str, int] = {}
    ready: dict[str, Step] = {}
    with limited_threads(cell.threads):
        for name, make in steps(cell).items():
            with suppress(ImportError):  # not installed: left out
                ready[name] = make()  # all of them before the first step: weights are shared
        for number, (name, step) in enumerate(ready.items(), 1):
            on_progress(cell.label, number, len(ready))
            first[name] = _time(step)
            step()
            peaks[name] = _peak(step)
        began = time.perf_counter()
        rounds = 0
        names = list(ready)
        times: dict[str, list[float]] = {name: [] for name in names}
        turns = random.Random(0)
        while rounds < _LEAST or (time.perf_counter() - began < seconds and rounds < 400):
            turns.shuffle(names)  # nobody is always behind the same one, and finds its caches
            for name in names:
                taken = times[name]
                if len(taken) < _SLOW or sum(taken) < seconds:
                    taken.append(_time(ready[name]))
            rounds += 1
    ready.clear()
    gc.collect()
    base = median(times[BASE])
    return [
        Row(
            cell,
            name,
            1000 * median(t),
            median(t) / base,
            peaks[name],
            max(first[name] - median(t), 0.0),
        )
        for name, t in times.items()
    ]


def _time(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _peak(step: Step) -> int:
    """Bytes that the process held more at once while a step was taken, by Linux's own account."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    gc.collect()
    try:
        clear.write_text("5")
        before = _held(status, "VmRSS")
        step()
        return max(_held(status, "VmHWM") - before, 0)
    except (OSError, ValueError):
        return -1


def _held(status: Path, name: str) -> int:
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{status} has no {name}")
