"""The local tier: the store's own content, as objects that can be staged. It is the truth; put and gc change it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...formats.kv_layout import parse_slot
from ...formats.kv_shape import KvShape
from ...formats.tensor import TensorSpan, data_bytes
from ..artifacts.artifact import Artifact
from ..artifacts.tensors import aligned
from ..disk import FileSpan, Out
from ..errors import NotFound
from ..kv.prefix import Prefix, prefix_of
from ..kv.prefix_part import PrefixPart, TokenRun

_Read = Callable[[int, Out], None]
_ZERO_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A stored object as one run of bytes: its tensors, then its files without tensors; KV in its layout."""

    name: str
    spans: tuple[TensorSpan, ...]
    read: _Read

    @property
    def length_bytes(self) -> int:
        return data_bytes(self.spans)


class Local:
    """The stored objects of a tenant: versions, and the prefix blocks of one identity."""

    tier = "local"

    def __init__(
        self, get: Callable[[str], Artifact], block: Callable[[str], Prefix | None], known: Iterable[Artifact] = ()
    ) -> None:
        """Take functions that get a version by its id and a prefix block by its key, and versions that are known."""
        self._get, self._block = get, block
        # Every version that was asked for. They are kept because a large one takes a while to lay out.
        self._versions = {artifact.summary.id: stored_artifact(artifact) for artifact in known}

    def hold(self, key: str, until_s: float = 0.0) -> StoredObject | None:
        """Return a stored object; None if there is none. Reading it raises NotFound if it was removed meanwhile."""
        if block := self._block(key):
            return stored_block(block, f"block {key}")
        try:
            if key not in self._versions:
                self._versions[key] = stored_artifact(self._get(key))
            return self._versions[key]
        except NotFound:
            return None

    def length_bytes(self, key: str) -> int:
        """Return the bytes that an object takes in a tier above; raise NotFound if there is none."""
        if (held := self.hold(key)) is None:
            raise NotFound(key[:16], "is not in local")
        return held.length_bytes


def version_id(artifact: Artifact) -> str:
    """Return NAME@N."""
    return f"{artifact.summary.name}@{artifact.summary.version}"


def stored_artifact(artifact: Artifact) -> StoredObject:
    """Return a version as an object: its tensors and its files without tensors, side by side; KV in its layout."""
    name = version_id(artifact)
    if artifact.manifest.shape:
        return stored_prefix(prefix_of(artifact), name)
    ranges, spans = artifact.side_by_side()
    gaps = _gaps(spans)

    def read(at: int, out: Out) -> None:
        pieces = []
        for (file, start, stop), to in ranges.items():
            first, last = max(to, at), min(to + stop - start, at + len(out))
            if first < last:
                pieces.append(((file, start + first - to, start + last - to), out[first - at : last - at]))
        artifact.fill(pieces, cold=True)
        _zero(gaps, at, out)

    return StoredObject(name, spans, read)


def stored_block(block: Prefix, name: str) -> StoredObject:
    """Return a prefix block as an object: stored bytes, each head by itself, seen in the layout that was put.

    Strides give the layouts NHD and HND without converting bytes. All other layouts are converted.
    """
    assert block.shape
    if block.layout not in ("NHD", "HND"):
        return stored_prefix(block, name)
    return StoredObject(name, _block_spans(block.shape, block.tokens_count, block.layout), block.fill)


@lru_cache(maxsize=64)
def _block_spans(shape: KvShape, tokens: int, layout: str) -> tuple[TensorSpan, ...]:
    """Return where in a stored block each tensor lies. It is the same for all blocks of a shape and a length."""
    spans = []
    for layer, side, heads, dim, at in shape.places(tokens):
        extents, stride = (heads, tokens, dim), None
        if layout == "NHD":
            extents, stride = (tokens, heads, dim), (dim, tokens * dim, 1)
        length = heads * tokens * dim * shape.element_bytes
        spans.append(TensorSpan(f"layers.{layer}.{side}", shape.dtype, extents, at, length, stride))
    return tuple(spans)


def stored_prefix(prefix: Prefix, name: str) -> StoredObject:
    """Return KV as an object, in the layout that was put."""
    assert prefix.shape
    count = prefix.tokens_count
    spans = prefix.spans(prefix.shape, count, prefix.layout, prefix.page_tokens)
    kept: dict[int, dict[str, memoryview]] = {}  # the layer that was read last
    last_is_short = count % (prefix.page_tokens or 1) != 0
    gaps = [(0, data_bytes(spans))] if last_is_short else _gaps(spans)

    def read(at: int, out: Out) -> None:
        if isinstance(out, FileSpan):  # converting needs memory, so the file is mapped
            read(at, out.mapped())
            out.told(len(out))
            return
        if at == 0 and len(out) >= data_bytes(spans):
            _zero(gaps, at, out)
            prefix.load(PrefixPart([TokenRun(0, count, 0)]), into=out)
            return
        _zero(gaps, at, out)
        for span in spans:
            first, last = max(span.start, at), min(span.place.stop, at + len(out))
            if first < last:
                arrays = layer(parse_slot(span.name)[0])
                out[first - at : last - at] = arrays[span.name][first - span.start : last - span.start]

    def layer(number: int) -> dict[str, memoryview]:
        """Return the arrays of a layer, which is the least that can be converted to its layout."""
        if (arrays := kept.get(number)) is None:
            kept.clear()
            loaded = prefix.load(PrefixPart([TokenRun(0, count, 0)], [number]))
            kept[number] = arrays = {span.name: loaded.buffer[span.place] for span in loaded.spans}
        return arrays

    return StoredObject(name, spans, read)


def _gaps(spans: Sequence[TensorSpan]) -> list[tuple[int, int]]:
    """Return the gaps behind tensors, each as its first byte and its end."""
    stops = {span.place.stop for span in spans}
    return [(stop, aligned(stop)) for stop in sorted(stops) if aligned(stop) > stop]


def _zero(gaps: Sequence[tuple[int, int]], at: int, out: Out) -> None:
    """Zero the gaps in `out`, which begins at `at`, so that nothing that was in that memory before gets out."""
    if isinstance(out, FileSpan):  # the file is new, so its gaps are zero
        return
    for first, last in ((max(first, at), min(last, at + len(out))) for first, last in gaps):
        for start in range(first, last, _ZERO_BYTES):
            stop = min(start + _ZERO_BYTES, last)
            out[start - at : stop - at] = bytes(stop - start)
