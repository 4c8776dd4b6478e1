"""Sections 5 and 6: the memory that a put and a get take, and how soon `ls` answers when there is much to list."""

import sys

from .processes import ARSTORE, Failed, peak_memory, run, run_arstore
from .rows import Row, Samples, Target
from .workplace import NAME, Workplace

ARTIFACTS = 10_000
_LIMIT_MB = 512
_IDLE = (sys.executable, "-P", "-c", "import time, arstore.cli.main; time.sleep(0.5)")


def memory_rows(place: Workplace) -> list[Row]:
    """Return the peak memory of a put and a get to files, beyond that of a process that only imports the program."""
    idle = peak_memory(_IDLE, place.env)
    puts: list[float] = []
    gets: list[float] = []
    for _ in range(3):
        with place.fresh_store() as env:
            puts.append(peak_memory([*ARSTORE, "put", str(place.source), NAME], env) - idle)
        with place.scratch("got") as folder:
            command = [*ARSTORE, "--store", str(place.store), "get", NAME, str(folder / "files")]
            gets.append(peak_memory(command, place.env) - idle)
    note = f"anonymous and shared pages, sampled each millisecond, less the {idle / 1e6:.0f} MB of an idle process"
    return [
        Row(
            f"{what}, {place.source_bytes / 1e9:.2f} GB: peak memory",
            Samples(tuple(one / 1e6 for one in peaks)),
            "MB",
            target=Target(_LIMIT_MB, at_least=False),
            notes=(note,),
        )
        for what, peaks in (("arstore put", puts), ("arstore get to files", gets))
    ]


def listing_rows(place: Workplace) -> list[Row]:
    """Return the wall time of `arstore ls` in a fresh process over a store of many artifacts."""
    with place.fresh_store() as env:
        _, answer = place.program("fill", {"count": ARTIFACTS, "store": env["ARSTORE_STORE"]})
        filled = answer["seconds"]
        listed = run_arstore(env, "ls").json()["artifacts"]
        if len(listed) != ARTIFACTS:
            raise Failed(f"ls shows {len(listed)} artifacts, wanted {ARTIFACTS}")
        text = [one for one in ARSTORE if one != "--json"]
        plain = Samples(tuple(run([*text, "ls"], env).seconds for _ in range(place.rounds)))
        as_json = Samples(tuple(run_arstore(env, "ls").seconds for _ in range(place.rounds)))
        bare = Samples(tuple(run_arstore(env, "ls", "nothing-like-it").seconds for _ in range(place.rounds)))
        loaded = run(
            [sys.executable, "-P", "-c", _LOADED, "ls"],
            env,
        ).stdout.split("\n")[-2]
    goal = Target(0.3, at_least=False)
    return [
        Row(f"arstore ls, {ARTIFACTS:,} artifacts", plain, target=goal, notes=(f"loads {loaded}",)),
        Row(f"arstore --json ls, {ARTIFACTS:,} artifacts", as_json, target=goal),
        Row("arstore ls of a glob that matches none of them", bare),
        Row("Python's start and import of the program", Samples(_starts(place))),
        Row(f"putting {ARTIFACTS:,} small artifacts one by one, each durable", Samples((filled,))),
    ]


_LOADED = """
import sys
from arstore.cli.main import run
run(sys.argv[1:])
heavy = [name for name in ("torch", "numpy") if name in sys.modules]
print(f"{' and '.join(heavy) or 'neither torch nor numpy'}")
"""


def _starts(place: Workplace) -> tuple[float, ...]:
    command = [sys.executable, "-P", "-c", "import arstore.cli.main"]
    return tuple(run(command, place.env).seconds for _ in range(place.rounds))
