"""Interleaved timing, for the pages that compare how long things take."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

from torch.utils.benchmark import timer


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = math.inf,
    rounds: int = 400,
    at_least: int = 5,
) -> dict[str, list[float]]:
    """Seconds that each call takes, measured in rounds in which the calls take turns.

    A slow moment of the machine then slows all of them, and ratios of medians compare them. The
    order is shuffled anew in every round, so that no call always finds the caches of the same one.

    Args:
        calls: by name.
        seconds: after which no round begins. A call that has taken this long by itself, three
            times or more, sits out the rounds that are left.
        rounds: at most.
        at_least: rounds in any case.
    """
    began = timer()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, source = list(calls), random.Random(0)
    for done in range(rounds):
        if done >= at_least and timer() - began >= seconds:
            break
        source.shuffle(names)
        for name in names:
            if len(times[name]) < 3 or sum(times[name]) < seconds:
                times[name].append(timed(calls[name]))
    return times


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call takes, the accelerator's work included."""
    began = timer()
    call()
    return timer() - began
