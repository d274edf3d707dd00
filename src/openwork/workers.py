"""Independent jobs side by side: a pool of processes on this machine, behind one `map_jobs`.

Every job is a top-level function of plain arguments that writes its own folder, so a killed job loses only itself.
Results come back in the order of the jobs, whatever finishes first. Workers compute on one thread each (a machine
shared by spinning thread pools is slower than one thread) and end when their parent does.

Knows functions and processes. Does not know what a job is about.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from openwork.progress import Progress

_channel: Any = None  # in a worker: the queue to the parent's bars


@dataclass(frozen=True)
class Job:
    """One call: `function(*args)`, shown under `name` while it runs."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()


def report(name: str, done: float, total: float, **info: float) -> None:
    """From inside a job: how far it is. Does nothing where nobody listens."""
    if _channel is not None:
        _channel.put((name, done, total, info))


def map_jobs(jobs: Sequence[Job], workers: int, progress: Progress) -> list[Any]:
    """The results of all jobs, in their order. The first failure stops the rest and is raised here."""
    if not jobs:
        return []
    if workers <= 1 or len(jobs) == 1:
        return _here(jobs, progress)
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    bars = threading.Thread(target=_show, args=(channel, progress), daemon=True)
    bars.start()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin, initargs=(os.getpid(), channel))
    try:
        futures: list[Future[Any]] = [pool.submit(j.function, *j.args) for j in jobs]
        whole, left = progress.task("jobs", len(jobs)), set(futures)
        while left:
            finished, left = wait(left, return_when=FIRST_COMPLETED)
            for f in finished:
                f.result()
            whole.update(len(jobs) - len(left))
        whole.finish()
        return [f.result() for f in futures]
    except BaseException:
        for p in list((pool._processes or {}).values()):  # a running job would otherwise be waited for
            p.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        channel.put(None)
        bars.join()


def _here(jobs: Sequence[Job], progress: Progress) -> list[Any]:
    global _channel
    import torch

    threads, before, shown = torch.get_num_threads(), _channel, _Bars(progress)
    torch.set_num_threads(1)  # the same sums as in a worker, so the same result
    _channel = shown
    try:
        return [j.function(*j.args) for j in jobs]
    finally:
        _channel = before
        torch.set_num_threads(threads)
        shown.finish()


def _begin(parent: int, channel: Any) -> None:
    global _channel
    import torch

    torch.set_num_threads(1)
    _channel = channel

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Bars:
    """Stands in for the queue when jobs run in this very process, and draws what comes out of it otherwise."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.handles = progress, {}

    def put(self, message: tuple[str, float, float, dict[str, float]]) -> None:
        name, done, total, info = message
        if name not in self.handles:
            self.handles[name] = self.progress.task(name, total)
        self.handles[name].update(done, **info)
        if done >= total:
            self.handles.pop(name).finish()

    def finish(self) -> None:
        for handle in self.handles.values():
            handle.finish()


def _show(channel: Any, progress: Progress) -> None:
    bars = _Bars(progress)
    while (message := channel.get()) is not None:
        bars.put(message)
    bars.finish()
