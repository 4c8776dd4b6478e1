"""What every test stands on: an environment of its own, the real command line, and slow tests only where asked for."""

import os
import signal
from pathlib import Path

import pytest

# A shell that starts a program in the background lets it ignore Ctrl-C, and so do all its children; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the test, and every process it starts, away from the caller's stores, keys and settings."""
    for name in list(os.environ):
        if name.startswith("ARSTORE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("ARSTORE_STORE", str(tmp_path / "store"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless they were asked for with -m."""
    if not config.getoption("-m"):
        for one in items:
            if one.get_closest_marker("slow"):
                one.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
