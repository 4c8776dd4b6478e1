"""The catalog of one tenant, empty, on a real LMDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.tables import Tables
from tests.support.catalog_rows import INDEX_KEY, opened_tables

TENANT = 3


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    with opened_tables(tmp_path / "catalog") as tables:
        yield tables


@pytest.fixture
def catalog(tables: Tables) -> Catalog:
    return Catalog(tables, TENANT, INDEX_KEY)
