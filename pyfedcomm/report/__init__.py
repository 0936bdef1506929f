"""``report.html``: what a run did, as one self-contained file.

``data`` reads ``metrics.jsonl``, ``charts`` draws SVG with matplotlib, ``page`` writes the HTML.
Needs the extra ``[train]`` (matplotlib); loads it only when a report is written.
"""

from pyfedcomm.report.data import Run, read_run
from pyfedcomm.report.page import write_report

__all__ = ["Run", "read_run", "write_report"]
