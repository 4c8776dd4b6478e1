"""The file of measured speeds: what was kept is read, and what can't be true counts as never measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from arstore.store.tiers.speeds import Speed, pack_speeds, read_speeds, speeds_path

MEASURED = {
    "local": Speed(2e9, 1e-4, "2026-01-01T00:00:00Z"),
    "host": Speed(5e9, 1e-6, "2026-01-01T00:00:00Z", 2e9, 8e9),
}


def test_speeds_are_read_as_they_were_kept(tmp_path: Path) -> None:
    assert read_speeds(tmp_path) == {}
    speeds_path(tmp_path).write_bytes(pack_speeds(MEASURED))
    assert read_speeds(tmp_path) == MEASURED


@pytest.mark.parametrize(
    "change",
    [
        {"bytes_per_s": 0}, {"bytes_per_s": -1}, {"bytes_per_s": 1e16}, {"bytes_per_s": "NaN"}, {"bytes_per_s": None},
        {"latency_s": -1}, {"latency_s": 1e4}, {"latency_s": []}, {"bytes_per_s": 10**400}, {"evict_bytes_per_s": -1},
        {"alone_bytes_per_s": "Infinity"},
    ],
)  # fmt: skip
def test_a_speed_that_can_not_be_is_no_measurement(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = json.loads(pack_speeds(MEASURED))
    speeds_path(tmp_path).write_text(json.dumps(rows | {"host": rows["host"] | change}))
    assert read_speeds(tmp_path) == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"local": 7, "host": 7}', '{"local": {}, "host": {}}', "[" * 60_000]
)
def test_a_file_that_is_no_table_of_speeds_is_no_measurement(tmp_path: Path, content: str) -> None:
    speeds_path(tmp_path).write_text(content)
    assert read_speeds(tmp_path) == {}


def test_speeds_without_those_of_the_host_are_no_measurement(tmp_path: Path) -> None:
    speeds_path(tmp_path).write_bytes(pack_speeds({"local": MEASURED["local"]}))
    assert read_speeds(tmp_path) == {}
