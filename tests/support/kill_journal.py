"""What the dead of the kill loop said of themselves: commands, how they ended, and which leases were owned when."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.support.kill_worker import CONFLICT, FENCED, KEY_REFUSED, Ref

REBUILD = "--rebuild-catalog"


@dataclass
class Deed:
    """A command as its process told it; `code` is None if it was killed in it."""

    role: int
    words: list[str]
    brings: Any
    drops: list[Ref]
    pins: Ref | None
    began: float
    code: int | None = None
    answer: Any = None
    ended: float = 0.0
    commit: tuple[str, int, float] | None = None  # scope and epoch of the lease, and when it began
    came: Ref | None = None  # the version that it made

    @property
    def kind(self) -> str:
        if REBUILD in self.words:
            return REBUILD
        return " ".join(self.words[: 2 if self.words[0] in ("key", "lease", "tenant") else 1])


@dataclass(frozen=True)
class Ownership:
    """A lease from the first to the last moment that its owner knew of it."""

    scope: str
    epoch: int
    start: float
    stop: float


def read_journal(path: Path, role: int, killed: float) -> tuple[list[Deed], list[Ownership]]:
    """Return what a process did until it was killed, and what it owned meanwhile."""
    deeds: list[Deed] = []
    owned: list[Ownership] = []
    held: dict[str, tuple[int, float]] = {}
    for line in path.read_text().splitlines():
        said = json.loads(line)
        assert "broken" not in said, f"{deeds and deeds[-1].words}: {said['broken']}"
        at = said["at"]
        if "begin" in said:
            drops = [(tenant, name, version) for tenant, name, version in said["drops"]]
            pins = tuple(said["pins"]) if said["pins"] else None
            deeds.append(Deed(role, said["begin"], said["brings"], drops, pins, at))
        elif "owns" in said:
            held[said["owns"]] = said["epoch"], at
        elif "leaves" in said:
            owned.append(Ownership(said["leaves"], *held.pop(said["leaves"]), at))
        elif "commits" in said:
            deeds[-1].commit = said["commits"], said["epoch"], at
        else:
            deeds[-1].code, deeds[-1].answer, deeds[-1].ended = said["code"], said["answer"], at
    return deeds, owned + [Ownership(scope, *since, killed) for scope, since in held.items()]


def check_refusals(deeds: Sequence[Deed]) -> None:
    """Check that nobody was refused but for what the other one did."""
    for deed in deeds:
        others = {one.kind for one in deeds if one.role != deed.role}
        if deed.code == KEY_REFUSED and deed.kind != "tenant rm":
            assert "key rotate" in others, f"{deed.words}: {deed.answer}"
        if deed.code == FENCED:
            assert "lease break" in others, f"{deed.words}: {deed.answer}"
        if deed.code == CONFLICT and deed.kind != "tenant add":
            assert others, f"{deed.words}: {deed.answer}"


def check_owners(deeds: Sequence[Deed], owned: Sequence[Ownership], epochs: Counter[str]) -> None:
    """Check that no lease had two owners, and that who had lost one published nothing under it."""
    if any(deed.kind == REBUILD for deed in deeds):  # it begins a new table of leases, and has the store for itself
        epochs.clear()
        return
    breaks = [deed for deed in deeds if deed.kind == "lease break"]
    broken = {deed.words[2] for deed in breaks}
    for one, other in combinations(owned, 2):
        if one.scope == other.scope:
            assert one.epoch != other.epoch, f"epoch {one.epoch} was given twice"
            apart = one.stop <= other.start or other.stop <= one.start
            assert apart or one.scope in broken, f"two owners at once: {one}, {other}"
    assert all(one.epoch > epochs[one.scope] for one in owned), "an epoch came again"
    for one in owned:
        epochs[one.scope] = max(epochs[one.scope], one.epoch)
    lost = [(one.scope, epoch, one.start) for one in owned for epoch in range(one.epoch)]
    lost += [(*(one.answer["broken"][what] for what in ("id", "epoch")), one.ended) for one in breaks if one.code == 0]
    for deed in deeds:
        if deed.came and deed.commit:
            *lease, began = deed.commit
            late = [moment for *other, moment in lost if other == lease and moment < began]
            assert not late, f"{deed.words} was published by one who had lost the lease"
