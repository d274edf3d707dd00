"""Threads on a machine that others use too. Imports only `os`, so that it can be the first import of a program.

OpenMP's default is to spin while waiting. On a busy machine four spinning threads are nine times slower than one;
passive waiting never loses badly. The policy is read when torch is loaded, hence before it: importing this file is
enough. A policy set by the user stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def available_cores() -> int:
    """Cores this process may use: its affinity, cut to the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores


def set_threads(n: int | None = None) -> int:
    """Gives torch n threads and returns n; None means OMP_NUM_THREADS where it is set, else every available core."""
    import torch  # here, so that importing this file comes before torch

    if n is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        n = int(asked) if asked.isdecimal() and int(asked) > 0 else available_cores()
    torch.set_num_threads(n)
    return n


@contextmanager
def one_thread() -> Iterator[None]:
    """With one thread of torch's: sums come out to the same bit however many cores the machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
