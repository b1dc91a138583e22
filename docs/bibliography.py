"""A hook of mkdocs: `references.bib` as a page, and citations in docstrings as links to it.

A citation is a key in square brackets, `[badrinarayanan2015symmetry]`. One that is not in the
bibliography is a warning, which fails the strict build.
"""

import html
import logging
import re
from pathlib import Path

log = logging.getLogger("mkdocs.hooks.bibliography")

ENTRY = re.compile(r"@\w+\{(?P<key>\w+),\n(?P<fields>.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.MULTILINE)
CITATION = re.compile(r"\[([a-z]+\d{4}[a-z]+)\](?![(\[])")


def read(path: Path) -> dict[str, dict[str, str]]:
    """The entries of a .bib file by key, each field on one line."""
    entries = ENTRY.finditer(path.read_text(encoding="utf-8"))
    return {entry["key"]: dict(FIELD.findall(entry["fields"])) for entry in entries}


REFERENCES = read(Path(__file__).with_name("references.bib"))


def surnames(entry: dict[str, str]) -> list[str]:
    return [author.split(",")[0] for author in entry["author"].split(" and ")]


def short(key: str) -> str:
    """What stands in the text: "Badrinarayanan et al. 2015"."""
    names = surnames(REFERENCES[key])
    who = names[0] + " et al." if len(names) > 2 else " & ".join(names)
    return f"{who} {REFERENCES[key]['year']}"


def full(key: str) -> str:
    """What stands in the list, in Markdown."""
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


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Writes the list where the page says `<!-- references -->`."""
    if "<!-- references -->" not in markdown:
        return markdown
    keys = sorted(REFERENCES, key=lambda key: (surnames(REFERENCES[key]), REFERENCES[key]["year"]))
    items = (f"- <span id='{key}'></span>`{key}` {full(key)}" for key in keys)
    return markdown.replace("<!-- references -->", "\n".join(items))


def on_page_content(content: str, page, config, files) -> str:
    """Turns citations in the finished page into links."""
    here = files.get_file_from_path("bibliography.md").url_relative_to(page.file)

    def link(match: re.Match[str]) -> str:
        key = match[1]
        if key not in REFERENCES:
            log.warning("%s cites [%s], which references.bib does not have", page.file.src_uri, key)
            return match[0]
        return f'<a href="{here}#{key}">[{html.escape(short(key))}]</a>'

    return CITATION.sub(link, content)
