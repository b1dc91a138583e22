"""Folders of parquet files: the good one, and each way in which one can be wrong."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldnet.experiments import DataError, MissingExtraError, hub, load
from manifoldnet.experiments.data import cache_path

datasets = pytest.importorskip("datasets")


def png(seed=0, size=(5, 4), mode="L"):
    """An encoded picture; `size` is (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue(), pixels


def write(folder, split, pictures, labels, image="image", label="label", names=None):
    folder.mkdir(parents=True, exist_ok=True)
    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    if labels and isinstance(labels[0], str):
        feature = datasets.Value("string")
    rows = {image: [p and {"bytes": p, "path": None} for p in pictures], label: labels}
    features = datasets.Features({image: datasets.Image(), label: feature})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        folder / f"{split}-00000-of-00001.parquet"
    )


@pytest.fixture(autouse=True)
def _no_bars(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLDNET_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def shapes(tmp_path):
    """A data folder with one good set of eight training and three test images."""
    for split, count in (("train", 8), ("test", 3)):
        pictures = [png(seed)[0] for seed in range(count)]
        write(
            tmp_path / "data" / "shapes",
            split,
            pictures,
            [s % 2 for s in range(count)],
            names=["x", "o"],
        )
    return tmp_path / "data"


def test_a_folder_becomes_tensors(shapes, capfd):
    datasets.enable_progress_bars()
    data = load("shapes", shapes)
    assert data.train_images.shape == (8, 1, 4, 5)
    assert data.train_images.dtype == torch.uint8
    assert np.array_equal(data.train_images[3, 0].numpy(), png(3)[1])
    assert data.test_labels.tolist() == [0, 1, 0]
    assert data.classes == ("x", "o")
    assert capfd.readouterr() == ("", "")  # no bars, no chatter


def test_the_environment_variable_sets_the_folder(shapes, monkeypatch):
    monkeypatch.setenv("MANIFOLDNET_DATA", str(shapes))
    assert load("shapes").inputs == 20


def test_the_librarys_settings_are_left_as_they_were(shapes):
    datasets.enable_progress_bars()
    before = datasets.logging.get_verbosity()
    load("shapes", shapes)
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == before


def test_other_column_names_of_the_hub_and_bare_integers_are_understood(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "bare", split, [png(1)[0], png(2)[0]], [0, 2], image="img")
    assert load("bare", tmp_path).classes == ("0", "1", "2")


def test_gray_pictures_among_colour_ones_become_rgb(tmp_path):
    gray, colour = png(1), png(2, mode="RGB")
    for split in ("train", "test"):
        write(tmp_path / "mixed", split, [gray[0], colour[0]], [0, 1])
    data = load("mixed", tmp_path)
    assert data.train_images.shape == (2, 3, 4, 5)
    assert np.array_equal(data.train_images[0, 2].numpy(), gray[1])
    assert np.array_equal(data.train_images[1].numpy(), colour[1].transpose(2, 0, 1))


def test_pictures_are_decoded_once(shapes, monkeypatch):
    lines = []
    first = load("shapes", shapes, lines.append)
    monkeypatch.setattr(hub, "read", lambda source: pytest.fail("decoded again"))
    second = load("shapes", shapes, lines.append)
    assert len(lines) == 1
    assert "decoding shapes once" in lines[0]
    assert second.fingerprint() == first.fingerprint()
    assert second.classes == first.classes


def test_a_folder_that_changes_is_decoded_again(shapes):
    load("shapes", shapes)
    write(shapes / "shapes", "test", [png(7)[0]], [1], names=["x", "o"])
    assert load("shapes", shapes).test_labels.tolist() == [1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "old"])
def test_a_damaged_cache_says_to_delete_it(shapes, damage):
    load("shapes", shapes)
    path = cache_path(hub.find("shapes", shapes))
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        pixels = png(3)[1].tobytes()
        assert pixels in content
        path.write_bytes(content.replace(pixels, pixels[::-1]))
    else:
        torch.save({**torch.load(path), "format": 0}, path)
    with pytest.raises(DataError, match=r"data cache .*shapes-.*\.pt .*: delete that file"):
        load("shapes", shapes)
    path.unlink()
    assert load("shapes", shapes).inputs == 20


def test_a_cache_that_cannot_be_written_is_named_and_nothing_is_left(shapes, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MANIFOLDNET_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write the data cache .* MANIFOLDNET_CACHE"):
        load("shapes", shapes)


def test_a_failed_decoding_leaves_no_cache(tmp_path):
    write(tmp_path / "bad", "train", [b"not a picture"], [0])
    write(tmp_path / "bad", "test", [png()[0]], [0])
    with pytest.raises(DataError, match="split 'train', row 0: the image cannot be decoded"):
        load("bad", tmp_path)
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("shapes", "nowhere", r"data folder .*nowhere does not exist"),
        ("mnist", "data", r"no folder 'mnist' in .* \(it holds shapes\)"),
    ],
)
def test_a_missing_folder(shapes, tmp_path, name, where, message):
    with pytest.raises(DataError, match=message):
        load(name, tmp_path / where)


def deep():
    """A 16-bit picture."""
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), 40000, dtype=np.uint16)).save(stream, "PNG")
    return stream.getvalue()


# Training split, test split (pictures and labels), names of columns, and the complaint.
ONE = ([png()[0]], [0])
BAD_SETS = {
    "no split": (ONE, None, {}, "has no split 'test', only 'train'"),
    "no image": (ONE, ONE, {"image": "other"}, r"no column 'image'.*, only .*'other'"),
    "no label": (ONE, ONE, {"label": "other"}, r"no column 'label'.*, only .*'other'"),
    "a hole": (([png()[0], None], [0, 1]), ONE, {}, "split 'train', row 1: there is no image"),
    "sizes": (
        ([png()[0], png(size=(4, 4))[0]], [0, 1]),
        *(ONE, {}, r"row 1 is 4x4 .* row 0 4x5; .* resize"),
    ),
    "test sizes": (
        *(ONE, ([png(size=(4, 4))[0]], [0]), {}),
        "training images are 1x4x5, test images 1x4x4",
    ),
    "16 bits": (([deep()], [0]), ONE, {}, r"row 0: the image has mode 'I;16"),
    **{
        f"label {label}": (
            *(([png()[0]] * 2, [label] * 2), ONE, {}),
            f"row 0: the label is {label!r}",
        )
        for label in (-1, None, "cat")
    },
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_errors_of_unusable_sets_name_the_place(tmp_path, case):
    train, test, columns, message = BAD_SETS[case]
    for split, content in (("train", train), ("test", test)):
        if content is not None:
            write(tmp_path / "odd", split, *content, **columns)
    with pytest.raises(DataError, match=message):
        load("odd", tmp_path)


def test_a_column_of_images_without_images(tmp_path):
    (tmp_path / "odd").mkdir()
    for split in ("train", "test"):
        rows = datasets.Dataset.from_dict({"image": [1.5, 2.5], "label": [0, 1]})
        rows.to_parquet(tmp_path / "odd" / f"{split}.parquet")
    with pytest.raises(DataError, match=r"column 'image' holds .*, not images"):
        load("odd", tmp_path)


@pytest.mark.parametrize("content", [None, b"PAR1 and half of a file"])
def test_a_folder_without_intact_files(tmp_path, content):
    (tmp_path / "odd").mkdir()
    if content is not None:
        (tmp_path / "odd" / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot load .*odd .*: check that the folder"):
        load("odd", tmp_path)


@pytest.mark.parametrize("package", ["datasets", "sklearn.datasets"])
def test_a_missing_package_names_the_extra(shapes, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    name = "shapes" if package == "datasets" else "digits"
    with pytest.raises(MissingExtraError, match=r"pip install 'manifoldnet\[experiments\]'"):
        load(name, shapes)
