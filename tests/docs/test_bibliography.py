"""The bibliography: every entry is read, and one that is not closed is refused."""

from pathlib import Path

import pytest

from docs.extensions import bibliography


def test_every_entry_is_read():
    path = Path(bibliography.__file__).parents[1] / "references.bib"
    entries = f"\n{path.read_text(encoding='utf-8')}".count("\n@")
    assert len(bibliography.read(path)) == entries


def test_an_entry_that_is_not_closed_is_named(tmp_path):
    path = tmp_path / "some.bib"
    path.write_text("@misc{one2020,\n  year = {2020},\n@misc{two2021,\n  year = {2021},\n}\n")
    with pytest.raises(ValueError, match="one2020 is not closed"):
        bibliography.read(path)
