"""Sections 1 and 2: encrypted tensors into host memory, again and again in one process, and once in a fresh one."""

from functools import partial
from pathlib import Path
from typing import Any

from .processes import Failed, ratio_median, take_turns, warm
from .rows import AES, Row, Samples, compared
from .workplace import NAME, Workplace

_REUSE_ROUNDS = 9
_REUSE_SHARE = 0.60  # of what AES-256-GCM alone reaches

# (how, whether it runs among the peers, its name in the table, target for the ratio, when it is the better choice)
_WAYS = (
    ("tensorizer", True, "tensorizer, encrypted", 2.5, "if its format serves"),
    ("cryptotensors", True, "cryptotensors, encrypted and signed", 1.3, "if its format serves"),
    ("safetensors + clone", False, "safetensors load_file + clone", 1.0, "where weights may lie open and unchecked"),
    ("torch.load", False, "torch.load(weights_only)", 1.0, "where weights may lie open and unchecked"),
    (
        "safetensors mmap",
        False,
        "safetensors load_file, mapped (floor: copies, verifies nothing)",
        None,
        "where weights may lie open and unchecked and a map of the page cache will do",
    ),
)
_FORMATS = ("tensorizer", "cryptotensors", "torch.load")


def reuse_rows(place: Workplace) -> list[Row]:
    """Compare a get into a touched buffer with the decrypting that bounds it, and with plain reads of as many bytes."""
    task = {"store": str(place.store), "name": NAME, "paths": list(map(str, place.shards)), "rounds": _REUSE_ROUNDS}
    warm([*place.shards, *place.segments])
    _, answer = place.program("reuse", task)
    got, decrypt, read = (Samples(tuple(answer[way])) for way in ("get", "decrypt", "read"))
    huge = min(answer["huge"] / answer["bytes"], 1.0)
    name = "get().tensors(into=buffer): find, decrypt, verify, all tensors"
    return [
        compared(
            name,
            got,
            "AES-256-GCM of as many bytes from memory into the same buffer, two threads",
            decrypt,
            length=answer["bytes"],
            target=_REUSE_SHARE,
            otherwise=None,
            bound_by=(AES,),
            notes=(
                f"median over rounds of decrypt / get: {ratio_median(decrypt, got):.2f} x",
                f"{huge:.0%} of the buffer in huge pages",
            ),
        ),
        compared(
            name,
            got,
            "preadv of 4 MiB by two threads",
            read,
            length=answer["bytes"],
            otherwise="where the bytes need neither decrypting nor checking",
            bound_by=(AES,),
            notes=(f"for information; median over rounds of read / get: {ratio_median(read, got):.2f} x",),
        ),
    ]


def fresh_rows(place: Workplace) -> list[Row]:
    """Compare loads of every tensor into private memory, each in a process of its own, page cache warm."""
    paths, reasons = _formats(place)
    walls: dict[str, list[float]] = {}

    def attempt(how: str, peers: bool) -> tuple[float, dict[str, object]]:
        if how in reasons:
            raise Failed(reasons[how])
        warm([Path(path) for path in paths.get(how, map(str, place.shards))])
        task = {
            "how": how,
            "paths": paths.get(how, list(map(str, place.shards))),
            "store": str(place.store),
            "name": NAME,
            "keys": str(place.peer_keys),
            "room": place.room_bytes,
        }
        return place.program("load", task, peers=peers)

    def load(how: str, peers: bool) -> float:
        wall, answer = attempt(how, peers)
        if any(answer[part] != wanted[part] for part in ("tensors", "bytes", "sample")):
            raise Failed(f"{how} loaded other tensors than the checkpoint holds")
        walls.setdefault(how, []).append(wall)
        return answer["seconds"]

    _, wanted = attempt("safetensors mmap", False)
    everyone = [("arstore", False), *((how, peers) for how, peers, *_ in _WAYS)]
    times = take_turns({how: partial(load, how, peers) for how, peers in everyone}, place.rounds)
    return [_load_row(place, times, walls, way) for way in _WAYS]


def _load_row(
    place: Workplace, times: dict[str, Samples | str], walls: dict[str, list[float]], way: tuple[Any, ...]
) -> Row:
    how, _, name, target, otherwise = way
    wall = [
        f"{one} {Samples(tuple(walls[one][1:])).median:.2f} s" for one in ("arstore", how) if walls.get(one, [])[1:]
    ]
    return compared(
        "arstore open_store().get().tensors(), encrypted",
        times["arstore"],
        name,
        times[how],
        length=place.tensor_bytes,
        target=target,
        otherwise=otherwise,
        notes=[f"whole process, imports included: {', '.join(wall)}"],
        bound_by=(AES,),
    )


def _formats(place: Workplace) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Write the checkpoint in the formats of others; return the files of each, and why some have none."""
    paths: dict[str, list[str]] = {"arstore": list(map(str, place.segments))}
    reasons: dict[str, str] = {}
    for how in _FORMATS:
        folder = place.folder / how
        folder.mkdir(exist_ok=True)
        task = {"how": how, "paths": list(map(str, place.shards)), "out": str(folder), "keys": str(place.peer_keys)}
        try:
            _, answer = place.program("convert", task, peers=how != "torch.load")
            paths[how] = answer["paths"]
        except Failed as error:
            reasons[how] = str(error)
    return paths, reasons
