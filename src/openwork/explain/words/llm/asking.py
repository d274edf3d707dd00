"""Asking many things at once: known answers from the ledger, the rest side by side, each read and mended once.

A request is looked up, else asked and put away, then read. What cannot be read is sent back once with what is wrong
with it; what cannot be read then is counted as unreadable and given back as None, or as the part that could be read.
Workers are threads that end with the process: Ctrl-C stops at once, and an answer that arrives before the end is
still put away whole. A model in this process is asked in this thread.

Knows requests, a ledger and a backend. Does not know endpoints, prompts, or what answers mean.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Generic, TypeVar

from openwork.explain.words.llm.ledger import Ledger
from openwork.explain.words.llm.request import Backend, Reply, Request, Unreadable, text_of, was_cut
from openwork.workers import report

T = TypeVar("T")

COMPLAINT = (
    "That answer could not be read: {wrong}{cut} Give the whole answer again, in the form described above, and "
    "nothing else."
)


class Asker(Generic[T]):
    """Asks a backend by way of a ledger. The backend is made when the first answer is missing.

    make  gives the backend; called at most once, so that nothing has to be installed or reached for known answers
    name  the backend's name, which is part of every key
    """

    def __init__(self, make: Callable[[], Backend], name: str, ledger: Ledger, seed: int) -> None:
        self._make = make
        self.name = name
        self.ledger = ledger
        self.seed = seed
        self._lock = threading.RLock()
        self._busy: dict[str, threading.Lock] = {}

    @cached_property
    def backend(self) -> Backend:
        """Whoever answers."""
        return self._make()

    @property
    def dry(self) -> bool:
        """Whether nothing may be sent."""
        return self.ledger.options.dry_run

    def ask(
        self, requests: Sequence[Request], read: Callable[[int, Reply], T], wanted: Callable[[int], int] = lambda _: 1
    ) -> list[T | None]:
        """What was read from the answer to each request, in order; None where nothing could be (and in a dry run).

        read    (place of the request, reply) -> what it says; raises Unreadable
        wanted  how many answers the request at a place is for, to count them

        The first refusal of the endpoint stops the rest: answers under way are waited for and put away, then it is
        raised.
        """
        results: list[T | None] = [None] * len(requests)
        if self.dry or self.ledger.options.is_local:  # in order; and a thread that computes cannot be stopped
            for i, request in enumerate(requests):
                results[i] = self._one(request, lambda reply, i=i: read(i, reply), wanted(i), threading.Event())
                report(f"ask {self.ledger.options.model}", i + 1, len(requests))
            return results
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        for i in range(len(requests)):
            waiting.put(i)

        def work() -> None:
            while not stop.is_set():
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    results[i] = self._one(requests[i], lambda reply, i=i: read(i, reply), wanted(i), stop)
                    done.put(i)
                except BaseException as e:
                    stop.set()
                    done.put(e)
                    return

        count = min(self.ledger.options.concurrency, len(requests))
        threads = [threading.Thread(target=work, daemon=True, name=f"llm-{n}") for n in range(count)]
        for t in threads:
            t.start()
        try:
            for n in range(1, len(requests) + 1):
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    for t in threads:
                        t.join()
                    raise outcome
                report(f"ask {self.ledger.options.model}", n, len(requests))
        finally:
            stop.set()
        return results

    def _one(self, request: Request, read: Callable[[Reply], T], wanted: int, stop: threading.Event) -> T | None:
        reply = self._reply(request, stop)
        if reply is None:
            return None
        first: Unreadable
        try:
            got = read(reply)
        except Unreadable as e:
            first = e
        else:
            self.ledger.read(request.purpose, wanted, 0, 0)
            return got
        cut = " It was cut off at the longest length that is allowed, so be briefer." if was_cut(reply) else ""
        again = self._reply(request.after(text_of(reply), COMPLAINT.format(wrong=first, cut=cut)), stop)
        if again is None:
            return None
        try:
            got = read(again)
        except Unreadable as second:
            partial = second.partial if second.partial is not None else first.partial
            found = len(partial) if hasattr(partial, "__len__") else 0  # type: ignore[arg-type]
            self.ledger.read(request.purpose, wanted, wanted - min(found, wanted), 0)
            return partial
        self.ledger.read(request.purpose, wanted, 0, wanted)
        return got

    def _reply(self, request: Request, stop: threading.Event) -> Reply | None:
        """The known reply, or a new one that is then known; None in a dry run. Equal requests are asked once."""
        key = request.key(self.name, self.seed)
        with self._lock:
            turn = self._busy.setdefault(key, threading.Lock())
        with turn:
            known = self.ledger.find(key)
            if known is not None:
                return known
            if self.dry:
                self.ledger.plan(key, request)
                return None
            with self._lock:
                backend = self.backend
            start = time.monotonic()
            reply = self.ledger.scrubbed(backend.answer(request, key, stop))
            self.ledger.keep(key, request, self.name, reply, time.monotonic() - start)
            return reply


__all__ = ["Asker"]
