"""Telling a waiting person how far a long job is: lines of text and bars with the time left, on stderr.

Bars appear only where a person watches (stderr is a terminal); lines are always written; a quiet progress does neither,
so that library code can report without asking who listens. Knows rich. Does not know what the job is.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Handle:
    """One job under way. `update` may be called as often as one likes; without a bar it costs nothing."""

    def __init__(self, bars: Bars | None, bar: TaskID | None) -> None:
        self._bars = bars
        self._bar = bar

    def update(self, done: float, **info: object) -> None:
        """`done` units of the total are finished; `info` is shown beside the bar, e.g. loss=0.31."""
        if self._bars is not None and self._bar is not None:
            shown = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items())
            self._bars.update(self._bar, completed=done, info=shown)

    def finish(self) -> None:
        """Takes the bar away; the job is over."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None


class Progress:
    """A context manager whose `log` and `task` report to stderr.

    enabled   None: bars where stderr is a terminal, lines anywhere. True: bars and lines. False: nothing at all.

        with Progress() as progress:
            progress.log("training the sparse model")
            steps = progress.task("train sparse", total=600)
            steps.update(1, loss=4.1)
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=enabled is False)
        self._bars: Bars | None = None
        if enabled or (enabled is None and self._console.is_terminal):
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[info]}", markup=False),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def log(self, text: str) -> None:
        """One line for the person who waits."""
        self._console.print(text, markup=False, soft_wrap=True)

    def task(self, name: str, total: float | None) -> Handle:
        """A new bar for a job of `total` units (None: unknown); a handle that does nothing where no bars are shown."""
        bar = None if self._bars is None else self._bars.add_task(name, total=total, info="")
        return Handle(self._bars, bar)
