"""Put: the KV of a sequence becomes blocks, each stored once, and one committed version that claims them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...formats.identity import Identity, make_identity
from ...formats.kv_shape import KvShape
from ...formats.manifest import BlobName, Claim, Manifest, StoredFile
from ..artifacts.commit import ATTEMPTS_COUNT, PutParts, PutResult, Wish, commit, kept_being_collected, owning, storing
from ..artifacts.cuts import Cut, group_cuts
from ..artifacts.ingest import Ingest
from ..artifacts.inputs import inputs_from_tensors
from ..artifacts.put import put_inputs, without_conflict
from ..artifacts.refs import parse_new_ref
from ..catalog.catalog import Catalog
from ..errors import BadInput
from ..progress import Progress, ignore_progress
from ..segments.blobs import ReadParts
from .arrays import BlockPart, KvArrays, KvSource, arrays_from_path, arrays_from_tensors, cut_of, parts_of
from .find import chain_under, find_chain
from .identity import check_precision
from .key_bounds import bound_keys, bounds_name, check_bounds
from .match import Chain, find_blocks, find_shape
from .prefix import Prefix
from .tokens import pack_tokens


def put_kv(
    parts: PutParts,
    read: ReadParts,
    kv: Path | str | Mapping[str, Any],
    tokens: Any,
    wish: Wish,
    key_bounds: int,
    progress: Progress,
) -> PutResult:
    """Store the KV of a sequence, and the bounds of its keys by pages of `key_bounds` tokens, if that isn't 0.

    `Kv.put` says the rest.
    """
    fields = dict(wish.identity)
    chain = chain_under(read, pack_tokens(tokens), wish.identity)
    layout = fields.get("layout", "NHD")
    if isinstance(kv, Mapping):
        given = arrays_from_tensors(kv, layout, chain.tokens_count)
    else:
        given = arrays_from_path(Path(kv), layout, chain.tokens_count)
    check_shape(given, fields)
    if key_bounds:
        check_bounds(given.shape, key_bounds)
        parse_new_ref(bounds_name(wish.ref.name))
    # KV of another shape can't be joined. It is kept beside what is stored, and is a conflict.
    join = wish.join and find_shape(read.catalog, chain.root) in (None, given.shape)
    parts.recover()

    result = put_blocks(parts, given, chain, replace(wish, join=join), progress)
    if key_bounds:
        _put_bounds(parts, wish, find_chain(read, chain, wish.identity), key_bounds)
    return result


def _put_bounds(parts: PutParts, wish: Wish, prefix: Prefix, page_tokens: int) -> None:
    own = {"sequence": prefix.id, "positions": f"0:{prefix.tokens_count}", "page_tokens": page_tokens}
    identity = make_identity({**dict(wish.identity), **own, "module": "key bounds"})
    ref = replace(wish.ref, name=bounds_name(wish.ref.name))
    wanted = replace(wish, ref=ref, kind="intermediate", identity=identity, join=False)
    put_inputs(parts, inputs_from_tensors(bound_keys(prefix, page_tokens)), wanted, ignore_progress)


def check_shape(given: KvArrays, fields: Mapping[str, str]) -> None:
    """Raise BadInput for KV that differs from what its identity says, or that lacks a layer."""
    shape = given.shape
    check_precision(fields["precision"], shape.dtype)
    numbers = [number for number, _ in shape.layers]
    layers = str(dict(make_identity({"layers": numbers}))["layers"])
    if fields.get("layers", layers) != layers:
        raise BadInput("kv", f"holds layers {layers}, the identity says {fields['layers']}")
    if "layers" not in fields and numbers != list(range(len(numbers))):
        missing = next(n for n, number in enumerate([*numbers, -1]) if n != number)
        raise BadInput("kv", f"layer {missing} is missing", hint="if it is meant to be, say so with the field layers")
    layer = shape.layers[0][1]
    for name, value in (("kv_heads", layer.key_heads), ("head_dim", layer.key_dim), ("page_tokens", given.page)):
        if value is not None and fields.get(name, str(value)) != str(value):
            raise BadInput("kv", f"has {name} {value}, the identity says {fields[name]}")


def put_blocks(parts: PutParts, given: KvArrays, chain: Chain, wish: Wish, progress: Progress) -> PutResult:
    """Store the blocks of a sequence that are missing, and commit the version that claims them. Durable on return.

    Raises Conflict if a block is stored with other bytes. Then both are kept.
    """
    with owning(parts, wish) as lease:
        for _ in range(ATTEMPTS_COUNT):
            with storing(parts, wish, progress) as ingest:
                joined = _joined(parts.catalog, chain, given.shape) if wish.join else {}
                manifest = _manifest(ingest, given, chain, wish.identity, joined)
                result = commit(parts, ingest, manifest, wish, lease)
            if result:
                return without_conflict(result)  # out of `storing`: a version that is committed has not failed
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
    fresh = iter([BlobName(digest, cut.length) for digest, cut in zip(digests, cuts, strict=True)])
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
    """Return the blobs of the blocks that are stored already and not known to be bad, by number of the block."""
    if find_shape(catalog, chain.root) != shape:
        return {}
    stored: dict[int, tuple[BlobName, ...]] = {}
    for number, block in enumerate(find_blocks(catalog, chain.blocks, whole=True)):
        if block is not None:
            parts = parts_of(shape, 0, chain.tokens_of(number))
            blobs = zip(block.blobs, parts, strict=True)
            stored[number] = tuple(BlobName(digest, part.length) for digest, part in blobs)
    return stored
