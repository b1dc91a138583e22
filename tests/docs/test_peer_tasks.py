"""docs/peers.py: the record of tasks in other libraries, and the table of coming_from.md."""

from __future__ import annotations

from pathlib import Path

import peers

PAGE = Path(peers.__file__).with_name("coming_from.md").read_text(encoding="utf-8")


def test_the_table_of_the_page_is_that_of_the_record() -> None:
    assert peers.table() in PAGE


def test_the_record_has_every_library_in_every_task() -> None:
    cells = [(row["task"], row["library"]) for row in peers.record()]
    assert cells == [(task, library) for task in peers.TASKS for library in peers.LIBRARIES]


def test_lines_names_and_verdicts_are_those_of_the_code() -> None:
    for row, kept in zip(peers.rows(run=False), peers.record(), strict=True):
        found = {name: "" if value is None else str(value) for name, value in row._asdict().items()}
        assert found | {"measured": ""} == kept | {"measured": ""}
        assert bool(kept["measured"]) == bool(kept["lines"])
