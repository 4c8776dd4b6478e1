"""What the sheets of keys and of rows take from a store that is built: values alone.

Invariant: this lies below whoever builds a store and whoever describes one, so that neither imports the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from golden.records import Owner


@dataclass(frozen=True)
class Built:
    """One store as its sheets see it. `rows` holds the catalog's values by table and key, checks included."""

    id: bytes
    master: bytes
    catalog_key: bytes
    owner: Owner
    page_bodies: Sequence[bytes]
    holds: Mapping[int, str]  # the kind of each page, by its number
    rows: Mapping[str, Mapping[bytes, bytes]]
