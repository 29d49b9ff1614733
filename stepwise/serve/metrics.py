"""What a server counts, in the text form that Prometheus reads; names follow vLLM's."""

from __future__ import annotations

import math
import time
from collections import Counter

from stepwise.models.budget import Ledger

ROLES = ("weak", "strong", "scorer")
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class _Histogram:
    """Seconds, counted by upper bounds."""

    def __init__(self) -> None:
        self.counts, self.sum, self.count = [0] * len(_BOUNDS), 0.0, 0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.sum, self.count = self.sum + seconds, self.count + 1
        for place, bound in enumerate(_BOUNDS):
            self.counts[place] += seconds <= bound

    def lines(self, name: str) -> list[str]:
        """As Prometheus reads it."""
        rows = [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(_BOUNDS, self.counts, strict=True)]
        return [f"# TYPE {name} histogram", *rows, f'{name}_bucket{{le="+Inf"}} {self.count}',
                f"{name}_sum {self.sum:.6f}", f"{name}_count {self.count}"]  # fmt: skip


class Metrics:
    """Counts of a server since its start.

    Example:
        >>> metrics = Metrics()
        >>> metrics.responded(200)
        >>> 'stepwise:responses_total{status="200"} 1' in metrics.text()
        True
    """

    def __init__(self) -> None:
        self.running = self.waiting = 0  # answers
        self.first, self._whole = _Histogram(), _Histogram()
        self._responses: Counter[int] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._cost = 0.0

    def responded(self, status: int) -> None:
        """Count a response."""
        self._responses[status] += 1

    def ended(self, account: Ledger, began: float) -> None:
        """Count what a request took."""
        self._whole.add(time.monotonic() - began)
        self._cost += account.usage().cost or 0.0
        for role in ROLES:
            usage = account.usage(role)
            self._tokens[role, "prompt"] += usage.prompt_tokens
            self._tokens[role, "generation"] += usage.generated_tokens

    def retry_after(self) -> int:
        """Seconds after which there may be room."""
        mean = self._whole.sum / self._whole.count if self._whole.count else 1.0
        return min(60, max(1, math.ceil(mean)))

    def text(self) -> str:
        """The page of `/metrics`."""
        rows = [
            "# TYPE stepwise:num_requests_running gauge", f"stepwise:num_requests_running {self.running}",
            "# TYPE stepwise:num_requests_waiting gauge", f"stepwise:num_requests_waiting {self.waiting}",
            "# TYPE stepwise:responses_total counter",
            *(f'stepwise:responses_total{{status="{status}"}} {count}' for status, count in self._responses.items()),
            "# TYPE stepwise:tokens_total counter",
            *(f'stepwise:tokens_total{{role="{role}",kind="{kind}"}} {count}'
              for (role, kind), count in self._tokens.items()),
            "# TYPE stepwise:cost_total counter", f"stepwise:cost_total {self._cost:.9g}",
            *self.first.lines("stepwise:time_to_first_token_seconds"),
            *self._whole.lines("stepwise:e2e_request_latency_seconds"),
        ]  # fmt: skip
        return "\n".join(rows) + "\n"
