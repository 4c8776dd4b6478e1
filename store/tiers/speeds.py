"""Speeds: how fast each tier is, as `probe` measured it last, and the file in the store that keeps it."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..user_file import open_user_file
from .device import kind_of

_NAME = "tiers.json"
_SIZE_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Speed:
    """The measured speed of one tier: bytes a second into it (out of local), and seconds of the smallest access.

    Only an arena has the speed of one thread alone, and the speed of removing.
    """

    bytes_per_s: float
    latency_s: float
    measured: str
    alone_bytes_per_s: float | None = None
    evict_bytes_per_s: float | None = None


Speeds = dict[str, Speed]


def speeds_path(root: Path) -> Path:
    """Return the file that keeps the speeds of a store."""
    return root / _NAME


def pack_speeds(speeds: Speeds) -> bytes:
    """Return speeds as JSON; `read_speeds` reads it."""
    return json.dumps({tier: asdict(speed) for tier, speed in speeds.items()}).encode()


def read_speeds(root: Path) -> Speeds:
    """Return the speeds that were measured last; none if nothing was measured, or if the file can't be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        with open_user_file(speeds_path(root)) as file:
            rows = json.loads(file.read(_SIZE_MAX))
        speeds = {name: _parse_speed(row) for name, row in rows.items()}
        if speeds.keys() >= {"local", "host"} and all(map(_is_sane, speeds.values())):
            return speeds
    return {}


def _parse_speed(row: dict[str, Any]) -> Speed:
    return Speed(
        float(row["bytes_per_s"]),
        float(row["latency_s"]),
        str(row["measured"]),
        float(row["alone_bytes_per_s"]) if row.get("alone_bytes_per_s") else None,
        float(row["evict_bytes_per_s"]) if row.get("evict_bytes_per_s") else None,
    )


def predict_s(speeds: Speeds, to: str, length_bytes: int) -> float | None:
    """Return the seconds that so many bytes take from the store up to a tier; None if that was never measured."""
    way = ("local", *(("host",) if kind_of(to) == "device" else ()), kind_of(to))
    if not speeds.keys() >= set(way):
        return None
    return length_bytes / min(speeds[tier].bytes_per_s for tier in way)


def _is_sane(speed: Speed) -> bool:
    rates = (speed.bytes_per_s, speed.alone_bytes_per_s, speed.evict_bytes_per_s)
    return all(rate is None or 0 < rate < 1e15 for rate in rates) and 0 <= speed.latency_s < 1e3
