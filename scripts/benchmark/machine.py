"""Machine: what ran the benchmark, and what else it was busy with. Read from the kernel, asked of the tools."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("arstore", "torch", "numpy", "safetensors", "cryptography", "blake3", "lmdb", "zstandard")
FLAGS = ("aes", "vaes", "vpclmulqdq", "avx2", "avx512f", "sha_ni")


def describe_machine(folder: Path) -> dict[str, object]:
    """Return the machine and the file system under `folder`."""
    memory = _fields(Path("/proc/meminfo"))
    device, form, options = file_system(folder)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cores": _cores(),
        "cpu": f"{_model()}, {' '.join(flag for flag in FLAGS if flag in _flags())}",
        "memory_bytes": _kib(memory, "MemTotal"),
        "memory_available_bytes": _kib(memory, "MemAvailable"),
        "huge_pages": _line(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "file_system": f"{form} on {device} ({options})",
        "kernel": platform.release(),
        "load": " ".join(f"{one:.2f}" for one in os.getloadavg()),
    }


def name_machine() -> str:
    """Return what decides how fast this machine decrypts and hashes: CPU, cores, AVX-512 and VAES or not."""
    flags = _flags()
    said = [f"{'' if flag in flags else 'no '}{name}" for flag, name in (("avx512f", "AVX-512"), ("vaes", "VAES"))]
    return f"{_model()}, {_cores()} cores, {', '.join(said)}"


def describe_versions(peers: dict[str, str]) -> dict[str, str]:
    """Return the versions of what takes part: the code, its libraries, the peers' and the tools."""
    import arstore

    found = {"python": platform.python_version(), "commit": _commit(Path(arstore.__file__).resolve().parent)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    for tool in ("restic", "borg", "cp"):
        found[tool] = _tool_version(tool)
    return found | {f"peers: {name}": one for name, one in peers.items()}


def file_system(folder: Path) -> tuple[str, str, str]:
    """Return device, type and options of the file system that holds `folder`."""
    wanted = os.stat(folder).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        point = mount.split()[4].replace("\\040", " ")
        form, device, *_ = rest.split()
        try:
            if os.stat(point).st_dev == wanted:
                return device, form, mount.split()[5]
        except OSError:
            continue
    return "?", "?", "?"


class OthersCpu:
    """How much of the machine went to others since this was made, by the kernel's own accounts."""

    def __init__(self) -> None:
        self._busy, self._total = _jiffies()
        self._ours = _our_seconds()

    def share(self) -> float:
        busy, total = _jiffies()
        ours = (_our_seconds() - self._ours) * os.sysconf("SC_CLK_TCK")
        return max(busy - self._busy - ours, 0.0) / max(total - self._total, 1)


def _model() -> str:
    cpu = _fields(Path("/proc/cpuinfo"))
    family = f"family {cpu.get('cpu family', '?')} model {cpu.get('model', '?')}"
    return f"{cpu.get('model name', platform.processor())} ({family})"


def _flags() -> set[str]:
    return set(_fields(Path("/proc/cpuinfo")).get("flags", "").split())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _jiffies() -> tuple[int, int]:
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, idle, waiting, irq, softirq, steal = map(int, first.split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + waiting


def _our_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _fields(path: Path) -> dict[str, str]:
    """Return `name: value` lines; the first of each name counts."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _kib(fields: dict[str, str], name: str) -> int:
    return int(fields.get(name, "0 kB").split()[0]) * 1024


def _line(path: Path) -> str:
    return path.read_text().strip() if path.exists() else "?"


def _tool_version(tool: str) -> str:
    if not shutil.which(tool):
        return "not installed"
    command = [tool, "version"] if tool == "restic" else [tool, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "?")


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "?"
    return done.stdout.strip() or "?"
