"""The machine: which cores are used, what it is, and what processes spend, from /proc."""

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Cores:
    """The proxy under test has one core for itself; the stub and the load share another."""

    proxy: int
    load: int


def choose_cores() -> Cores:
    """Two cores that are not two threads of one; the last ones, since the first often serve interrupts."""
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    proxy = allowed[0]
    others = [core for core in allowed[1:] if core not in siblings(proxy)]
    if not others:
        raise SystemExit("the benchmark needs two cores: one for the proxy, one for the load")
    return Cores(proxy, others[0])


def siblings(core: int) -> set[int]:
    """The threads that share a physical core with this one, itself included."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        parts = path.read_text().strip().split(",")
    except OSError:
        return {core}
    ranges = [part.split("-") for part in parts]
    return {number for each in ranges for number in range(int(each[0]), int(each[-1]) + 1)}


def tree(root: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo.extend(children.get(found[-1], []))
    return found


def cpu_s(root: int, *, alone: bool = False) -> float:
    """The CPU time that a process has spent so far, with its descendants or alone."""
    spent = [fields for pid in ([root] if alone else tree(root)) if (fields := _stat(pid))]
    return sum(int(fields[11]) + int(fields[12]) for fields in spent) * TICK_S


def rss_bytes(root: int) -> int:
    """The resident memory of a process and its descendants; pages that they share count more than once."""
    return sum(int(fields[21]) for pid in tree(root) if (fields := _stat(pid))) * PAGE_BYTES


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc_pid_stat(5): fields 3 to 52); empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def machine() -> dict[str, str]:
    """What the reader of a result has to know of where it was made."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next(iter(_lines("/proc/meminfo")), "MemTotal: 0 kB").split()[1]
    return {
        "processor": f"{cpu[0] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int(memory) / 1024**2:.0f} GiB",
        "system": f"Linux {platform.release()}, {_distribution()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
    }


def _distribution() -> str:
    found = [line.partition("=")[2].strip('"') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME=")]
    return found[0] if found else "unknown distribution"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return asked.stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
