"""Checks of the built site without a browser: links, anchors, the reference."""

from __future__ import annotations

import runpy
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    text: str
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.loads += [given["src"]] if given.get("src") else []
        if tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def parsed(site: Path, pages: list[str]) -> dict[str, Page]:
    return {page: Page((site / page).read_text(encoding="utf-8")) for page in pages}


def test_links_and_anchors_lead_somewhere(site: Path, parsed: dict[str, Page]) -> None:
    broken = []
    for name, page in parsed.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc or name == "404.html":
                continue
            file = (site / name).parent / unquote(target.path) if target.path else site / name
            file = (file / "index.html" if file.is_dir() else file).resolve()
            if not file.is_file():
                broken.append(f"{name}: {link} is no file")
            elif target.fragment and file.suffix == ".html":
                anchors = parsed[str(file.relative_to(site.resolve()))].anchors
                if unquote(target.fragment) not in anchors:
                    broken.append(f"{name}: {link} has no such anchor")
    assert not broken, "\n".join(sorted(set(broken)))


def test_nothing_is_loaded_from_elsewhere(parsed: dict[str, Page]) -> None:
    foreign = {
        (name, url) for name, page in parsed.items() for url in page.loads if urlsplit(url).netloc
    }
    assert not foreign


# --- the reference is complete --------------------------------------------------------------------

reference = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "reference.py")))


def test_every_public_name_has_an_entry(site: Path) -> None:
    assert not reference.missing(site)
    assert "manifoldnet.declarations.declare" in reference.entries(site)


def test_a_public_name_without_an_entry_is_seen(site: Path, tmp_path: Path) -> None:
    *head, body = (site / "objects.inv").read_bytes().split(b"\n", 4)
    kept = b"\n".join(
        line
        for line in zlib.decompress(body).split(b"\n")
        if not line.startswith((b"manifoldnet.declarations.declare ", b"manifoldnet.nn.simplex."))
    )
    (tmp_path / "objects.inv").write_bytes(b"\n".join([*head, zlib.compress(kept)]))
    missing = reference.missing(tmp_path)
    assert {"manifoldnet.declare", "manifoldnet.nn.SimplexClassifier"} <= set(missing)
    assert "manifoldnet.declare_all" not in missing
