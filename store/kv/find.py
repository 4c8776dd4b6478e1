"""Find: what is stored of a sequence, or under the id of a block, as a Prefix that reads it."""

from collections.abc import Callable, Mapping
from typing import Any

from ...formats.identity import Identity, KeyId
from ..segments.blobs import ReadParts
from .identity import complete, make_kv_identity
from .match import Chain, chain_of, count_stored, find_blocks, find_shape
from .prefix import Prefix, StoredBlocks, layout_of
from .tokens import pack_tokens


def sequence_chain(parts: ReadParts, tokens: Any, identity: Mapping[str, object]) -> Chain:
    """Return the prefix blocks that a sequence has under an identity, stored or not."""
    wanted = complete(make_kv_identity(identity))
    return chain_under(parts, pack_tokens(tokens), wanted)


def chain_under(parts: ReadParts, packed: memoryview, identity: Identity) -> Chain:
    """Return the chain of packed tokens under a complete identity."""
    return chain_of(parts.keys.tenant.digest_key, identity, packed, int(dict(identity)["block_tokens"]))


def find_longest(parts: ReadParts, tokens: Any, identity: Mapping[str, object]) -> Prefix:
    """Return the longest stored prefix of a sequence under exactly this identity. Its tokens_count may be 0."""
    wanted = complete(make_kv_identity(identity))
    return find_chain(parts, chain_under(parts, pack_tokens(tokens), wanted), wanted)


def find_chain(parts: ReadParts, chain: Chain, identity: Identity) -> Prefix:
    """Return the longest stored prefix of a chain, which must be the chain of this identity."""
    count = count_stored(parts.catalog, chain)
    shape = find_shape(parts.catalog, chain.root) if count else None
    matched = chain.blocks[:count] if shape else ()  # no shape: the KV was removed since it was counted
    id_ = matched[-1].hex() if matched else ""
    tokens = [chain.tokens_of(number) for number in range(len(matched))]
    layout = layout_of(dict(identity))
    stored = StoredBlocks(
        f"prefix {id_[:16]}", id_, shape, tokens, lambda: find_blocks(parts.catalog, matched), *layout
    )
    return Prefix(parts, stored)


def block_finder(parts: ReadParts, identity: Mapping[str, object]) -> Callable[[str], Prefix | None]:
    """Return a function that finds a good block of an identity by its id in hex, as a prefix of its own."""
    wanted = complete(make_kv_identity(identity))
    shape = find_shape(parts.catalog, chain_under(parts, memoryview(b""), wanted).root)
    layout = layout_of(dict(wanted))

    def find_block(key: str) -> Prefix | None:
        ids = [KeyId(bytes.fromhex(key))]
        [block] = find_blocks(parts.catalog, ids, whole=True)
        if shape is None or block is None or not block.tokens:
            return None
        stored = StoredBlocks(
            f"block {key[:16]}", key, shape, [block.tokens], lambda: find_blocks(parts.catalog, ids), *layout
        )
        return Prefix(parts, stored)

    return find_block
