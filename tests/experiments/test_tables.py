"""Tables of a comparison, and the CSV file that collects comparisons."""

import csv
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import run

from manifoldnet.experiments import Record, RecordError, TrainConfig, merge_csv, summary
from manifoldnet.experiments.papers.symmetry import tables


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_summary_gives_mean_and_deviation_and_leaves_out_what_diverged():
    table = summary(
        [
            run("sm", 0, (0.5, 0.1)),
            run("un", 0, (0.5, 0.3)),
            run("sm", 1, (0.5, 0.2)),
            run("un", 1, (0.5, 0.9), diverged=True),
        ]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["update", "test error", "validation error", "n", "diverged", "s/epoch"]
    assert lines[2] == ["sm", "0.1500 ± 0.0707", "0.2500 ± 0.0000", "2", "0", "1.500"]
    assert lines[3] == ["un", "0.3000", "0.2500", "1", "1", "1.500"]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_the_summary_of_diverged_runs_only():
    assert "| un     |          – |" in summary([run(diverged=True)])


def test_the_csv_has_exactly_these_columns(tmp_path):
    tables.write_report([run(seed=3)], tmp_path)
    header, row = (tmp_path / "results.csv").read_text().splitlines()
    assert header == "architecture,depth,update,schedule,lr,seed,epochs,test_error,seconds"
    assert row == "arch2,2,un,exponential,0.01,3,2,0.1,4.00"


def test_a_run_that_has_not_ended_has_no_row():
    assert tables.rows([Record(TrainConfig(), {}, "00")]) == []


def test_merging_replaces_rows_of_the_same_run_and_keeps_the_others(tmp_path):
    path = tmp_path / "all.csv"
    merge_csv([run("sm"), run("un"), run("b-sgd")], path)
    path.write_text(path.read_text().replace(",0.01,", ",1e-2,"))  # the same rate, written by hand
    merge_csv([run("un", errors=(0.5, 0.2)), run("un", 1), run("un", lr=0.1)], path)
    found = [(row["update"], row["lr"], row["seed"], row["test_error"]) for row in read(path)]
    assert found == [
        ("sm", "1e-2", "0", "0.1"),
        ("un", "0.01", "0", "0.2"),
        ("b-sgd", "1e-2", "0", "0.1"),
        ("un", "0.01", "1", "0.1"),
        ("un", "0.1", "0", "0.1"),
    ]


@given(st.lists(st.tuples(st.sampled_from(["sm", "un"]), st.integers(0, 3)), min_size=1))
def test_merging_is_idempotent(tmp_path_factory, runs):
    path = tmp_path_factory.mktemp("csv") / "all.csv"
    merge_csv([run(*each) for each in runs], path)
    once = path.read_text()
    merge_csv([run(*each) for each in runs], path)
    assert path.read_text() == once
    assert len(read(path)) == len(set(runs))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the columns are none, not architecture"),
        ("a,b\n1,2\n", "line 1: the columns are a, b, not architecture"),
        (",".join(tables.COLUMNS) + "\narch2,2\n", "line 2: it does not have 9 fields"),
        (",".join(tables.COLUMNS) + "\n1,2,3,4,5,6,7,8,9,10\n", "line 2: it does not have 9"),
        (",".join(tables.COLUMNS) + "\na,x,un,e,1,1,1,1,1\n", "line 2: could not convert .*'x'"),
    ],
)
def test_other_files_are_refused_and_unchanged(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    for action in (lambda: merge_csv([run()], path), lambda: tables.check_csv(path)):
        with pytest.raises(RecordError, match=f"mine.csv, {message}"):
            action()
    assert path.read_text() == content


def test_test_error_is_a_rate():
    assert math.isclose(float(tables.rows([run(errors=(0.5, 1 / 3))])[0]["test_error"]), 0.333333)
