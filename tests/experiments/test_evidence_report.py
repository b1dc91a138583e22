"""The report on the evidence, from made-up records: verdicts, numbers, and pictures."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from manifoldnet.experiments import store
from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.evidence import claims, report
from manifoldnet.experiments.evidence.claims import HIGHER, LEVEL, LOWER, Standing, Start, contest
from manifoldnet.experiments.evidence.config import METHODS, EvidenceConfig
from manifoldnet.experiments.evidence.records import (
    EvidenceEpoch,
    EvidenceRecord,
    EvidenceResult,
    Section,
)
from manifoldnet.experiments.evidence.studies import STARTS

BASE = EvidenceConfig(layers=1, epochs=2)
NOISE = (0.0, 0.004, -0.003)  # of the seeds, which all methods share


def record(config: EvidenceConfig, loss: float, purpose: str, *, diverged: bool = False):
    """A run that ends with a loss."""
    count = len(config.matrices)
    loss = math.nan if diverged else loss
    epochs = tuple(
        EvidenceEpoch(
            epoch=n,
            lr=config.lr,
            train_loss=loss,
            violation=0.0,
            train_seconds=1.0,
            seconds=2.0,
            validation_loss=loss,
            test_loss=loss if n == 2 else math.nan,
            test_error=0.5 if n == 2 else math.nan,
            norms=() if diverged else (float(n),) * count,
            angles=() if diverged else (0.1 / n,) * count,
            iteration_seconds=0.02 if config.method == "adamw" else 0.03,
            step_seconds=0.01,
            fault="it did" if diverged else "",
        )
        for n in (1, 2)
    )
    result = EvidenceResult(
        status="diverged" if diverged else "finished",
        reason="it did" if diverged else "",
        epochs=2,
        seconds=4.0,
        validation_loss=loss,
        test_loss=loss,
        test_error=0.5,
    )
    versions = {"manifoldnet": "0", "torch": "1"}
    return EvidenceRecord(config, versions, "00", epochs, result, sweep={"purpose": purpose})


def of(method: str, **fields) -> EvidenceConfig:
    rest = 3e-3 if METHODS[method].alone else None
    return replace(BASE, method=method, rest_lr=rest, **fields)


LOSSES = {"adamw": 1.5, "muon": 1.4, "muonh": 1.3, "adamh": 1.5, "ngpt": 1.6, "adamw-moving": 1.49}


def compared(losses=LOSSES, diverged=()):
    """Runs of a comparison; the last two seeds of AdamH are apart from the others."""
    return [
        record(
            of(method, seed=seed),
            loss + noise + (0.02 * (seed - 1) if method == "adamh" else 0.0),
            "comparison",
            diverged=(method, seed) in diverged,
        )
        for method, loss in losses.items()
        for seed, noise in enumerate(NOISE)
    ]


def at_widths(purpose="width"):
    """AdamW's best rate falls by a decade from width 64 to 256, that of Muon stays."""
    best = {("adamw", 64): -2.0, ("adamw", 256): -3.0, ("muon", 64): -1.0, ("muon", 256): -1.0}
    return [
        record(
            of(method, width=width, lr=10.0 ** (k / 2)),
            2 + (k / 2 - top) ** 2,
            purpose,
            diverged=k / 2 > top + 1.6,
        )
        for (method, width), top in best.items()
        for k in range(-8, 2)
    ]


def from_starts():
    """A rescaled start costs AdamW, and one run of it diverges; nothing costs the moving frame."""
    return [
        record(
            of(method, seed=seed, start_size=size, spread=spread),
            1.5 + noise + (0.6 if spread and method == "adamw" else 0.0) + 0.001 * seed * size,
            "starts",
            diverged=bool(spread) and method == "adamw" and seed == 2,
        )
        for method in ("adamw", "adamw-moving")
        for size, spread in STARTS
        for seed, noise in enumerate(NOISE)
    ]


def kept(folder, **sweeps):
    for name, records in sweeps.items():
        place = folder / name
        (place / "records").mkdir(parents=True)
        for each in records:
            store.keep(place, each)
    return folder


def standing(*losses: float, diverged: int = 0, method="muonh") -> Standing:
    made = [record(of(method, seed=s), loss, "comparison") for s, loss in enumerate(losses)]
    lost = [
        record(of(method, seed=len(losses) + k), 1.0, "comparison", diverged=True)
        for k in range(diverged)
    ]
    return Standing(method, made + lost)


# --- verdicts -------------------------------------------------------------------------------------


def test_a_verdict_is_that_of_the_interval_of_the_ratio():
    plain = standing(1.0, 1.1, 1.2, method="muon")
    made = contest(standing(0.9, 0.99, 1.08), plain)
    assert made.verdict == LOWER
    assert math.exp(made.ratio.mean) == pytest.approx(0.9)
    assert contest(standing(1.1, 1.21, 1.32), plain).verdict == HIGHER
    assert contest(standing(0.9, 1.2, 1.2), plain).verdict == LEVEL
    assert contest(standing(0.9), plain).verdict == claims.UNKNOWN
    assert str(made) == "muonh against muon (0.900, 0.900 to 0.900)"


def test_runs_that_diverged_decide_before_losses():
    plain = standing(1.0, 1.1, 1.2, method="muon")
    lost = contest(standing(0.5, 0.6, diverged=1), plain)
    assert lost.verdict == HIGHER
    assert str(lost).endswith("; diverged: 1 of 3 and 0 of 3)")
    assert contest(plain, standing(0.5, 0.6, diverged=1)).verdict == LOWER


def test_images_are_compared_by_errors():
    made = [
        record(of("adamw", network="mlp", layers=3, seed=0, dataset="digits"), loss, "comparison")
        for loss in (1.0, 2.0)
    ]
    assert [Standing("adamw", [each]).scores for each in made] == [{0: 0.5}, {0: 0.5}]


def test_the_detectable_ratio_is_that_of_the_deviation_of_logarithms():
    one, other = standing(1.0, 1.0, 1.0), standing(1.0, math.exp(0.1), math.exp(0.2), method="muon")
    made = contest(one, other)
    assert made.ratio.deviation == pytest.approx(0.1)
    # Of three pairs: 3.264 deviations (see the tests of the statistics).
    assert made.detectable == pytest.approx(math.expm1(0.32640), rel=1e-4)


def test_the_lowest_point_between_rates_is_that_of_a_parabola():
    rates = [1e-3, 3e-3, 1e-2, 3e-2]
    own = {lr: (math.log10(lr) + 2.3) ** 2 for lr in rates}
    assert math.log10(claims.vertex(own)) == pytest.approx(-2.3)
    assert claims.vertex({1e-3: 1.0, 3e-3: 2.0}) == 1e-3  # at an edge
    assert claims.vertex({1e-3: 2.0, 3e-3: 1.0, 1e-2: math.inf}) == 3e-3


def test_a_best_rate_moves_by_what_lies_between_widths():
    found = {move.method: move for move in claims.moves(Section("width", "text", at_widths()))}
    assert found["adamw"].half_decades == pytest.approx(2.0, abs=1e-6)
    assert found["adamw"].rates == {64: 0.01, 256: 0.001}
    assert found["adamw"].carried == pytest.approx((2 + 1) / 2)
    assert found["muon"].half_decades == pytest.approx(0.0, abs=1e-6)
    assert found["muon"].carried == 1.0


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_report_begins_with_verdicts(tmp_path):
    folder = kept(
        tmp_path,
        **{
            "comparison-text": compared(),
            "choice-text": at_widths_of_one(),
            "width-text": at_widths(),
            "starts-text": from_starts(),
        },
    )
    made = report.write_evidence_report(folder)
    parts = made.text.split("\n\n")
    assert parts[0].startswith("# ")
    assert "muonh has the lowest test loss" in parts[1]
    assert "Lower than the plain optimizer: muonh against muon (0.929" in parts[1]
    assert "adamw-moving against adamw (0.993" in parts[1]
    assert "What did not help" in parts[2]
    assert "Within chance of it: adamh against adamw" in parts[2]
    assert "Higher: ngpt against adamw (1.067" in parts[2]
    assert "would have been seen by 3 seeds" in parts[3]
    assert "muon 1.0, adamw 10.0" in parts[4]
    assert "muon moves less than AdamW" in parts[4]
    assert "by up to 1000 raises the test loss of adamw (1.399, 1 more diverged)" in parts[5]
    assert "is not seen to raise that of adamw-moving (1.000)" in parts[5]
    assert parts[6] == "## What follows"
    assert "| the lowest test loss, transformer     | muonh" in parts[7]
    assert "| weights of unknown scale, transformer | adamw-moving" in parts[7]
    # 18 compared, 40 of widths, 20 of choices, 30 of starts
    with (folder / "evidence.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 + 40 + 20 + 30
    lost = sum(row["diverged"] == "True" for row in rows)
    assert f"{lost} of {len(rows)} runs" in made.text
    names = {path.name for path in made.files}
    assert {"evidence_text-light.svg", "evidence_width_text-dark.svg"} < names
    assert (folder / "evidence_recommendations.md").read_text(encoding="utf-8").startswith("| for")
    for path in made.files:
        if path.suffix == ".svg":
            assert len(list(ET.parse(path).iter())) > 50


def at_widths_of_one():
    """The runs of a choice."""
    return [each for each in at_widths("choice") if each.config.width == 64]


@pytest.mark.thorough
def test_numbers_of_the_tables(tmp_path):
    records = compared(diverged={("ngpt", 0)})
    text = report.write_evidence_report(kept(tmp_path, **{"comparison-text": records})).text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    muonh = next(row for row in rows if row[0] == "muonh")
    assert muonh[2] == "1.3003 ± 0.0035"
    assert muonh[3].startswith("0.867 (")
    assert muonh[4].startswith("0.929 (")
    assert muonh[6:] == ["lower", "1.50", "33 %", "0 of 3"]
    ngpt = next(row for row in rows if row[0] == "ngpt")
    assert ngpt[6:] == ["higher", "1.50", "33 %", "1 of 3"]
    norms = next(row for row in rows if row[0] == "norms")
    assert norms[1:] == ["query", "key", "value", "up", "out", "down"]
    assert ["muon", *["1 → 2"] * 6] in rows
    assert ["muon", *["0.1 → 0.05"] * 6] in rows
    with (tmp_path / "evidence_layers.csv").open(encoding="utf-8") as file:
        layers = list(csv.DictReader(file))
    assert len(layers) == len(LOSSES) * 6
    assert layers[0]["matrix"] == "layers.0.query.weight"
    assert (layers[0]["first_norm"], layers[0]["last_angle"]) == ("1", "0.05")


def test_rates_are_listed_with_what_diverged(tmp_path):
    folder = kept(tmp_path, **{"choice-text": at_widths_of_one()})
    text = report.write_evidence_report(folder).text
    (line,) = [line for line in text.splitlines() if line.startswith("| adamw ") and "2.0" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[-2:] == ["0.01", "2"]
    assert cells.count("diverged") == 2


def test_a_report_needs_records_of_known_purposes_that_belong_together(tmp_path):
    with pytest.raises(RecordError, match="reproduce evidence rates"):
        report.write_evidence_report(tmp_path)
    folder = kept(tmp_path, here=[record(of("adamw"), 1.0, "pleasure")])
    with pytest.raises(RecordError, match="pleasure purpose"):
        report.write_evidence_report(folder)
    folder = kept(tmp_path / "b", here=compared(), there=compared())
    with pytest.raises(RecordError, match="two sweeps for comparison of text"):
        report.write_evidence_report(folder)
    mixed = [*compared(), record(of("adamw", block=7, seed=9), 1.0, "comparison")]
    with pytest.raises(RecordError, match="block"):
        report.write_evidence_report(kept(tmp_path / "c", here=mixed))


def test_starts_have_names():
    names = [str(Start(*each)) for each in STARTS]
    assert names == [
        "usual",
        "rescaled by up to 1000",
        "twice as large",
        "half as large",
        "four times as large",
    ]
