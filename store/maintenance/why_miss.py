"""Miss: why a look-up by identity found nothing, told by the stored identity that comes nearest."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...formats.identity import Identity, differing
from ..artifacts.identity import take_identity
from ..artifacts.names import Names
from ..errors import Corrupt, NotFound
from ..kv.identity import complete, make_kv_identity


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that tells the wanted identity from the nearest stored one; None is unspecified."""

    field: str
    wanted: str | None
    stored: str | None


@dataclass(frozen=True, slots=True)
class Miss:
    """The stored version whose identity comes nearest, and what differs, the most telling field first."""

    nearest: str
    differences: tuple[Difference, ...]


def explain_miss(names: Names, kind: str, fields: Mapping[str, object]) -> Miss:
    """Return what tells an identity from the nearest of this kind; raise NotFound if none of the kind is stored.

    Reads the record of every version of the kind.
    """
    wanted = complete(make_kv_identity(fields)) if kind == "kv" else take_identity(fields)
    best: tuple[int, str, Identity] | None = None
    for found in names.listed(kind=kind):
        try:
            stored = names.manifest(found).identity
        except (Corrupt, NotFound):
            continue  # bad, or removed meanwhile: nothing to compare with
        distance = len(differing(wanted, stored))
        if best is None or distance < best[0]:
            best = distance, found.text, stored
    if best is None:
        raise NotFound(f"kind {kind}", "nothing of it is stored")
    one: Mapping[str, str] = dict(wanted)
    other: Mapping[str, str] = dict(best[2])
    return Miss(best[1], tuple(Difference(n, one.get(n), other.get(n)) for n in differing(wanted, best[2])))
