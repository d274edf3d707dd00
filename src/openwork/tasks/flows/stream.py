"""Flow logs as they grow: whole lines from a file, a followed file or a pipe, and the place to go on from.

A followed file is read to its end and then waited for. When another file takes its name, or it is cut, as log rotation
does, what is left of the old one is read first. Knows files and lines. Does not know columns.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openwork.errors import RunError, UsageError

CHUNK = 4 << 20  # bytes
WAIT = 0.2  # seconds between looks at a followed file


@dataclass(frozen=True)
class Place:
    """Up to where a file was read: its inode, and the offset after the last whole line."""

    inode: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Piece:
    """Some whole lines of one file, and the place after them; `begins` where the file is another than before."""

    data: bytes
    place: Place
    begins: bool


def from_pipe(pipe: BinaryIO) -> Iterator[Piece]:
    """Lines of a pipe as they come; a last line without its end counts."""
    rest, offset, begins = b"", 0, True
    while part := pipe.read1(CHUNK):  # type: ignore[attr-defined]
        rest += part
        end = rest.rfind(b"\n") + 1
        if end:
            offset += end
            yield Piece(rest[:end], Place(0, offset), begins)
            rest, begins = rest[end:], False
    if rest:
        yield Piece(rest, Place(0, offset + len(rest)), begins)


def from_file(path: Path, start: Place, follow: bool, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
    """Lines of a file from a place on.

    start    where an earlier reading stopped. Where the file of that name is another by now, what is left of the old
             one is looked for among the files beside it, as rotation leaves it there under another name
    follow   wait for more at its end, and for the file that takes its name
    stopped  asked between pieces; once true, reading ends
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a flow log.")
    begins = True
    if start.inode and start.inode != os.stat(path).st_ino:
        old = with_inode(path, start.inode)
        if old is None:
            print(
                f"openwork: what was left of the rotated {path.name} is gone; going on with the new one",
                file=sys.stderr,
            )
        else:
            for piece in _whole(old, start, begins):
                yield piece
                begins = False
        start, begins = Place(), True
    while not stopped():
        file = path.open("rb")
        inode = os.fstat(file.fileno()).st_ino
        with file:
            if os.fstat(file.fileno()).st_size < start.offset:
                raise RunError(f"{path} is shorter than when it was last read; delete the state file to begin anew.")
            file.seek(start.offset)
            offset, rest = start.offset, b""
            while not stopped():
                part = file.read(CHUNK)
                if part:
                    rest += part
                    end = rest.rfind(b"\n") + 1
                    if end:
                        offset += end
                        yield Piece(rest[:end], Place(inode, offset), begins)
                        rest, begins = rest[end:], False
                    continue
                changed = _changed(path, inode, offset + len(rest))
                if follow and not changed:
                    time.sleep(WAIT)
                    continue
                if changed and file.read(1):  # written to between the last look and the change of names
                    file.seek(offset + len(rest))
                    continue
                if rest:
                    yield Piece(rest, Place(inode, offset + len(rest)), begins)
                if not changed:
                    return
                break
        start, begins = Place(), True


def _whole(path: Path, start: Place, begins: bool) -> Iterator[Piece]:
    yield from (
        Piece(p.data, p.place, p.begins and begins) for p in from_file(path, Place(start.inode, start.offset), False)
    )


def _changed(path: Path, inode: int, size: int) -> bool:
    """Whether another file has the name now, or this one was cut."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False  # between two names: wait
    return now.st_ino != inode or now.st_size < size


def with_inode(path: Path, inode: int) -> Path | None:
    """The file with that inode beside another, whatever its name is now."""
    return next((p for p in path.parent.iterdir() if p.is_file() and p.stat().st_ino == inode), None)


__all__ = ["Piece", "Place", "from_file", "from_pipe", "with_inode"]
