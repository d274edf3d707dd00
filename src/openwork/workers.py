"""Independent jobs side by side: a pool of processes on this machine, behind one `map_jobs`.

Every job is a top-level function of plain arguments that writes its own folder, so a killed job loses only itself.
Results come back in the order of the jobs, whatever finishes first. Workers compute on one thread each (a machine
shared by spinning thread pools is slower than one thread) and end when their parent does. Ctrl-C is the parent's to
answer: it ends them.

Knows functions and processes. Does not know what a job is about.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from openwork.progress import Progress
from openwork.threads import one_thread

_channel: Any = None  # in a worker: the queue to the parent's bars
_common: Any = None  # what all jobs of one `map_jobs` hold in common


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


def common() -> Any:
    """From inside a job: what the jobs were given in common, None where they were given nothing."""
    return _common


def map_jobs(
    jobs: Sequence[Job],
    workers: int,
    progress: Progress,
    fresh: bool = False,
    preload: Sequence[str] = (),
    in_common: Any = None,
) -> list[Any]:
    """The results of all jobs, in their order. The first failure stops the rest and is raised here.

    fresh    every job has a process of its own, even a single one: what it measures of its process is its own. They are
             forked from a server that has imported the jobs' modules and done nothing else, so a job begins at once
    preload  what that server imports besides: modules that a job would else import late, in its own time
    in_common  what `common` gives inside every job. It is sent to each worker once; tensors whose storage is shared
             (`share_memory_`) are not copied, so all workers read the same memory
    """
    if not jobs:
        return []
    if not fresh and (workers <= 1 or len(jobs) == 1):
        return _here(jobs, progress, in_common)
    forked = fresh and "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(sorted({*preload, *(j.function.__module__ for j in jobs)}))
    channel = context.Queue()
    bars = threading.Thread(target=_show, args=(channel, progress), daemon=True)
    bars.start()
    pools: list[ProcessPoolExecutor] = []

    def pool(size: int) -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(size, context, initializer=_begin, initargs=(channel, in_common)))
        return pools[-1]

    many = min(max(1, workers), len(jobs))
    shared = None if fresh else pool(many)
    waiting, running = deque(range(len(jobs))), dict[Future[Any], tuple[int, ProcessPoolExecutor]]()
    results: list[Any] = [None] * len(jobs)
    whole = progress.task("jobs", len(jobs))
    try:
        while waiting or running:
            while waiting and (shared is not None or len(running) < many):
                i, at = waiting.popleft(), shared or pool(1)
                running[at.submit(jobs[i].function, *jobs[i].args)] = i, at
            for f in wait(running, return_when=FIRST_COMPLETED).done:
                i, at = running.pop(f)
                results[i] = f.result()
                if at is not shared:
                    at.shutdown(wait=False)
            whole.update(len(jobs) - len(waiting) - len(running))
        return results
    except BaseException:
        for p in [p for some in pools for p in (some._processes or {}).values()]:
            p.terminate()  # a running job would otherwise be waited for
        raise
    finally:
        for each in pools:
            each.shutdown(wait=True, cancel_futures=True)
        whole.finish()
        channel.put(None)
        bars.join()


def _here(jobs: Sequence[Job], progress: Progress, in_common: Any) -> list[Any]:
    global _channel, _common
    before, shown = (_channel, _common), _Bars(progress)
    _channel, _common = shown, in_common
    try:
        with one_thread():  # as in a worker
            return [j.function(*j.args) for j in jobs]
    finally:
        _channel, _common = before
        shown.finish()


def _begin(channel: Any, in_common: Any) -> None:
    global _channel, _common
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    _channel, _common = channel, in_common
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
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
