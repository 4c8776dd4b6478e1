"""Render: values to the text a person reads."""

from collections.abc import Sequence


def size(length_bytes: float) -> str:
    """Return a size as people write it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if length_bytes < 1024:
            return f"{length_bytes:.0f} {unit}" if unit == "B" else f"{length_bytes:.1f} {unit}"
        length_bytes /= 1024
    return f"{length_bytes:.1f} TiB"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (titles, *rows))
    return "\n".join(line.rstrip() for line in lines)


def pairs(values: Sequence[tuple[str, object]]) -> str:
    """Return names and values, one pair a line, in two columns."""
    width = max(len(name) for name, _ in values)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values)


def rate(length_bytes: float, seconds: float) -> str:
    """Return a speed, or nothing where there was too little to measure one by."""
    return f", {length_bytes / seconds / 1e9:.2f} GB/s" if length_bytes >= 16 << 20 and seconds >= 0.05 else ""
