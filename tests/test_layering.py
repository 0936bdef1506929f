"""Each layer uses only what lies below it: includes in csrc/, imports in pyfedcomm/."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

NATIVE = [
    {"base"},
    {"quant", "topk", "coding", "crypt", "wire"},
    {"codec"},
    {"transport"},
    {"collective"},
    {"bind"},
]
PYTHON = [
    {"errors", "spelling"},
    {"_core"},
    {"_mpi", "_mpi_world", "_tensor", "links", "rendezvous", "stats", "tcp", "work"},
    {"codecs", "group", "topology"},
    {"buckets", "dtensor", "exchange", "feedback", "hierarchy", "holding", "intra", "weights"},
    {"sync", "privacy"},
    {"data", "train"},
    {"integrations", "report", "plan", "doctor", "launch", "demo", "cli", "__main__"},
]


def level(name: str, layers: list[set[str]]) -> int:
    found = [i for i, layer in enumerate(layers) if name in layer]
    assert found, f"{name} is in no layer: say in tests/test_layering.py where it belongs"
    return found[0]


def test_native_layers() -> None:
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        here = level(path.relative_to(ROOT / "csrc").parts[0], NATIVE)
        for included in re.findall(r'#include "([a-z]+)/', path.read_text()):
            there = level(included, NATIVE)
            own = included == path.relative_to(ROOT / "csrc").parts[0]
            assert there < here or own, f"{path.name} must not use {included}/"


def test_python_layers() -> None:
    package = ROOT / "pyfedcomm"
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        here = level(name, PYTHON)
        for imported in imports(ast.parse(path.read_text())):
            there = level(imported, PYTHON)
            assert there <= here, f"{path.relative_to(ROOT)} must not import pyfedcomm.{imported}"


def imports(tree: ast.AST) -> set[str]:
    """Modules of pyfedcomm that a file imports, in functions too, but not for type checking."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            if parts[0] == "pyfedcomm":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "pyfedcomm" and len(parts) > 1:
                    found.add(parts[1])
    return found - {"__version__"}


def test_kernels_know_no_sockets_and_transports_no_floats() -> None:
    for path in (ROOT / "csrc" / "quant").rglob("*"):
        assert path.is_dir() or "sys/socket" not in path.read_text()
    for path in (ROOT / "csrc" / "transport").rglob("*"):
        assert "float" not in re.sub(r"//.*", "", path.read_text()), path
    for path in (ROOT / "csrc").rglob("*"):
        conditional = path.is_file() and re.search(r"#if.*FEDCOMM", path.read_text())
        assert not conditional, f"{path}: optional parts are stub files, not #ifdef"
