import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifoldnet.experiments import Epoch, Record, RecordError, Result, TrainConfig, records
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION

rates = st.floats(0, 1)
seconds = st.floats(0, 1e6)
losses = st.floats(0, allow_infinity=False)


def result_of(epochs):
    return Result(
        status="finished",
        reason="",
        epochs=epochs,
        test_error=0.3,
        validation_error=0.4,
        seconds=3.0,
    )


@st.composite
def whole_records(draw):
    epochs = tuple(
        Epoch(
            epoch=n + 1,
            lr=draw(rates),
            train_loss=draw(losses),
            train_error=draw(rates),
            validation_error=draw(rates),
            test_error=draw(rates),
            violation=draw(rates),
            train_seconds=0.5,
            seconds=1.0,
        )
        for n in range(draw(st.integers(0, 4)))
    )
    result = draw(st.none() | st.just(result_of(len(epochs)))) if epochs else None
    return Record(TrainConfig(seed=draw(st.integers(0, 99))), {"torch": "2"}, "00", epochs, result)


@pytest.fixture
def record():
    epochs = tuple(
        Epoch(
            epoch=n,
            lr=0.01,
            train_loss=1.0,
            train_error=0.5,
            validation_error=0.4,
            test_error=0.3,
            violation=0.0,
            train_seconds=1.0,
            seconds=2.0,
        )
        for n in (1, 2, 3)
    )
    return Record(TrainConfig(), {"torch": "2"}, "00", epochs, result_of(3))


@given(record=whole_records())
def test_records_round_trip(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    records.write(record, path)
    assert records.read(path, CLASSIFICATION) == record


def test_records_are_json_lines(tmp_path, record):
    path = tmp_path / "record.jsonl"
    records.write(record, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["run", "epoch", "epoch", "epoch", "result"]
    assert lines[0]["config"]["dataset"] == "digits"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_numbers_are_null_and_read_as_nan(tmp_path, record, value):
    path = tmp_path / "record.jsonl"
    epoch = dataclasses.replace(record.epochs[0], train_loss=value)
    records.write(Record(TrainConfig(), {}, "00", (epoch,)), path)
    assert '"train_loss": null' in path.read_text()
    assert math.isnan(records.read(path, CLASSIFICATION).epochs[0].train_loss)


@pytest.mark.parametrize("cut", [1, 30, 150])
def test_a_truncated_line_is_named(tmp_path, record, cut):
    path = tmp_path / "record.jsonl"
    records.write(dataclasses.replace(record, result=None), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        RecordError, match=r"record.jsonl, line 4 is damaged: it is cut off; delete"
    ):
        records.read(path, CLASSIFICATION)


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, '{"kind": "epoch"}', "begins with a line of kind 'run'"),
        (1, '{"kind": "run", "format": 9}', "its format is 9"),
        (1, '{"kind": "run", "format": 1}', "does not describe a run .*config"),
        (
            1,
            '{"kind": "run", "format": 1, "config": {"lr": -1}, "versions": {}, "data": ""}',
            "lr is -1",
        ),
        (2, '{"kind": "epoch", "epo', "not valid JSON"),
        (2, "", "not valid JSON"),
        (2, "[]", "not a JSON object"),
        (2, '{"kind": "epoch", "epoch": 1}', "fields are missing or unknown: lr"),
        (3, '{"kind": "other"}', "its kind is 'other'"),
    ],
)
def test_a_damaged_line_is_named_with_the_way_out(tmp_path, record, number, line, message):
    path = tmp_path / "record.jsonl"
    records.write(record, path)
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=rf"line {number} is damaged: .*{message}.*--resume"):
        records.read(path, CLASSIFICATION)


def test_lines_out_of_order_are_named(tmp_path, record):
    path = tmp_path / "record.jsonl"
    records.write(record, path)
    lines = path.read_text().splitlines(keepends=True)

    def message(order):
        path.write_text("".join(lines[i] for i in order))
        with pytest.raises(RecordError) as caught:
            records.read(path, CLASSIFICATION)
        return str(caught.value)

    assert "line 3 is damaged: it is epoch 3 where epoch 2 belongs" in message([0, 1, 3, 4])
    assert "line 4 is damaged: the result is of 3 epochs, there are 2" in message([0, 1, 2, 4])
    assert "line 6 is damaged: it comes after the result" in message([0, 1, 2, 3, 4, 3])


def test_a_result_without_epochs_is_damage(tmp_path, record):
    path = tmp_path / "record.jsonl"
    records.write(dataclasses.replace(record, epochs=(), result=result_of(0)), path)
    with pytest.raises(RecordError, match="line 2 is damaged: .* a run without epochs; delete"):
        records.read(path, CLASSIFICATION)


def test_a_field_of_the_wrong_type_is_named(tmp_path, record):
    path = tmp_path / "record.jsonl"
    records.write(record, path)
    path.write_text(
        path.read_text().replace('"lr": 0.01, "train_loss": 1.0', '"lr": "x", "train_loss": 1')
    )
    with pytest.raises(RecordError, match="line 2 is damaged: lr is 'x', not of type float"):
        records.read(path, CLASSIFICATION)


def test_a_record_that_is_not_text(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="cannot be read"):
        records.read(path, CLASSIFICATION)
