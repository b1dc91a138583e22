"""An extension of Python-Markdown: `references.bib` as a page, and citations as links to it.

A citation is a key in square brackets, `[badrinarayanan2015symmetry]`, in a page or in a docstring.
It becomes a cross-reference to the heading of that name, which the bibliography's page makes where
it says `<!-- references -->`; one that leads nowhere fails the strict build.

mkdocs-bibtex reads the text of pages before docstrings are in it, so it has no citations of theirs.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

ENTRY = re.compile(r"@\w+\{(?P<key>\w+),\n(?P<fields>.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.MULTILINE)
CITATION = r"\[([a-z]+\d{4}[a-z0-9]+)\](?![(\[])"


def read(path: Path) -> dict[str, dict[str, str]]:
    """The entries of a .bib file by key, each field on one line.

    Raises:
        ValueError: if an entry is not closed, so that it would take in the next one.
    """
    text = path.read_text(encoding="utf-8")
    entries = list(ENTRY.finditer(text))
    for entry in entries:
        if "@" in entry["fields"]:
            raise ValueError(f"{path.name}: the entry {entry['key']} is not closed")
    return {entry["key"]: dict(FIELD.findall(entry["fields"])) for entry in entries}


REFERENCES = read(Path(__file__).parents[1] / "references.bib")


def surnames(entry: dict[str, str]) -> list[str]:
    return [author.split(",")[0] for author in entry["author"].split(" and ")]


def short(key: str) -> str:
    """The citation in the text: "Badrinarayanan et al. 2015"."""
    names = surnames(REFERENCES[key])
    who = names[0] + " et al." if len(names) > 2 else " & ".join(names)
    return f"{who} {REFERENCES[key]['year']}"


def full(key: str) -> str:
    """The entry of the bibliography, in Markdown."""
    entry = REFERENCES[key]
    authors = (" ".join(reversed(name.split(", "))) for name in entry["author"].split(" and "))
    parts = [", ".join(authors), f"*{entry['title']}*"]
    place = [entry[f] for f in ("journal", "booktitle", "publisher", "institution") if f in entry]
    if "volume" in entry:
        place.append(entry["volume"] + (f"({entry['number']})" if "number" in entry else ""))
    if "pages" in entry:
        place.append(entry["pages"])
    if "eprint" in entry:
        place.append(f"[arXiv:{entry['eprint']}](https://arxiv.org/abs/{entry['eprint']})")
    if "url" in entry:
        place.append(f"[{entry['url'].rsplit('/')[-1]}]({entry['url']})")
    return ". ".join([*parts, ", ".join([*place, entry["year"]])]) + "."


class References(Preprocessor):
    """Writes the list: a heading for each entry, named by its key."""

    def run(self, lines: list[str]) -> list[str]:
        if "<!-- references -->" not in lines:
            return lines
        keys = sorted(REFERENCES, key=lambda k: (surnames(REFERENCES[k]), REFERENCES[k]["year"]))
        entries = [f"## {short(key)} {{ #{key} }}\n\n{full(key)}\n" for key in keys]
        at = lines.index("<!-- references -->")
        return [*lines[:at], *"\n".join(entries).split("\n"), *lines[at + 1 :]]


class Citation(InlineProcessor):
    """Writes what mkdocs-autorefs makes a link of, or warns of."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:
        link = Element("autoref", identifier=m[1])
        link.text = f"[{short(m[1]) if m[1] in REFERENCES else m[1]}]"
        return link, m.start(0), m.end(0)


class Bibliography(Extension):
    """The list before anything else is read, citations before references of Markdown's own."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(References(md), "references", 40)
        md.inlinePatterns.register(Citation(CITATION, md), "citation", 175)


makeExtension = Bibliography
