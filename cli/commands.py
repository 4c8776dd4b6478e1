"""Commands: each by its name. The module of a command is imported when it runs, so that others do not delay it.

Invariant: the line of each in COMMANDS is the first sentence of its help.
"""

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

_FOREIGN = "arstore.foreign"


class Listed(NamedTuple):
    """The module of a command, and its line in the list of commands."""

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
    """The group of all commands. It holds names and lines; the command that runs is loaded in place of its line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load(name), rest


class RunsAnother(TyperCommand):
    """A command that may end in `-- CMD …`. It keeps the words from there on, which click would parse as its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_FOREIGN] = args[at + 1 :] if at < len(args) else None
        return super().parse_args(ctx, args[:at])


def foreign_words(context: typer.Context) -> list[str] | None:
    """Return the words that follow `--`, or None if there is no `--`."""
    words: list[str] | None = context.meta[_FOREIGN]
    return words


def load(name: str) -> Any:
    """Import a command and return it as click has it, with its arguments and options."""
    app = typer.Typer(rich_markup_mode=None)
    import_module(f".{COMMANDS[name].module}", __package__).register(app)
    return get_group(app).commands[name]
