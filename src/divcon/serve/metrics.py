"""Counts of the server, as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from typing import Any

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds."""


class Metrics:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    def count(self, scope: dict[str, Any], status: int, seconds: float) -> None:
        """Count a request that was answered."""
        # A path that no route has could be anything, and each would be a line.
        path = getattr(scope.get("route"), "path", "other")
        self._requests[path, status] += 1
        self._seconds += seconds
        for bucket in _BUCKETS:
            self._buckets[bucket] += seconds <= bucket

    def text(self, **gauges: float) -> str:
        """All counts in Prometheus's text format.

        Args:
            gauges: further numbers, by name.
        """
        total = sum(self._requests.values())
        lines = ["# TYPE divcon_requests_total counter"]
        for (path, status), number in sorted(self._requests.items()):
            lines.append(f'divcon_requests_total{{route="{path}",status="{status}"}} {number}')
        lines.append("# TYPE divcon_request_seconds histogram")
        lines += [f'divcon_request_seconds_bucket{{le="{b:g}"}} {self._buckets[b]}' for b in _BUCKETS]
        lines.append(f'divcon_request_seconds_bucket{{le="+Inf"}} {total}')
        lines += [f"divcon_request_seconds_sum {self._seconds:.6f}", f"divcon_request_seconds_count {total}"]
        for name, value in {"requests_in_progress": self.in_progress, **gauges}.items():
            lines += [f"# TYPE divcon_{name} gauge", f"divcon_{name} {value:g}"]
        return "\n".join(lines) + "\n"
