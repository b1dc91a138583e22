"""Road scenes from parquet files: what comes out, and what is refused."""

import numpy as np
import pytest
import torch
from scenes import png, scene, scenes, write, write_all

from manifoldnet.experiments import DataError, hub
from manifoldnet.experiments.papers.segnet import data as images

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    write_all(tmp_path / "data" / "camvid")
    return tmp_path / "data"


def test_a_folder_becomes_tensors_in_its_own_size(folder):
    data = images.load(("camvid", 32, 40), folder)
    expected = scenes()
    for split, count in zip(images.SPLITS, (6, 3, 4), strict=True):
        (pictures, masks), (wanted, wanted_masks) = data.part(split), expected.part(split)
        assert pictures.shape == (count, 3, 32, 40)
        assert torch.equal(pictures, wanted)
        assert torch.equal(masks, wanted_masks)
        assert data.sequences(split) == expected.sequences(split)
    assert len(data.classes) == 11
    assert data.fingerprint() == expected.fingerprint()


def test_reduction_keeps_labels_and_averages_colours(folder):
    data = images.load(("camvid", 16, 20), folder)
    image, mask = scene(1)
    assert data.train_masks.shape == (6, 16, 20)
    assert set(data.train_masks[1].unique().tolist()) <= set(np.unique(mask).tolist())
    agreement = (data.train_masks[1].numpy() == mask[1::2, 1::2]).mean()
    assert agreement == 1.0  # the nearest of four pixels, always the same one
    block = image[:2, :2].astype(float).mean((0, 1))  # inside the sky: noise is averaged
    assert np.abs(data.train_images[1, :, 0, 0].numpy() - block).max() < 15


def test_each_size_is_decoded_once(folder, monkeypatch):
    notices = []
    small, large = (
        images.load(("camvid", *s), folder, notices.append) for s in ((16, 20), (32, 40))
    )
    assert len(notices) == 2
    monkeypatch.setattr(hub, "open_splits", lambda *_: pytest.fail("decoded again"))
    assert images.load(("camvid", 16, 20), folder).fingerprint() == small.fingerprint()
    assert images.load(("camvid", 32, 40), folder).fingerprint() == large.fingerprint()


GOOD = tuple(map(png, scene(0)))
TALL = tuple(map(png, scene(0, height=48)))


def test_names_are_optional_and_kept_in_the_cache(folder):
    first = images.load(("camvid", 32, 40), folder)
    assert first.train_sequences == tuple("ABBAAB")
    assert images.load(("camvid", 32, 40), folder).train_sequences == first.train_sequences
    write_all(folder / "camvid", named=False)
    assert images.load(("camvid", 32, 40), folder).train_sequences == ()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([GOOD, TALL], r"split 'train', row 1: the image is 48x40 .* row 0 of .* 32x40"),
        ([(GOOD[0], TALL[1])], r"row 0: the mask is 48x40 .*resize"),
        ([(GOOD[0], GOOD[0])], "row 0, mask: the image has mode 'RGB'; convert it to 8-bit gray"),
        ([(GOOD[1], GOOD[1])], "row 0: the image has mode 'L'; convert it to colour"),
        (
            [GOOD, (GOOD[0], png(np.full((32, 40), 12, np.uint8)))],
            "row 1: the mask holds the number 12",
        ),
        ([GOOD, (GOOD[0], None)], "row 1, mask: there is no image"),
        ([GOOD, (GOOD[0], png(np.full((32, 40), 11, np.uint8)))], "row 1: every pixel .* is void"),
        ([(GOOD[0][:90], GOOD[1])], "row 0: the image cannot be decoded"),
    ],
)
def test_errors_of_unusable_sets_name_the_place(folder, pairs, message):
    write(folder / "camvid", "train", pairs)
    with pytest.raises(DataError, match=message):
        images.load(("camvid", 32, 40), folder)


def test_splits_have_images_of_one_size(folder):
    write(folder / "camvid", "test", [TALL])
    with pytest.raises(DataError, match=r"'test', row 0: the image is 48x40 .*'train' 32x40"):
        images.load(("camvid", 32, 40), folder)


def test_a_missing_split_is_named(folder):
    (folder / "camvid" / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no split 'validation'.*validation-\*\.parquet"):
        images.load(("camvid", 32, 40), folder)


def test_a_set_with_unknown_classes_is_an_error(folder):
    with pytest.raises(
        DataError, match="the classes of 'mars' are not known, only those of camvid"
    ):
        images.load(("mars", 32, 40), folder)


def test_camvid(real_data):
    data = images.load(("camvid", 48, 64), real_data)
    assert [len(data.part(split)[0]) for split in images.SPLITS] == [367, 101, 233]
    assert set(data.train_sequences) == {"0001TP", "0006R0", "0016E5"}
    assert data.train_sequences.count("0006R0") == 101
    assert set(data.test_sequences) == {"0001TP", "Seq05VD"}
    void = (data.train_masks == 11).double().mean()
    road = (data.train_masks == 3).double().mean()
    assert 0 < void < 0.1 < road < 0.5
