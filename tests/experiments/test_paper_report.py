"""The report on Table 2 and Figure 3, from records alone."""

import csv
import dataclasses
import re
import shutil
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pytest
import torch
from runs import record

from manifoldnet import cli
from manifoldnet.experiments import RecordError, records, store, training
from manifoldnet.experiments.papers.symmetry import results
from manifoldnet.experiments.papers.symmetry.cells import (
    GEODESIC,
    PROTOCOL,
    PUBLISHED,
    TABLE2,
    Cell,
)
from manifoldnet.experiments.papers.symmetry.report import write_paper_report

FIXTURE = Path(__file__).parent / "fixtures" / "sweep"


def test_the_published_table_is_complete():
    assert set(PUBLISHED) == set(TABLE2)
    assert PUBLISHED[Cell("arch1", 2, "b-sgd", "exponential")] == (0.0263, 0.0079)
    assert PUBLISHED[Cell("arch1", 4, "un", "bold-driver")] == (0.0244, 0.0101)
    assert PUBLISHED[Cell("arch2", 4, "un", "bold-driver")] == (0.0179, 0.0025)
    assert PUBLISHED[Cell("arch2", 2, "sm", "bold-driver")] == (0.0186, 0.0024)
    assert sum(mean for mean, _ in PUBLISHED.values()) == pytest.approx(0.5496)
    assert sum(deviation for _, deviation in PUBLISHED.values()) == pytest.approx(0.1134)


def test_a_diverged_run_is_counted_and_not_averaged():
    runs = results.run_table(
        [
            record(TABLE2[0], 0, [0.2, 0.02]),
            record(TABLE2[0], 2, [0.9, 0.9], "validation"),
            record(TABLE2[0], 1, [0.2, 0.04]),
        ]
    )
    assert runs.seed.tolist() == [0, 1, 2]
    assert runs.diverged.sum() == 1
    error = results.test_error(runs)
    assert (error.mean, error.n) == (pytest.approx(0.03), 2)
    assert error.deviation == pytest.approx(0.02 / 2**0.5)


def test_the_reason_of_divergence_is_read_from_the_numbers(tmp_path):
    for seed, reason in enumerate(("validation", "loss", "validation", "")):
        store.keep(tmp_path, record(TABLE2[0], seed, [0.9], reason))
    text = write_paper_report(tmp_path).text
    ends = "validation error too high × 2; diverged, loss not finite × 1"
    assert f"all epochs × 1; diverged, {ends}" in text


UPDATES = {update: Cell("arch1", 2, update, "exponential") for update in ("b-sgd", "sm", "un")}


@pytest.fixture
def by_hand(tmp_path):
    """Three updates of one network, three seeds each; one run diverges in its second epoch."""
    for run in (
        record(UPDATES["b-sgd"], 0, [0.5, 0.3, 0.030], seconds=(1, 2, 6)),
        record(UPDATES["b-sgd"], 1, [0.5, 0.3, 0.026], seconds=(1, 2, 6)),
        record(UPDATES["b-sgd"], 2, [0.5, 0.3, 0.028], seconds=(1, 2, 6), rate=0.01),
        record(UPDATES["sm"], 0, [0.5, 0.3, 0.0401], seconds=(3, 3, 3)),
        record(UPDATES["sm"], 1, [0.5, 0.3, 0.0363], seconds=(3, 3, 3)),
        record(UPDATES["sm"], 2, [0.5, 0.9], "loss", seconds=(3, 3)),
        record(UPDATES["un"], 0, [0.5, 0.3, 0.019], seconds=(2, 5, 9), rate=0.0001),
        record(UPDATES["un"], 1, [0.5, 0.3, 0.016], seconds=(2, 5, 9), rate=0.0001),
        record(UPDATES["un"], 2, [0.5, 0.3, 0.019], seconds=(2, 5, 9), rate=0.0001),
    ):
        store.keep(tmp_path, run)
    return tmp_path


def test_every_line_of_a_table_worked_out_by_hand(by_hand):
    """Means, deviations and Student's intervals on paper: t is 12.706 for two pairs, 4.303 for 3.

    The differences of un are −0.011, −0.010, −0.009, those of sm 0.0101 and 0.0103, and those
    between un and sm −0.0211 and −0.0203.
    """
    lines = write_paper_report(by_hand).text.splitlines()
    for line in (
        # (0.0280 − 0.0263) / 0.0079, (0.0382 − 0.0283) / 0.0062, (0.0180 − 0.0220) / 0.0057
        "| arch1   | 2      | exponential | b-sgd  | 0.0280 ± 0.0020 | 3 |        0 "
        "| 0.0263 ± 0.0079 |                     +0.2 |",
        "| arch1   | 2      | exponential | sm     | 0.0382 ± 0.0027 | 2 |        1 "
        "| 0.0283 ± 0.0062 |                     +1.6 |",
        "| arch1   | 2      | exponential | un     | 0.0180 ± 0.0017 | 3 |        0 "
        "| 0.0220 ± 0.0057 |                     -0.7 |",
        "| sm − b-sgd | arch1, 2 layers, exponential |    +0.0102 | +0.0089 to +0.0115 "
        "| 2 of 3 (1 and 0 diverged) |  worse |",
        "| un − b-sgd | arch1, 2 layers, exponential |    -0.0100 | -0.0125 to -0.0075 "
        "|                    3 of 3 |    yes |",
        "| arch1-2-un-exponential − arch1-2-sm-exponential    |    -0.0207 "
        "| -0.0258 to -0.0156 | 2 of 3 (0 and 1 diverged) |",
        "| arch1-2-b-sgd-exponential | 0.01 × 1, 0.001 × 2 | all epochs × 3 "
        "                               |         3.0 |",
        "| arch1-2-sm-exponential    | 0.001 × 3           "
        "| all epochs × 2; diverged, loss not finite × 1 |         3.0 |",
        "| arch1-2-un-exponential    | 0.0001 × 3          | all epochs × 3 "
        "                               |         3.0 |",
        # medians of 1, 2, 6 and of 2, 5, 9
        "| arch1   | 2      | b-sgd  |            2.000 |          1.00 |    3 |",
        "| arch1   | 2      | sm     |            3.000 |          1.50 |    3 |",
        "| arch1   | 2      | un     |            5.000 |          2.50 |    3 |",
    ):
        assert line in lines
    assert (by_hand / "table2.csv").read_text().splitlines()[1:] == [
        "arch1,2,b-sgd,exponential,0,0.001,3,0.03,false,12.00",
        "arch1,2,b-sgd,exponential,1,0.001,3,0.026,false,12.00",
        "arch1,2,b-sgd,exponential,2,0.01,3,0.028,false,12.00",
        "arch1,2,sm,exponential,0,0.001,3,0.0401,false,12.00",
        "arch1,2,sm,exponential,1,0.001,3,0.0363,false,12.00",
        "arch1,2,sm,exponential,2,0.001,2,0.9,true,8.00",
        "arch1,2,un,exponential,0,0.0001,3,0.019,false,19.00",
        "arch1,2,un,exponential,1,0.0001,3,0.016,false,19.00",
        "arch1,2,un,exponential,2,0.0001,3,0.019,false,19.00",
    ]


def test_verdicts_come_first(by_hand):
    text = write_paper_report(by_hand).text
    verdicts = text.partition("## Table 2")[0]
    assert re.search(
        r"No update costs noticeably more time than B-SGD +\| not measured +\|", verdicts
    )
    assert f"papers.symmetry.times --out {by_hand}" in text


def test_rows_are_grouped_by_setting():
    table = results.run_table(record(cell, 0, [0.1]) for cell in reversed(TABLE2))
    order = list(results.by_cell(table))
    assert [(c.depth, c.schedule, c.update) for c in order[:4]] == [
        *((2, "exponential", update) for update in ("b-sgd", "sm", "un")),
        (2, "bold-driver", "b-sgd"),
    ]
    assert [c.architecture for c in order] == ["arch1"] * 12 + ["arch2"] * 12


def test_the_protocol_is_stated(by_hand, tmp_path_factory):
    text = write_paper_report(by_hand).text
    assert "mnist, 50,000 training and 10,000 validation images, minibatches of 100, 60 " in text
    assert "(25 to 60 with the bold driver), λ chosen for each run" in text
    assert "Not the paper's protocol" not in text
    other = tmp_path_factory.mktemp("other")
    changed = dataclasses.replace(
        PROTOCOL, lr=0.01, train_size=None, validation_size=None, min_epochs=None, epochs=7
    )
    store.keep(other, record(UPDATES["un"], 0, [0.5], "validation", protocol=changed))
    text = write_paper_report(other).text
    assert "all other training and a sixth validation images" in text
    assert "minibatches of 100, 7 epochs, λ 0.01" in text
    assert "its numbers are left out: epochs 60 there, 7 here, lr None there, 0.01 here, " in text
    assert "deviations apart" not in text
    assert "0.0220 ± 0.0057" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 61}, "epochs 6[01] there, 6[01] here"),
        ({"data": "11"}, "data .. there, .. here"),
    ],
)
def test_runs_of_two_protocols_are_refused(by_hand, change, message):
    other = record(UPDATES["un"], 3, [0.5])
    if "data" not in change:
        change = {"config": dataclasses.replace(other.config, **change)}
    store.keep(by_hand, dataclasses.replace(other, **change))
    with pytest.raises(RecordError, match=rf"records/[0-9a-f]{{16}}\.jsonl .*{message}"):
        write_paper_report(by_hand)
    assert not (by_hand / "table2.md").exists()


def test_duplicate_runs_are_refused(by_hand):
    again = record(UPDATES["un"], 2, [0.5])
    records.write(again, by_hand / "records" / "0123456789abcdef.jsonl")
    with pytest.raises(RecordError, match=f"{again.config.identity()}|0123456789abcdef"):
        write_paper_report(by_hand)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    return where, write_paper_report(FIXTURE, where)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_spreadsheet_has_one_row_per_run(report):
    table = rows(report[0] / "table2.csv")
    assert list(table[0]) == [
        *("architecture", "depth", "update", "schedule", "seed", "lr", "epochs"),
        *("test_error", "diverged", "seconds"),
    ]
    assert len(table) == 27
    assert {row["diverged"] for row in table} <= {"true", "false"}
    assert {row["lr"] for row in table} <= {"0.01", "0.001", "0.0001"}
    assert all(0 < float(row["test_error"]) < 1 for row in table)


def test_the_trajectories_have_one_row_per_epoch(report):
    table = rows(report[0] / "figure3.csv")
    assert list(table[0]) == ["architecture", "update", "seed", "epoch", "test_error"]
    ended = [row for row in rows(report[0] / "table2.csv") if row["depth"] == "4"]
    assert len(table) == sum(int(row["epochs"]) for row in ended if row["diverged"] == "false")


def test_the_text_of_a_real_sweep(report):
    text = report[1].text
    assert "27 runs of 9 cells" in text
    assert "digits, 1,000 training and 300 validation images" in text
    line = next(x for x in text.splitlines() if re.match(r"\| arch2 +\| 2 .*bold-driver \| un ", x))
    own = [
        float(row["test_error"])
        for row in rows(report[0] / "table2.csv")
        if (row["depth"], row["update"], row["diverged"]) == ("2", "un", "false")
    ]
    assert f"{sum(own) / len(own):.4f} ± " in line
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


def test_the_html_page_is_self_contained(report):
    page = (report[0] / "table2.html").read_text()
    links = Links()
    links.feed(page)
    assert len(links.found) == 2  # for dark pages, and for light ones
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.found)
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_the_report_trains_nothing_and_leaves_the_records_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_whole", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("trained"))
    shutil.copytree(FIXTURE, tmp_path / "runs")
    before = (tmp_path / "runs" / "records.jsonl.gz").read_bytes()
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    assert "## Table 2" in capsys.readouterr().out
    assert (tmp_path / "runs" / "records.jsonl.gz").read_bytes() == before
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        *("records.jsonl.gz", "table2.csv", "table2.md", "table2.html"),
        *("figure3.csv", "figure3-light.svg", "figure3-dark.svg"),
    }


def test_geodesic_cells_are_compared_with_the_papers(tmp_path):
    for cell, seed in product((GEODESIC[0], Cell("arch1", 2, "sm", "exponential")), (0, 1)):
        store.keep(tmp_path, record(cell, seed, [0.2, 0.02 + 0.001 * seed]))
    text = write_paper_report(tmp_path).text
    assert "Exponential map against additive retraction" in text
    assert "sm-geodesic − sm" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, None, "holds no records: make some with manifoldnet reproduce symmetry table2"),
        ("notes.txt", "mine", "notes.txt is none of the records of a sweep"),
        ("0123456789abcdef.jsonl", "{}\n", "line 1 is damaged: a record begins with"),
    ],
)
def test_folders_without_intact_records_are_errors(tmp_path, capsys, name, content, message):
    if name:
        (tmp_path / "records").mkdir()
        (tmp_path / "records" / name).write_text(content)
    with pytest.raises(RecordError, match=message):
        write_paper_report(tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"records"}
