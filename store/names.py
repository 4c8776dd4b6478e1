"""Names: refs and ids to versions, and everything that only changes names: list, pin, tag, rm.

A version's summary is sealed under that version's own key, so that once the key is destroyed even the name is gone.
"""

import contextlib
import fnmatch
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..formats.catalog import BlobRow, VersionRow
from ..formats.digest import Digest, digest_bytes
from ..formats.errors import FormatError
from ..formats.frames import seal, unseal
from ..formats.manifest import MANIFEST_MAX_BYTES, Manifest, ManifestId, parse_json, parse_manifest, parse_needs
from ..formats.record import KIND_VERSION
from .catalog import Catalog
from .errors import BadInput, Conflict, Corrupt, NotFound, StoreError
from .records import OpenRecord, TenantKeys, corrupt
from .segments import SegmentReader

NAME_MAX_BYTES = 512
LABEL_MAX_BYTES = 128
ID_PREFIX_MIN = 8
_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_USE_GRAIN_S = 3600
_SUMMARY = "version summary"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ref:
    """A name and, where it was given, a version number or a label."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a listing shows of a version. `created` is UTC in ISO 8601."""

    name: str
    version: int
    label: str | None
    id: str
    kind: str
    model: str | None
    plain_bytes: int
    created: str
    pinned: bool

    def sealed(self, key: bytes | None) -> bytes:
        """Return the summary as the catalog keeps it: sealed under the version's key, plain where there is none."""
        fields = [self.name, self.label, self.id, self.kind, self.model, self.plain_bytes, self.created]
        packed = json.dumps(fields, separators=(",", ":")).encode()
        return packed if key is None else seal(key, _SUMMARY, packed, secrets.token_bytes(12))


@dataclass(frozen=True, slots=True)
class Found:
    """A version that a ref or id led to."""

    summary: Summary
    row: VersionRow

    @property
    def text(self) -> str:
        return f"{self.summary.name}@{self.summary.version}"


def parse_ref(text: str) -> Ref:
    """Return the ref written as NAME or NAME@VERSION; raise BadInput if it is not one."""
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX_BYTES:
        raise BadInput(repr(text[:80]), f"a name is 1 to {NAME_MAX_BYTES} of A-Z a-z 0-9 . _ / -")
    if not at:
        return Ref(name)
    if not _NAME.fullmatch(version) or len(version) > LABEL_MAX_BYTES:
        raise BadInput(repr(text[:80]), "a version is a number or a label of A-Z a-z 0-9 . _ / -")
    if version.isdecimal():
        if not 0 < int(version) < 1 << 32:
            raise BadInput(repr(text[:80]), "no such version number")
        return Ref(name, version=int(version))
    return Ref(name, label=version)


def parse_new_ref(text: str) -> Ref:
    """Return the ref, NAME or NAME@LABEL, under which something is to be stored; raise BadInput if it is not one."""
    ref = parse_ref(text)
    if ref.version is not None:
        raise BadInput(text, "version numbers are given by the store; use a label")
    return ref


class Names:
    """One tenant's names."""

    def __init__(self, catalog: Catalog, keys: TenantKeys, segments: SegmentReader) -> None:
        self._catalog, self._keys, self._segments = catalog, keys, segments

    def all(self) -> Iterator[Found]:
        """Yield every version of every name, in no particular order of names."""
        yield from self._opened(None)

    def listed(self, glob: str | None = None, kind: str | None = None) -> list[Found]:
        """Return the versions whose names match, by name and version."""
        found = [
            one for one in self.all()
            if (glob is None or fnmatch.fnmatchcase(one.summary.name, glob)) and kind in (None, one.summary.kind)
        ]  # fmt: skip
        return sorted(found, key=lambda one: (one.summary.name, one.summary.version))

    def versions(self, name: str) -> list[Found]:
        """Return the versions of one name, oldest first."""
        return list(self._opened(name))

    def resolve(self, text: str) -> Found:
        """Return the version a ref or an id prefix names; raise NotFound, or BadInput if it is ambiguous."""
        ref = parse_ref(text)
        versions = self.versions(ref.name)
        for found in reversed(versions):
            if ref.version in (None, found.summary.version) and ref.label in (None, found.summary.label):
                return found
        if versions:
            known = ", ".join(found.summary.label or str(found.summary.version) for found in versions[-8:])
            raise NotFound(text, "no such version", hint=f"{ref.name} has {known}")
        if re.fullmatch(rf"[0-9a-f]{{{ID_PREFIX_MIN},64}}", text):
            return self._by_id(text)
        raise NotFound(text, "no such name", hint="'arstore ls' lists the names there are")

    def manifest(self, found: Found) -> Manifest:
        """Return what a version consists of; raise Corrupt if its record is bad, NotFound if it was removed since."""
        return self._read(found, parse_manifest)

    def needs(self, found: Found) -> frozenset[Digest]:
        """Return the blobs a version needs; raise as `manifest` does."""
        return self._read(found, parse_needs)

    def _read(self, found: Found, parse: Callable[[Any], T]) -> T:
        place = found.row.place
        try:
            if place.plain_bytes > MANIFEST_MAX_BYTES:
                raise FormatError(f"version record exceeds the limit of {MANIFEST_MAX_BYTES} bytes")
            record = OpenRecord(self._segments, self._keys, place, KIND_VERSION)
            packed = record.read_all()
            record.check_ends(digest_bytes(self._keys.tenant.digest_key, packed))
            record.check_padding()
            return parse(parse_json(packed)["manifest"])
        except (Corrupt, FormatError, KeyError, TypeError) as error:
            if not self._is_there(found.summary.name, found.row):
                raise NotFound(found.text, "was removed while it was read") from None
            raise error if isinstance(error, Corrupt) else corrupt(place, None, error) from None

    def note_use(self, found: Found, now_s: int) -> None:
        """Note that a version was read, to the hour; where that can't be written it is left."""
        if now_s - found.row.used_s >= _USE_GRAIN_S:
            with contextlib.suppress(StoreError):
                self._catalog.set_used(found.summary.name, found.summary.version, now_s)

    def set_pinned(self, text: str, pinned: bool) -> Found:
        """Pin or unpin a version, durably."""
        found = self.resolve(text)
        self._catalog.set_pinned(found.summary.name, found.summary.version, pinned)
        return replace(found, summary=replace(found.summary, pinned=pinned))

    def addressed(self, text: str) -> list[Found]:
        """Return the version a ref or id names, or every version of a name given without one; raise NotFound."""
        return (self.versions(text) if "@" not in text and parse_ref(text) else []) or [self.resolve(text)]

    def remove(self, text: str, *, all_versions: bool, dry_run: bool) -> list[Found]:
        """Drop one version of a name, or all of them, durably; return what was (or would be) dropped.

        Blobs that nothing else needs stay until they are collected.
        """
        if all_versions and "@" in text:
            raise BadInput(text, "names one version; to drop all, give the bare name")
        doomed = self.versions(parse_ref(text).name) if all_versions else [self.resolve(text)]
        if not doomed:
            raise NotFound(text, "no such name")
        for found in doomed if not dry_run else ():
            self.drop(found)
        return doomed

    def drop(self, found: Found) -> None:
        """Drop a version, durably."""
        self._catalog.drop(found.summary.name, found.summary.version, self._needed(found))

    def released(self, dropped: Iterable[Found]) -> list[BlobRow]:
        """Return the rows of blobs that nothing would need once these versions are dropped."""
        counts = Counter(digest for found in dropped for digest in self._needed(found))
        return [row for digest, row in self._catalog.find_blobs(counts).items() if 0 < row.refs <= counts[digest]]

    def _needed(self, found: Found) -> frozenset[Digest]:
        """Return the blobs a version needs; none where its record is bad, for a bad version must be removable."""
        try:
            return self.needs(found)
        except (Corrupt, NotFound):
            return frozenset()

    def check_free(self, ref: Ref, manifest_id: ManifestId) -> Found | None:
        """Return the version that already has this label and content, None if the label is free; else Conflict."""
        for found in self.versions(ref.name) if ref.label else ():
            if found.summary.label == ref.label:
                if found.summary.id == manifest_id.hex():
                    return found
                raise Conflict(f"{ref.name}@{ref.label}", "the label is taken by other content")
        return None

    def _by_id(self, prefix: str) -> Found:
        found = [one for one in self.all() if one.summary.id.startswith(prefix)]
        if not found:
            raise NotFound(prefix, "no such name or id")
        if len({one.summary.id for one in found}) > 1:
            raise BadInput(prefix, f"{len(found)} ids start like this; give more digits")
        return max(found, key=lambda one: one.summary.created)

    def _opened(self, name: str | None) -> Iterator[Found]:
        for version, row in self._catalog.versions(name):
            try:
                found = self._found(version, row)
            except Corrupt:
                if self._is_there(name, row):
                    raise
                continue  # removed since the rows were read, and its key with it
            yield found

    def _is_there(self, name: str | None, row: VersionRow) -> bool:
        return any(other.place == row.place for _, other in self._catalog.versions(name))

    def _found(self, version: int, row: VersionRow) -> Found:
        key = self._keys.key(row.place)
        try:
            packed = row.summary if key is None else unseal(key, _SUMMARY, row.summary)
            name, label, id_, kind, model, size, created = parse_json(packed)
        except (FormatError, ValueError, TypeError) as error:
            raise Corrupt("catalog", f"a version summary does not open ({error})") from None
        return Found(Summary(name, version, label, id_, kind, model, size, created, row.pinned), row)
