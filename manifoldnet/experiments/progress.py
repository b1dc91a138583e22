"""Progress bars on stderr: all runs with the time left, and the current run with its errors."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from manifoldnet.experiments.errors import MissingExtraError
from manifoldnet.experiments.records import Epoch, Record


class Progress:
    """Two bars over a number of runs; use as a context manager.

    Where stderr is no terminal there is only the bar of all runs, and it writes a line now and
    then.

    Args:
        total: epochs of all runs together.
        done: how many of them were trained before (they do not count for the time left).
        enabled: False shows nothing.

    Raises:
        MissingExtraError: when enabled without `tqdm`.
    """

    def __init__(self, total: int, done: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._all: Any = self._make("all runs", total, done, position=0, leave=True)
        self._run: Any = None

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Shows the bar of the next run, of which ``done`` epochs were trained before."""
        if not self._enabled:
            return
        if self._terminal:
            self._run = self._make(name, total, done, position=1, leave=False)
        else:
            self._all.set_postfix_str(name, refresh=False)

    def advance(self, epoch: Epoch) -> None:
        """Counts an epoch of the current run and shows its errors."""
        if not self._enabled:
            return
        self._all.update()
        if self._run is not None:
            self._run.set_postfix_str(
                f"validation {100 * epoch.validation_error:.2f}%, "
                f"test {100 * epoch.test_error:.2f}%",
                refresh=False,
            )
            self._run.update()

    def end(self, record: Record) -> None:
        """Closes the bar of a run; what a diverged one did not train is not waited for."""
        if not self._enabled:
            return
        if self._run is not None:
            self._run.close()
        self._all.total -= record.config.epochs - len(record.epochs)
        self._all.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for bar in (self._run, self._all):
            if bar is not None:
                bar.close()

    def _make(self, name: str, total: int, done: int, position: int, leave: bool) -> Any:
        if not self._enabled:
            return None
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise MissingExtraError("tqdm", "a progress bar (all but --quiet)") from error
        return tqdm(
            desc=name,
            total=total,
            initial=done,
            position=position,
            leave=leave,
            unit="epoch",
            file=sys.stderr,
            mininterval=0.1 if self._terminal else 10.0,
            dynamic_ncols=self._terminal,
        )
