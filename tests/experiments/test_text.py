"""Texts as numbers of characters."""

import hashlib

import pytest
import torch

from manifoldnet.experiments import text
from manifoldnet.experiments.errors import DataError
from manifoldnet.experiments.text import Text

SOME = "The quick brown fox jumps over the lazy dog; 0 dogs were harmed.\n"


def test_characters_are_numbered_in_their_order():
    found = Text.of("some", "abcab\n")
    assert found.alphabet == "\nabc"
    assert torch.equal(found.codes, torch.tensor([1, 2, 3, 1, 2, 0]))
    assert found.fingerprint() == hashlib.sha256(b"abcab\n").hexdigest()[:8]
    assert found.fingerprint() != Text.of("some", "abcba\n").fingerprint()


def test_documentation_strings_are_read_from_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_MODULES", ("one", "two", "gone"))
    source = '"""M."""\nif True:\n    class A:\n        """C."""\n        def f(self):\n'
    source += '            "F."\n        x = 1\nasync def g():\n    """G."""\nraise SystemExit\n'
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "two" / "tests").mkdir(parents=True)
    (tmp_path / "two" / "__init__.py").write_text('"""P."""')
    (tmp_path / "two" / "b.py").write_text('"""B."""')
    (tmp_path / "two" / "tests" / "t.py").write_text('"""T."""')
    assert list(text._docstrings(tmp_path)) == ["M.", "C.", "F.", "G.", "P.", "B."]
    with pytest.raises(DataError, match="source of the standard library"):
        list(text._docstrings(tmp_path / "two"))


@pytest.mark.thorough
def test_the_default_text_is_a_million_characters():
    lines: list[str] = []
    found = text.load(text.DOCSTRINGS, lines.append)
    assert len(found.codes) > 900_000
    assert 90 < len(found.alphabet) < 200
    assert lines


def test_a_file_is_a_text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("äb\r\n", encoding="utf-8")
    assert text.load(str(path)).alphabet == "\nbä"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"\xff", "as text"), (b"", "is empty")]
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        text.load(str(path))
