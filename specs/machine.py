"""What machine this is: a measurement means little without it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def chip() -> str:
    """The processor's name, such as "Apple M4 Max" or "AMD EPYC", and its number of cores."""
    name = platform.machine()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True).stdout.strip() or name
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"


def process_peak() -> int:
    """Bytes of memory that this process has held at most, on Linux since `reset_process_peak`.

    Linux's getrusage would not do: a new process inherits its parent's figure. It is there where
    the system (gVisor) tells no other.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * (found or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0]


def reset_process_peak() -> None:
    """Begin the figure of `process_peak` anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Have malloc return to the system what it keeps for later, where it can be told (glibc).

    It keeps the room of small arrays that are gone, and takes more for large ones beside it.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def best_rate(work: Callable[[], object], wait: Callable[[], None], amount: float) -> float:
    """`amount` per second of `work`, the best of five timed calls after one that is not; of fewer
    where they take seconds, as half precision does that a CPU has no units for."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 6 and sum(times) < 2):
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return amount / min(times[1:])
