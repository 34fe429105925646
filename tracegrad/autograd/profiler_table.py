"""The table of a profile: which columns there are, how wide, what each cell says.

A column is a title, a width and a function from row to text; the table is those, laid out.
Start reading at `render`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracegrad.autograd.profiler_util import format_time, on_device
from tracegrad.ir.errors import ParameterError

if TYPE_CHECKING:
    from tracegrad.autograd.profiler_util import EventList

WIDTH = 12  # of a column of figures
GAP = "  "
SOURCE = "Source Location"  # the last column
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0}
SORT_KEYS = (
    "cpu_time", "cpu_time_total", "self_cpu_time_total", "cpu_memory_usage",
    "self_cpu_memory_usage", "count", "flops", "key",
)  # fmt: skip
"""Those that the error for another one names; like PyTorch's, any attribute of a row is one."""
ESTIMATED = " (est.)"  # after the name of a row whose time is a share of a measured one


@dataclass(frozen=True)
class Layout:
    """The arguments of `table` that say how it looks."""

    row_limit: int
    source_width: int | None
    name_width: int | None
    shapes_width: int | None
    header: str | None
    top_level: bool
    time_unit: str | None


@dataclass(frozen=True)
class Column:
    """A title, a width, and the text of a row's cell."""

    title: str
    width: int
    cell: Callable[[Any], str]


def format_memory(size: int) -> str:
    """Bytes as people write them: `4 B`, `3.91 KB`, `-1.50 MB`."""
    for unit, scale in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def render(events: EventList, sort_by: str | None, layout: Layout) -> str:
    """The table as text; the arguments are those of `profile.table`.

    Raises:
        AttributeError: `sort_by` is no sort key.
        ParameterError: `time_unit` is none of s, ms, us.
    """
    if layout.time_unit is not None and layout.time_unit not in UNITS:
        raise ParameterError(
            f"table: time_unit must be one of {list(UNITS)} or None, got {layout.time_unit!r}"
        )
    if not events:
        return ""
    rows = list(events)
    if sort_by is not None:
        rows.sort(key=_sort_key(sort_by), reverse=True)
    shown = [row for row in rows if not layout.top_level or row.cpu_parent is None]
    if layout.row_limit >= 0:
        shown = shown[: layout.row_limit]
    columns = _columns(events, layout)
    lines = [*_heading(columns, layout)]
    for row in shown:
        lines.extend(_lines(columns, row))
    rule = _rule(columns)
    total = _clock(layout)(events.self_cpu_time_total)
    lines += [rule, f"Self CPU time total: {total}"]
    if _device(events):
        total = _clock(layout)(events.self_device_time_total)
        lines.append(f"Self {_device(events)} time total: {total}")
    if any(row.is_estimated for row in shown):
        from tracegrad.autograd.profiler_kernels import NOTE

        lines.append(NOTE)
    return "\n".join([*lines, ""])


def _sort_key(name: str) -> Callable[[Any], Any]:
    def value(row: Any) -> Any:
        try:
            return getattr(row, on_device(name))
        except AttributeError as error:
            raise AttributeError(f"{error}; sort_by is one of {', '.join(SORT_KEYS)}") from None

    return value


def _heading(columns: list[Column], layout: Layout) -> list[str]:
    lines = []
    double = "=" * (sum(c.width + len(GAP) for c in columns) - len(GAP))
    if layout.header is not None:
        lines += [double, layout.header]
    if layout.top_level:
        lines += [double, "This report only display top-level ops statistics"]
    rule = _rule(columns)
    titles = [c.title.rjust(c.width) + GAP for c in columns]
    if columns[-1].title == SOURCE:
        titles[-1] = SOURCE.ljust(columns[-1].width) + GAP
    return [*lines, rule, "".join(titles), rule]


def _rule(columns: list[Column]) -> str:
    return "".join("-" * c.width + GAP for c in columns)


def _lines(columns: list[Column], row: Any) -> list[str]:
    """A row; with stacks also their further lines below the first, and a blank line."""
    if columns[-1].title != SOURCE:
        return ["".join(c.cell(row).rjust(c.width) + GAP for c in columns)]
    *others, source = columns
    figures = "".join(c.cell(row).rjust(c.width) + GAP for c in others)
    stack = [_cut_source(line, source.width).ljust(source.width) + GAP for line in row.stack]
    first, *further = stack or [" " * (source.width + len(GAP))]
    indent = " " * sum(c.width + len(GAP) for c in others)
    return [figures + first, *(indent + line for line in further), indent + " " * len(first)]


def _clock(layout: Layout) -> Callable[[float], str]:
    if layout.time_unit is None:
        return format_time
    unit, scale = layout.time_unit, UNITS[layout.time_unit]
    return lambda microseconds: f"{microseconds / scale:.3f}{unit}"


def _shown_name(row: Any) -> str:
    return f"{row.key}{ESTIMATED}" if row.is_estimated else str(row.key)


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) < max(1, limit - 3):
        return text
    return text[: max(0, limit - 3)] + "..."


def _cut_source(text: str, limit: int) -> str:
    """A file and line, shortened in front, where the least is lost."""
    return "..." + text[len(text) - max(0, limit - 3) :] if len(text) > limit else text


def _wide(texts: Iterable[str], title: str, limit: int | None) -> int:
    """The width of a column of texts: four blanks beside the longest, but no more than `limit`."""
    width = max(map(len, texts)) + 4
    return max(len(title), width if limit is None else min(width, limit))


def _device(events: EventList) -> str:
    """The name of the device in titles; empty where no event has a time there."""
    if not any(e.self_device_time_total > 0 for e in events):
        return ""
    return str(events[0].use_device or "cuda").upper()


def _columns(events: EventList, layout: Layout) -> list[Column]:
    """The columns that these events fill."""
    whole = events.self_cpu_time_total
    clock = _clock(layout)

    def share(time: float, whole: float = whole) -> str:
        return f"{100.0 * time / whole:.2f}%" if whole else "NaN"

    name_width = _wide(map(_shown_name, events), "Name", layout.name_width)
    columns = [
        Column("Name", name_width, lambda e: _cut(_shown_name(e), layout.name_width)),
        Column("Self CPU %", WIDTH, lambda e: share(e.self_cpu_time_total)),
        Column("Self CPU", WIDTH, lambda e: clock(e.self_cpu_time_total)),
        Column("CPU total %", WIDTH, lambda e: share(e.cpu_time_total)),
        Column("CPU total", WIDTH, lambda e: clock(e.cpu_time_total)),
        Column("CPU time avg", WIDTH, lambda e: clock(e.cpu_time)),
    ]
    device = _device(events)
    if device:
        busy = events.self_device_time_total
        columns += [
            Column(f"Self {device}", WIDTH, lambda e: clock(e.self_device_time_total)),
            Column(f"Self {device} %", WIDTH, lambda e: share(e.self_device_time_total, busy)),
            Column(f"{device} total", WIDTH, lambda e: clock(e.device_time_total)),
            Column(f"{device} time avg", WIDTH, lambda e: clock(e.device_time)),
        ]
    if events.recorded["profile_memory"]:
        columns += [
            Column("CPU Mem", WIDTH, lambda e: format_memory(e.cpu_memory_usage)),
            Column("Self CPU Mem", WIDTH, lambda e: format_memory(e.self_cpu_memory_usage)),
        ]
        name = events[0].use_device
        if name and any(e.self_device_memory_usage > 0 for e in events):
            columns += [
                Column(f"{name.upper()} Mem", WIDTH, lambda e: format_memory(e.device_memory_usage)),
                Column(f"Self {name.upper()} Mem", WIDTH,
                       lambda e: format_memory(e.self_device_memory_usage)),
            ]  # fmt: skip
    columns.append(Column("# of Calls", WIDTH, lambda e: str(e.count)))
    if any(e.input_shapes for e in events):
        limit = layout.shapes_width
        width = _wide((str(e.input_shapes) for e in events), "Input Shapes", limit)
        columns.append(Column("Input Shapes", width, lambda e: str(e.input_shapes)[:limit]))
    counted = [e.flops for e in events if e.flops > 0]
    if events.recorded["with_flops"] and counted:
        columns.append(_flops_column(min(counted)))
    if any(e.stack for e in events):
        width = _wide((line for e in events for line in e.stack), SOURCE, layout.source_width)
        columns.append(Column(SOURCE, width, lambda e: ""))  # filled in by `_lines`
    return columns


def _flops_column(least: int) -> Column:
    """Operations counted in the thousand, million, ... that suits the smallest number."""
    prefixes = ("", "K", "M", "G", "T", "P")
    power = min(len(prefixes) - 1, (len(str(least)) - 1) // 3)
    scale = 1000.0**power
    title = f"Total {prefixes[power]}FLOPs"
    return Column(title, WIDTH, lambda e: f"{e.flops / scale:8.3f}" if e.flops > 0 else "--")
