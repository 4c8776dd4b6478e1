"""Every command can be run again, and a dry run changes nothing."""

from pathlib import Path

from tests.support.stocked import cli, fails, holdings, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


def test_every_command_can_be_run_again(stocked: Path) -> None:
    twice: list[list[str]] = [
        ["init"], ["pin", "w"], ["unpin", "w"], ["tag", "w", "alias"], ["tag", "w", "w@label"],
        ["put", "m", "labelled@one"], ["put", "m", "labelled@one", "--pin"], ["verify"], ["get", "w", "out"],
        ["tag", "w", "w"],
    ]  # fmt: skip
    for words in twice:
        first = cli(*words, "--json")
        between = holdings()
        second = cli(*words, "--json")
        assert (first.code, second.code) == (0, 0), words
        assert holdings() == between, words
        for key in ("version", "id", "key_file"):
            assert first.json.get(key) == second.json.get(key), words
    [labelled] = [one for one in cli("ls", "--json").json["artifacts"] if one["name"] == "labelled"]
    assert labelled["pinned"] is True
    assert cli("rm", "w").code == 0
    assert cli("rm", "w").code == 0  # the label's version, then w@1: each run drops the newest
    fails(3, "rm", "w")


def test_a_dry_run_changes_nothing(stocked: Path) -> None:
    cli("put", "m", "w@release", "--pin")
    cli("put", "a.txt", "w")
    before = holdings()
    for words, doomed in ((["rm", "w"], [3]), (["rm", "w@release"], [2]), (["rm", "w", "--all-versions"], [1, 2, 3])):
        removed = cli(*words, "--dry-run", "--json").json
        assert removed["dry_run"] is True
        assert [one["version"] for one in removed["removed"]] == doomed
        assert cli(*words, "--dry-run").out.startswith("would drop w@")
        assert holdings() == before
        assert cli("verify").code == 0
    fails(3, "rm", "nothing", "--dry-run")


def test_rm_drops_what_it_names(stocked: Path) -> None:
    for path in ("m", "a.txt", "m"):
        cli("put", path, "w")

    def versions() -> list[int]:
        return [one["version"] for one in cli("ls", "--json").json["artifacts"]]

    assert versions() == [1, 2, 3, 4]
    cli("rm", "w@2")
    assert versions() == [1, 3, 4]
    cli("rm", "w")
    assert versions() == [1, 3]
    assert cli("put", "m", "w", "--json").json["version"] == 5  # a number is never given twice
    fails(2, "rm", "w@1", "--all-versions")
    assert versions() == [1, 3, 5]
    cli("rm", "w", "--all-versions")
    assert versions() == []
    assert cli("put", "m", "w", "--json").json["version"] == 6
