"""The report on Table 2 and Figure 3, from records alone."""

import csv
import io
import re
import shutil
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
import torch

from manifoldnet import cli
from manifoldnet.experiments import Epoch, Record, RecordError, Result, loop
from manifoldnet.experiments.symmetry_paper import paper, results
from manifoldnet.experiments.symmetry_paper.cells import (
    FIGURE3,
    GEODESIC,
    TABLE2,
    Cell,
    configurations,
)
from manifoldnet.experiments.symmetry_paper.claims import claims
from manifoldnet.experiments.symmetry_paper.report import write_paper_report
from manifoldnet.experiments.symmetry_paper.trajectories import trajectory

FIXTURE = Path(__file__).parent / "fixtures" / "sweep"


def record(cell, seed, errors, seconds=1.0, diverged=False):
    """A made-up run of a cell."""
    config = configurations([cell], seed + 1)[-1]
    epochs = tuple(
        Epoch(
            epoch=n,
            lr=0.001,
            train_loss=1.0,
            train_error=0.5,
            validation_error=0.4,
            test_error=error,
            violation=0.0,
            train_seconds=seconds,
            seconds=2.0,
            validation_loss=0.7,
        )
        for n, error in enumerate(errors, 1)
    )
    status, reason = ("diverged", "it did") if diverged else ("finished", "")
    result = Result(
        status=status,
        reason=reason,
        epochs=len(errors),
        test_error=errors[-1],
        validation_error=0.4,
        seconds=2.0 * len(errors),
    )
    return Record(config, {"manifoldnet": "0"}, "00", epochs, result)


def whole_table(error, seconds=lambda cell: 1.0, seeds=4):
    """Four runs of each of the 24 cells, which differ by a little from seed to seed."""
    wobble = (0.0, 1e-4, -1e-4, 5e-5)
    return results.by_cell(
        record(
            cell,
            seed,
            [0.2, error(cell) + wobble[seed] + 1e-5 * hash_of(cell, seed)],
            seconds(cell),
        )
        for cell, seed in product(TABLE2, range(seeds))
    )


def hash_of(cell, seed):
    return (len(cell.name) * 7 + seed * 5) % 3


def verdicts(table):
    return [claim.verdict for claim in claims(table)]


def test_the_papers_table_is_whole():
    assert set(paper.TABLE2) == set(TABLE2)
    assert paper.TABLE2[Cell("arch1", 2, "b-sgd", "exponential")] == (0.0263, 0.0079)
    assert paper.TABLE2[Cell("arch1", 4, "un", "bold-driver")] == (0.0244, 0.0101)
    assert paper.TABLE2[Cell("arch2", 4, "un", "bold-driver")] == (0.0179, 0.0025)
    assert paper.TABLE2[Cell("arch2", 2, "sm", "bold-driver")] == (0.0186, 0.0024)
    assert sum(mean for mean, _ in paper.TABLE2.values()) == pytest.approx(0.5496)
    assert sum(deviation for _, deviation in paper.TABLE2.values()) == pytest.approx(0.1134)


def test_the_papers_own_means_bear_out_its_claims():
    """Its means with hardly any spread; its deviations are another matter."""
    table = whole_table(lambda cell: paper.TABLE2[cell].mean)
    assert verdicts(table) == ["holds", "holds", "holds", "holds", "holds"]


def test_verdicts_follow_the_records():
    same = whole_table(lambda cell: 0.02)
    assert set(verdicts(same)[:4]) <= {"undecided", "in part", "contradicted"}
    worse = {"b-sgd": 0.01, "sm": 0.02, "un": 0.03}
    against = whole_table(
        lambda cell: worse[cell.update] + (0.01 if cell.architecture == "arch2" else 0.0),
        lambda cell: {"b-sgd": 1.0, "sm": 1.2, "un": 2.0}[cell.update],
    )
    assert verdicts(against) == [
        *("contradicted", "contradicted", "contradicted", "contradicted"),
        "in part",  # 1.2 is below 1.25, 2 is not
    ]
    few = whole_table(lambda cell: paper.TABLE2[cell].mean, seeds=1)
    assert set(verdicts(few)) == {"no records"}
    assert set(verdicts({})) == {"no records"}


def test_a_diverged_run_is_counted_and_not_averaged():
    cell = TABLE2[0]
    (runs,) = results.by_cell(
        [
            record(cell, 0, [0.2, 0.02]),
            record(cell, 2, [0.9, 0.9], diverged=True),
            record(cell, 1, [0.2, 0.04]),
        ]
    ).values()
    assert [run.config.seed for run in runs.runs] == [0, 1, 2]
    assert (runs.test_error.mean, runs.test_error.n, runs.diverged) == (pytest.approx(0.03), 2, 1)
    assert runs.test_error.deviation == pytest.approx(0.02 / 2**0.5)


def test_a_trajectory_carries_on_the_last_error_of_a_run_that_a_rule_ended():
    cell = FIGURE3[0]
    (runs,) = results.by_cell(
        [
            record(cell, 0, [0.5, 0.3]),
            record(cell, 1, [0.3, 0.1, 0.1]),
            record(cell, 2, [0.9], diverged=True),
        ]
    ).values()
    line = trajectory(runs)
    assert line.mean == pytest.approx((0.4, 0.2, 0.2))
    assert line.deviation == pytest.approx((0.2 / 2**0.5,) * 3)
    assert (line.runs, line.shortest) == (2, 2)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    return where, write_paper_report(FIXTURE, where)


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_spreadsheet_has_one_row_per_run(report):
    table = rows(report[0] / "table2.csv")
    assert list(table[0]) == [
        *("architecture", "depth", "update", "schedule", "seed", "lr", "epochs"),
        *("test_error", "diverged", "seconds"),
    ]
    assert len(table) == len(list((FIXTURE / "records").iterdir())) == 27
    assert {row["diverged"] for row in table} <= {"true", "false"}
    assert {row["lr"] for row in table} <= {"0.01", "0.001", "0.0001"}
    assert all(0 < float(row["test_error"]) < 1 for row in table)


def test_the_trajectories_have_one_row_per_epoch(report):
    table = rows(report[0] / "figure3.csv")
    assert list(table[0]) == ["architecture", "update", "seed", "epoch", "test_error"]
    ended = [row for row in rows(report[0] / "table2.csv") if row["depth"] == "4"]
    assert len(table) == sum(int(row["epochs"]) for row in ended if row["diverged"] == "false")


def test_the_text_has_our_numbers_beside_the_papers(report):
    text = report[1].text
    assert "27 runs of 9 cells" in text
    line = next(x for x in text.splitlines() if re.match(r"\| arch2 +\| 2 .*bold-driver \| un ", x))
    own = [
        float(row["test_error"])
        for row in rows(report[0] / "table2.csv")
        if (row["depth"], row["update"], row["diverged"]) == ("2", "un", "false")
    ]
    assert f"{sum(own) / len(own):.4f} ± " in line
    assert "0.0199 ± 0.0046" in line
    for part in ("Learning rates chosen", "Time of a training pass", "The paper's claims"):
        assert part in text


class Links(HTMLParser):
    """Everything that a page would load or point to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_stands_alone(report):
    page = (report[0] / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 1
    assert links.found[0].startswith("data:image/png;base64,")
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_the_picture_is_one(report):
    from PIL import Image

    with Image.open(report[0] / "figure3.png") as picture:
        assert picture.size == (1536, 672)


def test_the_report_trains_nothing_and_leaves_the_records_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train_whole", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("trained"))
    shutil.copytree(FIXTURE, tmp_path / "runs")
    before = {p: p.read_bytes() for p in (tmp_path / "runs" / "records").iterdir()}
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    assert "## Table 2" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "runs" / "records").iterdir()} == before
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        *("records", "table2.csv", "figure3.csv", "figure3.png", "report.md", "report.html")
    }


def test_cells_with_the_geodesic_step_stand_beside_the_papers(tmp_path):
    from manifoldnet.experiments import folder

    for cell, seed in product((GEODESIC[0], Cell("arch1", 2, "sm", "exponential")), (0, 1)):
        folder.keep(tmp_path, record(cell, seed, [0.2, 0.02 + 0.001 * seed]))
    text = write_paper_report(tmp_path).text
    assert "Does the exact retraction help?" in text
    assert "sm-geodesic − sm" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "holds no records: make some with manifoldnet reproduce table2"),
        ("notes.txt", "mine", "notes.txt is none of the records of a sweep"),
        ("0123456789abcdef.jsonl", "{}\n", "line 1 is damaged: a record begins with"),
    ],
)
def test_a_folder_that_cannot_be_reported(tmp_path, capsys, name, content, message):
    if name:
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / name).write_text(content)
    with pytest.raises(RecordError, match=message):
        write_paper_report(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"records"}
