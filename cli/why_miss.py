"""`arstore why-miss`: name the identity field that made a look-up miss."""

from typing import Annotated

import typer

from ..formats.manifest import KINDS
from ..store.errors import BadInput
from ..store.kv.tokens import read_tokens
from .identity import IdentityFlags, with_identity
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command("why-miss")(with_identity(why_miss))


def why_miss(
    context: typer.Context,
    identity: IdentityFlags,
    kind: Annotated[str, typer.Option(help="The kind to look for: weights, kv, intermediate or file.")] = "kv",
    tokens: Annotated[str | None, typer.Option(metavar="T", help="Also count how many of these tokens match.")] = None,
) -> None:
    """Name the identity fields that made a look-up miss.

    The identity that the flags state is compared with the nearest stored one. Without a difference, `field` is null.
    """
    session = session_of(context)
    if kind not in KINDS:
        raise BadInput(f"--kind {kind}", f"wanted one of {', '.join(KINDS)}")
    if tokens is not None and kind != "kv":
        raise BadInput("--tokens", "go with --kind kv")
    with session.open() as store:
        fields = identity.fields(store)
        miss = store.why_miss(fields, kind)
        packed = read_tokens(tokens) if tokens is not None else None
        matched = store.longest_prefix(packed, fields).tokens_count if packed is not None else None
    differs = [{"field": one.field, "wanted": one.wanted, "stored": one.stored} for one in miss.differences]
    first = miss.differences[0] if miss.differences else None
    values: dict[str, object] = {
        "field": first.field if first else None,
        "wanted": first.wanted if first else None,
        "stored": first.stored if first else None,
        "nearest": miss.nearest,
        "differs": differs,
        "tokens_matched": matched,
        "seconds": session.seconds,
    }

    def text() -> str:
        lines = [
            f"{one.field}: wanted {one.wanted or 'unspecified'}, {miss.nearest} has {one.stored or 'unspecified'}"
            for one in miss.differences
        ] or [f"no field: {miss.nearest} has this very identity"]
        if packed is not None:
            lines.append(f"of the tokens, {matched} of {len(packed) // 4} match")
        return "\n".join(lines)

    session.emit(values, text)
