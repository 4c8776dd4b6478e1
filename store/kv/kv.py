"""KV: prefixes of sequences put, found and read back.

put    arrays -> blocks of N tokens, each named by identity and every token from the start -> a version that claims them
match  identity, tokens -> ids of its blocks -> how many of them are stored, from the first on
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...formats.identity import Identity, KeyId, make_identity
from ...formats.kv_shape import KvShape
from ...formats.manifest import BlobName, Claim, Manifest, StoredFile
from ..artifacts.artifact import Artifact
from ..artifacts.get import Written, write_kv
from ..artifacts.ingest import Cut, Ingest, group_cuts
from ..artifacts.inputs import inputs_from_tensors
from ..artifacts.names import Names, Summary
from ..artifacts.put import PutParts, Stored, Wish, put_inputs, put_made
from ..artifacts.refs import parse_new_ref
from ..artifacts.select import Selection
from ..disk import Disk
from ..errors import BadInput
from ..progress import Progress
from ..segments.blobs import ReadParts
from .arrays import KvArrays, KvSource, Part, arrays_from_path, arrays_from_tensors, cut_of, parts_of
from .identity import complete, make_kv_identity
from .key_bounds import bound_keys, bounds_name, check_bounds
from .match import Chain, chain_of, count_stored, find_blocks, find_shape
from .prefix import Prefix, layout_of
from .tokens import pack_tokens


@dataclass(frozen=True, slots=True)
class Kv:
    """The KV of one tenant."""

    parts: PutParts
    read: ReadParts
    names: Names
    disk: Disk
    recover: Callable[[], int]

    def put(
        self, kv: "Path | str | Mapping[str, Any]", *, name: str, tokens: Any, identity: Mapping[str, object],
        codec: str = "stored", pin: bool = False, join: bool = False, key_bounds: int = 0,
        multi_writer: bool = False, lock_wait_s: float = 0.0,
        progress: Progress = lambda advance_bytes, total_bytes: None,
    ) -> Stored:  # fmt: skip
        """Store the KV of a sequence as the newest version of a name; durable on return.

        `kv` is a safetensors file, or tensors in host memory by the same names. Blocks that are stored already are
        not stored twice. Where a block of this identity is stored with other bytes, both are kept and Conflict is
        raised; with `join` blocks that are stored stand for the sequence too, and only the others are taken from `kv`.
        With `key_bounds` minimum and maximum of the keys of each page of so many tokens are put as an intermediate,
        `NAME/key-bounds`. Raises BadInput, with nothing stored, if tokens, names, shapes or dtypes do not fit.
        """
        wanted = complete(make_kv_identity(identity))
        ref, fields = parse_new_ref(name), dict(wanted)
        chain = self._chain(pack_tokens(tokens), wanted)
        take = arrays_from_tensors if isinstance(kv, Mapping) else arrays_from_path
        given = take(kv if isinstance(kv, Mapping) else Path(kv), fields.get("layout", "NHD"), chain.tokens_count)  # type: ignore[arg-type]
        _check_shape(given, fields)
        if key_bounds:
            check_bounds(given.shape, key_bounds)
            parse_new_ref(bounds_name(ref.name))
        # KV of another shape can't be joined: it is kept beside what is stored, and a conflict.
        join = join and find_shape(self.read.catalog, chain.root) in (None, given.shape)
        wish = Wish(ref, "kv", wanted, codec, pin, multi_writer, lock_wait_s, join)
        self.recover()

        def make(ingest: Ingest) -> Manifest:
            stored = self._joined(chain, given.shape) if join else {}
            return _manifest(ingest, given, chain, wanted, stored)

        stored_kv = put_made(self.parts, wish, progress, make)
        if key_bounds:
            self._put_bounds(wish, self.match(chain, wanted), key_bounds)
        return stored_kv

    def _put_bounds(self, wish: Wish, prefix: Prefix, page_tokens: int) -> None:
        own = {"sequence": prefix.id, "positions": f"0:{prefix.tokens_count}", "page_tokens": page_tokens}
        identity = make_identity({**dict(wish.identity), **own, "module": "key bounds"})
        ref = replace(wish.ref, name=bounds_name(wish.ref.name))
        inputs = inputs_from_tensors(bound_keys(prefix, page_tokens))
        put_inputs(
            self.parts,
            inputs,
            replace(wish, ref=ref, kind="intermediate", identity=identity, join=False),
            lambda *_: None,
        )

    def longest_prefix(self, tokens: Any, identity: Mapping[str, object]) -> Prefix:
        """Return the longest stored prefix of a sequence under exactly this identity; its tokens_count may be 0.

        Full blocks of the sequence match, and a short last block if it ends where the sequence ends.
        """
        wanted = complete(make_kv_identity(identity))
        return self.match(self._chain(pack_tokens(tokens), wanted), wanted)

    def match(self, chain: Chain, identity: Identity) -> Prefix:
        """Return the longest stored prefix of a chain, which is that of this identity."""
        count = count_stored(self.read.catalog, chain)
        shape = find_shape(self.read.catalog, chain.root) if count else None
        matched = chain.blocks[:count] if shape else ()  # None if it was removed meanwhile
        id_ = matched[-1].hex() if matched else ""
        layout, page_tokens = layout_of(dict(identity))
        return Prefix(
            self.read, f"prefix {id_[:16]}", id_, shape, [chain.tokens_of(n) for n in range(len(matched))],
            lambda: find_blocks(self.read.catalog, matched), layout=layout, page_tokens=page_tokens,
        )  # fmt: skip

    def open(self, name: str) -> Prefix:
        """Return the whole KV that was put under a name; raise BadInput if that is none."""
        found = self.names.resolve(name)
        return Artifact(self.read, found, self.names.manifest(found)).prefix()

    def write(
        self, prefix: Prefix, dest: str | Path, *, layers: Sequence[int] | None = None,
        positions: tuple[int, int] | None = None, progress: Progress = lambda advance_bytes, total_bytes: None,
    ) -> Written:  # fmt: skip
        """Write the KV of a prefix, or of some layers and token positions, to `dest` as one safetensors file."""
        first, end = positions or (0, prefix.tokens_count)
        if not 0 <= first < end <= prefix.tokens_count:
            raise BadInput(f"positions {first}:{end}", f"the prefix has {prefix.tokens_count} tokens")
        return write_kv(prefix, Path(dest).absolute(), layers, (first, end), self.disk, progress)

    def write_named(self, one: Summary, dest: Path, selection: Selection | None, progress: Progress) -> Written:
        """Write what was put under a name, or layers of it, to `dest`; into it where it is a directory."""
        layers = selection.layers if selection else ()
        if selection and selection != Selection(layers=layers):
            raise BadInput(one.name, "is kv: of it layers can be selected", hint="see 'arstore kv get'")
        dest = dest / f"{one.name.rpartition('/')[2]}.safetensors" if dest.is_dir() else dest
        return self.write(self.open(f"{one.name}@{one.version}"), dest, layers=layers or None, progress=progress)

    def blocks_of(self, identity: Mapping[str, object]) -> Callable[[str], Prefix | None]:
        """Return how a good block of KV under an identity is found by its id in hex: as a prefix of its own."""
        wanted = complete(make_kv_identity(identity))
        shape = find_shape(self.read.catalog, self._chain(memoryview(b""), wanted).root)
        layout, page_tokens = layout_of(dict(wanted))

        def find(key: str) -> Prefix | None:
            ids = [KeyId(bytes.fromhex(key))]
            [named] = find_blocks(self.read.catalog, ids, whole=True)
            if shape is None or named is None or not named.tokens:
                return None
            return Prefix(
                self.read, f"block {key[:16]}", key, shape, [named.tokens], lambda: find_blocks(self.read.catalog, ids),
                layout=layout, page_tokens=page_tokens,
            )  # fmt: skip

        return find

    def chain(self, tokens: Any, identity: Mapping[str, object]) -> Chain:
        """Return the prefix blocks that a sequence has under an identity, stored or not."""
        return self._chain(pack_tokens(tokens), complete(make_kv_identity(identity)))

    def _chain(self, packed: memoryview, identity: Identity) -> Chain:
        block_tokens = int(dict(identity)["block_tokens"])
        return chain_of(self.read.keys.tenant.digest_key, identity, packed, block_tokens)

    def _joined(self, chain: Chain, shape: KvShape) -> dict[int, tuple[BlobName, ...]]:
        """Return the blobs of the blocks that are stored already and good, by number."""
        if find_shape(self.read.catalog, chain.root) != shape:
            return {}
        found: dict[int, tuple[BlobName, ...]] = {}
        for number, named in enumerate(find_blocks(self.read.catalog, chain.blocks, whole=True)):
            if named is not None:
                parts = parts_of(shape, 0, chain.tokens_of(number))
                lengths = (part.length for part in parts)
                found[number] = tuple(BlobName(*one) for one in zip(named.blobs, lengths, strict=True))
        return found


def _check_shape(given: KvArrays, fields: Mapping[str, str]) -> None:
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


def _manifest(
    ingest: Ingest, given: KvArrays, chain: Chain, identity: Identity, stored: Mapping[int, tuple[BlobName, ...]]
) -> Manifest:
    """Store the blocks that are not stored, and return the manifest that names all."""
    parts: list[Part] = []
    cuts: list[Cut] = []
    missing = [number for number in range(len(chain.blocks)) if number not in stored]
    for number in missing:
        same = parts_of(given.shape, 0, chain.tokens_of(number))
        parts += [replace(part, first_token=number * chain.block_tokens) for part in same]
        cuts += map(cut_of, same)
    digests = [digest for group in ingest.run(list(group_cuts(KvSource(given, parts), cuts))) for digest in group]
    if given.source:
        given.source.check_unchanged()
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
