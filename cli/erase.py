"""`arstore erase`: forget for good."""

from typing import Annotated

import typer

from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(erase)


def erase(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME (every version of it), NAME@VERSION or an id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
) -> None:
    """Destroy the keys of what nothing else needs, and print a receipt. Its space comes back with the next gc."""
    session = session_of(context)
    with session.open() as store:
        receipt = store.erase(name, dry_run=dry_run)
    seconds = session.seconds
    values: dict[str, object] = {
        "receipt": {
            "id": receipt.id,
            "versions": list(receipt.versions),
            "keys_destroyed": receipt.keys_destroyed,
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
            f"{receipt.blobs_shared} blobs kept for others, in {seconds:.3f} s\n"
            f"receipt {receipt.id}, key root {receipt.root_epoch}: holds {receipt.level}"
        ),
    )
