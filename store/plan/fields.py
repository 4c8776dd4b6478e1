"""Values from outside, taken field by field: each is as wanted, or BadInput names the place and the field.

Invariant: a value has the type that was asked for (true is no number), is finite and in its range, and text is
printable. A field that isn't known is refused by name.
"""

from collections.abc import Collection
from typing import Any, NoReturn

from ..errors import BadInput
from .model import RequestId

TEXT_MAX_BYTES = 4096
WHOLE_MAX = (1 << 63) - 1
_SHOWN = 40


class Fields:
    """The fields of one JSON object or TOML table. `where` begins every refusal, `known` lists all allowed names."""

    def __init__(self, value: Any, where: str, known: Collection[str]) -> None:
        if not isinstance(value, dict):
            raise BadInput(where, f"{_shown(value)} stands where fields were wanted")
        for name in value:
            if name not in known:
                raise BadInput(where, f"{_shown(name)} is not known, only {', '.join(known)}")
        self._value, self._where = value, where

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def get(self, name: str) -> Any:
        """Return a field as it is; raise BadInput if it is missing."""
        if name not in self._value:
            raise BadInput(self._where, f"{name} is missing")
        return self._value[name]

    def text(self, name: str) -> str:
        return self._text(name, self.get(name))

    def whole(self, name: str, *, least: int = 0) -> int:
        return self._whole(name, self.get(name), least)

    def real(self, name: str) -> float:
        """Return a finite number that is not below 0."""
        value = self.get(name)
        if type(value) not in (int, float) or not 0 <= value <= WHOLE_MAX:
            self.refuse(name, value, "a number of 0 or more")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if type(value) is not bool:
            self.refuse(name, value, "true or false")
        return value

    def rows(self, name: str, *, most: int = WHOLE_MAX) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list):
            self.refuse(name, value, "a list")
        if len(value) > most:
            raise BadInput(self._where, f"{name} lists {len(value)}, at most {most} are taken")
        return value

    def table(self, name: str) -> dict[str, Any]:
        value = self.get(name)
        if not isinstance(value, dict):
            self.refuse(name, value, "a table of fields")
        return value

    def texts(self, name: str, *, most: int = WHOLE_MAX) -> tuple[str, ...]:
        return tuple(self._text(name, value) for value in self.rows(name, most=most))

    def wholes(self, name: str, *, most: int = WHOLE_MAX) -> tuple[int, ...]:
        values = self.rows(name, most=most)
        if set(map(type, values)) <= {int} and (not values or 0 <= min(values) <= max(values) <= WHOLE_MAX):
            return tuple(values)
        return tuple(self._whole(name, value, 0) for value in values)

    def id(self, name: str) -> RequestId:
        return self._id(name, self.get(name))

    def ids(self, name: str, *, most: int = WHOLE_MAX) -> tuple[RequestId, ...]:
        return tuple(self._id(name, value) for value in self.rows(name, most=most))

    def refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        raise BadInput(self._where, f"{name} is {_shown(value)}, wanted {wanted}")

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value or len(value.encode(errors="replace")) > TEXT_MAX_BYTES:
            self.refuse(name, value, f"text of 1 to {TEXT_MAX_BYTES} bytes")
        if not value.isprintable():  # this refuses lone surrogates too, which UTF-8 can't write
            self.refuse(name, value, "printable text")
        return value

    def _whole(self, name: str, value: Any, least: int) -> int:
        if type(value) is not int or not least <= value <= WHOLE_MAX:
            self.refuse(name, value, f"a whole number of {least} or more")
        return value

    def _id(self, name: str, value: Any) -> RequestId:
        return self._whole(name, value, 0) if type(value) is int else self._text(name, value)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
