"""Section 11: a batch of prompts carried out by plans, beside fetching on demand, and what was predicted of it."""

from .rows import Row, Samples, Target, compared
from .workplace import Workplace

_BLOCK_BYTES, _SESSIONS = 4 << 20, 24
_GIVEN, _PREFIX = 1.3, 1.8
_WORST_PERCENT, _MEDIAN_PERCENT = 10.0, 5.0


def plan_rows(place: Workplace) -> list[Row]:
    """Compare plans of the same requests with LRU on demand, cold, and predictions with what came of them."""
    with place.fresh_store() as env, place.scratch("jobs") as folder, place.host_tier():
        task = {
            "store": env["ARSTORE_STORE"],
            "folder": str(folder),
            "block_bytes": _BLOCK_BYTES,
            "sessions": _SESSIONS,
            "rounds": place.rounds,
        }
        _, found = place.program("batch", task)
    times = {name: Samples(tuple(seconds)) for name, seconds in found["times"].items()}
    said = (
        f"{found['requests']} requests of {found['blocks']} blocks of {_BLOCK_BYTES >> 20} MiB, room for "
        f"{found['budget_blocks']}; computing takes {found['compute_s']:.2f} s in all",
    )
    rows = []
    for name, target in (("given", _GIVEN), ("prefix", _PREFIX)):
        predicted = Samples(tuple(found["predicted"][name])).text("s")
        notes = (f"{found['refetches'][name]} refetches, predicted {predicted}",)
        rows.append(
            compared(
                f"a plan, order {name}", times[name], "LRU on demand", times["lru"], target=target, notes=said + notes
            )
        )
        said = ()
    errors = [100 * abs(one) for one in found["errors"]]
    name = f"error of the predicted seconds, of {len(errors)} runs"
    rows.append(
        Row(
            f"{name}, median",
            Samples((Samples(tuple(errors)).median,)),
            "%",
            target=Target(_MEDIAN_PERCENT, at_least=False),
        )
    )
    rows.append(Row(f"{name}, worst", Samples((max(errors),)), "%", target=Target(_WORST_PERCENT, at_least=False)))
    return rows + _traced(place)


def _traced(place: Workplace) -> list[Row]:
    """Return the rows of planning a real trace with room for a twentieth of its blocks; none without a trace."""
    if place.trace is None:
        return []
    with place.fresh_store() as env, place.scratch("trace") as folder:
        task = {
            "store": env["ARSTORE_STORE"],
            "folder": str(folder),
            "trace": str(place.trace.absolute()),
            "block_bytes": _BLOCK_BYTES,
            "share": 0.05,
        }
        _, found = place.program("trace", task)
    given, prefix = found["given"], found["prefix"]
    what = f"{found['requests']:,} requests of {found['blocks']:,} blocks, room for 5 % of them"
    ratio = given["live_peak_bytes"] / prefix["live_peak_bytes"]
    return [
        *(
            Row(
                f"planning {what}, order {name}",
                Samples((found[name]["seconds"],)),
                target=Target(5.0, at_least=False),
                notes=(f"{found[name]['refetches']} refetches",),
            )
            for name in ("given", "prefix")
        ),
        Row(
            "what must be resident so that nothing is fetched twice: order given over prefix",
            Samples((ratio,)),
            "x",
            target=Target(30.0),
        ),
    ]
