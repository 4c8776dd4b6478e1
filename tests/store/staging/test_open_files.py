"""The limit of open files grows with the objects that are to be in place, and never above the hard limit."""

import subprocess
import sys

import pytest

LIMITS = """
import resource
from arstore.store.staging.open_files import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
allow_files({count})
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "count", "wanted"),
    [(256, 1024, 50, 256), (256, 1024, 500, 756), (256, 600, 500, 600), (600, 600, 500, 600)],
    ids=["few fit as it is", "many raise it", "no further than the hard limit", "nothing to raise"],
)
def test_limit(soft: int, hard: int, count: int, wanted: int) -> None:
    code = LIMITS.format(soft=soft, hard=hard, count=count)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == [str(wanted), str(hard)]
