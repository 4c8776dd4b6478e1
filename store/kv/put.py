"""Put: the KV of a sequence becomes blocks, each stored once, and one committed version that claims them."""

from collections.abc import Mapping
from dataclasses import replace

from ...formats.identity import Identity, make_identity
from ...formats.kv_shape import KvShape
from ...formats.manifest import BlobName, Claim, Manifest, StoredFile
from ..artifacts.commit import ATTEMPTS_COUNT, PutParts, PutResult, Wish, commit, kept_being_collected, owning, storing
from ..artifacts.cuts import Cut, group_cuts
from ..artifacts.ingest import Ingest
from ..artifacts.put import without_conflict
from ..catalog.catalog import Catalog
from ..errors import BadInput
from ..progress import Progress
from .arrays import BlockPart, KvArrays, KvSource, cut_of, parts_of
from .match import Chain, find_blocks, find_shape


def check_shape(given: KvArrays, fields: Mapping[str, str]) -> None:
    """Refuse KV that is not what its identity says, or that lacks a layer."""
    shape, (_, layer) = given.shape, given.shape.layers[0]
    numbers = [number for number, _ in shape.layers]
    said = str(dict(make_identity({"layers": numbers}))["layers"])
    if fields.get("layers", said) != said:
        raise BadInput("kv", f"holds layers {said}, the identity says {fields['layers']}")
    if "layers" not in fields and numbers != list(range(len(numbers))):
        missing = next(n for n, number in enumerate([*numbers, -1]) if n != number)
        raise BadInput("kv", f"layer {missing} is missing", hint="if it is meant to be, say so with the field layers")
    for name, found in (("kv_heads", layer.key_heads), ("head_dim", layer.key_dim), ("page_tokens", given.page)):
        if found is not None and fields.get(name, str(found)) != str(found):
            raise BadInput("kv", f"has {name} {found}, the identity says {fields[name]}")


def put_blocks(parts: PutParts, given: KvArrays, chain: Chain, wish: Wish, progress: Progress) -> PutResult:
    """Store the blocks of a sequence that are not there, and commit the version that claims them. Durable on return.

    Raises Conflict if a block is stored with other bytes: then both are kept.
    """
    with owning(parts, wish) as lease:
        for _ in range(ATTEMPTS_COUNT):
            with storing(parts, wish, progress) as ingest:
                joined = _joined(parts.catalog, chain, given.shape) if wish.join else {}
                manifest = _manifest(ingest, given, chain, wish.identity, joined)
                if result := commit(parts, ingest, manifest, wish, lease):
                    return without_conflict(result)
    raise kept_being_collected(wish)


def _manifest(
    ingest: Ingest, given: KvArrays, chain: Chain, identity: Identity, stored: Mapping[int, tuple[BlobName, ...]]
) -> Manifest:
    """Store the blocks that are not stored, and return the manifest that names all."""
    parts: list[BlockPart] = []
    cuts: list[Cut] = []
    missing = [number for number in range(len(chain.blocks)) if number not in stored]
    for number in missing:
        same = parts_of(given.shape, 0, chain.tokens_of(number))
        parts += [replace(part, first_token=number * chain.block_tokens) for part in same]
        cuts += map(cut_of, same)
    source = KvSource(given, parts)
    digests = [digest for group in ingest.run(list(group_cuts(source, cuts))) for digest in group]
    source.check_unchanged()
    fresh = iter([BlobName(digest, one.length) for digest, one in zip(digests, cuts, strict=True)])
    made = {number: tuple(next(fresh) for _ in parts_of(given.shape, 0, chain.tokens_of(number))) for number in missing}
    blocks = [made[number] if number in made else stored[number] for number in range(len(chain.blocks))]
    numbers: dict[BlobName, int] = {}
    used = [tuple(numbers.setdefault(blob, len(numbers)) for blob in block) for block in blocks]
    claims = [Claim(chain.root, 0, ())]
    claims += [Claim(id_, chain.tokens_of(n), used[n]) for n, id_ in enumerate(chain.blocks)]
    size = sum(blob.length for block in blocks for blob in block)
    file = StoredFile("kv", 0o644, size, "kv", tuple(number for block in used for number in block))
    return Manifest("kv", identity, True, (), (file,), (), tuple(numbers), tuple(claims), given.shape)


def _joined(catalog: Catalog, chain: Chain, shape: KvShape) -> dict[int, tuple[BlobName, ...]]:
    """Return the blobs of the blocks that are stored already and good, by number."""
    if find_shape(catalog, chain.root) != shape:
        return {}
    found: dict[int, tuple[BlobName, ...]] = {}
    for number, named in enumerate(find_blocks(catalog, chain.blocks, whole=True)):
        if named is not None:
            parts = parts_of(shape, 0, chain.tokens_of(number))
            lengths = (part.length for part in parts)
            found[number] = tuple(BlobName(*one) for one in zip(named.blobs, lengths, strict=True))
    return found
