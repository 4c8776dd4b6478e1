"""Tests stand beside their rooms: a test file has the name of the module that it tests, and is short."""

from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.support.house import PACKAGE, Rule, Source, parse, report, sources

TEST_FILE_MAX_LINES = 500

# Files that are longer still. None is added, and one that is cut leaves the list.
LONGER: set[str] = set()

# Modules without a test file of their own, by the file that tests them. One that gets its own leaves the list.
TESTED_IN = {
    "store/artifacts/placing": "store/test_outputs",
    "cli/completion": "cli/test_terminal",
    "cli/erase": "store/maintenance/test_erase",
    "cli/gc": "store/maintenance/test_collect",
    "cli/get": "cli/test_names",
    "cli/identity": "cli/test_odd_input",
    "cli/init": "cli/test_terminal",
    "cli/key": "cli/test_schemas",
    "cli/lease": "store/catalog/test_leases",
    "cli/ls": "cli/test_names",
    "cli/main": "cli/test_exit_codes",
    "cli/pin": "cli/test_again",
    "cli/put": "cli/test_odd_input",
    "cli/render": "cli/test_terminal",
    "cli/repair": "store/maintenance/test_repair",
    "cli/report": "cli/test_terminal",
    "cli/rm": "cli/test_again",
    "cli/session": "whole/test_crash",
    "cli/show": "cli/test_names",
    "cli/stats": "cli/test_schemas",
    "cli/tag": "cli/test_names",
    "cli/tenant": "cli/test_odd_input",
    "cli/tiers": "cli/test_plan",
    "cli/unstage": "store/staging/test_unstage",
    "cli/verify": "store/maintenance/test_scrub",
    "cli/why_miss": "cli/test_kv",
    "cli/words": "cli/test_start",
    "formats/errors": "formats/test_manifest",
    "formats/lease": "formats/test_catalog",
    "formats/planes": "formats/test_codec",
    "formats/readers/model_config": "store/artifacts/test_model_identity",
    "formats/readers/torch_values": "formats/readers/test_torch_file",
    "formats/readers/weights_pickle": "formats/readers/test_torch_file",
    "formats/strict_json": "formats/test_manifest",
    "store/access": "store/catalog/test_leases",
    "store/artifacts/fingerprint": "whole/test_durability",
    "store/artifacts/identity": "cli/test_odd_input",
    "store/artifacts/ingest": "store/artifacts/test_put",
    "store/artifacts/tensors": "store/artifacts/test_artifact",
    "store/catalog/lookup": "store/catalog/test_catalog",
    "store/libc": "store/segments/test_cold_read",
    "store/maintenance/shred": "store/maintenance/test_erase",
    "store/maintenance/stats": "cli/test_schemas",
    "store/maintenance/tenants": "cli/test_odd_input",
    "store/maintenance/verify": "store/maintenance/test_scrub",
    "store/maintenance/why_miss": "cli/test_kv",
    "store/parts": "store/segments/test_recover",
    "store/progress": "store/staging/test_prefetch",
    "store/segments/blobs": "store/artifacts/test_put",
    "store/segments/fetch": "store/segments/test_cold_read",
    "store/segments/reader": "store/segments/test_cold_read",
    "store/segments/scan": "store/segments/test_recover",
    "store/segments/writer": "store/artifacts/test_put",
    "store/staging/plan_job": "cli/test_plan",
    "store/staging/steps": "store/staging/test_lane",
    "store/staging/supply": "store/staging/test_lane",
    "store/store": "whole/test_model",
    "store/tiers/head": "store/tiers/test_sealed",
    "store/tiers/ipc": "store/tiers/test_device",
    "store/tiers/probe": "cli/test_plan",
    "store/tiers/staged": "store/tiers/test_device",
}


def own_test(module: str) -> str:
    """Return the path of the test file that has a module's name: beside `store/kv/put` it is `store/kv/test_put.py`."""
    folder, _, name = module.removesuffix(".py").rpartition("/")
    return f"tests/{'engines' if folder == 'store/engines' else folder}/test_{name}.py"


def long_tests(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines()) if source.parts[-1].startswith("test_") else 0
    if (lines > TEST_FILE_MAX_LINES) != (source.name in LONGER):
        yield f"{source.name}: {lines} lines, and {'' if source.name in LONGER else 'not '}among those that are longer"


def test_test_files_are_short() -> None:
    report(long_tests, f"a test file has at most {TEST_FILE_MAX_LINES} lines", "tests")
    assert LONGER - {source.name for source in sources("tests")} == set(), "what is gone leaves the list"


def untested(modules: Sequence[str], tests: Sequence[str], tested_in: Mapping[str, str] = TESTED_IN) -> Iterator[str]:
    """Yield the modules that no test file is named after and no file is said to test, and what is wrong in the list."""
    for module in modules:
        named, listed = own_test(module), module.removesuffix(".py") in tested_in
        if named in tests and listed:
            yield f"{module}: has {named}, and so leaves the list"
        elif named not in tests and not listed:
            yield f"{module}: there is no {named}"
    yield from (f"{module}: is in the list, and gone" for module in tested_in if f"{module}.py" not in modules)
    yield from (f"{test}: is in the list, and gone" for test in tested_in.values() if f"tests/{test}.py" not in tests)


def test_every_module_has_tests() -> None:
    modules = [source.name for source in sources(*PACKAGE) if source.parts[-1] != "__init__"]
    if offences := list(untested(modules, [source.name for source in sources("tests")])):
        pytest.fail("\n  ".join(["every module has a test file of its name, or is listed", *offences]), pytrace=False)


UNTESTED: list[tuple[list[str], dict[str, str]]] = [
    ([], {}),
    (["tests/store/artifacts/test_put.py"], {}),
    (["tests/store/kv/test_kv.py"], {"store/kv/kv": "store/kv/test_kv"}),
    ([], {"store/kv/put": "store/kv/test_kv"}),
    (["tests/store/kv/test_kv.py", "tests/store/kv/test_put.py"], {"store/kv/put": "store/kv/test_kv"}),
    (["tests/store/kv/test_put.py"], {"store/kv/gone": "store/kv/test_put"}),
]


@pytest.mark.parametrize(("tests", "tested_in"), UNTESTED)
def test_a_module_without_tests_is_seen(tests: list[str], tested_in: dict[str, str]) -> None:
    assert list(untested(["store/kv/put.py"], tests, tested_in))


TESTED: list[tuple[str, str, dict[str, str]]] = [
    ("store/disk.py", "tests/store/test_disk.py", {}),
    ("store/engines/transformers.py", "tests/engines/test_transformers.py", {}),
    ("store/kv/put.py", "tests/store/kv/test_kv.py", {"store/kv/put": "store/kv/test_kv"}),
]


@pytest.mark.parametrize(("module", "test", "tested_in"), TESTED)
def test_a_module_with_tests_is_no_offence(module: str, test: str, tested_in: dict[str, str]) -> None:
    assert list(untested([module], [test], tested_in)) == []


BROKEN: list[tuple[Rule, str, str]] = [
    (long_tests, "tests/store/kv/test_put.py", "step()\n" * (TEST_FILE_MAX_LINES + 1)),
    *((long_tests, name, "step()\n" * TEST_FILE_MAX_LINES) for name in sorted(LONGER)),
]
SOUND: list[tuple[Rule, str, str]] = [(long_tests, "tests/store/kv/test_put.py", "step()\n" * TEST_FILE_MAX_LINES)]


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_a_long_test_file_is_seen(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text)))


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_a_short_test_file_is_no_offence(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
