"""The one place that imports transformers: offline, and by one thread at a time.

It resolves names when they are first asked for, and does not expect two threads to ask at once;
ranks may be threads.
"""

from __future__ import annotations

import os
import threading
from typing import Any

LOCK = threading.RLock()
"""Hold it while using what transformers loads lazily or keeps in globals."""


def transformers() -> Any:
    """The package, which will download nothing."""
    with LOCK:
        os.environ["HF_HUB_OFFLINE"] = (
            "1"  # read at the first import; local_files_only does the rest
        )
        import transformers as package

        return package
