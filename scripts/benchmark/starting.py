"""Section 12: how long a command takes that has next to nothing to do, in starts of Python itself."""

import sys

from .processes import ARSTORE, Failed, run, take_turns
from .rows import Row, Samples, Target
from .workplace import Workplace

# 0.15 s on the machine of the first measurement, where Python started in 0.014 s.
_STARTS_MAX = 10.7
_ROUNDS = 20


def start_rows(place: Workplace) -> list[Row]:
    """Return how many of Python's starts `--help` and `ls` of an empty store take, each in a fresh process."""
    python = [sys.executable, "-P", "-c", "pass"]
    plain = [word for word in ARSTORE if word != "--json"]
    commands = {"python": python, "arstore --help": [*plain, "--help"], "arstore ls": [*plain, "ls"]}
    with place.fresh_store() as env:
        found = take_turns(
            {name: lambda words=words: run(words, env).seconds for name, words in commands.items()}, _ROUNDS
        )
    start = found.pop("python")
    if isinstance(start, str):
        raise Failed(start)
    return [_row(name, seconds, start) for name, seconds in found.items()]


def _row(name: str, seconds: Samples | str, start: Samples) -> Row:
    """Return a row of ratios, each of one turn: what disturbs a whole turn cancels out."""
    if isinstance(seconds, str):
        raise Failed(seconds)
    ratios = tuple(one / other for one, other in zip(seconds.values, start.values, strict=True))
    note = f"seconds: {seconds.text('s')}, and Python's own start {start.text('s')}"
    return Row(name, Samples(ratios), "starts of Python", target=Target(_STARTS_MAX, at_least=False), notes=(note,))
