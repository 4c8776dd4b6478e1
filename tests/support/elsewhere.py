"""Commands run in a process that has other rights or mounts than this one. As a program, it is that process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from tests.support.command import Ran, cli

# Root may write what its permission bits forbid. Without these capabilities it is as others are.
AS_OTHERS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner") if os.geteuid() == 0 else ()
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")


def works(*words: str) -> bool:
    """Say whether a command can be run here."""
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def run_all(before: Sequence[str], commands: Sequence[Sequence[object]]) -> list[Ran]:
    """Run commands of arstore, one after the other, in one process that is started by the words of `before`."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    process = [*before, sys.executable, "-m", "tests.support.elsewhere", words]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Ran(*ran) for ran in json.loads(done.stdout)]


def with_mounts(script: str) -> tuple[str, ...]:
    """Return the words that start a process after a shell script, which may mount: nobody else sees these mounts."""
    return (*OWN_MOUNTS, "sh", "-e", "-c", f'{script}\nexec "$@"', "sh")


if __name__ == "__main__":
    ran = [cli(*command) for command in json.loads(sys.argv[1])]
    print(json.dumps([[one.code, one.out, one.err] for one in ran]))
