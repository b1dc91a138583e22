"""Reports: Markdown and HTML pages from a list of blocks, and CSV files from rows."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar

from manifoldnet.experiments.errors import RecordError
from manifoldnet.experiments.files import write_bytes
from manifoldnet.experiments.plotting import svg_pair

T = TypeVar("T")


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1  # how many columns, from the left, hold words; the others are set to the right


@dataclass(frozen=True)
class Picture:
    """An SVG, for light pages and dark ones, or a PNG."""

    name: str  # of the file beside the Markdown; without an ending for an SVG
    content: bytes
    text: str  # what it shows, for who does not see it

    @property
    def files(self) -> dict[str, bytes]:
        """The contents by file name: the light one, then the dark one, or a single PNG."""
        if self.name.endswith(".png"):
            return {self.name: self.content}
        return svg_pair(self.name, self.content)


Block = Heading | Paragraph | Table | Picture


@dataclass(frozen=True)
class Report:
    """A report that has been written."""

    text: str  # as Markdown
    files: tuple[Path, ...]


def publish(
    blocks: Sequence[Block], directory: Path, name: str, tables: Mapping[str, str]
) -> Report:
    """Write a report, its pictures, and tables (text by file name) into a folder."""
    text = to_markdown(blocks)
    texts = {**tables, f"{name}.md": text, f"{name}.html": to_html(blocks)}
    files = {file: content.encode() for file, content in texts.items()}
    for block in blocks:
        files |= block.files if isinstance(block, Picture) else {}
    for file, content in files.items():
        write_bytes(directory / file, content)
    return Report(text, tuple(directory / file for file in files))


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, with links to the files of the pictures."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """The blocks as one HTML page, pictures embedded."""
    title = next((b.text for b in blocks if isinstance(b, Heading) and b.level == 1), "Report")
    body = "\n".join(map(_html, blocks))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as the text of a CSV file."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def read_csv(
    path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], T], way_out: str
) -> list[T]:
    """The rows of a CSV file as ``parse`` returns them, which raises ValueError for a bad one."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) != tuple(columns):
                there = ", ".join(reader.fieldnames or ["none"])
                raise RecordError(
                    f"{path}, line 1: the columns are {there}, not {', '.join(columns)}: {way_out}"
                )
            parsed = []
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise RecordError(f"{where}: it does not have {len(columns)} fields: {way_out}")
                try:
                    parsed.append(parse(row))
                except ValueError as error:
                    raise RecordError(f"{where}: {error}: {way_out}") from error
            return parsed
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} cannot be read as CSV ({error}): {way_out}") from error


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #8884; white-space: nowrap; }
th, td { text-align: right; }
.w { text-align: left; }
img { max-width: 100%; }
"""


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Picture):
        pages = ("#only-light", "#only-dark") if len(block.files) > 1 else ("",)
        images = zip(block.files, pages, strict=True)
        return "\n".join(f"![{block.text}]({file}{page})" for file, page in images)
    lines = [block.header, *block.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(block.header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < block.words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    separators = [
        "-" * (width + 2) if column < block.words else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([line(block.header), f"|{'|'.join(separators)}|", *map(line, block.rows)])


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Picture):
        kind = "png" if block.name.endswith(".png") else "svg+xml"
        light, *dark = (
            f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            for content in block.files.values()
        )
        image = f'<img alt="{escape(block.text)}" src="{light}">'
        sources = (f'<source media="(prefers-color-scheme: dark)" srcset="{d}">' for d in dark)
        return f"<picture>{''.join(sources)}{image}</picture>"

    def row(tag: str, cells: Sequence[str]) -> str:
        text = "".join(
            f"<{tag}{' class=w' if column < block.words else ''}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )
        return f"<tr>{text}</tr>"

    head = row("th", block.header)
    body = "\n".join(row("td", cells) for cells in block.rows)
    return f"<div><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
