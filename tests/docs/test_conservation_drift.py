"""docs/conservation.py: the drift that it measures, and the record of it."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree as ET

import conservation
import pytest

RECORD = conservation.RESULTS / "conservation_drift.csv"


@pytest.mark.thorough
def test_the_record_is_what_is_measured(tmp_path: Path) -> None:
    conservation.main(tmp_path)
    with RECORD.open(encoding="utf-8") as old, (tmp_path / RECORD.name).open() as new:
        kept, made = list(csv.DictReader(old)), list(csv.DictReader(new))
    assert [row["update"] for row in kept] == [update.name for update in conservation.UPDATES]
    for one, other in zip(kept, made, strict=True):
        drifts = [float(row.pop("largest drift")) for row in (one, other)]
        assert drifts[1] == pytest.approx(drifts[0], rel=0.02)
        assert one == other
    for page in ("light", "dark"):
        old, new = (
            [e.tag for e in ET.parse(folder / f"{RECORD.stem}-{page}.svg").iter()]
            for folder in (RECORD.parent, tmp_path)
        )
        assert old == new


def test_drift_is_proportional_to_the_rate_and_larger_in_other_flows() -> None:
    with RECORD.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drifts = [float(row["largest drift"]) for row in rows]
    rates = conservation.RATES
    assert [float(row["rate"]) for row in rows[: len(rates)]] == list(rates)
    assert conservation.slope(rates, drifts[: len(rates)]) == pytest.approx(1, abs=0.1)
    assert min(drifts[len(rates) :]) > 50 * max(drifts[: len(rates)])
