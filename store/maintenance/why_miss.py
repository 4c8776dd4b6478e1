"""Why miss: names the fields in which a looked-up identity differs from the nearest stored one."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...formats.identity import Identity, differing
from ..artifacts.identity import take_identity
from ..artifacts.names import Names
from ..errors import Corrupt, NotFound
from ..kv.identity import complete, make_kv_identity


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which the wanted identity and the nearest stored one differ. None is unspecified."""

    field: str
    wanted: str | None
    stored: str | None


@dataclass(frozen=True, slots=True)
class Miss:
    """The stored version with the nearest identity, and the fields that differ, the most important first."""

    nearest: str
    differences: tuple[Difference, ...]


def explain_miss(names: Names, kind: str, fields: Mapping[str, object]) -> Miss:
    """Return what tells an identity from the nearest of this kind; raise NotFound if none of the kind is stored.

    Reads the record of every version of the kind.
    """
    wanted = complete(make_kv_identity(fields)) if kind == "kv" else take_identity(fields)
    best: tuple[int, str, Identity] | None = None
    for version in names.listed(kind=kind):
        try:
            stored = names.manifest(version).identity
        except (Corrupt, NotFound):
            continue  # it is bad, or was removed meanwhile
        distance = len(differing(wanted, stored))
        if best is None or distance < best[0]:
            best = distance, version.text, stored
    if best is None:
        raise NotFound(f"kind {kind}", "nothing of it is stored")
    ours: Mapping[str, str] = dict(wanted)
    theirs: Mapping[str, str] = dict(best[2])
    return Miss(best[1], tuple(Difference(n, ours.get(n), theirs.get(n)) for n in differing(wanted, best[2])))
