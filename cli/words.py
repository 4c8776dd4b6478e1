"""Words: the command line of one run, split once into global flags, the command, and what follows `--`."""

from typing import NamedTuple

# The global flags, and whether a value follows each.
GLOBAL_FLAGS = {
    "--json": False,
    "--quiet": False,
    "-q": False,
    "--verbose": False,
    "-v": False,
    "--store": True,
    "--tenant": True,
    "--read-only": False,
}
# The commands whose words from `--` on belong to another program.
RUNS_ANOTHER = ("prefetch",)


class Words(NamedTuple):
    """What one run was asked for, in three parts."""

    flags: list[str]  # global flags and their values
    own: list[str]  # the command and its words
    foreign: list[str]  # `--` and the words of the program that the command runs

    @property
    def all(self) -> list[str]:
        return self.flags + self.own + self.foreign

    @property
    def command(self) -> str:
        """The command's name, or nothing where none was given."""
        return self.own[0] if self.own and not self.own[0].startswith("-") else ""

    @property
    def json(self) -> bool:
        return "--json" in self.flags

    @property
    def verbose(self) -> bool:
        return "-v" in self.flags or "--verbose" in self.flags

    @property
    def holds_empty_word(self) -> bool:
        """Whether a word, or the value of a flag, is empty: often an unset variable."""
        return any(not word or (word.startswith("--") and word.endswith("=")) for word in self.flags + self.own)


def read_words(words: list[str]) -> Words:
    """Return the words of a run in their parts; global flags may stand anywhere before `--` (`arstore ls --json`)."""
    flags: list[str] = []
    own: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            if own and own[0] in RUNS_ANOTHER:
                return Words(flags, own, words[at:])
            return Words(flags, own + words[at:], [])
        name = word.partition("=")[0]
        width = 2 if GLOBAL_FLAGS.get(name) and "=" not in word else 1
        if at + width > len(words):
            return Words(
                [*flags, word], [], []
            )  # the value of a flag is missing; the command must not become the value
        (flags if name in GLOBAL_FLAGS else own).extend(words[at : at + width])
        at += width
    return Words(flags, own, [])
