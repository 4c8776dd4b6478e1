"""Fields: each value is as wanted, or the refusal names the place, the field, what stood there and what was wanted."""

from collections.abc import Callable
from typing import Any

import pytest

from arstore.store.errors import BadInput
from arstore.store.plan.fields import TEXT_MAX_BYTES, WHOLE_MAX, Fields


def one(value: Any) -> Fields:
    return Fields({"f": value}, "FILE line 3", ("f", "g"))


Take = Callable[[Fields, str], Any]


@pytest.mark.parametrize(
    ("take", "value", "read"),
    [
        (Fields.text, "é", "é"),
        (Fields.text, "é" * (TEXT_MAX_BYTES // 2), "é" * (TEXT_MAX_BYTES // 2)),
        (Fields.whole, 0, 0),
        (Fields.whole, WHOLE_MAX, WHOLE_MAX),
        (Fields.wholes, [], ()),
        (Fields.wholes, [3, 0], (3, 0)),
        (Fields.real, 2, 2.0),
        (Fields.real, 0.5, 0.5),
        (Fields.flag, False, False),
        (Fields.id, 7, 7),
        (Fields.id, "7", "7"),
        (Fields.table, {"x": 1}, {"x": 1}),
    ],
)
def test_a_value_in_its_range_is_returned(take: Take, value: Any, read: Any) -> None:
    assert take(one(value), "f") == read
    assert type(take(one(value), "f")) is type(read)


@pytest.mark.parametrize(
    ("take", "value", "why"),
    [
        (Fields.text, "", "f is '', wanted text of 1 to 4096 bytes"),
        (Fields.text, "é" * (TEXT_MAX_BYTES // 2) + "x", "wanted text of 1 to 4096 bytes"),
        (Fields.text, 3, "f is 3, wanted text"),
        (Fields.text, "a\nb", r"f is 'a\nb', wanted printable text"),
        (Fields.text, "\ud800", r"f is '\ud800', wanted printable text"),
        (Fields.whole, -1, "f is -1, wanted a whole number of 0 or more"),
        (Fields.whole, True, "f is True, wanted a whole number"),
        (Fields.whole, 1.0, "f is 1.0, wanted a whole number"),
        (Fields.whole, WHOLE_MAX + 1, "f is 9223372036854775808, wanted a whole number"),
        (Fields.wholes, [1, True], "f is True, wanted a whole number"),
        (Fields.wholes, [1, -1], "f is -1, wanted a whole number"),
        (Fields.wholes, {}, "f is {}, wanted a list"),
        (Fields.real, float("nan"), "f is nan, wanted a number of 0 or more"),
        (Fields.real, float("inf"), "f is inf, wanted a number of 0 or more"),
        (Fields.real, True, "f is True, wanted a number of 0 or more"),
        (Fields.flag, 1, "f is 1, wanted true or false"),
        (Fields.id, True, "f is True, wanted text"),
        (Fields.id, -1, "f is -1, wanted a whole number of 0 or more"),
        (Fields.table, [], "f is [], wanted a table of fields"),
    ],
)
def test_any_other_value_is_refused_with_its_place(take: Take, value: Any, why: str) -> None:
    with pytest.raises(BadInput) as refused:
        take(one(value), "f")
    assert str(refused.value).startswith("FILE line 3: ")
    assert why in str(refused.value)
    assert str(refused.value).isprintable()


def test_fields_that_are_missing_or_not_known_are_named() -> None:
    assert ("f" in one(1), "g" in one(1)) == (True, False)
    for value, why in (([1], r"\[1\] stands where fields were wanted"), ({"h": 1}, "'h' is not known, only f, g")):
        with pytest.raises(BadInput, match=why):
            Fields(value, "FILE", ("f", "g"))
    with pytest.raises(BadInput, match="FILE line 3: g is missing"):
        one(1).get("g")


def test_a_list_is_as_long_as_allowed_and_a_long_value_is_cut() -> None:
    assert one(["a", "b"]).texts("f", most=2) == ("a", "b")
    with pytest.raises(BadInput, match="f lists 3, at most 2 are taken"):
        one(["a", "b", "c"]).texts("f", most=2)
    with pytest.raises(BadInput) as refused:
        one("x" * 5000).whole("f")
    assert len(str(refused.value)) < 120
