"""Packed records: the same records as the loose ones, and nothing lost on the way."""

import dataclasses
import gzip

import pytest
from sweeps import FEW, Here, content, quiet

from manifoldnet.experiments import RecordError, store
from manifoldnet.experiments.papers.symmetry.config import CLASSIFICATION


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    where = tmp_path_factory.mktemp("made")
    return quiet(FEW, where, purpose={"purpose": "table"})


@pytest.fixture
def loose(tmp_path, made):
    for record in made:
        store.keep(tmp_path, record)
    return tmp_path


def read(folder):
    return {name: repr(record) for name, record in store.read_all(folder, CLASSIFICATION).items()}


def test_packing_preserves_the_records(loose):
    before, texts = read(loose), content(loose)
    path = store.pack(loose, CLASSIFICATION)
    assert [p.name for p in loose.iterdir()] == [store.PACK]
    assert read(loose) == before
    assert b"".join(texts[f"{name}.jsonl"] for name in before) in gzip.decompress(path.read_bytes())
    assert store.experiment(loose) == "classification"
    assert store.sweeps(loose) == [loose]


def test_packing_again_gives_the_same_bytes(loose):
    first = store.pack(loose, CLASSIFICATION).read_bytes()
    assert store.pack(loose, CLASSIFICATION).read_bytes() == first


def test_a_sweep_resumes_from_packed_records(loose, made):
    store.path_of(loose, FEW[1]).unlink()
    store.pack(loose, CLASSIFICATION)
    here = Here()
    quiet(FEW, loose, here)
    assert here.calls == [FEW[1]]
    assert list(content(loose)) == [f"{FEW[1].identity()}.jsonl"]  # the others stay packed
    store.pack(loose, CLASSIFICATION)
    assert len(read(loose)) == 3


def test_the_purpose_of_old_records_is_written_when_they_are_packed(tmp_path, made):
    old = dataclasses.replace(made[0], sweep={})
    store.keep(tmp_path, old)
    store.keep(tmp_path, made[1])
    store.pack(tmp_path, CLASSIFICATION, {"purpose": "old"})
    found = store.read_all(tmp_path, CLASSIFICATION)
    assert found[FEW[0].identity()].sweep == {"purpose": "old"}
    assert found[FEW[1].identity()].sweep == {"purpose": "table"}


def test_a_kill_between_packing_and_removal_loses_nothing(loose):
    before, texts = read(loose), content(loose)
    store.pack(loose, CLASSIFICATION)
    (loose / "records").mkdir()
    for name, text in texts.items():
        (loose / "records" / name).write_bytes(text)
    assert read(loose) == before
    store.pack(loose, CLASSIFICATION)
    assert read(loose) == before


def test_a_loose_record_that_differs_from_the_packed_one_is_named(loose, made):
    store.pack(loose, CLASSIFICATION)
    store.keep(loose, dataclasses.replace(made[0], data="00000000"))
    with pytest.raises(RecordError, match=f"{FEW[0].identity()}.jsonl and .* differ"):
        read(loose)


def test_loose_records_are_kept_if_the_packed_file_is_not_on_disk(loose, monkeypatch):
    texts = content(loose)
    monkeypatch.setattr(store, "write_bytes", lambda path, *_, **__: path.write_bytes(b""))
    with pytest.raises(RecordError, match="is damaged"):
        store.pack(loose, CLASSIFICATION)
    assert content(loose) == texts


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: gzip.compress(b"notes\n"),
        lambda content: gzip.compress(
            gzip.decompress(content).replace(b'"names": ["', b'"names": ["x", "')
        ),
        lambda content: gzip.compress(gzip.decompress(content)[:-9]),
        lambda content: gzip.compress(gzip.decompress(content).replace(b'"lr": ', b'"lr": x')),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(loose, damage):
    path = store.pack(loose, CLASSIFICATION)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecordError, match=rf"{store.PACK}.* is damaged"):
        read(loose)


def test_a_refused_pack_changes_nothing(loose, made):
    with pytest.raises(RecordError, match="no records in .*nothing to pack"):
        store.pack(loose / "none", CLASSIFICATION)
    (loose / "records" / "notes.txt").write_text("mine")
    texts = content(loose)
    with pytest.raises(RecordError, match=r"notes\.txt"):
        store.pack(loose, CLASSIFICATION)
    assert content(loose) == texts


def test_a_sweep_for_another_purpose_is_refused(loose):
    with pytest.raises(RecordError, match="another purpose .table there, choice here"):
        quiet(FEW, loose, purpose={"purpose": "choice"})
