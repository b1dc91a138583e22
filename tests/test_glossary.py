"""docs/glossary.md: the code that it names exists, and its tables are whole."""

import re
from pathlib import Path

import pytest

import manifoldnet as mn
import manifoldnet.geometry
import manifoldnet.testing

PAGE = Path(__file__).parents[1] / "docs" / "glossary.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| here ")
]
NAMES = sorted({name for row in ROWS for name in re.findall("`(.*?)`", row[-1])})
# Instances, because attributes of a dataclass need not stand on its class.
STANDING_FOR = {"manifold": mn.Oblique(), "group": mn.symmetry.ScalingGroup((), {})}


def resolve(name: str) -> object:
    first, *rest = name.split(".")
    if first in STANDING_FOR:
        value = STANDING_FOR[first]
    else:
        value = getattr(mn, first, None) or getattr(mn.geometry, first)
    for attribute in rest:
        value = getattr(value, attribute)
    return value


@pytest.mark.parametrize("name", NAMES)
def test_code_that_is_named_exists(name: str) -> None:
    resolve(name)


def test_a_name_that_is_gone_is_seen() -> None:
    with pytest.raises(AttributeError):
        resolve("manifold.flatten")


def test_every_row_has_four_cells_and_terms_are_explained_once() -> None:
    assert {len(row) for row in ROWS} == {4}
    assert all(all(row) for row in ROWS)
    assert len({row[0] for row in ROWS}) == len(ROWS)


def test_concepts_lead_to_the_glossary() -> None:
    assert "(glossary.md)" in (PAGE.parent / "concepts.md").read_text(encoding="utf-8")
