"""Section 8: erasing, which destroys keys, beside unlinking and overwriting, which touch every file or every byte."""

from .rows import Row, Samples, Target, compared
from .workplace import Workplace

_SMALL, _LARGE = (4_000, 4 << 10), (8, 32 << 20)  # objects, bytes of each
_LIMIT_S = 0.05


def erase_rows(place: Workplace) -> list[Row]:
    """Compare an erase of many small objects with the same done to as many files, and with an erase of few large ones.

    All of it in one process, durable, in turns.
    """
    with place.fresh_store() as env, place.scratch("files") as folder:
        task = {
            "store": env["ARSTORE_STORE"],
            "folder": str(folder),
            "small": _SMALL,
            "large": _LARGE,
            "rounds": place.rounds,
        }
        _, answer = place.program("forget", task)
    times = {name: Samples(tuple(seconds)) for name, seconds in answer.items()}
    name, small = f"erase of an artifact of {_shown(_SMALL)}", times["small"]
    return [
        Row(name, small, target=Target(_LIMIT_S, at_least=False)),
        compared(
            name, small, "unlink of as many files", times["unlink"], otherwise="where the bytes may stay on the disk"
        ),
        compared(name, small, "overwriting and unlinking as many files", times["overwrite"], target=10),
        compared(f"erase of an artifact of {_shown(_LARGE)}", times["large"], f"of {_shown(_SMALL)}", small, target=1),
    ]


def _shown(shape: tuple[int, int]) -> str:
    count, length = shape
    return f"{count:,} tensors of {length >> 10:,} KiB, {count * length / 1e6:.0f} MB"
