"""The default corpus: the source text of this machine's own Python standard library.

Every machine that can run pyfedcomm has it: some 10 MB of text, no download, no licence to
accept. It is split by top-level module or package, so that clouds hold *different* text, as
clouds do. Tests are left out: they repeat what they test.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pyfedcomm.errors import ConfigError

_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
)


def documents(cloud: int, n_clouds: int) -> Iterator[tuple[str, str]]:
    """(path below the library, text) of the modules that cloud ``cloud`` of ``n_clouds`` holds."""
    top = Path(sysconfig.get_path("stdlib"))
    modules = find_modules(top)
    if len(modules) < n_clouds:
        raise ConfigError(
            f"the standard library's source was looked for in {top}: {len(modules)} modules are "
            f"too few for {n_clouds} clouds; install it, or give data.path"
        )
    mine = split(
        {name: sum(f.stat().st_size for f in files) for name, files in modules.items()}, n_clouds
    )
    for name in mine[cloud]:
        for file in modules[name]:
            try:
                yield file.relative_to(top).as_posix(), file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file} cannot be read as text: {error}") from error


def find_modules(top: Path) -> dict[str, list[Path]]:
    """Top-level module or package name -> its ``.py`` files, both sorted."""
    modules: dict[str, list[Path]] = {}
    for file in sorted(top.rglob("*.py")):
        parts = file.relative_to(top).parts
        if _EXCLUDED.isdisjoint(parts):
            modules.setdefault(parts[0].removesuffix(".py"), []).append(file)
    return modules


def split(sizes: dict[str, int], n_parts: int) -> list[list[str]]:
    """Deals names to parts of about equal total size; deterministic, each part sorted.

    Largest first, each to the part that is smallest so far (Graham's LPT rule, at most 4/3 of the
    optimum's largest part).
    """
    parts: list[list[str]] = [[] for _ in range(n_parts)]
    totals = [0] * n_parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = totals.index(min(totals))
        parts[smallest].append(name)
        totals[smallest] += sizes[name]
    return [sorted(part) for part in parts]
