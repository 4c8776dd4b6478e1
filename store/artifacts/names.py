"""Names: refs and ids to versions, lists of versions, pins and times of use.

A version's summary is sealed under that version's own key. So when the key is destroyed, the name is gone, too.
"""

import contextlib
import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...formats.catalog import VersionRow
from ...formats.digest import digest_bytes
from ...formats.errors import FormatError
from ...formats.frames import seal, unseal
from ...formats.record import KIND_VERSION
from ...formats.strict_json import parse_json
from ..catalog.catalog import Catalog
from ..errors import BadInput, Conflict, Corrupt, NotFound, StoreError
from ..keys.tenant_keys import TenantKeys
from ..segments.reader import SegmentReader
from .refs import Ref, parse_ref

if TYPE_CHECKING:
    from ...formats.manifest import Manifest, ManifestId, Needs

ID_PREFIX_MIN = 8
_USE_GRAIN_S = 3600
_ATTEMPTS = 100
_SUMMARY = "version summary"
T = TypeVar("T")


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
        return packed if key is None else seal(key, _SUMMARY, packed, os.urandom(12))


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as the catalog has it: its summary, opened, and its row."""

    summary: Summary
    row: VersionRow

    @property
    def text(self) -> str:
        return f"{self.summary.name}@{self.summary.version}"


@dataclass(frozen=True, slots=True)
class Unopened:
    """A version that can't be opened, and why not."""

    version: int
    row: VersionRow
    why: str


class Names:
    """One tenant's names."""

    def __init__(self, catalog: Catalog, keys: TenantKeys, segments: SegmentReader) -> None:
        self.catalog, self._keys, self._segments = catalog, keys, segments

    def all(self) -> Iterator[StoredVersion]:
        """Yield every version of every name, in no particular order of names."""
        yield from self._opened(None)

    def listed(self, glob: str | None = None, kind: str | None = None) -> list[StoredVersion]:
        """Return the versions whose names match, by name and version."""
        matching = [
            version
            for version in self.all()
            if (glob is None or fnmatch.fnmatchcase(version.summary.name, glob))
            and kind in (None, version.summary.kind)
        ]
        return sorted(matching, key=lambda version: (version.summary.name, version.summary.version))

    def versions(self, name: str) -> list[StoredVersion]:
        """Return the versions of one name that can be read, oldest first."""
        return list(self._opened(name))

    def unopened(self) -> list[Unopened]:
        """Return the versions that have a row and can't be opened. Nobody can say which names they belong to."""
        unopened = []
        for number, row in self.catalog.versions():
            try:
                self._open_unless_removed(number, row)
            except Corrupt as error:
                unopened.append(Unopened(number, row, error.why))
        return unopened

    def resolve(self, text: str) -> StoredVersion:
        """Return the version that a ref or the beginning of an id names.

        Raises NotFound, BadInput if it is ambiguous, Corrupt if that very version can't be opened.
        """
        ref = parse_ref(text)
        rows = self.catalog.versions(ref.name)
        numbered = [] if ref.label else [row for row in reversed(rows) if ref.version in (None, row[0])]
        for number, row in numbered:
            if version := self._open_unless_removed(number, row):
                return version
        versions = self.versions(ref.name)
        for version in versions:
            if ref.label is not None and version.summary.label == ref.label:
                return version
        if rows:
            known = ", ".join(version.summary.label or str(version.summary.version) for version in versions[-8:])
            raise NotFound(text, "no such version", hint=f"{ref.name} has {known}")
        if re.fullmatch(rf"[0-9a-f]{{{ID_PREFIX_MIN},64}}", text):
            return self._by_id(text)
        raise NotFound(text, "no such name", hint="'arstore ls' lists the names there are")

    def manifest(self, version: StoredVersion) -> "Manifest":
        """Return what a version consists of; raise Corrupt if its record is bad, NotFound if it was removed."""
        from ...formats.manifest import parse_manifest

        return self._read(version, parse_manifest)

    def needs(self, version: StoredVersion) -> "Needs":
        """Return what a version keeps from collection; raise as `manifest` does."""
        from ...formats.manifest import parse_needs

        return self._read(version, parse_needs)

    def _read(self, version: StoredVersion, parse: Callable[[Any], T]) -> T:
        from ...formats.manifest import MANIFEST_MAX_BYTES
        from ..segments.records import OpenRecord, corrupt

        place = version.row.place
        try:
            if place.plain_bytes > MANIFEST_MAX_BYTES:
                raise FormatError(f"version record exceeds the limit of {MANIFEST_MAX_BYTES} bytes")
            record = OpenRecord(self._segments, self._keys, place, KIND_VERSION)
            packed = record.read_all()
            record.check_ends(digest_bytes(self._keys.tenant.digest_key, packed))
            record.check_padding()
            return parse(parse_json(packed)["manifest"])
        except (Corrupt, FormatError, KeyError, TypeError) as error:
            if not self._has_row(version.summary.name, version.row):
                raise NotFound(version.text, "was removed while it was read") from None
            raise error if isinstance(error, Corrupt) else corrupt(place, None, error) from None

    def note_use(self, version: StoredVersion, now_s: int) -> None:
        """Note that a version was read, to the hour. If that can't be written, nothing happens."""
        if now_s - version.row.used_s >= _USE_GRAIN_S:
            with contextlib.suppress(StoreError):
                self.catalog.set_used(version.summary.name, version.summary.version, now_s)

    def set_pinned(self, text: str, pinned: bool) -> StoredVersion:
        """Pin or unpin a version, durably."""
        version = self.resolve(text)
        self.catalog.set_pinned(version.summary.name, version.summary.version, pinned)
        return replace(version, summary=replace(version.summary, pinned=pinned))

    def addressed(self, text: str, *, all_versions: bool) -> list[StoredVersion]:
        """Return the versions that a removal by ref or id means: one version, or all of a bare name.

        A version that can't be opened is among them, with its name and number and nothing else. Raises NotFound.
        """
        ref = parse_ref(text)
        rows = self.catalog.versions(ref.name)
        if all_versions and "@" not in text and rows:
            return [self._opened_or_blank(ref.name, number, row) for number, row in rows]
        for number, row in rows:
            if ref.version == number:
                return [self._opened_or_blank(ref.name, number, row)]
        return [self.resolve(text)]

    def check_free(self, ref: Ref, manifest_id: "ManifestId") -> StoredVersion | None:
        """Return the version that already has this label and content, or None if no version has the label.

        Raises Conflict if the label is taken by other content.
        """
        for version in self.versions(ref.name) if ref.label else ():
            if version.summary.label == ref.label:
                if version.summary.id == manifest_id.hex():
                    return version
                raise Conflict(f"{ref.name}@{ref.label}", "the label is taken by other content")
        return None

    def _by_id(self, prefix: str) -> StoredVersion:
        versions = [version for version in self.all() if version.summary.id.startswith(prefix)]
        if not versions:
            raise NotFound(prefix, "no such name or id")
        if len({version.summary.id for version in versions}) > 1:
            raise BadInput(prefix, f"{len(versions)} ids start like this; give more digits")
        return max(versions, key=lambda version: version.summary.created)

    def _open_unless_removed(self, number: int, row: VersionRow) -> StoredVersion | None:
        """Return a version, or None if it was removed after its row was read; raise Corrupt if it can't be opened."""
        try:
            return self.opened(number, row)
        except Corrupt:
            if self._has_row(None, row):
                raise
            return None

    def _opened(self, name: str | None) -> Iterator[StoredVersion]:
        for number, row in self.catalog.versions(name):
            # A version may have been removed after its row was read, its key with it. `unopened` lists the bad ones.
            with contextlib.suppress(Corrupt):
                yield self.opened(number, row)

    def _opened_or_blank(self, name: str, number: int, row: VersionRow) -> StoredVersion:
        try:
            return self.opened(number, row)
        except Corrupt:
            return StoredVersion(Summary(name, number, None, "", "unknown", None, 0, "", row.pinned), row)

    def _has_row(self, name: str | None, row: VersionRow) -> bool:
        return any(other.place == row.place for _, other in self.catalog.versions(name))

    def opened(self, number: int, row: VersionRow) -> StoredVersion:
        """Return a version with its summary opened; raise Corrupt if the summary does not open."""
        key = self._keys.key(row.place)
        try:
            packed = row.summary if key is None else unseal(key, _SUMMARY, row.summary)
            name, label, id_, kind, model, size, created = parse_json(packed)
        except (FormatError, ValueError, TypeError) as error:
            raise Corrupt("catalog", f"a version summary does not open ({error})") from None
        return StoredVersion(Summary(name, number, label, id_, kind, model, size, created, row.pinned), row)
