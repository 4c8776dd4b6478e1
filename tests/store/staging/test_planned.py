"""A plan file is carried out as planned, on a store and tiers that may have changed since."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arstore import BadInput, Store
from arstore.store.plan.planfile import plan_of_lanes
from tests.support.command import arstore, cli
from tests.support.runs import WORK, store, tight, worked

__all__ = ["store"]  # fixtures


def test_a_plan_file_runs_as_planned(store: Store, tmp_path: Path) -> None:
    path = tight(tmp_path)
    assert cli("plan", path, "--order", "prefix", "--out", tmp_path / "PLAN").code == 0
    order = json.loads((tmp_path / "PLAN").read_text())["order"]
    assert cli("prefetch", "v").code == 0  # it is there by now, which the plan does not know
    ran = arstore("prefetch", tmp_path / "PLAN", "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert list(worked(ran.out)) == order
    assert cli("prefetch", tmp_path / "PLAN", "--to", "device").code == 2
    ran = cli("prefetch", tmp_path / "PLAN")  # all at once does not fit
    assert ran.code == 14
    store.rm("z")
    assert cli("prefetch", tmp_path / "PLAN").code == 3
    with pytest.raises(BadInput):
        store.tiers.plan(path, to="shared")


def test_objects_of_a_plan_file_that_are_no_longer_staged_are_staged_again(store: Store, tmp_path: Path) -> None:
    assert cli("prefetch", "u", "v").code == 0
    assert cli("plan", tight(tmp_path), "--out", tmp_path / "PLAN").code == 0
    assert cli("unstage", "--all").code == 0
    ran = arstore("prefetch", tmp_path / "PLAN", "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert len(worked(ran.out)) == 24


def test_a_plan_of_other_sizes_is_refused(store: Store, tmp_path: Path) -> None:
    plan = store.tiers.plan(tight(tmp_path))
    smaller = replace(plan.job, objects=tuple(replace(one, length_bytes=8) for one in plan.job.objects))
    (tmp_path / "PLAN").write_text(json.dumps(plan_of_lanes(smaller, plan.order, plan.lanes).fields()))
    for command in ([], ["--", "true"]):
        ran = arstore("prefetch", tmp_path / "PLAN", *command)
        assert ran.code == 2
        assert "another size" in ran.err
