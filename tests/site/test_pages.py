"""What can be said of the built site without a browser: links, anchors, the reference."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import manifoldnet


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


def documented(site: Path) -> set[str]:
    """The names in the inventory that mkdocstrings writes for other projects to link to."""
    inventory = (site / "objects.inv").read_bytes()
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    return {line.split(" ")[0] for line in body.splitlines()}


def public_modules() -> Iterator[ModuleType]:
    """Modules with no underscore in their names, but commands and what only draws the site."""
    yield manifoldnet
    for found in pkgutil.walk_packages(manifoldnet.__path__, "manifoldnet."):
        if re.search(r"\._|\.drawings\b", found.name):
            continue
        yield importlib.import_module(found.name)


def is_documented(module: ModuleType, name: str, known: set[str]) -> bool:
    """Whether a public name, or what it is another name of, is in the reference."""
    value = getattr(module, name)
    if isinstance(value, ModuleType):  # it has no entry of its own, but what it holds has
        return any(entry.startswith(f"{value.__name__}.") for entry in known)
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}" in known
    # Constants and aliases of types do not know where they are defined.
    return any(entry.rpartition(".")[2] == name for entry in known)


def test_every_public_name_has_a_page(site: Path) -> None:
    known = documented(site)
    missing = [
        f"{module.__name__}.{name}"
        for module in public_modules()
        for name in getattr(module, "__all__", ())
        if not name.startswith("__") and not is_documented(module, name, known)
    ]
    assert not missing, missing


def test_the_inventory_is_read(site: Path) -> None:
    assert "manifoldnet.parameter.declare" in documented(site)
    assert "manifoldnet.parameter.declare_nothing" not in documented(site)
