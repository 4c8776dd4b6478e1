"""Tokens: what is no list of token ids is refused by position, and a damaged file in one line."""

import contextlib
import io
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arstore import BadInput, Store
from arstore.store.kv.tokens import read_tokens
from tests.support.fuzz import FUZZ, mutated
from tests.support.kv_made import IDENTITY, made
from tests.support.kv_store import TOKENS, store

__all__ = ["store"]  # a fixture


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([], "are 0, wanted 1 to"), ([1, -1], "position 1: '-1'"), ([1, 2, 1 << 32], "position 2: '4294967296'"),
        ([1, 2.0], "position 1: '2.0'"), ([True, 1], "position 0: 'True'"), ([1, None], "position 1: 'None'"),
        ([1, "2"], "position 1: '2'"), ([[1], [2]], "position 0"), (np.zeros((2, 2), np.int64), "2 axes"),
        (np.zeros(3), "float64"), (np.array([True]), "bool"), (np.array([1, -5]), "position 1: '-5'"),
        (np.array([1 << 40], np.uint64), "position 0"), (np.array([1, None]), "object"), (np.int64(5), "0 axes"),
        (torch.zeros(3), "float32"), ("1,2", "are str"), (7, "are int"), ([10**400], "position 0"), (b"abc",
        "are bytes"),
        (memoryview(b"abcde"), "bytes"), (np.zeros((1 << 24) + 1, np.uint8), "are 16777217, wanted 1 to 16777216"),
    ],
)  # fmt: skip
def test_bad_tokens_are_refused_by_position(store: Store, tokens: Any, why: str) -> None:
    for ask in (partial(store.longest_prefix, tokens, IDENTITY),
                partial(store.kv.put, made(TOKENS), name="chat", tokens=tokens, identity=IDENTITY)):  # fmt: skip
        with pytest.raises(BadInput, match=why) as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert store.stats().stored_bytes == 0


def npy(header: bytes, elements: bytes = bytes(400)) -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + elements


def described(descr: str, shape: str) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode())


DAMAGED = {
    "no closing brace": (npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (50,)"), "not a python literal"),
    "an open bracket": (npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1L"), "not a python literal"),
    "brackets": (npy(b"(((((" * 1000), "not a python literal"),
    "minus signs": (npy(b"-" * 9000 + b"1"), "not a python literal"),
    "an open string": (npy(b"'''"), "not a python literal"),
    "a call": (npy(b"exit()"), "not a python literal"),
    "a NUL": (npy(b"{\0}"), "not a python literal"),
    "a header that is cut": (npy(b"{}")[:40], "cut short"),
    "a magic alone": (b"\x93NUMPY", "does not start"),
    "version 9": (b"\x93NUMPY\x09\x00" + npy(b"{}")[8:], "version 9.0"),
    "no elements": (described("'<i8'", "(50,)")[:-1], "cut short"),
    "too many elements": (described("'<i8'", "(99999999999999,)"), "cut short"),
    "a count that overflows": (described("'<i8'", f"({(1 << 63) - 1},)"), "cut short"),
    "a count below 0": (described("'<i8'", "(-1,)"), "extents"),
    "no axis": (described("'<i8'", "()"), "0 axes"),
    "two axes": (described("'<i8'", "(5, 10)"), "2 axes"),
    "objects": (described("'|O'", "(5,)"), "holds |O"),
    "reals": (described("'<f8'", "(50,)"), "holds <f8"),
    "records": (described("[('a', '<i8')]", "(50,)"), "holds [('a'"),
    "an unknown dtype": (described("'<i9'", "(5,)"), "holds <i9"),
    "none": (described("'<i8'", "(0,)"), "are 0, wanted 1 to"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_npy_file_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    content, why = DAMAGED[what]
    (tmp_path / "tokens.npy").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read_tokens(str(tmp_path / "tokens.npy"))
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def saved(descr: str) -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(50, dtype=descr))
    return out.getvalue()


@settings(FUZZ, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.sampled_from(["<i8", ">u2", "u1"]).map(saved).flatmap(mutated))
def test_any_damage_of_an_npy_file_is_refused_or_gives_token_ids(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokens.npy").write_bytes(content)
    with contextlib.suppress(BadInput):
        assert len(read_tokens(str(tmp_path / "tokens.npy"))) % 4 == 0
