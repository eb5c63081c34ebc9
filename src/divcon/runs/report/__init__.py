"""The report of a run: one HTML file. ``divcon.report(...)`` is the function `report`."""

from __future__ import annotations

from divcon.runs.report.write import add_test_scores, report, write_report

__all__ = ["add_test_scores", "report", "write_report"]
