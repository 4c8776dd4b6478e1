"""Plot: a picture of a plan. It shows what each tier holds over time and when requests run, planned and measured.

Invariant: the file appears whole or not at all, and equal timelines give equal bytes. Curves are thinned to what a
pixel can show, so a picture of ten thousand requests takes seconds and little space.
"""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import FormatError
from ..formats.strict_json import parse_json
from ..store.disk import Disk
from ..store.errors import BadInput
from ..store.plan.job import read_bounded
from ..store.plan.planfile import Plan
from ..store.plan.timeline import Timed, occupancy, parse_trace, planned
from .render import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, int]]

SUFFIXES = (".svg", ".png")
_COLUMNS = 1600  # a curve has at most so many columns, because nobody sees more
_BARS_MAX = 400  # with more requests, an SVG has them as pixels too
_NAMED_MAX = 24
_NAME_MAX = 16
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
# Two colours that all kinds of sight tell apart (Okabe and Ito), also by their lightness.
_PLANNED, _MEASURED, _QUIET = "#0072B2", "#D55E00", "#666666"
_LOOKS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "arstore",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # a name with a dollar sign is text, not mathematics
}


def check_suffix(path: Path) -> None:
    """Raise BadInput for a file that is neither an SVG nor a PNG by its name."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"--plot {path}", f"wanted a name that ends in {' or '.join(SUFFIXES)}")


def read_measured(path: Path) -> Timed:
    """Return what a timeline file says; raise BadInput for one that is none, NotFound if it isn't there."""
    try:
        return parse_trace(parse_json(read_bounded(path)), str(path))
    except FormatError as error:
        raise BadInput(str(path), str(error).lower()) from None


def check_same_job(plan: Plan, measured: Timed, where: str) -> None:
    """Raise BadInput if the measured timeline, read from `where`, knows tiers or requests that the plan does not."""
    strange = occupancy(measured).keys() - {tier.name for tier in plan.job.tiers}
    strange |= _spans(measured).keys() - {str(request.id) for request in plan.job.requests}
    if strange:
        raise BadInput(where, f"is of another job: {min(strange)} is not in this plan")


def draw_plan(plan: Plan, measured: Timed | None, path: Path) -> None:
    """Draw what is predicted of a plan, and what was measured, if anything; see `draw`."""
    draw(planned(plan), measured, {tier.name: tier.capacity_bytes for tier in plan.job.tiers}, path)


def draw(planned: Timed, measured: Timed | None, capacities: Mapping[str, int | None], path: Path) -> None:
    """Draw both timelines into an SVG or PNG file, which is durable on return; `capacities` in bytes by tier."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib warns of letters that the font lacks
        matplotlib.rcdefaults()  # ignores the user's own settings of matplotlib
        matplotlib.rcParams.update(_LOOKS)
        count = len(planned.found) + 1
        figure = Figure(figsize=(9, 0.7 + 1.9 * count), dpi=150, layout="constrained")
        axes: list[Axes] = [*figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]]
        for tier, panel in zip(planned.found, axes, strict=False):
            _draw_tier(panel, tier, planned, measured, capacities.get(tier))
        _draw_requests(axes[-1], planned, measured)
        _finish(figure, axes, planned, measured)
        drawn = BytesIO()
        kind = path.suffix.lower()[1:]
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else {})
    Disk().write_output(path, drawn.getvalue())


def _draw_tier(panel: "Axes", tier: str, planned: Timed, measured: Timed | None, capacity: int | None) -> None:
    end = max(planned.seconds, measured.seconds if measured else 0.0)
    curves = [(occupancy(one).get(tier, [(0.0, 0)]), one.seconds) for one in (planned, measured) if one]
    peaks = [max(length for _, length in curve) for curve, _ in curves]
    near = capacity is not None and capacity <= 2 * max(peaks)
    top = max(*peaks, capacity or 0) if near else max(peaks)
    power = next((power for power in range(4, 0, -1) if top >= 1024**power), 0)
    for number, (curve, last) in enumerate(curves):
        settled = [
            *dict([*curve, (last, curve[-1][1])]).items()
        ]  # an object that leaves when another comes makes no dip
        moments, lengths = zip(*_seen(settled, end), strict=True)
        heights = [length / 1024**power for length in lengths]
        if number == 0:
            panel.fill_between(moments, heights, step="post", color=_PLANNED, alpha=0.25, linewidth=0)
        colour, label = (_PLANNED, _MEASURED)[number], ("predicted", "measured")[number]
        panel.step(moments, heights, where="post", color=colour, linewidth=1.1, label=label)
    if capacity is not None and near:
        panel.axhline(capacity / 1024**power, color=_QUIET, linewidth=0.9, linestyle=(0, (5, 3)), label="capacity")
    panel.set_ylim(0, 1.08 * (top or 1) / 1024**power)
    panel.set_ylabel(_UNITS[power])
    said = [f"{size(peak)} {how}" for peak, how in zip(peaks, ("predicted", "measured"), strict=False)]
    said += [] if capacity is None else [f"capacity {size(capacity)}"]
    panel.set_title(f"{tier}: at most {', '.join(said)}", loc="left")


def _seen(curve: Curve, end_s: float) -> Curve:
    """Return a thinned curve: of each column of pixels the first, least, greatest and last value."""
    if len(curve) <= 4 * _COLUMNS or not end_s:
        return curve
    columns: dict[int, list[tuple[float, int]]] = {}
    for point in curve:
        columns.setdefault(int(point[0] / end_s * _COLUMNS), []).append(point)
    seen = []
    for points in columns.values():
        lengths = [length for _, length in points]
        kept = {0, lengths.index(min(lengths)), lengths.index(max(lengths)), len(points) - 1}
        seen += [points[number] for number in sorted(kept)]
    return seen


def _spans(timed: Timed) -> dict[str, tuple[float, float]]:
    return {event.name: (event.start_s, event.end_s) for event in timed.events if event.kind == "request"}


def _draw_requests(panel: "Axes", planned: Timed, measured: Timed | None) -> None:
    """Draw a bar for each request, one above the other in the planned order."""
    from matplotlib.collections import PolyCollection

    places = {name: place for place, name in enumerate(_spans(planned))}
    height = 0.8 if len(places) <= _NAMED_MAX else 1.0
    share = height / 2 if measured else height
    timelines = [planned, measured] if measured else [planned]
    # A request that takes no time, or one of thousands, still gets a line this wide.
    least_s, least_height = max(one.seconds for one in timelines) / 800, len(places) / 90
    for number, one in enumerate(timelines):
        bars = []
        for name, (start, end) in _spans(one).items():
            low = places[name] + height / 2 - share * (number + 1)
            right, high = max(end, start + least_s), low + max(share, least_height)
            bars.append([(start, low), (right, low), (right, high), (start, high)])
        colour = (_PLANNED, _MEASURED)[number]
        panel.add_collection(
            PolyCollection(bars, facecolor=colour, linewidth=0, snap=False, rasterized=len(bars) > _BARS_MAX)
        )
    panel.set_ylim(-0.6, max(len(places), 1) - 0.4)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    if len(places) <= _NAMED_MAX:
        shown = [name if len(name) <= _NAME_MAX else f"{name[:_NAME_MAX]}…" for name in places]
        panel.set_yticks(range(len(places)), shown)
    panel.set_ylabel("request")
    panel.set_title(f"requests: {len(places):,}, in the planned order", loc="left")


def _finish(figure: "Figure", axes: Sequence["Axes"], planned: Timed, measured: Timed | None) -> None:
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(0, 1.01 * max(planned.seconds, measured.seconds if measured else 0.0) or 1)
    said = f"predicted {planned.seconds:.3f} s"
    if measured:
        said += f", measured {measured.seconds:.3f} s"
        if planned.seconds:
            said += f" ({100 * (measured.seconds / planned.seconds - 1):+.1f} %)"
    figure.suptitle(said, x=0.01, ha="left", fontsize=11, fontweight="bold")
    known = {label: line for panel in axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend([*known.values()], [*known], loc="upper right", ncols=3, frameon=False)
