"""The catalog of one tenant, empty, on a real LMDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.tables import Tables
from tests.support.catalog_rows import INDEX_KEY, opened_tables

TENANT = 3


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


@pytest.fixture
def tables(directory: Path) -> Iterator[Tables]:
    with opened_tables(directory) as tables:
        yield tables


@pytest.fixture
def catalog(tables: Tables) -> Catalog:
    return Catalog(tables, TENANT, INDEX_KEY)
