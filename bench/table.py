"""Renders a JSONL file of results as a markdown table: python bench/table.py FILE [FILE ...]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def number(name: str, pattern: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.get(name)
        return "-" if value is None else format(value, pattern)

    return cell


def text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name]) if row.get(name) is not None else "-"


def median(row: Row) -> str:
    if row.get("median_ms") is None:
        return str(row.get("missing") or "-")
    return f"{row['median_ms']:.4g}"


def spread(row: Row) -> str:
    return "-" if row.get("min_ms") is None else f"{row['min_ms']:.4g} to {row['max_ms']:.4g}"


def output(row: Row) -> str:
    return "fresh" if row["allocates"] else "reused"


def right(row: Row) -> str:
    verified = row.get("verified")
    return "-" if verified is None else "yes" if verified else "**NO**"


def clouds(row: Row) -> str:
    """Ranks and devices of each."""
    return " + ".join(f"{n} {d}" for n, d in zip(row["ranks"], row["devices"], strict=True))


KERNEL_COLUMNS: list[Column] = [
    ("kernel", text("kernel")),
    ("codec", text("codec")),
    ("elements", text("n_elems")),
    ("threads", text("threads")),
    ("isa", text("isa")),
    ("output", output),
    ("median ms", median),
    ("min to max", spread),
    ("GB/s", number("gbps", ".1f")),
    ("ceiling", number("ceiling_gbps", ".1f")),
    ("share", number("share", ".2f")),
    ("Mentries/s", number("mentries_per_s", ".0f")),
    ("verified", right),
]

PEER_COLUMNS: list[Column] = [
    ("task", text("kernel")),
    ("who", text("peer")),
    ("how", text("codec")),
    ("elements", text("n_elems")),
    ("threads", text("threads")),
    ("output", output),
    ("median ms", median),
    ("min to max", spread),
    ("ours : this", number("ratio_ours_to_peer", ".3f")),
    ("verified", right),
]

SUM_COLUMNS: list[Column] = [
    ("codec", text("codec")),
    ("algorithm", text("algorithm_used")),
    ("transport", text("transport")),
    ("clouds", text("clouds")),
    ("bytes", text("n_bytes")),
    ("median ms", median),
    ("min to max", spread),
    ("algbw GB/s", number("algbw_gbps", ".3f")),
    ("busbw GB/s", number("busbw_gbps", ".3f")),
    ("wire bytes", text("wire_bytes")),
    ("verified", right),
]

SUM_PEER_COLUMNS: list[Column] = [
    ("who", text("peer")),
    ("codec", text("codec")),
    ("transport", text("transport")),
    ("clouds", text("clouds")),
    ("bytes", text("n_bytes")),
    ("median ms", median),
    ("min to max", spread),
    ("raw TCP ms", number("floor_ms", ".4g")),
    ("bytes / rate + way", number("floor_computed_ms", ".4g")),
    ("times raw TCP", number("ratio_to_floor", ".2f")),
    ("ours : this", number("ratio_ours_to_peer", ".3f")),
    ("verified", right),
]

HIERARCHY_COLUMNS: list[Column] = [
    ("clouds", clouds),
    ("rails", text("rails")),
    ("transport", text("transport")),
    ("Gbit/s", text("rate_gbit")),
    ("codec", text("codec")),
    ("algorithm", text("algorithm")),
    ("bytes", text("n_bytes")),
    ("buckets", text("buckets")),
    ("median ms", median),
    ("min to max", spread),
    ("reduce-scatter", number("reduce_scatter_ms", ".3g")),
    ("encode", number("encode_ms", ".3g")),
    ("wire", number("wire_ms", ".3g")),
    ("decode", number("decode_ms", ".3g")),
    ("all-gather", number("all_gather_ms", ".3g")),
    ("times the wire's floor", number("ratio_to_floor", ".3f")),
    ("bytes : bound", number("bytes_to_bound", ".4f")),
    ("one torch.distributed ms", number("peer_ms", ".4g")),
    ("verified", right),
]

PAIR_COLUMNS: list[Column] = [
    ("test", text("test")),
    ("transport", text("transport")),
    ("pairs", text("pairs")),
    ("bytes", text("n_bytes")),
    ("messages", text("n_messages")),
    ("median ms", median),
    ("min to max", spread),
    ("one way ms", number("one_way_ms", ".4g")),
    ("GB/s", number("gbps", ".3f")),
    ("wire bytes", text("wire_bytes")),
    ("verified", right),
]


UTILISATION_COLUMNS: list[Column] = [
    ("rule", text("rule")),
    ("cloud", text("cloud")),
    ("cloud 1 slower by", number("slower", "g")),
    ("Mbit/s", number("rate_mbit", "g")),
    ("round trip ms", number("rtt_ms", "g")),
    ("step s", number("step_s", ".4f")),
    ("min to max", lambda row: f"{row['step_min_s']:.4f} to {row['step_max_s']:.4f}"),
    ("computing", number("busy", ".1%")),
    ("of isolated", number("ratio", ".3f")),
    ("bytes a step", number("bytes_per_step", ".0f")),
    ("at least", number("floor_bytes_per_step", ".0f")),
    ("verified", right),
]


def columns_of(row: Row) -> list[Column]:
    """By which program made the row."""
    if row.get("bench") == "hierarchy":
        return HIERARCHY_COLUMNS
    if "busy" in row:
        return UTILISATION_COLUMNS
    if "test" in row:
        return PAIR_COLUMNS
    if "clouds" in row:
        return SUM_PEER_COLUMNS if "peer" in row else SUM_COLUMNS
    return PEER_COLUMNS if "peer" in row else KERNEL_COLUMNS


def read_rows(path: Path) -> list[Row]:
    with path.open() as file:
        return [json.loads(line) for line in file if line.strip()]


def facts(rows: Iterable[Row]) -> str:
    """Machine, date and commit: one line for each that there is."""
    seen = dict.fromkeys((r["machine"], r["date"], r["commit"]) for r in rows)
    return "\n".join(
        f"{machine}; {date}; commit {commit or 'not recorded'}" for machine, date, commit in seen
    )


def table(rows: list[Row]) -> str:
    columns = columns_of(rows[0])
    lines = [[name for name, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row).replace("|", "\\|") for _, cell in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def qualities(rows: list[Row]) -> str:
    """Of bench_quality.py: a table for each preset and set of overridden keys."""
    from quality.table import render

    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = " ".join([row["preset"], *row["overrides"]])
        title += f"; {row['n_params']} parameters, {row['tokens']} tokens"
        groups.setdefault(title, []).append(row)
    return "\n\n".join(f"{title}\n\n{render(group)}" for title, group in groups.items())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Renders results as a markdown table.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for path in parser.parse_args(argv).files:
        rows = read_rows(path)
        if not rows:
            print(f"{path} has no rows", file=sys.stderr)
            return 1
        if "point" in rows[0]:
            days = [{**row, "date": row["date"][:10]} for row in rows]
            print(f"{facts(days)}\n\n{qualities(rows)}\n")
        else:
            print(f"{facts(rows)}\n\n{table(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
