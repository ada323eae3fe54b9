"""The token bucket: never above the rate, whatever the amounts and the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.throttle import TokenBucket


@given(
    st.floats(1.0, 1e10),
    st.integers(1, 1 << 24),
    st.lists(st.tuples(st.integers(0, 1 << 21), st.floats(0.0, 3.0)), max_size=40),
)
def test_the_rate_holds_over_any_time(
    rate: float, burst: int, batches: list[tuple[int, float]]
) -> None:
    """A sender that waits as told has sent no more than rate times time, a burst, and
    the batch that it has just been allowed."""
    bucket = TokenBucket(rate, burst)
    now_s, sent_bytes = 0.0, 0
    for amount, pause_s in batches:
        now_s += pause_s
        now_s += bucket.take(amount, now_s=now_s)
        sent_bytes += amount
        assert sent_bytes <= (now_s * rate + burst + amount) * (1 + 1e-9) + 1


def test_a_burst_passes_at_once() -> None:
    """What the bucket holds is not delayed; what comes after it waits for its debt."""
    bucket = TokenBucket(100.0, 50)
    assert bucket.take(50, now_s=10.0) == 0.0
    assert bucket.take(100, now_s=10.0) == 0.0  # on credit
    assert bucket.take(1, now_s=10.0) == pytest.approx(1.0)


def test_a_batch_larger_than_the_burst_is_paid_for_afterwards() -> None:
    """No batch is too large: it passes, and the next one waits."""
    bucket = TokenBucket(100.0, 10)
    assert bucket.take(1000, now_s=0.0) == 0.0
    assert bucket.take(1, now_s=0.0) == pytest.approx(9.9)
    assert bucket.take(0, now_s=20.0) == 0.0


def test_a_long_pause_earns_one_burst_only() -> None:
    """Time without sending does not add up."""
    bucket = TokenBucket(100.0, 10)
    assert bucket.take(10, now_s=0.0) == 0.0
    assert bucket.take(20, now_s=1000.0) == 0.0
    assert bucket.take(0, now_s=1000.0) == pytest.approx(0.1)


def test_a_clock_that_goes_back_grants_nothing() -> None:
    """The same second is never paid out twice."""
    bucket = TokenBucket(100.0, 10)
    bucket.take(110, now_s=10.0)
    assert bucket.take(0, now_s=5.0) == pytest.approx(1.0)
    assert bucket.take(0, now_s=10.0) == pytest.approx(1.0)
    assert bucket.take(0, now_s=11.0) == 0.0
