"""Section 9: prefix KV found by its tokens, put and loaded, beside plain arrays and files that find nothing."""

from .rows import AES, BLAKE3, Row, Samples, Target, compared
from .workplace import Workplace

_TOKENS, _BLOCK_TOKENS, _BLOCKS = 131_072, 256, 1_000_000
_KV_BYTES = 1 << 29
_LIMIT_MS, _TOKENS_PER_S = 1.0, 20e6


def prefix_rows(place: Workplace) -> list[Row]:
    """Compare finding a prompt alone with finding it among a million blocks, and KV moved with plain files.

    All of it in one process, in turns.
    """
    length = min(_KV_BYTES, place.size // 2)
    with place.fresh_store() as env, place.scratch("kv") as folder:
        task = {
            "store": env["ARSTORE_STORE"],
            "folder": str(folder),
            "bytes": length,
            "tokens": _TOKENS,
            "block_tokens": _BLOCK_TOKENS,
            "blocks": _BLOCKS,
            "rounds": place.rounds,
        }
        _, answer = place.program("prefix", task)
    times = {name: Samples(tuple(seconds)) for name, seconds in answer.items()}
    return [*_found(times), *_moved(times, length)]


def _found(times: dict[str, Samples]) -> list[Row]:
    """Return the rows of hashing and finding, in ms; among many others they may take twice as long."""
    many = f"with {_BLOCKS:,} other blocks in the catalog"
    rows = []
    for name, key, limit_ms in (
        (f"hashing {_TOKENS:,} tokens", "hash", _TOKENS / _TOKENS_PER_S * 1000),
        (f"longest match of {_TOKENS // _BLOCK_TOKENS} blocks, hashing not counted", "match", _LIMIT_MS),
    ):
        alone, among = (Samples(tuple(1000 * one for one in times[key + more].values)) for more in ("", "_many"))
        note = (f"{_TOKENS / alone.median / 1000:.0f} M tokens/s",) if key == "hash" else ()
        rows.append(Row(name, alone, "ms", target=Target(limit_ms, at_least=False), notes=note))
        rows.append(Row(f"the same {many}", among, "ms", baseline="alone", baseline_value=alone, target=Target(0.5)))
    return rows


def _moved(times: dict[str, Samples], length: int) -> list[Row]:
    """Return the rows of putting and loading."""
    plainly = "where it may lie open and unchecked, and is found by other means"
    rows = [
        compared(
            "KV put, encrypted, durable",
            times["put"],
            "safetensors save_file + fsync",
            times["save"],
            length=length,
            otherwise=plainly,
            bound_by=(BLAKE3, AES),
        )
    ]
    for key in ("nhd", "hnd"):
        name = f"KV load of all layers as {key.upper()}, verified, into fresh memory"
        for baseline, other in (("copy", "np.copyto of the same"), ("file", "safetensors load_file + clone, as put")):
            rows.append(
                compared(name, times[key], other, times[baseline], length=length, otherwise=plainly, bound_by=(AES,))
            )
    rows.append(compared("first of 32 layers of a stream", times["first"], "loading them all", times["nhd"], target=8))
    rows.append(
        compared(
            "all layers of a stream", times["stream"], "loading them all", times["nhd"], length=length, bound_by=(AES,)
        )
    )
    return rows
