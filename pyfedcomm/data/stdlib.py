"""The default corpus: the source text of this machine's own Python standard library.

Every machine that can run pyfedcomm has it: some 10 MB of text, no download, no licence to
accept. Clouds get whole modules or packages, unless told otherwise, so that they hold *different*
text, as clouds do. Tests are left out: they repeat what they test.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pyfedcomm.errors import ConfigError

_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
)


def documents() -> Iterator[tuple[str, str, str]]:
    """(module or package, path below the library, text) of every file."""
    top = Path(sysconfig.get_path("stdlib"))
    for name, found in find_modules(top).items():
        for file in found:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{file} cannot be read as text: {error}") from error
            yield name, file.relative_to(top).as_posix(), text


def files() -> list[Path]:
    """Every file that `documents` reads. Raises ConfigError if there is none."""
    top = Path(sysconfig.get_path("stdlib"))
    found = [file for module in find_modules(top).values() for file in module]
    if not found:
        raise ConfigError(
            f"the standard library's source was looked for in {top}, which has none; install it, "
            "or give data.path"
        )
    return found


def find_modules(top: Path) -> dict[str, list[Path]]:
    """Top-level module or package name -> its ``.py`` files, both sorted."""
    modules: dict[str, list[Path]] = {}
    for file in sorted(top.rglob("*.py")):
        parts = file.relative_to(top).parts
        if _EXCLUDED.isdisjoint(parts):
            modules.setdefault(parts[0].removesuffix(".py"), []).append(file)
    return modules
