"""Progress on stderr: bars of epochs with the time left, and a status line for other work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from manifoldnet.experiments.configuration import Configuration
from manifoldnet.experiments.errors import importing
from manifoldnet.experiments.records import EpochRow, RunRecord


class Progress(AbstractContextManager["Progress"]):
    """Bars of the epochs of all runs and, on a terminal, of the current one; a context manager."""

    def __init__(self, total: int, done: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        self._all = _bar("all runs", total, done, enabled, position=0)
        self._run: Any = _NoBar()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Show the next run, of which ``done`` epochs were trained before."""
        if sys.stderr.isatty():
            self._run = _bar(name, total, done, self._enabled, position=1, leave=False)
        else:
            self._all.set_postfix_str(name, refresh=False)

    def advance(self, epoch: EpochRow) -> None:
        """Count an epoch of the current run and show its scores."""
        self._all.update()
        self._run.set_postfix_str(epoch.summary(), refresh=False)
        self._run.update()

    def end(self, record: RunRecord[Any, Any, Any]) -> None:
        """Close the bar of a run; the epochs that a diverged one did not train are left out."""
        self._run.close()
        self._all.total -= record.config.epochs - len(record.epochs)
        self._all.refresh()

    def __exit__(self, *_: object) -> None:
        self._run.close()
        self._all.close()


class SweepProgress(AbstractContextManager["SweepProgress"]):
    """One bar over the epochs of a sweep, with the time left; a context manager.

    The runs to come are taken to train the share of their epochs that the ended ones did, since
    rules may end a run early.
    """

    def __init__(
        self,
        pending: Iterable[Configuration],
        ended: Iterable[RunRecord[Any, Any, Any]],
        enabled: bool = True,
    ) -> None:
        self._pending = {config.identity(): config.epochs for config in pending}
        self._reached = dict.fromkeys(self._pending, 0)
        self._ended = list(ended)
        self._failed = 0
        # Workers finish side by side: only the mean over all of it says how long the rest takes.
        trained, total = self._counts()
        self._bar = _bar("sweep", total, trained, enabled, smoothing=0.0)
        self._show()

    def reach(self, config: Configuration, epochs: int) -> None:
        """Count the epochs of a run that goes on."""
        self._bar.update(epochs - self._reached[config.identity()])
        self._reached[config.identity()] = epochs

    def end(self, record: RunRecord[Any, Any, Any]) -> None:
        """Count a run that has ended."""
        self.reach(record.config, len(record.epochs))
        del self._pending[record.config.identity()]
        self._ended.append(record)
        self._show()

    def fail(self, config: Configuration) -> None:
        """Count a run that will not end."""
        self.reach(config, 0)
        del self._pending[config.identity()]
        self._failed += 1
        self._show()

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _counts(self) -> tuple[int, int]:
        """Epochs of the ended runs, and those to expect of all runs."""
        trained = sum(len(record.epochs) for record in self._ended)
        allowed = sum(record.config.epochs for record in self._ended)
        share = trained / allowed if allowed else 1.0
        return trained, trained + round(share * sum(self._pending.values()))

    def _show(self) -> None:
        self._bar.total = max(self._counts()[1], self._bar.n)
        runs = len(self._ended) + self._failed + len(self._pending)
        failed = f", {self._failed} failed" if self._failed else ""
        text = f"{len(self._ended)}/{runs} runs{failed}"
        self._bar.set_postfix_str(text, refresh=sys.stderr.isatty())


class StatusLine(AbstractContextManager["StatusLine"]):
    """A line about the work that goes on, removed at the end; a context manager.

    Where stderr is no terminal, each new piece of work is written once, on a line of its own.
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

    def __exit__(self, *_: object) -> None:
        if self._last and self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class _NoBar:
    """A bar of `tqdm` that shows nothing, without the package."""

    n = total = 0

    def _ignore(self, *_: object, **__: object) -> None: ...

    update = set_postfix_str = refresh = close = _ignore


def _bar(name: str, total: int, done: int, enabled: bool, **options: Any) -> Any:
    """A bar of `tqdm` that counts epochs."""
    if not enabled:
        return _NoBar()
    with importing("tqdm", "a progress bar (all but --quiet)"):
        from tqdm import tqdm
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
