"""The check of cmake/CheckKernelObjects.cmake, which each optimised build with warnings as errors
runs before it links libfedcomm: it must find what it looks for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A virtual environment's cmake is not on the PATH of whoever calls its python directly.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
TOOLS = {name: shutil.which(name, path=PATH) for name in ("c++", "nm", "cmake")}

SHARED = """
inline int shared(int x) { return x * 3 + 1; }
namespace avx512 {
int (*table())(int) { return shared; }
}
"""
APART = """
namespace avx512 {
namespace {
[[gnu::always_inline]] inline int inner(int x) { return x * 3; }
int apart(int x) { return inner(x) + 1; }
}
int (*table())(int) { return apart; }
}
"""
TEMPLATE = """
template <typename T> T shared(T x) { return x * 3 + 1; }
namespace avx512 {
int (*table())(int) { return shared<int>; }
}
"""
VARIABLE = """
inline int shared = 3;
namespace avx512 {
int* table() { return &shared; }
}
"""


def compiled(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.cpp"
    path.write_text(source)
    command = [str(TOOLS["c++"]), "-std=c++20", "-O3", "-c", str(path), "-o", f"{path}.o"]
    subprocess.run(command, check=True, timeout=60)
    return Path(f"{path}.o")


def check(*objects: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "cmake" / "CheckKernelObjects.cmake"
    listed = "|".join(map(str, objects))
    return subprocess.run(
        [str(TOOLS["cmake"]), f"-DNM={TOOLS['nm']}", f"-DOBJECTS={listed}", "-P", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(None in TOOLS.values(), reason="needs a compiler, nm and cmake")
def test_weak_symbols_are_found(tmp_path: Path) -> None:
    apart = compiled(tmp_path, "apart", APART)
    assert check(apart).returncode == 0
    for name, source in {"inline": SHARED, "template": TEMPLATE, "variable": VARIABLE}.items():
        shared = compiled(tmp_path, name, source)
        for objects in ([shared], [apart, shared], [shared, apart]):
            found = check(*objects)
            assert found.returncode != 0
            assert f"{name}.cpp.o" in found.stderr
            assert "shared" in found.stderr
            assert "apart.cpp.o" not in found.stderr


@pytest.mark.skipif(None in TOOLS.values(), reason="needs a compiler, nm and cmake")
def test_nothing_to_look_at_is_a_failure(tmp_path: Path) -> None:
    assert check().returncode != 0
    assert check(tmp_path / "missing.o").returncode != 0
