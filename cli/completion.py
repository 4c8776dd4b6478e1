"""`arstore completion`: shell completion, as typer makes it."""

from typing import Annotated

import typer

from ..store.errors import BadInput
from .session import put_out


def register(app: typer.Typer) -> None:
    app.command()(completion)


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="The shell: bash, zsh, fish or powershell.")] = "bash",
) -> None:
    """Print a script that completes commands in a shell. Use it as `source <(arstore completion bash)`."""
    from typer._completion_shared import get_completion_script

    if shell not in ("bash", "zsh", "fish", "powershell"):
        raise BadInput(f"shell {shell!r}", "wanted bash, zsh, fish or powershell")
    put_out(get_completion_script(prog_name="arstore", complete_var="_ARSTORE_COMPLETE", shell=shell))
