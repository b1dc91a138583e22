"""The table of distributed training in the documentation is that of its record."""

from __future__ import annotations

import csv

from survival import OURS, RECORD, cases, table


def _record() -> list[dict[str, str]]:
    with RECORD.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_record_has_all_cases() -> None:
    keys = ("training", "weight", "wrapper", "library", "optimizer")
    assert [tuple(row[key] for key in keys) for row in _record()] == [tuple(c) for c in cases()]


def test_the_page_has_the_table_of_the_record() -> None:
    page = (RECORD.parents[1] / "distributed.md").read_text(encoding="utf-8")
    assert "\n".join(table(_record())) in page


def test_ours_are_the_training_of_one_process() -> None:
    outcomes = {row["outcome"] for row in _record() if row["library"] == OURS}
    assert outcomes == {"as one process", "on the manifold"}
