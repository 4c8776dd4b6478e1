"""KV: prefixes of sequences are put, found and read back. Each method is one call of a module beside this one.

put    arrays -> blocks of N tokens, each named by identity and every token from the start -> a version that claims them
match  identity, tokens -> ids of its blocks -> how many of them are stored, from the first on
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.identity import Identity
from ..artifacts.artifact import Artifact
from ..artifacts.commit import PutParts, PutResult, Wish
from ..artifacts.get import Written
from ..artifacts.names import Names
from ..artifacts.placing import place_dest
from ..artifacts.refs import parse_new_ref
from ..outputs import Outputs
from ..progress import Progress, ignore_progress
from ..segments.blobs import ReadParts
from .export import write_prefix
from .find import block_finder, find_chain, find_longest, sequence_chain
from .identity import complete, make_kv_identity
from .match import Chain
from .prefix import Prefix, prefix_of
from .put import put_kv


@dataclass(frozen=True, slots=True)
class Kv:
    """The KV of one tenant."""

    parts: PutParts
    read: ReadParts
    names: Names
    outputs: Outputs

    def put(
        self,
        kv: "Path | str | Mapping[str, Any]",
        *,
        name: str,
        tokens: Any,
        identity: Mapping[str, object],
        codec: str = "stored",
        pin: bool = False,
        join: bool = False,
        key_bounds: int = 0,
        multi_writer: bool = False,
        lock_wait_s: float = 0.0,
        progress: Progress = ignore_progress,
    ) -> PutResult:
        """Store the KV of a sequence as the newest version of a name; durable on return.

        `kv` is a safetensors file, or tensors in host memory by the same names. A block that is stored already is
        not stored twice. If a block of this identity is stored with other bytes, both are kept and Conflict is
        raised. With `join` there is no conflict: stored blocks are used, and only the others are taken from `kv`.
        `key_bounds` is a number of tokens, a page. If it isn't 0, the minimum and maximum of the keys of each page
        are put too, as the intermediate `NAME/key-bounds`.
        Raises BadInput, with nothing stored, if tokens, names, shapes or dtypes do not fit.
        """
        wanted = complete(make_kv_identity(identity))
        wish = Wish(parse_new_ref(name), "kv", wanted, codec, pin, multi_writer, lock_wait_s, join)
        return put_kv(self.parts, self.read, kv, tokens, wish, key_bounds, progress)

    def longest_prefix(self, tokens: Any, identity: Mapping[str, object]) -> Prefix:
        """Return the longest stored prefix of a sequence under exactly this identity. Its tokens_count may be 0.

        Full blocks of the sequence match, and a short last block if it ends where the sequence ends.
        """
        return find_longest(self.read, tokens, identity)

    def match(self, chain: Chain, identity: Identity) -> Prefix:
        """Return the longest stored prefix of a chain, which must be the chain of this identity."""
        return find_chain(self.read, chain, identity)

    def open(self, name: str) -> Prefix:
        """Return the whole KV that was put under a name; raise BadInput if it is not KV."""
        version = self.names.resolve(name)
        return prefix_of(Artifact(self.read, version, self.names.manifest(version)))

    def write(
        self,
        prefix: Prefix,
        dest: str | Path,
        *,
        layers: Sequence[int] | None = None,
        positions: tuple[int, int] | None = None,
        progress: Progress = ignore_progress,
    ) -> Written:
        """Write the KV of a prefix, or of some layers and token positions, to `dest` as one safetensors file."""
        return write_prefix(prefix, place_dest(dest, self.outputs), layers, positions, self.outputs, progress)

    def blocks_of(self, identity: Mapping[str, object]) -> Callable[[str], Prefix | None]:
        """Return a function that finds a good block of an identity by its id in hex, as a prefix of its own."""
        return block_finder(self.read, identity)

    def chain(self, tokens: Any, identity: Mapping[str, object]) -> Chain:
        """Return the prefix blocks that a sequence has under an identity, stored or not."""
        return sequence_chain(self.read, tokens, identity)
