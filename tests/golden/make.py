"""Writes the golden payloads of the current wire version; run once when a codec is added.

A file that exists is never overwritten: its bytes are a promise to clouds that run that version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from pyfedcomm import _core, codecs


def sample() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Gaussians, zeros, denormals, huge values, and a last block that is not full."""
    x = np.random.default_rng(20261123).standard_normal(700, dtype=np.float32)
    x[256:300] = 0
    x[300:310] = 1e-41
    x[600] = 3e38
    return x


def main() -> None:
    folder = Path(__file__).parent / f"wire{_core.build_info()['wire_version']}"
    folder.mkdir(exist_ok=True)
    x = sample()
    for name in codecs.names():
        path = folder / f"{re.sub('[^a-z0-9.]+', '_', name).strip('_')}.json"
        if path.exists():
            continue
        codec = codecs.get(name)
        payload = codec.encode(x)
        decoded = codec.decode(payload, x.size)
        golden = {
            "codec": name,
            "input": x.tobytes().hex(),
            "payload": payload.tobytes().hex(),
            "decoded": decoded.tobytes().hex(),
        }
        path.write_text(json.dumps(golden))


if __name__ == "__main__":
    main()
