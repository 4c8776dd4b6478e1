"""Section 10: an artifact staged in the host tier, from the page cache and from the disk, and attached."""

import json
import os
import sys

from .processes import Failed, run_arstore, warm
from .rows import AES, Row, Samples, Target, compared
from .workplace import NAME, SCRIPTS, Workplace

_TENSORS = 300


def stage_rows(place: Workplace) -> list[Row]:
    """Compare staging with a copy of as many bytes, and with the disk; and say how soon what is staged is attached."""
    warm([*place.shards, *place.segments])
    with place.host_tier():
        return [*_filled(place), _attached(place)]


def _filled(place: Workplace) -> list[Row]:
    task = {
        "store": str(place.store),
        "name": NAME,
        "paths": list(map(str, place.segments)),
        "room": place.room_bytes,
        "rounds": place.rounds,
    }
    _, answer = place.program("stage", task)
    copy, warm_, direct, cold = (Samples(tuple(answer[one])) for one in ("copy", "warm", "direct", "cold"))
    length = answer["bytes"]
    return [
        compared(
            "arstore prefetch to the host tier, page cache warm",
            warm_,
            "a copy by two threads into fresh huge pages",
            copy,
            length=length,
            target=0.55,
            bound_by=(AES,),
            otherwise="where one process needs the bytes, once, and they lie open in memory",
        ),
        compared(
            "arstore prefetch to the host tier, page cache dropped",
            cold,
            "O_DIRECT reads of 4 MiB of the same segments, two threads",
            direct,
            length=length,
            target=0.9,
            otherwise="where the bytes need neither decrypting nor checking",
            bound_by=(AES,),
        ),
    ]


def _attached(place: Workplace) -> Row:
    from safetensors.torch import save_file
    from torch import zeros

    times: list[float] = []
    with place.fresh_store() as env, place.scratch("many") as folder:
        save_file({f"layers.{n}.weight": zeros(256, 256) + n for n in range(_TENSORS)}, folder / "many.safetensors")
        run_arstore(env, "put", str(folder / "many.safetensors"), "bench/many")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SCRIPTS), env.get("PYTHONPATH", ""))))
        command = [sys.executable, "-P", "-m", "benchmark.programs.attach", str(folder / "answer.json")]
        for _ in range(place.rounds):
            run_arstore(env, "prefetch", "bench/many", "--", *command)
            answer = json.loads((folder / "answer.json").read_text())
            if answer["tensors"] != _TENSORS:
                raise Failed(f"{answer['tensors']} tensors were attached, wanted {_TENSORS}")
            times.append(answer["seconds"])
    return Row(
        f"arstore.attach() and a touch of each of {_TENSORS} tensors, in a fresh process",
        Samples(tuple(times)),
        target=Target(0.05, at_least=False),
        notes=("imports of torch and arstore not counted",),
    )
