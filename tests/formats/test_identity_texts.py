"""Identities: any fields have one canonical text, or are refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.identity import FIELDS, UNSPECIFIED, key_id, make_identity
from arstore.formats.manifest import (
    KINDS,
)
from tests.support import spec_identity, spec_records
from tests.support.fuzz import FUZZ, TEXTS, decoded

POSITIONS = st.builds(lambda first, more: f"{first}:{first + more}", st.integers(0, 99), st.integers(0, 99))


LAYERS = st.integers(-1, 4097) | st.integers(0, 9)


RUNS = st.lists(LAYERS.map(str) | st.builds("{}-{}".format, LAYERS, LAYERS), max_size=4)


HASHES = st.sampled_from(["0f" * 16, "ab" * 16, "ab" * 64, "AB" * 16, "ab" * 15])


CONTENTS = st.lists(st.builds("{}@{}".format, HASHES, st.integers(0, 99)), max_size=4)


PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5,
)  # fmt: skip


FIELD_VALUES: st.SearchStrategy[object] = st.one_of(
    TEXTS, st.text(max_size=5), st.integers(), st.integers(0, 99), st.none(), st.booleans(), st.binary(),
    st.just("x" * 4097), st.just(UNSPECIFIED), st.just([UNSPECIFIED]), st.floats(), st.floats().map(str),
    st.integers().map(str), st.just(10**5000), POSITIONS, st.just("007:٩"), st.just("\ud800"), PLAIN_JSON,
    PLAIN_JSON.map(json.dumps), RUNS, RUNS.map(",".join), CONTENTS, CONTENTS.map(",".join),
    st.lists(TEXTS, max_size=3), st.lists(st.integers(0, 99)), st.just("yes"), st.just("[" * 100_000),
)  # fmt: skip


@FUZZ
@given(st.dictionaries(st.sampled_from([*FIELDS, "colour", "Model", ""]), FIELD_VALUES, max_size=4))
def test_any_fields_as_identity(fields: dict[str, object]) -> None:
    """What comes out is canonical by the letter of FORMAT.md, whatever went in."""
    identity = decoded(make_identity, fields)
    if identity is not None:
        assert make_identity(dict(identity)) == identity == tuple(sorted(identity))
        nothing: list[object] = [(name, value) for name in FIELDS for value in (None, UNSPECIFIED)]
        nothing.append(("adapter_targets", [UNSPECIFIED]))
        given_fields = {name for name, value in fields.items() if (name, value) not in nothing}
        assert {name for name, _ in identity} == given_fields <= set(FIELDS)
        spec_identity.check_identity(dict(identity))


@FUZZ
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_any_value_of_a_field_has_one_text_or_none(field: str, data: st.DataObject) -> None:
    """A text that is not its own text is not canonical: a reader of FORMAT.md refuses exactly those."""
    value = data.draw(FIELD_VALUES)
    identity = decoded(make_identity, {field: value})
    if identity:
        assert identity == make_identity(dict(identity))
    if isinstance(value, str):
        try:
            spec_identity.check_identity({field: value})
            canonical_text = True
        except spec_records.Refused:
            canonical_text = False
        assert canonical_text == (identity == ((field, value),))


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": [*[0] * 4096, 5]}, {"layers": ",".join(["0"] * 4097)}, {"contents": [f"{'ab' * 16}@7"] * 257},
        {"contents": [f"{'ab' * 16}@7"] * 118}, {"model": "é" * 2048 + "x"}, {"rope_scaling": "[" * 100_000},
        {"adapter_targets": ["x" * 4097]}, {"rope_theta": b"8"}, {"heads": 10**5000}, {"rope_theta": 10**5000},
    ],
)  # fmt: skip
def test_a_value_that_is_too_much_is_refused(fields: dict[str, object]) -> None:
    """And none is cut to what would fit: it would be taken for another."""
    with pytest.raises(FormatError):
        make_identity(fields)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), TEXTS, max_size=3), st.dictionaries(
        st.sampled_from(sorted(FIELDS)), TEXTS, max_size=3), st.sampled_from(KINDS), st.sampled_from(KINDS)
)  # fmt: skip
def test_key_ids_tell_identities_and_kinds_apart(
    first: dict[str, str], second: dict[str, str], kind: str, other: str
) -> None:
    one, two = (tuple(sorted({**fields, "strict": "yes"}.items())) for fields in (first, second))
    assert (key_id(bytes(32), kind, one) == key_id(bytes(32), other, two)) == ((kind, one) == (other, two))


def test_identity_is_canonical_and_refuses_what_it_does_not_know() -> None:
    fields = {"positions": "007:٩", "layer": 3, "model": "llama", "revision": None, "rope": UNSPECIFIED}
    assert make_identity(fields) == (("layer", "3"), ("model", "llama"), ("positions", "7:9"))
    for bad in ({"colour": "red"}, {"positions": "9:7"}, {"positions": "1"}, {"model": ""}, {"layer": True}):
        with pytest.raises(FormatError):
            make_identity(bad)
