"""Page check: every page of a catalog file, read without LMDB, before LMDB trusts it."""

from pathlib import Path

from ..disk import disk_errors
from ..errors import Corrupt


def check_pages(directory: Path) -> None:
    """Check the structure of all pages of a catalog; raise Corrupt if LMDB could trip over one."""
    from lmdb.verify import verify

    with disk_errors(directory):
        try:
            problems = verify(str(directory))  # type: ignore[no-untyped-call]
        except OSError:
            raise
        except Exception as error:  # bytes can be wrong in more ways than the verifier foresees
            problems = [str(error)]
    if problems:
        raise Corrupt(str(directory), problems[0], hint="run 'arstore repair --rebuild-catalog'")
