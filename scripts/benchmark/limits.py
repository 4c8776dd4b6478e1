"""Limits: what this machine does at most of the work that bounds rows, measured with the section that holds them."""

from .rows import Limit, Samples
from .workplace import Workplace

_BYTES, _ROUNDS = 512 << 20, 3


def measure_limits(place: Workplace) -> dict[str, Limit]:
    """Return the limits of AES-256-GCM and of BLAKE3 by their names, on one thread and on two."""
    _, answer = place.program("limits", {"bytes": _BYTES, "rounds": _ROUNDS})
    return {
        name: Limit(name, {int(threads): Samples(tuple(rates)) for threads, rates in by_threads.items()})
        for name, by_threads in answer.items()
    }
