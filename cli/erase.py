"""`arstore erase`: destroy the keys of an artifact."""

from typing import Annotated

import typer

from .render import size
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(erase)


def erase(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="NAME means every version. NAME@VERSION or an id means one.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be erased, and erase nothing.")] = False,
) -> None:
    """Destroy the keys of an artifact for good, and print a receipt.

    Blobs that other artifacts need keep their keys. The next `gc` gives the space back. Staged copies are wiped first;
    while a process uses one, nothing is erased and the exit code is 11. The receipt says against whom the erase holds.
    """
    session = session_of(context)
    with session.open() as store:
        receipt = store.erase(name, dry_run=dry_run)
    seconds = session.seconds
    values: dict[str, object] = {
        "receipt": {
            "id": receipt.id,
            "versions": list(receipt.versions),
            "keys_destroyed": receipt.keys_destroyed,
            "freed_bytes": receipt.freed_bytes,
            "root_epoch": receipt.root_epoch,
            "level": receipt.level,
            "still_staged": list(receipt.still_staged),
        },
        "blobs_erased": receipt.blobs_erased,
        "blobs_shared": receipt.blobs_shared,
        "dry_run": dry_run,
        "seconds": seconds,
    }
    session.warn_staged(receipt.still_staged)
    verb = "would erase" if dry_run else "erased"
    session.emit(
        values,
        lambda: (
            f"{verb} {', '.join(receipt.versions)}: {receipt.blobs_erased} blobs, {receipt.keys_destroyed} keys, "
            f"{receipt.blobs_shared} blobs kept for others, gc can free {size(receipt.freed_bytes)}, "
            f"in {seconds:.3f} s\n"
            f"receipt {receipt.id}, key root {receipt.root_epoch}: holds {receipt.level}"
        ),
    )
