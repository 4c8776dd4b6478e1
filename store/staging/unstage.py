"""Unstage: wipes staged copies in arenas, as users ask or because their objects are erased."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..artifacts.names import Names
from ..errors import Fenced, StoreError
from ..tiers.arena import Arena
from ..tiers.tier import Resident


@dataclass(frozen=True, slots=True)
class StagedCopy:
    """One staged copy of an object, and the arena that it lies in."""

    arena: Arena
    resident: Resident


def unstage(arenas: Sequence[Arena], names: Names, wanted: Sequence[str]) -> tuple[list[StagedCopy], list[StagedCopy]]:
    """Wipe all staged copies of these names, or of all; return those that were wiped and those in use, which stay.

    Raises NotFound for a name that is neither staged nor stored.
    """
    copies = [StagedCopy(arena, resident) for arena in arenas for resident in arena.residents()]
    keys = set[str]() if wanted else {copy.resident.key for copy in copies}
    for name in wanted:
        staged_keys = {copy.resident.key for copy in copies if name in _names_of(copy.resident)}
        keys |= staged_keys or {names.resolve(name).summary.id}  # the name may be a label or an id
    gone, in_use = list[StagedCopy](), list[StagedCopy]()
    for copy in copies:
        if copy.resident.key in keys:
            (gone if copy.arena.remove(copy.resident.key) else in_use).append(copy)
    for arena in arenas:
        arena.sweep()
    return gone, in_use


def _names_of(resident: Resident) -> tuple[str, str]:
    """Return the names that a staged copy goes by: NAME@N and NAME."""
    return resident.name, resident.name.partition("@")[0]


def wipe_before_erase(arenas: Sequence[Arena], keys: Collection[str] | None) -> None:
    """Wipe staged copies of these objects (None: of all), which are to be erased; raise Fenced if one is in use."""
    for arena in arenas:
        arena.sweep()
        for key, name in _names_by_key(arena, keys).items():
            with arena.filling(key, wait=False):
                if not arena.remove(key):
                    raise Fenced(name, "is staged, and a process uses it", hint="end that process, then run it again")


def drop_after_erase(arenas: Sequence[Arena], keys: Collection[str] | None) -> list[str]:
    """Drop copies of these objects that were staged while they were erased; return those that a process uses.

    Their memory goes with that process. Raises nothing, because the objects are erased already. A tier that fails is
    returned too.
    """
    used = []
    for arena in arenas:
        try:
            used += [name for key, name in _names_by_key(arena, keys).items() if not arena.drop(key)]
        except (StoreError, OSError):
            used.append(f"tier {arena.tier}")
    return used


def _names_by_key(arena: Arena, keys: Collection[str] | None) -> dict[str, str]:
    """Return the names of the objects that are staged or being staged, of these keys (None: of all)."""
    names = {key: key[:16] for key in arena.coming()}
    names |= {resident.key: resident.name for resident in arena.residents()}
    return {key: name for key, name in names.items() if keys is None or key in keys}
