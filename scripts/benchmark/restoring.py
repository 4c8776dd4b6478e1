"""Section 7: a get to files beside a copy, and a check of every byte beside a plain hash. Informational."""

import sys

from .processes import Failed, run, run_arstore, take_turns, warm
from .programs.memory import back
from .rows import AES, BLAKE3, Row, compared
from .workplace import NAME, Workplace

_HASH = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
"""


def file_rows(place: Workplace) -> list[Row]:
    """Compare getting files with copying them, and verifying with hashing, page cache warm, nothing fsynced."""
    store = ["--store", str(place.store)]

    def get() -> float:
        with place.scratch("got") as folder:
            warm(place.segments)
            back(place.room_bytes)
            ran = run_arstore(place.env, *store, "get", NAME, str(folder / "files"))
            return ran.seconds

    def copy() -> float:
        with place.scratch("copy") as folder:
            warm(place.shards)
            back(place.room_bytes)
            return run(["cp", "-r", "--", str(place.source), str(folder / "files")], place.env).seconds

    def hashed() -> float:
        return run([sys.executable, "-c", _HASH, *map(str, place.shards)], place.env).seconds

    def verify(*flags: str) -> float:
        warm(place.segments)
        return run_arstore(place.env, *store, "verify", NAME, *flags).seconds

    _check_equal(place)
    times = take_turns(
        {"get": get, "cp": copy, "verify": verify, "deep": lambda: verify("--deep"), "sha256": hashed}, place.rounds
    )
    length = place.source_bytes
    plain, hashes = "SHA-256 of the source, one thread", times["sha256"]
    return [
        compared(
            "arstore get to files, verified",
            times["get"],
            "cp -r",
            times["cp"],
            length=length,
            otherwise="where a plain copy is at hand",
            bound_by=(AES,),
        ),
        compared("arstore verify", times["verify"], plain, hashes, length=length, bound_by=(AES,)),
        compared("arstore verify --deep", times["deep"], plain, hashes, length=length, bound_by=(AES, BLAKE3)),
    ]


def _check_equal(place: Workplace) -> None:
    """Raise Failed unless what comes back is byte for byte what was put: a fast wrong answer counts for nothing."""
    with place.scratch("got") as folder:
        run_arstore(place.env, "--store", str(place.store), "get", NAME, str(folder / "files"))
        try:
            run(["diff", "-r", "--", str(place.source), str(folder / "files")], place.env)
        except Failed as error:
            raise Failed(f"get gave other files than were put: {error}") from None
