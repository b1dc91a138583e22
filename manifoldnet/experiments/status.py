"""One line on stderr that says what is going on, for work that is not counted in epochs."""

from __future__ import annotations

import sys


class StatusLine:
    """A line that is written over, and gone at the end; use as a context manager.

    Where stderr is no terminal, each new thing to do is written once, on a line of its own.

    Args:
        enabled: False shows nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Says what is being done, how much of it is, and of how much."""
        if not self._enabled:
            return
        if self._terminal:
            self._write(f"\r\x1b[K{what} {done}/{total}")
        elif what != self._last:
            self._write(f"{what}\n")
        self._last = what

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last and self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
