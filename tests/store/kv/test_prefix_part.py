"""What is read of a prefix: each wanted token and layer is in exactly one read, and none is read that isn't wanted."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.kv_shape import KvShape, LayerShape
from arstore.store.kv.prefix_part import PrefixPart, TokenRun, block_reads, runs_of

SHAPE = KvShape("F16", tuple((number, LayerShape(2, 8, 2, 8)) for number in range(3)))
LARGE = KvShape("F32", tuple((number, LayerShape(32, 256, 32, 256)) for number in range(5)))  # 16 MiB for 256 tokens


@given(st.sets(st.integers(0, 99), min_size=1).map(sorted))
def test_runs_are_the_positions_side_by_side(positions: list[int]) -> None:
    runs = runs_of(positions)
    assert [token for run in runs for token in range(run.start, run.stop)] == positions
    assert all(positions[run.to] == run.start for run in runs)
    assert all(earlier.stop < later.start for earlier, later in pairwise(runs))
    assert PrefixPart(runs).tokens_count == len(positions)


def test_a_run_is_split_where_blocks_begin() -> None:
    run = TokenRun(10, 40, 5)
    assert run.within(0, 16) == (range(10, 16), 5)
    assert run.within(16, 16) == (range(16), 11)
    assert run.within(32, 16) == (range(8), 27)
    assert not run.within(48, 16)[0]


@given(st.sets(st.integers(0, 69), min_size=1).map(sorted), st.sets(st.integers(0, 2), min_size=1))
def test_only_blocks_and_layers_that_are_wanted_are_read(positions: list[int], layers: set[int]) -> None:
    reads = list(block_reads(SHAPE, [0, 16, 32, 48, 64, 70], PrefixPart(runs_of(positions), layers)))
    assert [read.block for read in reads] == sorted({token // 16 for token in positions})
    assert all(read.layers == tuple(sorted(layers)) for read in reads)
    assert [read.part.tokens for read in reads] == [6 if read.block == 4 else 16 for read in reads]


def test_a_large_block_is_read_by_several_threads() -> None:
    reads = list(block_reads(LARGE, [0, 256], PrefixPart([TokenRun(0, 256, 0)])))
    assert [(read.index, read.layers) for read in reads] == [(0, (0,)), (0, (1,)), (1, (2,)), (1, (3,)), (2, (4,))]
    assert {read.part.shape.layers[0][0] for read in reads} == {0, 2, 4}
