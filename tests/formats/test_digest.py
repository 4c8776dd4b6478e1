"""Digests: keyed hashes tell lists apart, sealed text opens for its key and purpose alone."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arstore.formats.digest import derive, keyed_hash, parse_digest
from arstore.formats.errors import FormatError
from arstore.formats.frames import (
    seal,
    unseal,
)
from tests.support.fuzz import FUZZ, KEY32, decoded, mutated


@FUZZ
@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4), KEY32)
def test_keyed_hash_tells_lists_of_parts_apart(first: list[bytes], second: list[bytes], key: bytes) -> None:
    assert (keyed_hash(key, *first) == keyed_hash(key, *second)) == (first == second)
    glued = [b"".join(first)]
    assert (keyed_hash(key, *first) == keyed_hash(key, *glued)) == (first == glued)


@FUZZ
@given(KEY32, st.binary(max_size=100), st.binary(min_size=12, max_size=12), st.data())
def test_sealed_text_opens_for_its_key_and_purpose_alone(
    key: bytes, plain: bytes, nonce: bytes, data: st.DataObject
) -> None:
    sealed = seal(key, "one purpose", plain, nonce)
    assert unseal(key, "one purpose", sealed) == plain
    assert decoded(unseal, key, "another purpose", sealed) is None
    assert decoded(unseal, derive(key, "x"), "one purpose", sealed) is None
    bad = data.draw(mutated(sealed) | st.binary(max_size=40))
    assume(bad != sealed)
    assert decoded(unseal, key, "one purpose", bad) is None


@FUZZ
@given(st.text(max_size=70) | st.text("0123456789abcdefABCDEF \n", min_size=64, max_size=64) | st.integers())
def test_digest_text(text: object) -> None:
    digest = decoded(parse_digest, text)
    if digest is not None:
        assert digest.hex() == text
        assert len(digest) == 32


@pytest.mark.parametrize("blank", ["ab" * 31 + "  ", " " * 64, "ab" * 31 + "\n\n", "AB" * 32, "ab" * 31, "ab" * 33])
def test_digest_text_has_64_lower_case_digits(blank: str) -> None:
    with pytest.raises(FormatError):
        parse_digest(blank)
