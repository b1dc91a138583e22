"""Executors for the runs of a sweep: processes of this machine, or the workers of a Dask cluster.

Both are a `concurrent.futures.Executor`. A worker process that dies fails its own call only: each
has a pool of its own, since the death of one worker breaks a shared pool and all of its calls.
(joblib's pools break in the same way.) When the parent dies, its workers end themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor as Threads
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from manifoldnet.experiments.errors import ConfigError, importing

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Processes(Executor):
    """Worker processes, each with a thread that sends it one call after the other.

    A call whose worker died raises `BrokenExecutor`; the next one gets a new worker. Leaving the
    ``with`` block by an exception kills the workers.
    """

    def __init__(self, jobs: int) -> None:
        # Workers inherit what their thread blocks: Ctrl-C is the parent's to handle.
        self._threads = Threads(jobs, thread_name_prefix="worker", initializer=_block_interrupts)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._pools: dict[ProcessPoolExecutor, int] = {}
        self._stopped = False

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Call a function in one of the workers; it and its arguments are pickled."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after all calls; with `cancel_futures`, after those that have begun."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        with self._lock:
            pools, self._pools = list(self._pools), {}
        for pool in pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End the workers at once; their calls are lost."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for pid in self._pools.values():
                _kill(pid)
        self.shutdown()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.shutdown()
        else:
            self.kill()

    def _call(self, fn: Callable[..., _T], args: Any, kwargs: Any) -> _T:
        pool: ProcessPoolExecutor | None = getattr(self._local, "pool", None)
        try:
            if pool is None:
                pool = self._local.pool = self._start()
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            self._local.pool = None
            if pool is not None:
                with self._lock:
                    self._pools.pop(pool, None)
                pool.shutdown()
            raise

    def _start(self) -> ProcessPoolExecutor:
        if self._stopped:
            raise BrokenExecutor("the workers have been stopped")
        # Forking a process that has run torch is not safe.
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin)
        pid = pool.submit(os.getpid).result()
        with self._lock:
            self._pools[pool] = pid
        if self._stopped:  # while it was being started
            _kill(pid)
        return pool


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _block_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _begin() -> None:
    """Start of a worker, which ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def cluster(address: str, timeout: float = 10.0) -> Iterator[Executor]:
    """The workers of the Dask cluster at ``address``, as an executor.

    Every worker needs this version of manifoldnet and the data, and should have one thread
    (``dask worker --nthreads 1``). A worker that dies is Dask's to replace.
    """
    with importing("distributed", "a cluster", extra="cluster"):
        from distributed import Client
    try:
        client = Client(address, timeout=timeout)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address!r} ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise ConfigError(
                f"the Dask scheduler at {address!r} has no workers: start some with "
                f"dask worker {address} --nthreads 1"
            ) from error
        # Not "pure": a run that is tried again is not answered with what failed before.
        yield client.get_executor(pure=False)
