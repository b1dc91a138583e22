"""Progress on stderr: bars of epochs with the time left, and a status line for other work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import MissingExtraError
from manifoldnet.experiments.records import EpochRow, RunRecord


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

    def advance(self, epoch: EpochRow) -> None:
        """Counts an epoch of the current run and shows its errors."""
        if not self._enabled:
            return
        self._all.update()
        if self._run is not None:
            self._run.set_postfix_str(epoch.summary(), refresh=False)
            self._run.update()

    def end(self, record: RunRecord[Any, Any, Any]) -> None:
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
        return make_bar(name, total, done, position=position, leave=leave)


class SweepProgress:
    """One bar over all runs of a sweep, with the time left; use as a context manager.

    Runs are trained elsewhere: it counts their epochs when they have ended, or as far as their
    directories tell. Runs that have not ended are taken to have the share of their epochs that the
    ended ones had, since rules may end a run early.

    Args:
        pending: the runs to come.
        ended: those that are there.
        enabled: False shows nothing.

    Raises:
        MissingExtraError: when enabled without `tqdm`.
    """

    def __init__(
        self,
        pending: Iterable[Configuration],
        ended: Iterable[RunRecord[Any, Any, Any]],
        enabled: bool = True,
    ) -> None:
        self._pending = {config.identity(): config.epochs for config in pending}
        self._reached = dict.fromkeys(self._pending, 0)
        self._trained = self._allowed = self._ended = self._failed = 0
        for record in ended:
            self._count(record)
        # Workers finish side by side: only the mean over all of it says how long the rest takes.
        self._bar: Any = None
        if enabled:
            self._bar = make_bar("sweep", self._total(), self._trained, smoothing=0.0)
        self._show()

    def reach(self, config: Configuration, epochs: int) -> None:
        """Counts the epochs of a run that goes on."""
        new = epochs - self._reached[config.identity()]
        self._reached[config.identity()] = epochs
        if self._bar is not None:
            self._bar.update(new)

    def end(self, record: RunRecord[Any, Any, Any]) -> None:
        """Counts a run that has ended."""
        self.reach(record.config, len(record.epochs))
        self._forget(record.config)
        self._count(record)
        self._show()

    def fail(self, config: Configuration) -> None:
        """Counts a run that will not end."""
        self.reach(config, 0)
        self._forget(config)
        self._failed += 1
        self._show()

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _count(self, record: RunRecord[Any, Any, Any]) -> None:
        self._ended += 1
        self._trained += len(record.epochs)
        self._allowed += record.config.epochs

    def _forget(self, config: Configuration) -> None:
        del self._pending[config.identity()], self._reached[config.identity()]

    def _total(self) -> int:
        share = self._trained / self._allowed if self._allowed else 1.0
        return self._trained + round(share * sum(self._pending.values()))

    def _show(self) -> None:
        if self._bar is not None:
            runs = self._ended + self._failed + len(self._pending)
            failed = f", {self._failed} failed" if self._failed else ""
            self._bar.total = max(self._total(), self._bar.n)
            self._bar.set_postfix_str(
                f"{self._ended}/{runs} runs{failed}", refresh=sys.stderr.isatty()
            )


def make_bar(name: str, total: int, done: int, **options: Any) -> Any:
    """A bar of `tqdm` that counts epochs.

    Raises:
        MissingExtraError: without that package.
    """
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("tqdm", "a progress bar (all but --quiet)") from error
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit="epoch",
        file=sys.stderr,
        mininterval=0.1 if terminal else 10.0,
        dynamic_ncols=terminal,
        **options,
    )


class StatusLine:
    """A line about the work that goes on, overwritten and removed at the end; a context manager.

    Where stderr is no terminal, each new thing to do is written once, on a line of its own.

    Args:
        enabled: False shows nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the work, and that ``done`` of ``total`` parts of it are done."""
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
