"""Sections 3 and 4: fresh data made durable, the same again, and a put that was killed half-way."""

import os
from pathlib import Path

from .archivers import ARCHIVERS
from .processes import ARSTORE, Failed, kill_when, run, run_arstore, take_turns, tree_bytes, warm
from .programs.memory import back
from .rows import AES, BLAKE3, Row, Samples, Target, compared
from .segments import whole_record_bytes
from .workplace import NAME, Workplace

_COPY = 'cp -r -- "$1" "$2" && sync -- "$2"/* "$2"'
_KILL_ROUNDS = 3
_AGAIN_SHARE = 0.60  # of what hashing alone reaches


def put_rows(place: Workplace) -> list[Row]:
    """Compare a put of fresh data with a durable copy and with two archivers, all from the page cache to one disk.

    Compare the same put once more with hashing the files, which bounds it.
    """
    again: list[float] = []
    itself: list[float] = []
    again_itself: list[float] = []

    def put() -> float:
        with place.fresh_store() as env:
            _settle(place)
            first = run_arstore(env, "put", str(place.source), NAME)
            itself.append(first.json()["seconds"])
            second = run_arstore(env, "put", str(place.source), NAME)
            again.append(second.seconds)
            again_itself.append(second.json()["seconds"])
            return first.seconds

    def copy() -> float:
        with place.scratch("copy") as folder:
            _settle(place)
            return run(["sh", "-c", _COPY, "sh", str(place.source), str(folder / "copy")], place.env).seconds

    def archive(number: int) -> float:
        with place.scratch("archive") as folder:
            archiver = ARCHIVERS[number](folder, place.source, place.env)
            archiver.make()
            _settle(place)
            return archiver.run().seconds

    def hashed() -> float:
        _settle(place)
        _, answer = place.program("hashing", {"paths": list(map(str, sorted(place.source.iterdir())))})
        return float(answer["seconds"])

    contenders = {"put": put, "hash": hashed, "cp": copy, "restic": lambda: archive(0), "borg": lambda: archive(1)}
    times = take_turns(contenders, place.rounds, warm_up=False, most={"restic": 2, "borg": 2})
    return _first_rows(place, times, itself) + _second_rows(place, times, again, again_itself)


def _first_rows(place: Workplace, times: dict[str, Samples | str], itself: list[float]) -> list[Row]:
    name, length, bounds = "arstore put, encrypted, durable", place.source_bytes, (BLAKE3, AES)
    notes = [f"{Samples(tuple(itself)).text('s')} of it after Python's start and imports"] if itself else []
    return [
        compared(
            name,
            times["put"],
            "cp + fsync",
            times["cp"],
            length=length,
            target=0.9,
            otherwise="where one plain copy is all you want",
            notes=notes,
            bound_by=bounds,
        ),
        *(
            compared(
                name,
                times["put"],
                other,
                times[tool],
                length=length,
                target=4,
                bound_by=bounds,
                otherwise="where every snapshot counts more than the time",
            )
            for tool, other in (("restic", "restic backup"), ("borg", "borg create, repokey-blake2, lz4"))
        ),
    ]


def _second_rows(
    place: Workplace, times: dict[str, Samples | str], again: list[float], itself: list[float]
) -> list[Row]:
    def samples(seconds: list[float]) -> Samples | str:
        return Samples(tuple(seconds)) if seconds else str(times["put"])

    name, length = "arstore put of the same again", place.source_bytes
    return [
        compared(
            f"{name}, after Python's start and imports",
            samples(itself),
            "BLAKE3 of the same files in the page cache, two threads",
            times["hash"],
            length=length,
            target=_AGAIN_SHARE,
            otherwise=None,
            bound_by=(BLAKE3,),
        ),
        compared(
            f"{name}, whole process",
            samples(again),
            "the first put",
            times["put"],
            length=length,
            otherwise=None,
            notes=["for information"],
            bound_by=(BLAKE3,),
        ),
    ]


def killed_rows(place: Workplace) -> list[Row]:
    """Return what share of the durable bytes of a put that was killed half-way the next one did not store again."""
    shares: list[float] = []
    notes: list[str] = []
    with place.fresh_store() as env:
        whole = run_arstore(env, "put", str(place.source), NAME).json()["bytes_stored"]
    for _ in range(_KILL_ROUNDS):
        share, note = _killed_put(place, whole)
        shares.append(share)
        notes.append(note)
    goal = Target(95)
    rows = [
        Row("arstore: durable bytes reused after SIGKILL", Samples(tuple(shares)), "%", target=goal, notes=tuple(notes))
    ]
    return rows + [_killed_archive(place, number) for number in range(len(ARCHIVERS))]


def _killed_put(place: Workplace, whole: int) -> tuple[float, str]:
    """Kill a put at half of its bytes and run it again; return the share reused, in percent, and the numbers."""
    command = [*ARSTORE, "put", str(place.source), NAME]
    with place.fresh_store() as env:
        segments = Path(env["ARSTORE_STORE"]) / "segments"
        if not kill_when(command, env, lambda: tree_bytes(segments) >= place.source_bytes // 2):
            raise Failed("the put ended before it could be killed")
        durable = whole_record_bytes(segments)
        again = run(command, env)
        stored = again.json()["bytes_stored"]
    reused = whole - stored
    return 100 * reused / max(durable, 1), (
        f"{durable:,} bytes in whole records when killed, {reused:,} of them not stored again, "
        f"second run {again.seconds:.2f} s"
    )


def _killed_archive(place: Workplace, number: int) -> Row:
    with place.scratch("archive") as folder:
        archiver = ARCHIVERS[number](folder, place.source, place.env)
        name = f"{archiver.name}: the same"
        try:
            archiver.make()
            if not kill_when(archiver.backup, archiver.env, lambda: archiver.size() >= place.source_bytes // 2):
                raise Failed("the backup ended before it could be killed")
            durable = archiver.size()
            locked = archiver.break_lock()
            again = archiver.run()
        except Failed as error:
            return Row(name, None, "%", notes=(f"not measured: {error}",))
        # What a tool says it added counts its own tables too: a hair more than the files hold.
        share = 100 * max(archiver.reused(again.stdout), 0) / max(durable, 1)
    left = "a lock was left, removed by hand; " if locked else ""
    note = f"{durable:,} bytes in its repository when killed; {left}second run {again.seconds:.2f} s"
    return Row(name, Samples((share,)), "%", notes=(note,))


def _settle(place: Workplace) -> None:
    """Let the disk finish what went before, the page cache hold the source, and free memory be at hand."""
    os.sync()
    warm(sorted(place.source.iterdir()))
    back(place.room_bytes)
