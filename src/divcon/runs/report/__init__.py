"""The report of a run: one HTML file. ``divcon.report(...)`` is the function `report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.runs.report.write import add_test_scores, report, write_report

__all__ = ["add_test_scores", "report", "write_report"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "add_test_scores": "write",
        "report": "write",
        "write_report": "write",
    },
)
