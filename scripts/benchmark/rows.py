"""Rows: what was measured, beside what it is measured against, as a table and as JSON.

Invariant: a row has a value or says why it has none, and a ratio only ever compares numbers of one run. Wherever a row
is shown, the machine that it was seen on stands with it, and so do that machine's limits where they bound the row.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

AES, BLAKE3 = "AES-256-GCM", "BLAKE3"  # what bounds rows: the names of limits


@dataclass(frozen=True, slots=True)
class Samples:
    """The same thing measured several times: its median counts, its range is shown."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, unit: str) -> str:
        number = _number(self.median)
        if len(self.values) < 2:
            return f"{number} {unit}"
        return f"{number} {unit} ({_number(min(self.values))}-{_number(max(self.values))})"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on the ratio of a row or, where it has no baseline, on its value."""

    bound: float
    at_least: bool = True

    def met(self, measured: float) -> bool:
        return measured >= self.bound if self.at_least else measured < self.bound

    def text(self, unit: str) -> str:
        return f"{'>=' if self.at_least else '<'} {self.bound:g} {unit}"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a machine does at most of one kind of work, in bytes per second, by the number of threads."""

    name: str
    rates: Mapping[int, Samples]

    def text(self, row: "Row") -> str:
        """Return the limit, and the share of the highest rate that a row reaches."""
        said = ", ".join(
            f"{rate.median / 1e9:.2f} GB/s on {threads} thread{'s' if threads > 1 else ''}"
            for threads, rate in sorted(self.rates.items())
        )
        most = max(self.rates)
        share = f"; the row reaches {row.rate / self.rates[most].median:.2f} x of {most}" if row.rate else ""
        return f"limit of {self.name}: {said}{share}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; `ratio` says how many times better it is than the baseline, above 1 is better."""

    name: str
    value: Samples | None
    unit: str = "s"
    bytes: int = 0  # that each measurement went through, for the rate; 0 where a rate says nothing
    baseline: str | None = None
    baseline_value: Samples | None = None
    target: Target | None = None
    notes: tuple[str, ...] = ()
    bound_by: tuple[str, ...] = ()  # the names of the limits that bound it

    @property
    def rate(self) -> float | None:
        """Bytes per second; None where a rate says nothing."""
        return self.bytes / self.value.median if self.bytes and self.value and self.unit == "s" else None

    @property
    def ratio(self) -> float | None:
        if self.value is None or self.baseline_value is None:
            return None
        return self.baseline_value.median / self.value.median

    @property
    def best_ratio(self) -> float | None:
        """The ratio of the fastest of each: what neighbours on the machine disturb least. It decides nothing."""
        if self.value is None or self.baseline_value is None:
            return None
        return min(self.baseline_value.values) / min(self.value.values)

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where there is none or the row could not be measured."""
        if self.target is None or self.value is None or (self.baseline and self.baseline_value is None):
            return None
        return self.target.met(self.value.median if self.ratio is None else self.ratio)

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "NOT MEASURED" if self.target else ""
        return "met" if self.met else "MISSED"


@dataclass(slots=True)
class Section:
    """The rows that answer one question, and what else the machine did meanwhile."""

    number: int
    title: str
    machine: str  # CPU, cores, instructions: what the rows were seen on
    rows: list[Row] = field(default_factory=list)
    limits: Mapping[str, Limit] = field(default_factory=dict)  # measured where a row is bound by one
    others_cpu: float = 0.0  # share of the machine's cores that other processes, and the hypervisor, took
    failed: str | None = None  # why it broke off: a bug in arstore or in the benchmark

    @property
    def broken(self) -> bool:
        """Whether arstore or the benchmark failed, and not a tool that arstore is compared with."""
        return self.failed is not None or any(row.baseline and row.value is None for row in self.rows)


def compared(
    name: str,
    found: Samples | str,
    baseline: str,
    against: Samples | str,
    *,
    length: int = 0,
    target: float | None = None,
    otherwise: str | None = "",
    notes: Sequence[str] = (),
    bound_by: Sequence[str] = (),
) -> Row:
    """Return the row of two things measured in turns, either of which may be the reason why it was not.

    `otherwise` says where the baseline is the better choice; it is shown if the baseline wins. It is None where the
    baseline is a limit, which does nobody's work.
    """
    said = [*notes, *(f"not measured: {one}" for one in (found, against) if isinstance(one, str))]
    value = found if isinstance(found, Samples) else None
    base = against if isinstance(against, Samples) else None
    if otherwise is not None and value and base and base.median < value.median:
        said.append(f"{baseline} wins: use that {otherwise}".rstrip())
    goal = Target(target) if target is not None else None
    return Row(name, value, "s", length, baseline, base, goal, tuple(said), tuple(bound_by))


def table(section: Section) -> str:
    """Return the rows of a section as text."""
    lines = ["", f"{section.number}. {section.title}"]
    lines.append(f"   (other processes took {section.others_cpu:.0%} of the cores meanwhile)")
    for row in section.rows:
        lines += _row_lines(row)
        lines += [f"       {section.limits[name].text(row)}" for name in row.bound_by if name in section.limits]
        lines.append(f"       seen on {section.machine}")
    if section.failed:
        lines.append(f"   FAILED: {section.failed}")
    return "\n".join(lines)


def missed(sections: Iterable[Section]) -> list[str]:
    """Return the names of rows whose target was not met, or not measured."""
    return [
        f"{section.number}: {row.name}{f' against {row.baseline}' if row.baseline else ''}: {row.verdict}"
        for section in sections
        for row in section.rows
        if row.target and not row.met
    ]


def as_json(section: Section) -> dict[str, object]:
    """Return a section for machines."""
    rows = [
        {
            **asdict(row),
            "machine": section.machine,
            "value": row.value and row.value.median,
            "samples": row.value and row.value.values,
            "baseline_value": row.baseline_value and row.baseline_value.median,
            "baseline_samples": row.baseline_value and row.baseline_value.values,
            "ratio": row.ratio,
            "best_ratio": row.best_ratio,
            "met": row.met,
        }
        for row in section.rows
    ]
    return {
        "number": section.number,
        "title": section.title,
        "others_cpu": section.others_cpu,
        "limits": {
            name: {f"threads_{threads}": rate.median for threads, rate in limit.rates.items()}
            for name, limit in section.limits.items()
        },
        "failed": section.failed,
        "rows": rows,
    }


def _row_lines(row: Row) -> list[str]:
    unit = "x" if row.baseline else row.unit
    judged = f", wanted {row.target.text(unit)}: {row.verdict}" if row.target else ""
    lines = [f"   - {row.name}: {_measured(row.value, row)}" + ("" if row.baseline else judged)]
    if row.baseline:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f} x (best of each {row.best_ratio:.2f})"
        lines.append(f"       against {row.baseline}: {_measured(row.baseline_value, row)}, ratio {ratio}{judged}")
    return lines + [f"       {note}" for note in row.notes]


def _measured(found: Samples | None, row: Row) -> str:
    if found is None:
        return "-"
    rate = f", {row.bytes / found.median / 1e9:.2f} GB/s" if row.bytes and row.unit == "s" else ""
    return found.text(row.unit) + rate


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
