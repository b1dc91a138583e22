"""CSV files: text from rows, and rows from a file that may be damaged."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from manifoldnet.experiments.errors import RecordError

T = TypeVar("T")


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
    """What ``parse`` makes of the rows of a CSV file.

    Args:
        path: the file.
        columns: that it must have, in this order.
        parse: is given a row; raises ValueError for one that makes no sense.
        way_out: what the user is told to do about a damaged file.

    Raises:
        RecordError: naming the file, the line and the way out.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            if tuple(reader.fieldnames or ()) != tuple(columns):
                raise RecordError(
                    f"{path}, line 1: the columns are "
                    f"{', '.join(reader.fieldnames or ['none'])}, not "
                    f"{', '.join(columns)}: {way_out}"
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
