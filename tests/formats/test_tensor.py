"""Cuts: a tensor is cut by dtype and shape alone, a file at the borders of its tensors."""

import contextlib
from dataclasses import dataclass, replace
from datetime import timedelta
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.formats.tensor import BLOB_MAX_BYTES, DTYPE_BITS, TensorSpan, cut_span, dense_bytes
from arstore.store.artifacts.cuts import cut_file
from arstore.store.artifacts.inputs import InputFile
from tests.support.fuzz import FUZZ

FEW = settings(max_examples=40, deadline=timedelta(seconds=10))


@st.composite
def spans(draw: st.DrawFn, start: int = 0) -> TensorSpan:
    """A dense tensor of up to a few hundred GB: only its numbers exist."""
    dtype = draw(st.sampled_from(["U8", "BF16", "F32", "C128", "BOOL"]))
    extents = st.integers(0, 6) | st.integers(0, 300_000) | st.sampled_from([1, 4096, 32768, 1 << 22])
    shape = tuple(draw(st.lists(extents, max_size=4)))
    assume(prod(shape) * DTYPE_BITS[dtype] // 8 < 1 << 38)
    return TensorSpan(draw(st.text(max_size=3)), dtype, shape, start, dense_bytes(dtype, shape))


@FUZZ
@given(spans(), st.integers(0, 2**40))
def test_a_tensor_is_cut_by_dtype_and_shape_alone(span: TensorSpan, start: int) -> None:
    cuts = list(cut_span(span))
    assert sum(cuts) == span.length
    assert all(0 < cut <= BLOB_MAX_BYTES for cut in cuts)
    assert list(cut_span(replace(span, name="other", start=start))) == cuts
    if span.length <= BLOB_MAX_BYTES:
        assert len(cuts) <= 1
    row_bytes = span.length // span.shape[0] if span.shape and span.shape[0] else span.length
    step = BLOB_MAX_BYTES // row_bytes * row_bytes if 0 < row_bytes <= BLOB_MAX_BYTES else BLOB_MAX_BYTES
    assert all(cut == step for cut in cuts[:-1]), "as many whole rows as fit, but for the last"


@dataclass(frozen=True, slots=True)
class Sized:
    """A file of which only the size is asked."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("the cut reads no byte")

    def read_into(self, offset: int, out: memoryview) -> None:
        raise AssertionError("the cut reads no byte")

    def mapped(self, offset: int, length: int) -> contextlib.AbstractContextManager[memoryview]:
        raise AssertionError("the cut reads no byte")

    def check_unchanged(self) -> None:
        raise AssertionError("the cut reads no byte")


@st.composite
def tensor_files(draw: st.DrawFn) -> InputFile:
    """A file with gaps, tensors back to back, and views that share bytes; listed in any order."""
    at, found = 0, list[TensorSpan]()
    for _ in range(draw(st.integers(0, 6))):
        shift = draw(st.integers(0, 9) | st.integers(-5, 5) | st.just(BLOB_MAX_BYTES + 7))
        span = draw(spans(max(at + shift, 0)))
        found.append(span)
        at = max(at, span.start + span.length)
    size = at + draw(st.integers(0, 3) | st.just(3 * BLOB_MAX_BYTES))
    return InputFile("x", 0o644, Sized(size), "safetensors", tuple(draw(st.permutations(found))))


@FEW
@given(tensor_files())
def test_a_file_is_cut_into_its_tensors_and_what_lies_between(file: InputFile) -> None:
    cuts = list(cut_file(file))
    assert sum(cut.length for cut in cuts) == file.source.size
    assert all(0 < cut.length <= BLOB_MAX_BYTES for cut in cuts)
    starts: dict[int, int] = {}
    at = 0
    for number, cut in enumerate(cuts):
        starts[at] = number
        at += cut.length
    end = 0
    for span in sorted(file.spans, key=lambda span: span.start):
        if span.start < end:
            continue  # it shares bytes with one before it
        wanted = list(cut_span(span))
        if wanted:
            first = starts[span.start]
            assert [cut.length for cut in cuts[first : first + len(wanted)]] == wanted
            assert all(cut.dtype == span.dtype for cut in cuts[first : first + len(wanted)])
        end = span.start + span.length


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((16 << 20,), [64 << 20]),
        (((16 << 20) + 1,), [64 << 20, 4]),
        ((3, 8 << 20), [64 << 20, 32 << 20]),  # two rows of 32 MiB fit, three do not
        ((3, 9 << 20), [36 << 20] * 3),
        ((2, 17 << 20), [64 << 20, 64 << 20, 8 << 20]),  # a row above the limit is cut plainly
        ((), [4]),
        ((0, 5), []),
    ],
)
def test_cut_of_known_shapes(shape: tuple[int, ...], wanted: list[int]) -> None:
    assert list(cut_span(TensorSpan("w", "F32", shape, 0, dense_bytes("F32", shape)))) == wanted
