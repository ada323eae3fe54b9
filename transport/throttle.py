"""A token bucket: keeps a stream under a rate. Time is an argument."""

from typing import Final


class TokenBucket:
    """Allows ``rate_bytes_per_s`` over time, and ``burst_bytes`` at once after a pause.

    What is sent is taken at once, even on credit, and the sender then waits until the
    debt is paid: so a batch larger than the burst passes too, and is paid for after.
    """

    def __init__(self, rate_bytes_per_s: float, burst_bytes: int) -> None:
        assert rate_bytes_per_s > 0, rate_bytes_per_s
        assert burst_bytes > 0, burst_bytes
        self._rate: Final = rate_bytes_per_s
        self._burst: Final = burst_bytes
        self._tokens = float(burst_bytes)
        self._seen_s: float | None = None

    def take(self, amount_bytes: int, *, now_s: float) -> float:
        """How many seconds to wait before ``amount_bytes`` may be sent, or 0.0.

        ``now_s`` is of any clock that never goes back; if it does, nothing is granted.
        """
        assert amount_bytes >= 0, amount_bytes
        if self._seen_s is None:
            self._seen_s = now_s
        passed_s = max(0.0, now_s - self._seen_s)
        self._seen_s = max(self._seen_s, now_s)
        self._tokens = min(self._burst, self._tokens + passed_s * self._rate)
        wait_s = max(0.0, -self._tokens / self._rate)
        self._tokens -= amount_bytes
        return wait_s
