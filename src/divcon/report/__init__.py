"""The report of a run: one HTML file. ``divcon.report(...)`` is the function `report`."""

from divcon.callable_module import make_callable
from divcon.report.write import report, write_report

__all__ = ["report", "write_report"]

make_callable(__name__)
