"""docs/peers.py: the record of tasks in other libraries, and the table of coming_from.md."""

from __future__ import annotations

from pathlib import Path

import peers
import pytest

PAGE = Path(peers.__file__).with_name("coming_from.md").read_text(encoding="utf-8")


def test_the_table_of_the_page_is_that_of_the_record() -> None:
    assert peers.table() in PAGE


def test_the_record_has_every_library_in_every_task() -> None:
    cells = [(row["task"], row["library"]) for row in peers.record()]
    assert cells == [(task, library) for task in peers.TASKS for library in peers.LIBRARIES]


@pytest.mark.thorough
@pytest.mark.parametrize("task", list(peers.TASKS))
@pytest.mark.filterwarnings("default")  # of other libraries
def test_a_task_counts_as_it_is_recorded(task: str, tmp_path: Path) -> None:
    kept = [row for row in peers.record() if row["task"] == task]
    found = list(peers.rows((task,)))
    for row, old in zip(found, kept, strict=True):
        new = {name: "" if value is None else str(value) for name, value in row._asdict().items()}
        assert {**new, "measured": ""} == {**old, "measured": ""}
        assert bool(row.measured) == bool(old["measured"])
