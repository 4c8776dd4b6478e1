"""`arstore init`: make a store."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..store.access import create_store
from ..store.errors import BadInput
from ..store.keys.unlock import Secrets
from .render import pairs
from .session import ask_passphrase, session_of


def register(app: typer.Typer) -> None:
    app.command()(init)


def init(
    context: typer.Context,
    no_encryption: Annotated[
        bool,
        typer.Option(
            "--no-encryption", help="Store in the clear. BLAKE3 tags still detect damage. Nothing can be erased."
        ),
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Use this key file. It is made if it does not exist.")
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="Open with a passphrase. It is asked for, or read from ARSTORE_PASSPHRASE_FILE."
        ),
    ] = False,
    root_file: Annotated[
        Path | None,
        typer.Option(
            metavar="R", help="Keep the root of the key tree in R, outside the store. Whoever loses R loses everything."
        ),
    ] = None,
) -> None:
    """Make a store, encrypted with a fresh key file.

    The key file lies outside the store, in $XDG_CONFIG_HOME/arstore/keys. Back it up: without it nothing can be read.
    With --root-file an erase holds even against old copies of the store. Commands that write change that file. Back it
    up together with the store: an older copy does not open a newer store. If a store with other settings is there, the
    exit code is 15.
    """
    session = session_of(context)
    if no_encryption + bool(key_file) + passphrase > 1:
        raise BadInput("flags", "--no-encryption, --key-file and --passphrase exclude each other")
    secret = new_passphrase("--passphrase") if passphrase else None
    config = create_store(
        session.root, encrypted=not no_encryption, passphrase=secret, key_file=key_file, root_file=root_file
    )
    values = {
        "store": str(session.root),
        "encrypted": config.encrypted,
        "key_file": str(config.key_file) if config.key_file else None,
        "root_file": str(config.root_file) if config.root_file else None,
    }
    session.emit(values, lambda: pairs([(name, value) for name, value in values.items() if value is not None]))
    if config.key_file and not session.json:
        session.say(f"back up {config.key_file}: without it nothing in this store can be read")


def new_passphrase(what: str) -> bytes:
    """Return a passphrase to be set: from ARSTORE_PASSPHRASE_FILE, or asked for twice."""
    held = Secrets.from_environment().get("passphrase")
    if held:
        return held
    first = ask_passphrase()
    if first is None:
        raise BadInput(what, "no terminal to ask on; set ARSTORE_PASSPHRASE_FILE")
    print("again, to be sure", file=sys.stderr)
    if ask_passphrase() != first:
        raise BadInput(what, "the two do not match")
    return first
