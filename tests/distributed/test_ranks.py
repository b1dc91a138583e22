"""The processes that the other tests of this folder run on."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks, rank

from manifoldnet.geometry import NotOnManifoldError, Oblique


def _summed(start: int, *, factor: int) -> int:
    number = torch.tensor(start + rank())
    dist.all_reduce(number)
    return factor * int(number)


def _refused() -> None:
    Oblique().assert_check_point_on_manifold(torch.ones(2, 3))


def _raises_on_one() -> None:
    if rank() == 1:
        raise KeyError("one")


def _differs() -> int:
    return rank()


def _hangs() -> None:
    if rank() == 1:
        time.sleep(60)


def _dies() -> None:
    if rank() == 0:
        os._exit(3)


def _closure() -> Callable[[], int]:
    return lambda: 1


def test_every_rank_runs_the_function(two: Ranks) -> None:
    assert two.run(_summed, 1, factor=10) == [30, 30]


def test_the_processes_stay_for_the_next_call(two: Ranks) -> None:
    two.run(os.getpid)
    assert two.run(os.getpid) == two.processes


def test_exceptions_come_back_with_their_fields(two: Ranks) -> None:
    error = two.agreed(_refused)
    assert isinstance(error, NotOnManifoldError)
    assert (error.count, error.total) == (2, 2)


@pytest.mark.parametrize("function", [_differs, _raises_on_one])
def test_ranks_that_disagree_are_an_error(two: Ranks, function: Callable[[], Any]) -> None:
    with pytest.raises(RankError, match="rank 1"):
        two.agreed(function)


def test_an_exception_on_one_rank_fails_a_run(two: Ranks) -> None:
    with pytest.raises(RankError, match="KeyError"):
        two.run(_raises_on_one)


def test_an_answer_that_cannot_be_pickled_is_told(two: Ranks) -> None:
    assert all(isinstance(one, RankError) for one in two.outcomes(_closure))


def test_a_rank_that_hangs_is_killed_and_its_stack_shown() -> None:
    with Ranks(2, limit=20.0, grace=0.5) as ranks:
        with pytest.raises(RankError, match=r"(?s)ranks \[1\] of 2 did not answer.*in _hangs"):
            ranks.run(_hangs)
        assert ranks.run(_summed, 1, factor=1) == [3, 3]


def test_a_rank_that_dies_is_told() -> None:
    with Ranks(2) as ranks:
        with pytest.raises(RankError, match="rank 0 is gone"):
            ranks.run(_dies)
        assert ranks.run(_summed, 0, factor=1) == [1, 1]
