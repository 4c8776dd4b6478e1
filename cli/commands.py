"""The commands by name: the module of one is imported when it runs, so that none waits for the imports of the others.

Invariant: the line of each in COMMANDS is the first sentence of its help.
"""

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

_FOREIGN = "arstore.foreign"


class Listed(NamedTuple):
    """Where a command is, and what the list of commands says of it."""

    module: str
    line: str


COMMANDS = {
    "init": Listed("init", "Make a store, encrypted with a fresh key file outside it unless told otherwise."),
    "put": Listed("put", "Store PATH as the newest version of NAME."),
    "get": Listed(
        "get",
        "Write an artifact's files to DEST, byte-identical; with selectors, one safetensors file of those tensors.",
    ),
    "ls": Listed("ls", "List names and versions."),
    "show": Listed("show", "Show an artifact's identity, files, tensors and blobs, and where they are."),
    "why-miss": Listed(
        "why_miss", "Name the first field in which the nearest stored identity differs from the one that the flags say."
    ),
    "plan": Listed("plan", "Say what would move when, what it takes at most, and how long; nothing moves."),
    "prefetch": Listed("prefetch", "Stage artifacts up, verified."),
    "unstage": Listed("unstage", "Wipe staged copies and give their memory back."),
    "tiers": Listed(
        "tiers", "Show every tier: where it lies, what it may hold and holds, how fast it is, and whether it is there."
    ),
    "rm": Listed("rm", "Drop a version of a name."),
    "erase": Listed("erase", "Destroy the keys of what nothing else needs, and print a receipt."),
    "pin": Listed("pin", "Keep a version from collection."),
    "unpin": Listed("pin", "Let a version be collected again."),
    "tag": Listed("tag", "Give a version a further name."),
    "verify": Listed("verify", "Read back and check every byte."),
    "gc": Listed("gc", "Collect garbage and give its space back."),
    "repair": Listed("repair", "Take in what killed writers left and set the catalog right, or make it anew."),
    "stats": Listed("stats", "Show what is stored, how much of it once, and how much room is left."),
    "completion": Listed("completion", "Print a completion script: `source <(arstore completion bash)`."),
    "kv": Listed("kv", "Prefix KV: put, find by tokens, get back in part."),
    "lease": Listed("lease", "Who owns what, and how to recover from an owner that is stuck."),
    "key": Listed("key", "Ways in to the store, and how to change them."),
    "tenant": Listed("tenant", "Tenants: separate keys, ids and quotas in one store."),
}


class Commands(TyperGroup):
    """The group of all commands. What it holds has names and lines; the command that is asked for replaces its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load(name), rest


class RunsAnother(TyperCommand):
    """A command that may end in `-- CMD …`. The words from there on are kept as they are; click would read them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_FOREIGN] = args[at + 1 :] if at < len(args) else None
        return super().parse_args(ctx, args[:at])


def foreign_words(context: typer.Context) -> list[str] | None:
    """Return what follows `--`; None where that was not given."""
    words: list[str] | None = context.meta[_FOREIGN]
    return words


def load(name: str) -> Any:
    """Import a command and return it as click has it, with its arguments and options."""
    app = typer.Typer(rich_markup_mode=None)
    import_module(f".{COMMANDS[name].module}", __package__).register(app)
    return get_group(app).commands[name]
