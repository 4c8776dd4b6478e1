"""KV: prefixes of sequences put, found and read back.

put    arrays -> blocks of N tokens, each named by identity and every token from the start -> a version that claims them
match  identity, tokens -> ids of its blocks -> how many of them are stored, from the first on
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...formats.identity import Identity, KeyId, make_identity
from ..artifacts.artifact import Artifact
from ..artifacts.commit import PutParts, PutResult, Wish
from ..artifacts.get import Written
from ..artifacts.inputs import inputs_from_tensors
from ..artifacts.names import Names
from ..artifacts.put import put_inputs
from ..artifacts.refs import parse_new_ref
from ..disk import Disk
from ..progress import Progress, ignore_progress
from ..segments.blobs import ReadParts
from .arrays import arrays_from_path, arrays_from_tensors
from .export import write_prefix
from .identity import complete, make_kv_identity
from .key_bounds import bound_keys, bounds_name, check_bounds
from .match import Chain, chain_of, count_stored, find_blocks, find_shape
from .prefix import Prefix, layout_of, prefix_of
from .put import check_shape, put_blocks
from .tokens import pack_tokens


@dataclass(frozen=True, slots=True)
class Kv:
    """The KV of one tenant."""

    parts: PutParts
    read: ReadParts
    names: Names
    disk: Disk

    def put(
        self, kv: "Path | str | Mapping[str, Any]", *, name: str, tokens: Any, identity: Mapping[str, object],
        codec: str = "stored", pin: bool = False, join: bool = False, key_bounds: int = 0,
        multi_writer: bool = False, lock_wait_s: float = 0.0,
        progress: Progress = ignore_progress,
    ) -> PutResult:  # fmt: skip
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
        check_shape(given, fields)
        if key_bounds:
            check_bounds(given.shape, key_bounds)
            parse_new_ref(bounds_name(ref.name))
        # KV of another shape can't be joined: it is kept beside what is stored, and a conflict.
        join = join and find_shape(self.read.catalog, chain.root) in (None, given.shape)
        wish = Wish(ref, "kv", wanted, codec, pin, multi_writer, lock_wait_s, join)
        self.parts.recover()

        result = put_blocks(self.parts, given, chain, wish, progress)
        if key_bounds:
            self._put_bounds(wish, self.match(chain, wanted), key_bounds)
        return result

    def _put_bounds(self, wish: Wish, prefix: Prefix, page_tokens: int) -> None:
        own = {"sequence": prefix.id, "positions": f"0:{prefix.tokens_count}", "page_tokens": page_tokens}
        identity = make_identity({**dict(wish.identity), **own, "module": "key bounds"})
        ref = replace(wish.ref, name=bounds_name(wish.ref.name))
        inputs = inputs_from_tensors(bound_keys(prefix, page_tokens))
        put_inputs(
            self.parts,
            inputs,
            replace(wish, ref=ref, kind="intermediate", identity=identity, join=False),
            ignore_progress,
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
        return prefix_of(Artifact(self.read, found, self.names.manifest(found)))

    def write(
        self, prefix: Prefix, dest: str | Path, *, layers: Sequence[int] | None = None,
        positions: tuple[int, int] | None = None, progress: Progress = ignore_progress,
    ) -> Written:  # fmt: skip
        """Write the KV of a prefix, or of some layers and token positions, to `dest` as one safetensors file."""
        return write_prefix(prefix, dest, layers, positions, self.disk, progress)

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
