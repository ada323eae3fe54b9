"""Messages: what goes in comes out, and nothing else comes in."""

import math
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.transport_samples import OPTIONS, REASON, SAMPLES, messages
from transport import messages as m
from transport.errors import LocalProtocolError, RemoteProtocolError

# By hand a second time, so that a tag cannot change by accident.
TAGS = {
    m.Welcome: 1,
    m.Hello: 2,
    m.Offer: 3,
    m.OfferAccepted: 4,
    m.Refused: 5,
    m.Layout: 6,
    m.RoundEnd: 7,
    m.RoundDone: 8,
    m.State: 9,
    m.End: 10,
    m.Ready: 11,
    m.Go: 12,
    m.Accepted: 13,
    m.Declined: 14,
    m.Abort: 15,
    m.Fin: 16,
    m.FinAck: 17,
    m.Ping: 18,
    m.Pong: 19,
    m.Query: 20,
    m.NotYet: 21,
}

samples = pytest.mark.parametrize(
    "message", SAMPLES.values(), ids=[word.__name__ for word in SAMPLES]
)


def plain(message: m.AnyMessage) -> list[Any]:
    """``message`` as another msgpack library sees it."""
    fields = msgpack.unpackb(m.encode(message))
    assert isinstance(fields, list)
    return fields


def refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        m.decode(raw)


@given(messages)
def test_round_trip(message: m.AnyMessage) -> None:
    """Every message survives its bytes, from any kind of buffer."""
    data = m.encode(message)
    assert m.decode(data) == message
    assert m.decode(memoryview(bytearray(data))) == message


def test_tags_are_what_they_were() -> None:
    """Each message has its hand-written tag; all messages are here."""
    assert {word: plain(message)[0] for word, message in SAMPLES.items()} == TAGS
    assert set(SAMPLES) == set(m.Message.__subclasses__())


def test_numbers_are_what_they_were() -> None:
    """Enums on the wire are hand-written numbers too, none of them zero."""
    assert {c.name: c.value for c in m.Codec} == {"NONE": 1, "ZSTD": 2}
    policies = {p.name: p.value for p in m.PidPolicy}
    assert policies == {"KEEP": 1, "ANY": 2, "NEW_NAMESPACE": 3, "AUTO": 4}


@samples
def test_no_field_may_be_missing_or_added(message: m.AnyMessage) -> None:
    """Fewer or more fields than the message has are refused."""
    fields = plain(message)
    refused(msgpack.packb([*fields, 1]))
    refused(msgpack.packb([*fields, None]))
    for count in range(len(fields)):
        refused(msgpack.packb(fields[:count]))


@samples
def test_every_cut_and_every_tail_is_refused(message: m.AnyMessage) -> None:
    """A message is exactly its bytes: none missing, none behind."""
    data = m.encode(message)
    for cut in range(len(data)):
        refused(data[:cut])
    refused(data + b"\x00")
    refused(data + data)


WRONG: list[Any] = [
    None,
    True,
    False,
    0.0,
    1.0,
    math.nan,
    math.inf,
    -1,
    -(2**63),
    2**64 - 1,
    "",
    "a\x00b",
    "x" * 5000,
    b"",
    b"x" * 5000,
    [],
    [[]],
    {},
    {1: 2},
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1, 2),
]


@samples
def test_wrong_values_are_refused_or_right(message: m.AnyMessage) -> None:
    """Any odd value in any field is refused, or a value that the field may have."""
    fields = plain(message)
    for place in range(len(fields)):
        for wrong in WRONG:
            raw = msgpack.packb([*fields[:place], wrong, *fields[place + 1 :]])
            try:
                decoded = m.decode(raw)
            except RemoteProtocolError:
                continue
            assert m.encode(decoded) == raw
            assert not isinstance(wrong, float | dict | msgpack.ExtType)
            assert isinstance(wrong, bool) == isinstance(fields[place], bool)


@given(st.binary(max_size=200))
@example(b"\xdd\x7f\xff\xff\xff")  # an array of 2**31-1 elements in five bytes
@example(b"\x92\x04\xdd\x7f\xff\xff\xff")
@example(b"\x92\x04\xdd\x00\x00\x7f\xff")
@example(b"\x92\x09\xc6\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
@example(b"\x92\x04" + b"\x91" * 100_000)
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\x92\x0f\x91\x94\xa1\xff\xc0\xc0\xa0")  # not UTF-8
@example(b"\xc1")
def test_garbage_is_refused_with_one_error(data: bytes) -> None:
    """Any bytes are a message or RemoteProtocolError, never anything else."""
    try:
        message = m.decode(data)
    except RemoteProtocolError:
        return
    assert m.decode(m.encode(message)) == message


@given(messages, st.data())
def test_damage_is_refused_with_one_error(
    message: m.AnyMessage, data: st.DataObject
) -> None:
    """A message with one byte changed is another one or RemoteProtocolError."""
    raw = bytearray(m.encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        m.decode(bytes(raw))
    except RemoteProtocolError:
        pass


LONG_TEXT = "x" * (m.TEXT_MAX + 1)
TOO_MANY = (REASON,) * (m.REASONS_MAX + 1)


def options(**changes: object) -> m.Options:
    return msgspec.structs.replace(OPTIONS, **changes)


@pytest.mark.parametrize(
    "message",
    [
        m.Welcome(0, 1, ""),
        m.Welcome(1, 1 << 16, ""),
        m.Welcome(1, 1, LONG_TEXT),
        m.Welcome(1, 1, "a\nb"),
        m.Welcome(1, 1, "a\x1b[2Jb"),
        m.Welcome(1, 1, "a\u202eb"),
        m.Hello(1, b"x" * 15),
        m.Hello(1, b"x" * 17),
        m.Hello(0, b"x" * 16),
        m.OfferAccepted(()),
        m.OfferAccepted((0,)),
        m.OfferAccepted(((1 << 22) + 1,)),
        m.OfferAccepted((1,) * (m.PIDS_MAX + 1)),
        m.Refused(TOO_MANY),
        m.Declined(b"x" * 16, b"", TOO_MANY),
        m.Declined(b"x" * 15, b"", ()),
        m.Declined(b"x" * 16, b"x" * 17, ()),
        m.NotYet(b""),
        m.Abort(TOO_MANY),
        m.Abort((m.Reason("a kind", None, None, ""),)),
        m.Abort((m.Reason("x" * 65, None, None, ""),)),
        m.Abort((m.Reason("", 0, None, ""),)),
        m.Abort((m.Reason("", None, -1, ""),)),
        m.Abort((m.Reason("", None, 1 << 31, ""),)),
        m.Abort((m.Reason("", None, None, LONG_TEXT),)),
        m.Abort((m.Reason("", None, None, "\udcff"),)),
        m.Layout(-1, b""),
        m.Layout(1 << 32, b""),
        m.RoundEnd(0, 0, 0, 0),
        m.RoundEnd(m.ROUNDS_MAX + 1, 0, 0, 0),
        m.RoundEnd(1, -1, 0, 0),
        m.RoundEnd(1, 0, 1 << 63, 0),
        m.RoundDone(1, 0, 0, -1),
        m.End(0, -1, 0),
        m.Ready(b"x" * 65, b"", 0),
        m.Ready(b"", b"x" * 17, 0),
        m.Ready(b"", b"", -1),
        m.Accepted(b"x" * 16, b"", False, -1),
        m.Ping(-1),
        m.Pong(1 << 32),
        m.Offer(b"", options(streams=0)),
        m.Offer(b"", options(streams=m.STREAMS_MAX + 1)),
        m.Offer(b"", options(tracker="")),
        m.Offer(b"", options(tracker="x" * 65)),
        m.Offer(b"", options(tracker="../../x")),
        m.Offer(b"", options(machine="x 86")),
        m.Offer(b"", options(monotonic_minus_realtime_ns=1 << 63)),
        m.Offer(b"", options(boottime_minus_realtime_ns=-(1 << 63) - 1)),
        m.Offer(b"", options(page_bytes=2048)),
        m.Offer(b"", options(page_bytes=2 << 20)),
    ],
    ids=repr,
)
def test_every_bound_holds_on_both_sides(message: m.AnyMessage) -> None:
    """What is beyond a bound is not sent by us, and refused from a peer."""
    with pytest.raises(LocalProtocolError, match=type(message).__name__):
        m.encode(message)
    try:
        raw = msgspec.msgpack.encode(message)
    except (ValueError, OverflowError):
        return  # no msgpack says it at all
    refused(raw)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, []),
        (0, [1, 1]),
        (0, [3]),
        (0, [0]),
        (3, 0),
        (3, 5),
        (3, True),
        (6, 5000),  # no power of two
        (8, [["a", "1"], ["a", "2"]]),
        (8, [["", "1"]]),
        (8, [["a", "x" * 257]]),
        (8, [["a", "1"]] * (m.FEATURES_MAX + 1)),
        (8, {"a": "1"}),
    ],
)
def test_odd_options_are_refused(place: int, value: object) -> None:
    """Codecs and features are known, bounded and named once; sizes make sense."""
    fields = plain(SAMPLES[m.Offer])
    fields[2][place] = value
    refused(msgpack.packb(fields))


def test_versions_the_wrong_way_round_are_refused() -> None:
    """Welcome offers at least one version."""
    refused(msgpack.packb([1, 2, 1, ""]))


def test_a_payload_of_the_largest_size_passes_and_no_more() -> None:
    """64 MiB is the limit of a message with everything in it."""
    room = m.MESSAGE_BYTES_MAX - len(m.encode(m.State(bytes(1 << 16)))) + (1 << 16)
    largest = m.State(bytes(room))
    assert m.decode(m.encode(largest)) == largest
    with pytest.raises(LocalProtocolError, match="bytes"):
        m.encode(m.State(bytes(room + 1)))


@given(st.text(max_size=3000))
def test_text_makes_anything_sendable(raw: str) -> None:
    """Whatever a path or an error contains, its ``text`` can be sent as a reason."""
    reason = m.Reason("x", None, None, m.text(raw))
    assert m.decode(m.encode(m.Abort((reason,)))) == m.Abort((reason,))


def test_text_keeps_what_is_printable() -> None:
    """Ordinary text passes unchanged, control and stray bytes are replaced."""
    assert m.text("fd 17: größer — ok") == "fd 17: größer — ok"
    assert m.text("a\nb\x1b\udcff") == "a\ufffdb\ufffd\ufffd"
    assert len(m.text("x" * 2000)) == m.TEXT_MAX


def test_the_longest_refusal_fits_one_frame() -> None:
    """Only Offer, Layout and State need parts: the rest fits at its longest."""
    reason = m.Reason("k" * 64, 1 << 22, (1 << 31) - 1, "\U0001f600" * m.TEXT_MAX)
    assert len(m.encode(m.Refused((reason,) * m.REASONS_MAX))) <= 1 << 20
    assert len(m.encode(m.OfferAccepted((1 << 22,) * m.PIDS_MAX))) <= 1 << 20
