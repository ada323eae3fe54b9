"""Messages to test with: one of each, and strategies that draw any of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hypothesis import strategies as st

from transport import messages as m

OPTIONS: Final = m.Options(
    codecs=(m.Codec.ZSTD, m.Codec.NONE),
    streams=1,
    tracker="uffd-wp",
    pid_policy=m.PidPolicy.KEEP,
    monotonic_minus_realtime_ns=-1_700_000_000_000_000_000,
    boottime_minus_realtime_ns=-1_700_000_000_000_000_000,
    page_bytes=4096,
    machine="x86_64",
    features=(m.Feature("cpu.avx2", "1"),),
)
TRANSACTION: Final = b"transaction 0001"
REASON: Final = m.Reason("io_uring", 4711, 17, "fd 17 is an io_uring")

# One of each type, with tallies that fit a talk in which no pages were sent.
SAMPLES: Final[Mapping[type[m.Message], m.AnyMessage]] = MappingProxyType(
    {
        type(message): message
        for message in (
            m.Welcome.ours("migrate 0.1.0"),
            m.Hello(m.VERSION_MAX, TRANSACTION),
            m.Offer(b"outline", OPTIONS),
            m.OfferAccepted((4711, 4712)),
            m.Refused((REASON,)),
            m.Layout(0, b"change"),
            m.RoundEnd(1, 0, 0, 0),
            m.RoundDone(1, 0, 0, 0),
            m.State(b"state"),
            m.End(0, 0, 0),
            m.Ready(b"digest", b"epoch", 1000),
            m.Go(),
            m.Accepted(TRANSACTION, b"epoch", False, 1000),
            m.Declined(TRANSACTION, b"epoch", (REASON,)),
            m.Abort((REASON,)),
            m.Fin(),
            m.FinAck(),
            m.Ping(7),
            m.Pong(7),
            m.Query(m.VERSION_MAX, TRANSACTION),
            m.NotYet(TRANSACTION),
        )
    }
)

_texts = st.text(max_size=40).map(m.text)
_names = st.text("abzAZ019_.:+-", min_size=1, max_size=64).filter(
    lambda name: name[0].isalnum()
)
_counts = st.integers(0, 2**63 - 1)
_u32 = st.integers(0, 2**32 - 1)
_versions = st.integers(1, 2**16 - 1)
_transactions = st.binary(min_size=16, max_size=16)
_epochs = st.binary(max_size=16)
_pids = st.integers(1, 1 << 22)
_payloads = st.binary(max_size=300)
_nanoseconds = st.integers(-(2**63), 2**63 - 1)
_numbers = st.integers(1, m.ROUNDS_MAX)
_reasons = st.lists(
    st.builds(
        m.Reason,
        _names | st.just(""),
        st.none() | _pids,
        st.none() | st.integers(0, 2**31 - 1),
        _texts,
    ),
    max_size=4,
).map(tuple)
_options = st.builds(
    m.Options,
    st.permutations(list(m.Codec)).map(tuple),
    st.integers(1, m.STREAMS_MAX),
    _names,
    st.sampled_from(m.PidPolicy),
    _nanoseconds,
    _nanoseconds,
    st.sampled_from([4096, 16384, 65536]),
    _names,
    st.lists(
        st.builds(m.Feature, _names, _texts),
        max_size=4,
        unique_by=lambda feature: feature.name,
    ).map(tuple),
)

messages: Final[st.SearchStrategy[m.AnyMessage]] = st.one_of(
    st.builds(
        lambda versions, agent: m.Welcome(min(versions), max(versions), agent),
        st.tuples(_versions, _versions),
        _texts,
    ),
    st.builds(m.Hello, _versions, _transactions),
    st.builds(m.Offer, _payloads, _options),
    st.builds(m.OfferAccepted, st.lists(_pids, min_size=1, max_size=5).map(tuple)),
    st.builds(m.Refused, _reasons),
    st.builds(m.Layout, _u32, _payloads),
    st.builds(m.RoundEnd, _numbers, _counts, _counts, _counts),
    st.builds(m.RoundDone, _numbers, _counts, _counts, _counts),
    st.builds(m.State, _payloads),
    st.builds(m.End, _counts, _counts, _counts),
    st.builds(m.Ready, st.binary(max_size=64), _epochs, _counts),
    st.just(m.Go()),
    st.builds(m.Accepted, _transactions, _epochs, st.booleans(), _counts),
    st.builds(m.Declined, _transactions, _epochs, _reasons),
    st.builds(m.Abort, _reasons),
    st.just(m.Fin()),
    st.just(m.FinAck()),
    st.builds(m.Ping, _u32),
    st.builds(m.Pong, _u32),
    st.builds(m.Query, _versions, _transactions),
    st.builds(m.NotYet, _transactions),
)
