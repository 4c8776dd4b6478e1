"""Tests stand beside their rooms: a test file has the name of the module that it tests, and is short."""

from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.support.house import PACKAGE, Rule, Source, parse, report, sources

TEST_FILE_MAX_LINES = 500

# Files that are longer still. None is added, and one that is cut leaves the list.
LONGER: set[str] = {
    "tests/store/kv/test_kv.py",
}

# Modules without a test file of their own, by the file that tests them. A module that gets one leaves the list.
TESTED_IN: dict[str, tuple[str, ...]] = {
    "tests/cli/test_commands.py": (
        "cli/completion", "cli/get", "cli/identity", "cli/init", "cli/key", "cli/ls", "cli/main", "cli/pin",
        "cli/put", "cli/render", "cli/report", "cli/rm", "cli/show", "cli/stats", "cli/tag", "cli/tenant",
        "store/maintenance/stats",
    ),
    "tests/cli/test_exit_codes.py": ("store/errors",),
    "tests/cli/test_flags.py": ("store/config",),
    "tests/cli/test_kv.py": ("cli/why_miss", "store/kv/export", "store/maintenance/why_miss"),
    "tests/cli/test_names.py": ("store/artifacts/drop", "store/artifacts/names", "store/artifacts/refs"),
    "tests/cli/test_odd_input.py": ("store/artifacts/identity", "store/quantities"),
    "tests/cli/test_plan.py": ("cli/tiers", "store/staging/plan_job", "store/tiers/probe"),
    "tests/cli/test_start.py": ("cli/words",),
    "tests/formats/readers/test_torch_file.py": ("formats/readers/torch_values", "formats/readers/weights_pickle"),
    "tests/formats/test_catalog.py": ("formats/lease",),
    "tests/formats/test_manifest.py": ("formats/strict_json",),
    "tests/formats/test_record.py": ("formats/errors",),
    "tests/store/artifacts/test_artifact.py": ("store/artifacts/tensors",),
    "tests/store/artifacts/test_model_identity.py": ("formats/readers/model_config",),
    "tests/store/artifacts/test_put.py": ("store/artifacts/cuts", "store/artifacts/ingest"),
    "tests/store/catalog/test_catalog.py": ("store/catalog/lookup",),
    "tests/store/catalog/test_leases.py": ("cli/lease", "store/access"),
    "tests/store/keys/test_tenants.py": ("store/maintenance/tenants",),
    "tests/store/kv/test_kv.py": (
        "store/kv/arrays", "store/kv/match", "store/kv/prefix", "store/kv/put", "store/kv/tokens",
    ),
    "tests/store/maintenance/test_collect.py": ("cli/gc",),
    "tests/store/maintenance/test_erase.py": ("cli/erase", "store/maintenance/shred"),
    "tests/store/maintenance/test_repair.py": ("cli/repair",),
    "tests/store/maintenance/test_scrub.py": ("cli/verify", "store/maintenance/verify"),
    "tests/store/plan/test_job.py": ("store/plan/fields", "store/plan/model"),
    "tests/store/plan/test_planner.py": (
        "store/plan/eviction", "store/plan/order", "store/plan/planfile", "store/plan/recompute",
        "store/plan/simulate",
    ),
    "tests/store/segments/test_cold_read.py": ("store/segments/blobs", "store/segments/fetch", "store/workers"),
    "tests/store/segments/test_records.py": ("store/segments/reader", "store/segments/writer"),
    "tests/store/segments/test_recover.py": ("store/parts", "store/segments/scan"),
    "tests/store/staging/test_lane.py": ("store/staging/steps", "store/staging/supply"),
    "tests/store/staging/test_prefetch.py": ("store/progress",),
    "tests/store/staging/test_unstage.py": ("cli/unstage",),
    "tests/store/tiers/test_device.py": ("store/tiers/ipc", "store/tiers/staged"),
    "tests/store/tiers/test_sealed.py": ("store/tiers/head",),
    "tests/whole/test_concurrency.py": ("store/artifacts/commit",),
    "tests/whole/test_crash.py": ("cli/session", "store/disk"),
    "tests/whole/test_durability.py": ("store/artifacts/fingerprint", "store/libc"),
    "tests/whole/test_model.py": ("store/store",),
}  # fmt: skip


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
    assert {source.name for source in sources("tests")} >= LONGER, "a file of the list is gone"


def untested(
    modules: Sequence[str], tests: Sequence[str], tested_in: Mapping[str, Sequence[str]] = TESTED_IN
) -> Iterator[str]:
    """Yield the modules that no test file is named after and no file is said to test, and what is wrong in the list."""
    listed = [f"{module}.py" for found in tested_in.values() for module in found]
    for module in modules:
        if own_test(module) in tests:
            if module in listed:
                yield f"{module}: has {own_test(module)}, and so leaves the list"
        elif module not in listed:
            yield f"{module}: there is no {own_test(module)}"
        elif listed.count(module) > 1:
            yield f"{module}: is in the list twice"
    yield from (f"{module}: is in the list, and gone" for module in listed if module not in modules)
    yield from (f"{test}: is in the list, and gone" for test in tested_in if test not in tests)


def test_every_module_has_tests() -> None:
    modules = [source.name for source in sources(*PACKAGE) if source.parts[-1] != "__init__"]
    assert list(untested(modules, [source.name for source in sources("tests")])) == []


UNTESTED: list[tuple[str, list[str], dict[str, tuple[str, ...]]]] = [
    ("store/kv/put.py", [], {}),
    ("store/kv/put.py", ["tests/store/artifacts/test_put.py"], {}),
    ("store/kv/put.py", ["tests/store/kv/test_kv.py"], {"tests/store/kv/test_kv.py": ("store/kv/kv",)}),
    ("store/kv/put.py", [], {"tests/store/kv/test_kv.py": ("store/kv/put",)}),
    (
        "store/kv/put.py",
        ["tests/store/kv/test_kv.py", "tests/store/kv/test_put.py"],
        {"tests/store/kv/test_kv.py": ("store/kv/put",)},
    ),
    (
        "store/kv/put.py",
        ["tests/store/kv/test_kv.py", "tests/store/kv/test_match.py"],
        {"tests/store/kv/test_kv.py": ("store/kv/put",), "tests/store/kv/test_match.py": ("store/kv/put",)},
    ),
]

TESTED: list[tuple[str, list[str], dict[str, tuple[str, ...]]]] = [
    ("store/disk.py", ["tests/store/test_disk.py"], {}),
    ("store/engines/transformers.py", ["tests/engines/test_transformers.py"], {}),
    ("store/kv/put.py", ["tests/store/kv/test_kv.py"], {"tests/store/kv/test_kv.py": ("store/kv/put",)}),
]


@pytest.mark.parametrize(("module", "tests", "tested_in"), UNTESTED)
def test_a_module_without_tests_is_seen(module: str, tests: list[str], tested_in: dict[str, tuple[str, ...]]) -> None:
    assert list(untested([module], tests, tested_in))


@pytest.mark.parametrize(("module", "tests", "tested_in"), TESTED)
def test_a_module_with_tests_is_no_offence(
    module: str, tests: list[str], tested_in: dict[str, tuple[str, ...]]
) -> None:
    assert list(untested([module], tests, tested_in)) == []


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
