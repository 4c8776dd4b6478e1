"""The program: global flags, the commands, and the one table of exit codes."""

import contextlib
import gc
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from ..store.errors import (
    BadInput,
    Conflict,
    Corrupt,
    Fenced,
    KeyRefused,
    NoRoom,
    NoStore,
    NotFound,
    ReadOnly,
    StorageFailed,
    StoreError,
    reason,
)
from .commands import Commands
from .session import STDOUT, Reported, Session, tell
from .words import Words, read_words

EXIT_CODES: dict[type[StoreError], int] = {
    StorageFailed: 1,
    ReadOnly: 1,
    BadInput: 2,
    NotFound: 3,
    NoStore: 10,
    Fenced: 11,
    KeyRefused: 12,
    Corrupt: 13,
    NoRoom: 14,
    Conflict: 15,
}
_INTERNAL, _USAGE, _INTERRUPTED = 1, 2, 130

app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)


@app.callback()
def _globals(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The directory of the store. [env: ARSTORE_STORE]")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="The tenant to work as. [env: ARSTORE_TENANT]")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing to the store, not even when it was last used.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result, or the error, as one JSON object on stdout.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and JSON if asked for.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print a traceback if the command fails.")] = False,
) -> None:
    """Store model weights, prefix KV and intermediates: each tensor once, encrypted, verified at every read."""
    context.obj = Session(store, tenant, json, quiet, verbose, read_only)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    # If 0, 1 or 2 is closed, no file of the store may get its number. Writing to it fails, as if it were still closed.
    while (spare := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(spare)
    sys.stdout, sys.stderr = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w")), sys.stderr or io.StringIO()
    # If the reader of a pipe has gone (`arstore ls | head`), the program ends quietly, as others do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # A name that the terminal's encoding lacks is printed escaped, because the command has done its work already.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "_ARSTORE_COMPLETE" in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    code = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not code:  # else the error is printed already
            tell(f"arstore: error: {STDOUT}: {reason(error)}")
        sys.stdout, code = io.StringIO(), code or _INTERNAL  # the interpreter must not flush once more
    gc.freeze()  # saves the interpreter a search for cycles in memory that ends with the process
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error becomes one line here."""
    words = read_words(arguments)
    try:
        if words.holds_empty_word:  # an empty path would be the current directory, an empty tenant the default one
            raise BadInput("arguments", "one of them is empty", hint="is a variable unset?")
        code: int = app(words.all, standalone_mode=False, prog_name="arstore") or 0
        if code == _INTERRUPTED:
            raise KeyboardInterrupt  # typer turns it into this code
        return code
    except StoreError as error:
        return _fail(words, error.kind, str(error), error.hint, EXIT_CODES[type(error)])
    except Reported as reported:
        failure = reported.error
        return _fail(words, failure.kind, str(failure), failure.hint, EXIT_CODES[type(failure)], reported.values)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(words, "interrupted", "interrupted; the store is consistent", None, _INTERRUPTED)
    except typer.Exit as done:
        return done.exit_code
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(words, "storage-failed", f"{where}{reason(error)}", None, _INTERNAL)
    except Exception as error:
        # Typer's own usage errors; their base class moves between modules from release to release.
        if hasattr(error, "format_message"):
            text = str(error.format_message()).rstrip(".")
            if not arguments:
                print(text, file=sys.stderr)
                return _USAGE
            if type(error).__name__ == "NoArgsIsHelpError":
                text = "missing command"
            command = "" if text.startswith("No such command") or not words.command else f"{words.command} "
            hint = f"run 'arstore {command}--help'"
            return _fail(words, "usage", text[:1].lower() + text[1:], hint, _USAGE)
        return _fail(
            words,
            "internal",
            f"{type(error).__name__}: {error}",
            "run it again with -v and report the traceback",
            _INTERNAL,
        )


def _fail(
    words: Words, kind: str, message: str, hint: str | None, code: int, values: dict[str, object] | None = None
) -> int:
    line = f"{words.command}: {message}" if words.command else message
    tell(f"arstore: error: {line}".replace("\n", " "))
    if hint:
        tell(f"arstore: hint: {hint}")
    if words.verbose:
        traceback.print_exc()
    if words.json:
        error = {"kind": kind, "message": line, "hint": hint, "exit_code": code}
        with contextlib.suppress(OSError):  # stdout itself may have caused the error
            print(json.dumps({**(values or {}), "error": error}), flush=True)
    return code


if __name__ == "__main__":
    main()
