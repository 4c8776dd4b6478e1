"""Quantities: sizes, times and ranges as people write them; anything else is refused."""

import pytest

from arstore.store.errors import BadInput
from arstore.store.quantities import parse_duration, parse_range, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("17B", 17), ("17 b", 17), ("10GB", 10**10), ("1.5 KiB", 1536), (" 2tib ", 2 << 40), ("0.5m", 500_000)],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "17", "-1", "1e3", "1,5k", "1PB", "1 k i", "1" * 16, "\u0661"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("5s", 5), ("2 m", 120), ("24H", 86400), ("1w", 604800)]
)
def test_a_time_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "0", "30", "-1s", "1.5h", "1y", "1" * 10])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_duration(text)


def test_a_range_is_two_numbers() -> None:
    assert parse_range("--positions", "0:16") == (0, 16)
    for text in ("", "1", "1:", ":1", "-1:2", "1:2:3", "a:b"):
        with pytest.raises(BadInput, match="--positions"):
            parse_range("--positions", text)
