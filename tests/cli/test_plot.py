"""Pictures of plans, through the command line: real files, drawn whole or not at all."""

import json
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from arstore import open_store
from arstore.cli.plot import draw
from arstore.store.plan.planner import make_plan
from arstore.store.plan.timeline import Timed, occupancy, planned, trace
from tests.support.command import Ran, cli
from tests.support.fresh_memory import host
from tests.support.jobs import block_job, conversations
from tests.support.planning import SIZE, job, store

__all__ = ["host", "store"]  # fixtures


def texts(path: Path) -> list[str]:
    return ["".join(one.itertext()) for one in ET.parse(path).iter() if one.tag.endswith("}text")]


def stretched(timed: Timed, by: float) -> Timed:
    """Return a timeline as if measured on a slower machine."""
    events = (replace(one, start_s=one.start_s * by, end_s=one.end_s * by) for one in timed.events)
    return Timed(tuple(events), timed.found)


@pytest.fixture
def planned_job(store: object, tmp_path: Path) -> Path:
    requests = [{"id": f"$r_{name}$<{n}", "artifacts": [name]} for n, name in enumerate("xyzxyz")]
    return job(tmp_path, requests, f"[budget]\nhost = {2 * SIZE}\n")


def timeline_of(path: Path, folder: Path, by: float) -> Path:
    """Return a file that says that the plan of a job took `by` times as long as predicted."""
    with open_store() as opened:
        value = trace(stretched(planned(opened.tiers.plan(path)), by))
    (file := folder / "TIMELINE").write_text(json.dumps(value))
    return file


def test_an_svg_says_what_the_plan_says(planned_job: Path, tmp_path: Path) -> None:
    plain = cli("--json", "plan", planned_job)
    ran = cli("--json", "plan", planned_job, "--plot", tmp_path / "plan.svg")
    assert (ran.code, ran.out) == (0, plain.out)
    said = texts(tmp_path / "plan.svg")
    assert f"predicted {plain.json['predicted_seconds']:.3f} s" in said
    assert "host: at most 78.1 KiB predicted, capacity 78.1 KiB" in said
    assert {"predicted", "capacity", "KiB", "seconds", "$r_x$<0", "requests: 6, in the planned order"} <= set(said)
    assert "measured" not in said
    first = (tmp_path / "plan.svg").read_bytes()
    assert cli("plan", planned_job, "--plot", tmp_path / "plan.svg").code == 0
    assert (tmp_path / "plan.svg").read_bytes() == first  # the same plan, the same picture
    assert (tmp_path / "plan.svg").stat().st_mode & 0o777 == 0o644 & ~umask()


def umask() -> int:
    return int(next(line for line in Path("/proc/self/status").open() if line.startswith("Umask")).split()[1], 8)


def test_what_was_measured_lies_over_it(planned_job: Path, tmp_path: Path) -> None:
    file = timeline_of(planned_job, tmp_path, 1.25)
    ran = cli("plan", planned_job, "--plot", tmp_path / "plan.SVG", "--measured", file)
    assert ran.code == 0, ran.err
    said = texts(tmp_path / "plan.SVG")
    seconds = cli("--json", "plan", planned_job).json["predicted_seconds"]
    assert f"predicted {seconds:.3f} s, measured {1.25 * seconds:.3f} s (+25.0 %)" in said
    assert "host: at most 78.1 KiB predicted, 78.1 KiB measured, capacity 78.1 KiB" in said
    assert {"predicted", "measured", "capacity"} <= set(said)


def test_a_png_is_one_and_large_enough_to_read(planned_job: Path, tmp_path: Path) -> None:
    assert cli("plan", planned_job, "--plot", tmp_path / "plan.png").code == 0
    content = (tmp_path / "plan.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1000 <= width <= 3000
    assert 500 <= height <= 3000
    assert 10_000 < len(content) < 500_000


def refused(ran: Ran, said: str, folder: Path) -> None:
    assert ran.code == 2, ran.err
    assert said in ran.error
    assert not [path.name for path in folder.iterdir() if "plan" in path.name.lower()]


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(planned_job: Path, tmp_path: Path) -> None:
    for name in ("plan.pdf", "plan", "plan.svg.gz", ".svg"):
        refused(cli("plan", tmp_path / "absent.toml", "--plot", tmp_path / name), "ends in .svg or .png", tmp_path)
    file = timeline_of(planned_job, tmp_path, 1.0)
    refused(cli("plan", planned_job, "--measured", file), "wanted --plot FILE", tmp_path)
    out = ["--plot", tmp_path / "plan.svg", "--out", tmp_path / "PLAN"]
    for bad, said in (("{", "not valid json"), ("[]", "fields were wanted"), ("\0", "not valid json")):
        (tmp_path / "bad").write_text(bad)
        refused(cli("plan", planned_job, *out, "--measured", tmp_path / "bad"), said, tmp_path)
    other = job(tmp_path, [{"id": "elsewhere", "artifacts": ["x"]}])
    ran = cli("plan", other, *out, "--measured", file)
    refused(ran, "is of another job: $r_x$<0 is not in this plan", tmp_path)
    ran = cli("plan", other, *out, "--measured", tmp_path / "absent")
    assert ran.code == 3
    assert cli("plan", other, "--plot", tmp_path / "no/such/plan.svg").code == 1


def test_a_job_of_weights_alone_and_one_where_all_is_there_are_drawn(store: object, tmp_path: Path) -> None:
    path = job(tmp_path, weights=["base"])
    assert cli("plan", path, "--plot", tmp_path / "plan.svg").code == 0
    said = texts(tmp_path / "plan.svg")
    assert "capacity" not in said  # far above: it would press the curve flat
    assert cli("prefetch", "base").code == 0
    assert cli("plan", path, "--plot", tmp_path / "plan.svg").code == 0
    said = texts(tmp_path / "plan.svg")
    assert "predicted 0.000 s" in said
    assert any(one.startswith("host: at most 39.1 KiB predicted, capacity ") for one in said)


def test_thousands_of_requests_make_a_small_picture(tmp_path: Path) -> None:
    work = block_job(conversations(count=900), 0.05)
    timed = planned(make_plan(work, windows=[8]))
    assert len(occupancy(timed)["host"]) > 20_000
    capacities = {tier.name: tier.capacity_bytes for tier in work.tiers}
    draw(timed, stretched(timed, 1.1), capacities, tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size < 1_000_000
    assert "<image" in (tmp_path / "plan.svg").read_text()  # the bars, as pixels
    assert any("(+10.0 %)" in one for one in texts(tmp_path / "plan.svg"))
