"""Manifest: one artifact as identity, files, tensors and the blobs that hold them, in order.

Canonical JSON (sorted keys, no spaces, UTF-8), so that equal artifacts have equal bytes and the keyed digest
of those bytes is the artifact's id. A file is its blobs one after the other; a tensor is a byte range of a file.

Valid iff: every path is relative, without `.`, `..`, empty or overlong parts, and used once; every blob number
exists; a blob has 1 byte to 64 MiB; blob lengths of a file add up to its size; every tensor lies inside its file; no
identity is claimed twice, or with more than a row can say; and there is nothing in it, key, bit or identity field, that
packing it again would not write.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NewType

from .catalog import Named
from .digest import Digest, digest_bytes, keyed_hash, parse_digest
from .errors import FormatError
from .identity import KeyId, make_identity
from .kv_shape import KvShape, parse_shape
from .tensor import BLOB_MAX_BYTES, NAME_MAX_BYTES, TensorSpan

ManifestId = NewType("ManifestId", bytes)

MANIFEST_MAX_BYTES = 1 << 30
KINDS = ("weights", "kv", "intermediate", "file")
_FORMAT = 1
_MODE_MASK = 0o777


@dataclass(frozen=True, slots=True)
class BlobName:
    """The digest and length in bytes of one blob."""

    digest: Digest
    length: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an artifact; `blobs` are numbers into the manifest's blob list."""

    path: str
    mode: int
    size: int
    format: str
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor: the span it takes in file number `file`."""

    file: int
    span: TensorSpan


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor of file number `file` that is stored with it and has no span, and why."""

    file: int
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Claim:
    """An identity whose bytes these blobs are (numbers into the manifest's blob list): the prefix block of `tokens`
    tokens that ends a sequence, or with 0 tokens what the artifact as a whole was computed from.
    """

    id: KeyId
    tokens: int
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a version keeps from collection: blobs, and the identities that lead to them."""

    blobs: frozenset[Digest] = frozenset()
    claims: tuple[tuple[KeyId, Named], ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything an artifact is. `single` says that a file was put, not a directory holding one file; `shape` is what
    its model keeps of a token, where it is KV.
    """

    kind: str
    identity: tuple[tuple[str, str], ...]
    single: bool
    directories: tuple[tuple[str, int], ...]
    files: tuple[StoredFile, ...]
    tensors: tuple[Tensor, ...]
    blobs: tuple[BlobName, ...]
    claims: tuple[Claim, ...] = ()
    shape: KvShape | None = None
    unread: tuple[Unread, ...] = ()
    _starts: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def plain_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def packed(self) -> bytes:
        """Return the canonical bytes."""
        return canonical(self.fields())

    def fields(self) -> dict[str, Any]:
        """Return what is packed; `claims`, `shape` and `unread` only where there are any."""
        fields: dict[str, Any] = {
            "format": _FORMAT,
            "kind": self.kind,
            "identity": dict(self.identity),
            "single": self.single,
            "directories": [list(directory) for directory in self.directories],
            "files": [[f.path, f.mode, f.size, f.format, list(f.blobs)] for f in self.files],
            "tensors": [_pack_tensor(tensor) for tensor in self.tensors],
            "blobs": [[blob.digest.hex(), blob.length] for blob in self.blobs],
        }
        if self.claims:
            fields["claims"] = [[claim.id.hex(), claim.tokens, list(claim.blobs)] for claim in self.claims]
        if self.shape:
            fields["shape"] = self.shape.fields()
        if self.unread:
            fields["unread"] = [[unread.file, unread.name, unread.why] for unread in self.unread]
        return fields

    def needs(self) -> Needs:
        """Return what the artifact keeps from collection."""
        return parse_needs(self.fields())

    def id(self, digest_key: bytes) -> ManifestId:
        """Return the id of the artifact for the tenant whose digest key this is."""
        return ManifestId(digest_bytes(digest_key, self.packed()))

    def pieces(self, file: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (blob number, first byte, end byte within the blob) that make up a byte range of a file."""
        blobs = self.files[file].blobs
        starts = self._starts.get(file)
        if starts is None:  # kept, or a file of many tensors would take the square of their number
            starts = [0, *accumulate(self.blobs[number].length for number in blobs)]
            self._starts[file] = starts
        at = max(bisect_right(starts, start) - 1, 0)
        while at < len(blobs) and starts[at] < stop:
            yield blobs[at], max(start - starts[at], 0), min(stop, starts[at + 1]) - starts[at]
            at += 1


def canonical(value: object) -> bytes:
    """Return the one JSON encoding of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_manifest(value: Any) -> Manifest:
    """Return the manifest held in a parsed JSON value; raise FormatError if any rule of this module is broken."""
    try:
        if _count(value["format"]) != _FORMAT:
            raise FormatError(f"manifest format {value['format']!r} is not known, wanted {_FORMAT}")
        manifest = Manifest(
            kind=_text(value["kind"]),
            identity=make_identity(value["identity"]),
            single=value["single"] is True,
            directories=tuple((check_path(path), _count(mode) & _MODE_MASK) for path, mode in value["directories"]),
            files=tuple(
                StoredFile(check_path(p), _count(m) & _MODE_MASK, _count(s), _text(f), tuple(map(_count, b)))
                for p, m, s, f, b in value["files"]
            ),
            tensors=tuple(_parse_tensor(tensor) for tensor in value["tensors"]),
            blobs=tuple(BlobName(parse_digest(digest), _count(length)) for digest, length in value["blobs"]),
            claims=tuple(
                Claim(KeyId(parse_digest(id_)), _count(tokens), tuple(map(_count, blobs)))
                for id_, tokens, blobs in value.get("claims", ())
            ),
            shape=parse_shape(value["shape"]) if "shape" in value else None,
            unread=tuple(Unread(_count(file), _text(name), _text(why)) for file, name, why in value.get("unread", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"manifest is malformed: {error}") from None
    if manifest.fields() != value or type(value["single"]) is not bool:
        raise FormatError("manifest holds something this version does not know")
    _check(manifest)
    return manifest


def parse_needs(value: Any) -> Needs:
    """Return what a manifest in a parsed JSON value keeps from collection, and look at nothing else of it."""
    try:
        blobs = [parse_digest(digest) for digest, _ in value["blobs"]]
        about = canonical(value["shape"]) if "shape" in value else keyed_hash(bytes(32), *blobs)
        claims = tuple(
            (KeyId(parse_digest(id_)), Named(tokens, tuple([blobs[n] for n in numbers]), b"" if tokens else about))
            for id_, tokens, numbers in value.get("claims", ())
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"manifest is malformed: {error}") from None
    return Needs(frozenset(blobs), claims)


def check_path(path: object) -> str:
    """Return a path that stays inside whatever directory it is joined to; raise FormatError for any other."""
    if not isinstance(path, str) or not path or len(path.encode("utf-8", "replace")) > NAME_MAX_BYTES:
        raise FormatError(f"path {str(path)[:80]!r} is empty or longer than {NAME_MAX_BYTES} bytes")
    parts = path.split("/")
    if path.encode("utf-8", "replace").decode() != path:
        raise FormatError(f"path {path[:80]!r} has no UTF-8")
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in parts):
        raise FormatError(f"path {path[:80]!r} would leave its directory or has an empty or overlong part")
    return path


def _check(manifest: Manifest) -> None:
    paths = [file.path for file in manifest.files] + [path for path, _ in manifest.directories]
    if len(set(paths)) != len(paths):
        raise FormatError("manifest names a path twice")
    if manifest.kind not in KINDS or (manifest.single and len(manifest.files) != 1):
        raise FormatError("manifest is malformed: kind or file count")
    for file in manifest.files:
        if any(number >= len(manifest.blobs) for number in file.blobs):
            raise FormatError(f"manifest: {file.path}: a blob number is out of range")
        if sum(manifest.blobs[number].length for number in file.blobs) != file.size:
            raise FormatError(f"manifest: {file.path}: blob lengths do not add up to the file's size")
    if not all(0 < blob.length <= BLOB_MAX_BYTES for blob in manifest.blobs):
        raise FormatError(f"manifest: a blob is empty or exceeds {BLOB_MAX_BYTES} bytes")
    if any(number >= len(manifest.blobs) for claim in manifest.claims for number in claim.blobs):
        raise FormatError("manifest: a claim names a blob number that is out of range")
    if any(claim.tokens >> 32 or len(claim.blobs) >> 16 for claim in manifest.claims):
        raise FormatError("manifest: a claim has more tokens or blobs than the row of an identity can say")
    if len({claim.id for claim in manifest.claims}) != len(manifest.claims):
        raise FormatError("manifest claims an identity twice")
    if any(unread.file >= len(manifest.files) for unread in manifest.unread):
        raise FormatError("manifest: a tensor that has no span lies in no file")
    for tensor in manifest.tensors:
        span = tensor.span
        if tensor.file >= len(manifest.files) or span.start + span.length > manifest.files[tensor.file].size:
            raise FormatError(f"manifest: tensor {span.name[:80]!r} lies outside its file")


def _pack_tensor(tensor: Tensor) -> list[Any]:
    span = tensor.span
    packed = [span.name, span.dtype, list(span.shape), tensor.file, span.start, span.length]
    return packed if span.stride is None else [*packed, list(span.stride)]


def _parse_tensor(value: Any) -> Tensor:
    name, dtype, shape, file, start, length, *rest = value
    stride = tuple(map(_count, rest[0])) if rest else None
    span = TensorSpan(_text(name), _text(dtype), tuple(map(_count, shape)), _count(start), _count(length), stride)
    return Tensor(_count(file), span)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise FormatError(f"manifest is malformed: {str(value)[:40]!r} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FormatError(f"manifest is malformed: {str(value)[:40]!r} is not text")
    value.encode()  # a lone surrogate has no UTF-8: a ValueError, which the caller turns into FormatError
    return value
