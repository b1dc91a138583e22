"""docs/timing.py: calls that take turns."""

from __future__ import annotations

import time

from timing import interleaved


def test_calls_take_turns_in_changing_order() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = interleaved(calls, rounds=20)
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 20)
    rounds = ["".join(seen[i : i + 3]) for i in range(0, 60, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_a_call_that_takes_all_the_time_sits_out() -> None:
    calls = {"fast": lambda: None, "slow": lambda: time.sleep(0.01)}
    times = interleaved(calls, seconds=0.02, at_least=8)
    assert len(times["slow"]) == 3
    assert len(times["fast"]) == 8
