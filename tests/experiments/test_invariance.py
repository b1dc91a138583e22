"""The trajectory experiment, with few steps of small networks, and what it leaves."""

import csv
import sys
from itertools import product
from math import inf, nan
from xml.etree import ElementTree as ET

import pytest

from manifoldnet.experiments import MissingExtraError
from manifoldnet.experiments.papers.symmetry import invariance
from manifoldnet.experiments.papers.symmetry.invariance import (
    COLUMNS,
    COMPARED,
    SETTINGS,
    Pair,
    draw,
    main,
    summary,
    trajectories,
    write_csv,
)


@pytest.fixture(scope="module")
def pairs(digits):
    return trajectories(digits, steps=12, features=8)


def one(losses=(3.0, 2.0, 1.0), scaled=(3.0, 2.5, 0.5), update="sm", setting=SETTINGS[0]):
    return Pair(setting, update, losses, scaled)


@pytest.mark.thorough
def test_the_scaled_metric_trains_a_rescaled_network_in_the_same_way_and_others_do_not(pairs):
    for pair in pairs:
        assert len(pair.losses) == 12
        respects = pair.update in ("sm", "sm-geodesic") and pair.setting.symmetry == "paper"
        if respects:
            assert pair.difference < 1e-12, summary([pair])
        else:
            assert pair.difference > 0.01, summary([pair])


def test_every_update_is_run_in_every_setting_from_the_same_weights(pairs):
    assert [(p.setting, p.update) for p in pairs] == list(product(SETTINGS, COMPARED))
    for setting in SETTINGS:
        starts = {p.losses[0] for p in pairs if p.setting.architecture == setting.architecture}
        assert len(starts) == 1
    for pair in pairs:
        assert pair.differences[0] < 1e-12  # the loss itself is invariant, also between layers


def test_runs_of_one_seed_are_equal_bit_for_bit(digits, pairs):
    again = trajectories(digits, steps=4, features=8, settings=SETTINGS[1:2])
    for pair, longer in zip(again, pairs[len(COMPARED) : 2 * len(COMPARED)], strict=True):
        assert pair.losses == longer.losses[:4]
        assert pair.scaled == longer.scaled[:4]


def test_progress_is_reported_before_each_pair(digits):
    told = []
    trajectories(
        digits,
        steps=1,
        features=2,
        settings=SETTINGS[:1],
        on_progress=lambda *what: told.append(what),
    )
    assert told == [(f"arch1, paper, {update}", i, 4) for i, update in enumerate(COMPARED)]


def test_differences_and_quotient_of_a_pair():
    pair = one()
    assert pair.differences == pytest.approx((0, 0.2, 0.5))
    assert pair.difference == 0.5
    assert pair.quotient == 2
    assert pair.diverged is None
    assert one(losses=(1.0, 0.0), scaled=(1.0, 1.0)).quotient == inf


def test_a_diverged_run_differs_from_its_step_on():
    pair = one(scaled=(3.0, nan))
    assert pair.differences == (0, inf, inf)
    assert pair.diverged == 1
    assert "rescaled: diverges at step 1" in summary([pair])


def test_a_summary_has_a_line_for_each_pair():
    lines = summary([one(), one(scaled=(3.0, 2.0, 1.0 + 1e-15), update="b-sgd")]).splitlines()
    assert lines[0].endswith("up to 2 times apart")
    assert lines[1].endswith("same losses, to 1e-15")


def test_the_csv_has_all_digits_and_empty_cells_after_divergence(tmp_path):
    pair = one(losses=(1 / 3, 0.1, 0.05), scaled=(1 / 3, inf))
    write_csv([pair], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert tuple(header) == COLUMNS
    assert [row[:4] for row in rows] == [["arch1", "paper", "sm", str(i)] for i in range(3)]
    assert float(rows[0][4]) == float(rows[0][5]) == 1 / 3
    assert [row[5] for row in rows[1:]] == ["inf", ""]
    assert [row[6] for row in rows] == ["0.00e+00", "inf", "inf"]


@pytest.mark.parametrize(
    "made",
    [
        [one(), one(update="b-sgd"), one(setting=SETTINGS[2])],
        [one(losses=(1.0,), scaled=(1.0,))],
        [one(scaled=(3.0, 1e300, inf))],
        [one(losses=(0.0, 0.0), scaled=(0.0, 0.0))],
    ],
    ids=["two rows", "one step", "diverged", "no losses"],
)
def test_the_picture_is_drawn(tmp_path, made):
    draw(made, tmp_path / "picture")
    for page in ("light", "dark"):
        tags = [element.tag for element in ET.parse(tmp_path / f"picture-{page}.svg").iter()]
        assert len(tags) > 100


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="manifoldnet\\[experiments\\]"):
        draw([one()], tmp_path / "picture")


@pytest.mark.thorough
def test_the_command_writes_both_files_and_prints_the_summary(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        invariance,
        "trajectories",
        lambda *args, real=trajectories, **options: real(
            *args, features=4, settings=SETTINGS[:1], **options
        ),
    )
    out = tmp_path / "a" / "b"
    assert main(["--out", str(out), "--steps", "2", "--seed", "3"]) == 0
    text, err = capsys.readouterr()
    assert f"pictures: {out / 'trajectory_invariance'}-light.svg, -dark.svg" in text
    assert text.count("arch1  paper") == 4
    assert err.splitlines() == [f"arch1, paper, {update}" for update in COMPARED]
    assert {p.name for p in out.iterdir()} == {
        "trajectory_invariance.csv",
        "trajectory_invariance-dark.svg",
        "trajectory_invariance-light.svg",
    }
    assert main(["--out", str(out), "--steps", "1", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_wrong_request_has_exit_code_2(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        main(["--steps", "0"])
    assert caught.value.code == 2
    assert "--steps is 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["--out", str(tmp_path), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "manifoldnet[experiments]" in line
    assert not list(tmp_path.glob("*.svg"))
