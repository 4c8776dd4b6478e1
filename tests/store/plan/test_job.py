"""JOB files: what a user writes is read as meant, or refused in one line that names file, line and field."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arstore.store.errors import BadInput, NotFound, StorageFailed, StoreError
from arstore.store.plan.job import JobFile, JobRequest, compose, hashed_objects, read_job
from arstore.store.plan.model import Object, PlannedTier
from arstore.store.plan.planner import make_plan

JOB = """
[job]
to = "device"
weights = ["llama@3"]
requests = "lines/requests.jsonl"
block_bytes = "4MiB"
[budget]
host = "16GiB"
device = 8_000_000_000
[recompute]
tokens_per_second = 25000
"""
LINES = """
{"id": "a", "hash_ids": [0, 1, 2]}

{"id": 7, "tokens": [5, 6], "after": ["a"], "compute_seconds": 1}
{"id": "b", "artifacts": ["kv/x", "y@2"], "after": ["a", 7]}
"""


def written(folder: Path, job: str = JOB, lines: str | None = LINES) -> Path:
    (folder / "lines").mkdir(exist_ok=True)
    if lines is not None:
        (folder / "lines/requests.jsonl").write_text(lines)
    path = folder / "JOB.toml"
    path.write_text(job)
    return path


def test_a_job_is_read_as_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read_job(path) == JobFile(
        path=path,
        to="device",
        weights=("llama@3",),
        requests=(
            JobRequest("a", hash_ids=(0, 1, 2)),
            JobRequest(7, tokens=(5, 6), after=("a",), compute_s=1.0),
            JobRequest("b", artifacts=("kv/x", "y@2"), after=("a", 7)),
        ),
        budget=(("device", 8_000_000_000), ("host", 16 << 30)),
        tokens_per_s=25000.0,
        block_bytes=4 << 20,
        block_tokens=512,
    )


def test_lines_of_a_published_trace_are_requests_as_they_are(tmp_path: Path) -> None:
    trace = "".join(
        json.dumps({"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": ids}) + "\n"
        for ids in ([0, 1], [0, 2])
    )
    job = read_job(written(tmp_path, lines=trace))
    assert [(one.id, one.hash_ids) for one in job.requests] == [(1, (0, 1)), (2, (0, 2))]


def test_a_job_becomes_a_plan(tmp_path: Path) -> None:
    """Objects are numbered in order of use and once each; weights are held; the store is the caller's."""
    job = read_job(written(tmp_path, lines='{"id": "a", "hash_ids": [3, 1]}\n{"id": "b", "hash_ids": [3, 2]}\n'))
    weights = [Object("w0", 10), Object("w1", 20)]
    tiers = [PlannedTier("device", 8_000_000_000, 1e10), PlannedTier("host", 16 << 30, 2e9)]
    staged = compose(job, tiers, source="local", held=weights, objects_of=hashed_objects(job))
    assert [one.id for one in staged.objects] == ["w0", "w1", "block 3", "block 1", "block 2"]
    assert (staged.held, [one.objects for one in staged.requests]) == ((0, 1), [(2, 3), (2, 4)])
    assert {(one.length_bytes, one.tokens) for one in staged.objects[2:]} == {(4 << 20, 512)}
    plan = make_plan(staged)
    assert plan.live_peak_bytes == 30 + 2 * (4 << 20)


def test_weights_alone_are_one_request(tmp_path: Path) -> None:
    job = read_job(written(tmp_path, '[job]\nto = "host"\nweights = ["llama"]\n'))
    staged = compose(
        job, [PlannedTier("host", 30, 1.0)], source="local", held=[Object("w", 30)], objects_of=hashed_objects(job)
    )
    assert [one.id for one in staged.requests] == ["weights"]
    assert make_plan(staged).peak_bytes == (30,)


A = '{"id": "a", "hash_ids": [1]}\n'


@pytest.mark.parametrize(
    ("job", "lines", "said"),
    [
        ("to =\n", None, "JOB.toml: not valid TOML (invalid value (at line 1, column 5))"),
        ("", None, "JOB.toml: job is missing"),
        ("[job]\n", None, "JOB.toml: [job]: neither weights nor requests: nothing to stage"),
        ('[job]\nto = "local"\n', None, "JOB.toml: [job]: to is 'local', wanted device or host"),
        ('[job]\nto = "host"\n', None, "JOB.toml: [job]: neither weights nor requests: nothing to stage"),
        (JOB.replace("weights", "wieghts"), LINES, "JOB.toml: [job]: 'wieghts' is not known"),
        (JOB.replace('"llama@3"', "3"), LINES, "JOB.toml: [job]: weights is 3, wanted text"),
        (JOB.replace('"llama@3"', '"a b"'), LINES, "JOB.toml: [job]: weights: 'a b': a name is 1 to 512"),
        (JOB.replace("16GiB", "lots"), LINES, "JOB.toml: [budget]: host is 'lots', wanted a size above 0"),
        (JOB.replace("16GiB", "0"), LINES, "JOB.toml: [budget]: host is '0', wanted a size above 0"),
        (JOB.replace("host =", "hist ="), LINES, "JOB.toml: [budget]: 'hist' is not known, only device, host, shared"),
        (JOB.replace("25000", "0"), LINES, "JOB.toml: [recompute]: tokens_per_second is 0, wanted more than 0"),
        (JOB.replace("25000", "nan"), LINES, "JOB.toml: [recompute]: tokens_per_second is nan, wanted a number"),
        (JOB.replace('block_bytes = "4MiB"', ""), A, "requests.jsonl line 1: hash_ids need block_bytes under [job]"),
        (JOB, "\n\n", "requests.jsonl: holds no request"),
        (JOB, A + "{", "requests.jsonl line 2: not valid json"),
        (JOB, A + "[1]", "requests.jsonl line 2: [1] stands where fields were wanted"),
        (JOB, A + '{"id": "b"}', "line 2: has nothing to need, wanted one of tokens, hash_ids, artifacts"),
        (JOB, '{"tokens": [], "hash_ids": []}', "line 1: has tokens and hash_ids, wanted one of"),
        (JOB, A + A, "line 2: id is 'a', which line 1 has already"),
        (JOB, A + '{"id": 1.5, "hash_ids": []}', "line 2: id is 1.5, wanted text"),
        (JOB, A + '{"id": true, "hash_ids": []}', "line 2: id is True, wanted text"),
        (JOB, A + '{"hash_ids": [1, -1]}', "line 2: hash_ids is -1, wanted a whole number of 0 or more"),
        (JOB, A + '{"hash_ids": [true]}', "line 2: hash_ids is True, wanted a whole number of 0 or more"),
        (JOB, A + '{"artifacts": ["a", "b c"]}', "line 2: artifacts: 'b c': a name is 1 to 512"),
        (JOB, A + '{"hash_ids": [], "aftr": ["a"]}', "line 2: 'aftr' is not known"),
        (JOB, A + '{"hash_ids": [], "after": "a"}', "line 2: after is 'a', wanted a list"),
        (JOB, A + '{"hash_ids": [], "after": ["b"]}', "line 2: after is 'b', which is no request's id"),
        (JOB, A + '{"hash_ids": [], "compute_seconds": -1}', "line 2: compute_seconds is -1, wanted a number"),
        (JOB, A + '{"hash_ids": [], "compute_seconds": 1e999}', "line 2: compute_seconds is inf, wanted a number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, job: str, lines: str | None, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_job(written(tmp_path, job, lines))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"JOB\.toml: no such file"):
        read_job(tmp_path / "JOB.toml")
    with pytest.raises(NotFound, match=r"requests\.jsonl: no such file"):
        read_job(written(tmp_path, lines=None))
    with pytest.raises(StorageFailed, match="is a directory"):
        read_job(tmp_path)


WORDS = [
    "id",
    "tokens",
    "hash_ids",
    "artifacts",
    "after",
    "compute_seconds",
    "job",
    "to",
    "host",
    "a",
    "b c",
    "é\ud800",
]
VALUES: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)


def refusal(path: Path) -> str | None:
    try:
        assert read_job(path).requests
    except StoreError as error:
        return str(error)
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES, st.binary(max_size=40))
def test_any_line_is_a_request_or_refused(tmp_path: Path, value: object, junk: bytes) -> None:
    path = written(tmp_path)
    lines = tmp_path / "lines/requests.jsonl"
    for text in (json.dumps(value).encode(), junk, json.dumps(value).encode() + b"\n" + junk):
        lines.write_bytes(text)
        said = refusal(path)
        assert said is None or said.isprintable(), "one line, and safe on any terminal"
    path.write_bytes(junk)
    with pytest.raises(BadInput):
        read_job(path)
