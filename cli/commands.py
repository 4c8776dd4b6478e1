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
    "init": Listed("init", "Make a store, encrypted with a fresh key file."),
    "put": Listed("put", "Store a file or directory as the newest version of NAME."),
    "get": Listed("get", "Write the files of an artifact to DEST, byte for byte."),
    "ls": Listed("ls", "List names and versions, with id, kind, size and time."),
    "show": Listed("show", "Show one artifact: its identity, files, tensors and blobs, and the tiers that hold it."),
    "why-miss": Listed("why_miss", "Name the identity fields that made a look-up miss."),
    "plan": Listed("plan", "Plan a JOB: what to move when, how much memory it takes, and how long."),
    "prefetch": Listed("prefetch", "Stage artifacts in host or device memory."),
    "unstage": Listed("unstage", "Wipe staged copies and give their memory back."),
    "tiers": Listed("tiers", "Show each tier: its path, capacity, bytes used, speed and state."),
    "rm": Listed("rm", "Drop a version of a name."),
    "erase": Listed("erase", "Destroy the keys of an artifact for good, and print a receipt."),
    "pin": Listed("pin", "Pin a version, so that `gc` never drops it."),
    "unpin": Listed("pin", "Unpin a version, so that `gc` may drop it again."),
    "tag": Listed("tag", "Give a version a further name."),
    "verify": Listed("verify", "Read back what is stored and check every byte."),
    "gc": Listed("gc", "Collect garbage and give its space back."),
    "repair": Listed("repair", "Take in what killed writers left, and correct the counts in the catalog."),
    "stats": Listed(
        "stats", "Show how much the tenant stores, how much deduplication saves, and how much disk is left."
    ),
    "completion": Listed("completion", "Print a script that completes commands in a shell."),
    "kv": Listed("kv", "Store prefix KV, match it by tokens, get it back."),
    "lease": Listed("lease", "List the leases on names, or break one."),
    "key": Listed("key", "Change what opens the store: key file or passphrase."),
    "tenant": Listed("tenant", "Add, remove and list tenants of the store."),
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
