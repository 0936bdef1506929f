"""Numbers as people read them. Decimal units, as networks and bills use them."""

from __future__ import annotations


def bytes_text(n_bytes: float) -> str:
    """``1234567`` -> ``"1.23 MB"``: three significant digits."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} PB"


def count_text(n: float) -> str:
    """``853120`` -> ``"853 thousand"``, ``1.2e6`` -> ``"1.20 million"``."""
    for size, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(n) >= size * 0.9995:
            return f"{_three_digits(n / size)} {unit}"
    return f"{n:.0f}"


def seconds_text(seconds: float) -> str:
    """``75.2`` -> ``"1 min 15 s"``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"
