"""Match: which blocks of a sequence are stored, from the first on, and what their ids stand for."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...formats.catalog import Named
from ...formats.errors import FormatError
from ...formats.identity import Identity, KeyId, chain_blocks, identity_key, key_id
from ...formats.kv_shape import KvShape, parse_shape
from ...formats.strict_json import parse_json
from ..catalog.catalog import Catalog
from ..catalog.identities import TABLE, read_named
from ..catalog.lookup import is_whole
from ..catalog.tables import Rows
from ..catalog.usage import count_quarantines
from ..errors import Corrupt


@dataclass(frozen=True, slots=True)
class Chain:
    """A sequence as its prefix blocks: the id of its identity, then that of each block. The last block may be short."""

    root: KeyId
    blocks: tuple[KeyId, ...]
    block_tokens: int
    tokens_count: int

    @property
    def full_count(self) -> int:
        return self.tokens_count // self.block_tokens

    def tokens_of(self, number: int) -> int:
        """Return how many tokens block `number` has."""
        return min(self.block_tokens, self.tokens_count - number * self.block_tokens)


def chain_of(digest_key: bytes, identity: Identity, tokens: memoryview, block_tokens: int) -> Chain:
    """Return the chain of a sequence under an identity; `tokens` are u32 LE."""
    key = identity_key(digest_key)
    root = key_id(key, "kv", identity)
    return Chain(root, tuple(chain_blocks(key, root, tokens, block_tokens)), block_tokens, len(tokens) // 4)


def count_stored(catalog: Catalog, chain: Chain) -> int:
    """Return how many blocks of a chain, from the first on, are stored and not known to be bad.

    This takes a few look-ups for any length: full blocks are found by doubling the step and then bisecting, and a short
    last block by one look-up. It relies on this: the blocks before a stored block are stored.
    """
    full = chain.blocks[: chain.full_count]
    with catalog.tables.reading() as rows:
        known = _count_leading(rows, catalog, full)
        if known == len(full) < len(chain.blocks) and _is_known(rows, catalog, chain.blocks[known]):
            known += 1
        if known and count_quarantines(rows, catalog.tenant):
            bad = (n for n in range(known) if _read_block(rows, catalog, chain.blocks[n], whole=True) is None)
            known = next(bad, known)
    return known


def find_blocks(catalog: Catalog, ids: Sequence[KeyId], *, whole: bool = False) -> list[Named | None]:
    """Return what each id stands for, or None if it is not stored. With `whole`, also None if a blob is known bad."""
    with catalog.tables.reading() as rows:
        return [_read_block(rows, catalog, id_, whole=whole) for id_ in ids]


def find_shape(catalog: Catalog, root: KeyId) -> KvShape | None:
    """Return what the model of an identity keeps of a token, or None if nothing of it is stored."""
    [model] = find_blocks(catalog, [root])
    if model is None:
        return None
    try:
        return parse_shape(parse_json(model.about))
    except FormatError as error:
        raise Corrupt("catalog", str(error), hint="run 'arstore repair'") from None


def _count_leading(rows: Rows, catalog: Catalog, ids: Sequence[KeyId]) -> int:
    """Return how many ids have a row, from the first on. No id may have a row after the first that has none."""
    low, high = 0, 1
    while high <= len(ids) and _is_known(rows, catalog, ids[high - 1]):
        low, high = high, 2 * high
    high = min(high, len(ids) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_known(rows, catalog, ids[middle - 1]) else (low, middle)
    return low


def _is_known(rows: Rows, catalog: Catalog, id_: KeyId) -> bool:
    return rows.get(TABLE, catalog.keys.identity(id_)) is not None


def _read_block(rows: Rows, catalog: Catalog, id_: KeyId, *, whole: bool) -> Named | None:
    row = read_named(rows, catalog.keys, id_)
    return row.named if row and (not whole or is_whole(rows, catalog.keys, row.named)) else None
