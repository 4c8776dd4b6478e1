"""`arstore kv`: store prefix KV under a name, and match it by its tokens."""

from pathlib import Path
from typing import Annotated

import typer

from ..store.errors import BadInput, NotFound
from ..store.kv.prefix import Prefix
from ..store.kv.tokens import read_tokens
from ..store.quantities import parse_duration, parse_range
from ..store.store import Store
from .identity import IdentityFlags, with_identity
from .put import stored_text, stored_values
from .render import rate, size
from .session import Reported, Session, session_of

_Tokens = Annotated[
    str, typer.Option("--tokens", metavar="T", help="The token ids: a JSON list or .npy file, or 1,2,3.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Store prefix KV, match it by tokens, get it back.", no_args_is_help=True)
    group.command("put")(with_identity(put))
    group.command("match")(with_identity(match))
    group.command("get")(with_identity(get, without=("layer", "positions")))
    app.add_typer(group, name="kv")


def put(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A safetensors file of layers.{i}.key and layers.{i}.value.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or NAME@LABEL to label the version.")],
    tokens: _Tokens,
    identity: IdentityFlags,
    codec: Annotated[
        str, typer.Option(help="stored, plane or zstd. The last two take less space and are slower.")
    ] = "stored",
    pin: Annotated[bool, typer.Option("--pin", help="Pin the version: gc keeps it.")] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Use blocks that are stored already, even if their bytes differ.")
    ] = False,
    key_bounds: Annotated[
        int, typer.Option(metavar="P", help="Also store min and max of the keys of every P tokens, as NAME/key-bounds.")
    ] = 0,
    multi_writer: Annotated[
        bool, typer.Option("--multi-writer", help="Let other processes put under NAME meanwhile.")
    ] = False,
    lock_wait: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for another put of NAME.")] = "0s",
) -> None:
    """Store the KV of a sequence of tokens under NAME.

    Arrays have the shape [tokens, kv_heads, head_dim], or another that --layout names. --model, --revision and
    --precision are required. Sequences that begin alike share their prefix blocks. If a shared block has other bytes
    than the stored one, the exit code is 15, unless --join is given.
    """
    session = session_of(context)
    with session.open() as store, session.progress("put") as progress:
        stored = store.kv.put(
            file,
            name=name,
            tokens=read_tokens(tokens),
            identity=identity.fields(store),
            codec=codec,
            pin=pin,
            join=join,
            key_bounds=key_bounds,
            multi_writer=multi_writer,
            lock_wait_s=parse_duration(lock_wait),
            progress=progress,
        )
    seconds = session.seconds
    session.emit(stored_values(stored, seconds), lambda: stored_text(stored, seconds))


def match(context: typer.Context, tokens: _Tokens, identity: IdentityFlags) -> None:
    """Count the tokens, from the first on, whose KV is stored.

    Give the same identity flags as at the put. If no token matches, the exit code is 3.
    """
    session = session_of(context)
    with session.open() as store:
        prefix, values = _match(store, tokens, identity, session)
    session.emit(values, lambda: f"{prefix.tokens_count} of {values['tokens']} tokens are stored  {prefix.id[:16]}")


def get(
    context: typer.Context,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The safetensors file to write.")],
    tokens: _Tokens,
    identity: IdentityFlags,
    layer: Annotated[list[int] | None, typer.Option(metavar="L", help="Write only this layer. Repeatable.")] = None,
    positions: Annotated[
        str | None, typer.Option(metavar="A:B", help="Write only positions A up to but not B.")
    ] = None,
) -> None:
    """Write the KV of the longest stored prefix of the tokens to DEST.

    Give the same identity flags as at the put. If nothing is stored, the exit code is 3 and DEST is not written.
    """
    session = session_of(context)
    wanted = parse_range("--positions", positions) if positions is not None else None
    with session.open() as store, session.progress("get") as progress:
        prefix, values = _match(store, tokens, identity, session)
        if dest.is_dir():
            raise BadInput(str(dest), "is a directory, wanted a file")
        written = store.kv.write(prefix, dest, layers=layer, positions=wanted, progress=progress)
    seconds = session.seconds
    values |= {"files": written.files, "bytes_out": written.bytes_out, "bytes_read": written.bytes_read}
    values["seconds"] = seconds
    session.emit(
        values,
        lambda: (
            f"{prefix.tokens_count} of {values['tokens']} tokens, {size(written.bytes_out)} to {dest} "
            f"in {seconds:.2f} s{rate(written.bytes_out, seconds)}"
        ),
    )


def _match(store: Store, tokens: str, identity: IdentityFlags, session: Session) -> tuple[Prefix, dict[str, object]]:
    """Return the longest stored prefix and its JSON values; raise Reported if nothing is stored."""
    packed = read_tokens(tokens)
    prefix = store.longest_prefix(packed, identity.fields(store))
    values: dict[str, object] = {
        "tokens_matched": prefix.tokens_count,
        "tokens": len(packed) // 4,
        "blocks": prefix.blocks_count,
        "id": prefix.id or None,
        "seconds": session.seconds,
    }
    if not prefix:
        hint = "'arstore why-miss' with the same flags names the field that differs"
        raise Reported(NotFound("tokens", "nothing of this prefix is stored", hint=hint), values)
    return prefix, values
