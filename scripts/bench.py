#!/usr/bin/env python3
"""Measure arstore beside the simpler and the established alternatives, all in one run on one machine.

Each target is a ratio of two medians of this run; measurements take turns, so that what disturbs the machine disturbs
all. Every row says the machine that it was seen on. Rows that AES-256-GCM or BLAKE3 bound say what one thread and two
of this machine do of it at most, measured in the same section. A run needs about eight times --size of disk, and of
memory for the page cache. A missed target is printed as MISSED and does not change the exit code; a failure of arstore
itself does.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.rows import Row, Section
    from benchmark.workplace import Workplace

ROOT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
_ROOM = 8  # times the size of the checkpoint: source, store, three other formats, what is written and deleted


def main() -> int:
    options = parse()
    _find_arstore()
    from benchmark.machine import describe_machine, describe_versions
    from benchmark.rows import as_json, missed, table
    from benchmark.workplace import Workplace

    peers_python, no_peers, versions = _peers(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".arstore-bench-", dir=options.dir) as folder:
        machine = describe_machine(Path(folder))
        _check_room(options, machine, Path(folder))
        place = Workplace(
            Path(folder).resolve(),
            options.size,
            options.rounds,
            peers_python,
            no_peers,
            options.trace,
            options.memory,
        )
        say(f"making a checkpoint of about {options.size / GIB:.2f} GiB in {folder}")
        machine["checkpoint"] = (
            f"{place.source_bytes:,} bytes: bf16 Llama, {place.shape.layers} layers of {place.shape.hidden}, "
            f"{len(place.shards)} shards, N(0, 0.02) from a seed"
        )
        facts = machine | {"versions": describe_versions(versions), "rounds": options.rounds}
        print(_head(facts), flush=True)
        sections = []
        for number in options.only:
            sections.append(measure(number, place))
            print(table(sections[-1]), flush=True)
    lines = missed(sections)
    print("\nNot met:" if lines else "\nEvery target was met.", *lines, sep="\n  - ")
    print(f"{time.monotonic() - began:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(facts | {"sections": [as_json(one) for one in sections]}, indent=2) + "\n")
    return 1 if any(section.broken for section in sections) else 0


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=_size, default=2 * GIB, help="bytes of the checkpoint, or 2GiB, 512MiB")
    parser.add_argument("--only", type=_numbers, default=sorted(SECTIONS), help="sections to run, as 1,3")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each thing; the median counts")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to work: decides the disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results for machines, too")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="the memory file system to stage to")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="requests to plan, JSON lines with hash_ids")
    parser.add_argument("--peers", action="store_true", help="install benchmark/peers.txt in .venv/peers")
    parser.add_argument("--peers-python", type=Path, metavar="PATH", help="an interpreter that has them already")
    sections = "\n".join(f"  {number}  {title}" for number, (_, title) in sorted(SECTIONS.items()))
    parser.epilog = f"sections:\n{sections}"
    return parser.parse_args()


SECTIONS = {
    1: ("loading.reuse_rows", "Encrypted tensors to host memory, warm page cache, into a buffer that is reused"),
    2: ("loading.fresh_rows", "Every tensor into private memory, in a fresh process, warm page cache"),
    3: ("storing.put_rows", "Fresh data from the page cache made durable, encrypted; then the same again"),
    4: ("storing.killed_rows", "A put killed half-way by SIGKILL, then run again"),
    5: ("footprint.memory_rows", "Peak memory beyond an idle process"),
    6: ("footprint.listing_rows", "Listing 10,000 artifacts in a fresh process"),
    7: ("restoring.file_rows", "Files back, and every byte checked (informational)"),
    8: ("forgetting.erase_rows", "Erasing, beside unlinking and overwriting"),
    9: ("prefixes.prefix_rows", "Prefix KV: found by its tokens, put and loaded"),
    10: ("staging.stage_rows", "Staging in the host tier, warm and cold; attaching"),
    11: ("plans.plan_rows", "A batch carried out by plans, beside fetching on demand"),
    12: ("starting.start_rows", "Start-up: a command that has next to nothing to do"),
}


def measure(number: int, place: "Workplace") -> "Section":
    """Run one section; what breaks in it is said in its place and stops no other."""
    from benchmark.limits import measure_limits
    from benchmark.machine import OthersCpu, name_machine
    from benchmark.processes import Failed
    from benchmark.rows import Section

    rows_of, title = SECTIONS[number]
    module, function = rows_of.split(".")
    measured: Callable[[Workplace], list[Row]] = getattr(import_module(f"benchmark.{module}"), function)
    section = Section(number, title, name_machine())
    say(f"{number}. {section.title}")
    others = OthersCpu()
    try:
        section.rows += measured(place)
        if any(row.bound_by for row in section.rows):
            section.limits = measure_limits(place)
    except Failed as error:
        section.failed = str(error)
    except Exception as error:
        # A bug in here: said as such, and the other sections still run.
        traceback.print_exc()
        section.failed = f"{type(error).__name__}: {error}"
    section.others_cpu = others.share()
    return section


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _find_arstore() -> None:
    """Go on in the repository's own environment, made if need be, where arstore is not installed here."""
    if find_spec("arstore"):
        return
    say("arstore is not installed in this Python; using .venv")
    subprocess.run([str(ROOT / "scripts" / "environment")], check=True)
    python = ROOT / ".venv" / "bin" / "python"
    os.execv(python, [str(python), *sys.argv])


def _peers(options: argparse.Namespace) -> tuple[Path | None, str, dict[str, str]]:
    """Return the peers' interpreter, or None and why there is none, and their versions."""
    from benchmark.peers import NoPeers, make_peers, peer_versions

    python: Path | None = options.peers_python
    try:
        if python is None and options.peers:
            python = make_peers(ROOT / ".venv" / "peers", say)
        if python is None:
            return None, "not installed: run with --peers", {}
        return python.absolute(), "", peer_versions(python)
    except NoPeers as error:
        return None, str(error), {}


def _check_room(options: argparse.Namespace, machine: dict[str, object], folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _ROOM * options.size:
        sys.exit(f"bench: error: {folder}: {free:,} bytes free, wanted {_ROOM * options.size:,}: set --dir or --size")
    if str(machine["file_system"]).startswith("tmpfs"):
        sys.exit(f"bench: error: {folder}: a tmpfs is no disk: set --dir")
    if options.size < GIB:
        say("warning: the targets are meant for 1GiB and more; below that, starting Python is most of the time")
    if int(str(machine["memory_available_bytes"])) < 4 * options.size:
        say("warning: less memory than four times the size is free: the page cache will not stay warm")


def _head(facts: dict[str, object]) -> str:
    versions = facts["versions"]
    assert isinstance(versions, dict)
    lines = [
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}"
        for name, value in facts.items()
        if name != "versions"
    ]
    return "\n".join([*lines, "versions: " + ", ".join(f"{name} {one}" for name, one in versions.items())])


def _size(text: str) -> int:
    units = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB, "KB": 1000, "MB": 10**6, "GB": 10**9}
    number = text.rstrip("BGKMi")
    try:
        size = int(float(number) * units[text[len(number) :]])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text}: wanted a size, as 2GiB or 512MiB") from None
    if size < 256 << 20:
        raise argparse.ArgumentTypeError(f"{text}: wanted at least 256MiB")
    return size


def _numbers(text: str) -> list[int]:
    numbers = {int(one) for one in text.split(",") if one.isdecimal()}
    if not numbers or not numbers <= set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{text}: wanted numbers of 1 to {len(SECTIONS)}, as 1,3")
    return sorted(numbers)


if __name__ == "__main__":
    sys.exit(main())
