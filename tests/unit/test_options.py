"""How options are written, and what is said about those that are not understood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.options import (
    Codec,
    Compress,
    MoveOptions,
    OnStall,
    OptionError,
    Peer,
    PidPolicy,
    TrackerChoice,
    parse_compress,
    parse_milliseconds,
    parse_peer,
    parse_rate,
    parse_seconds,
    parse_size,
    parse_streams,
)


def test_the_defaults_suit_a_first_use() -> None:
    """They are those that the documents promise."""
    assert MoveOptions() == MoveOptions(
        downtime_limit_s=0.05,
        rounds_max=30,
        timeout_s=None,
        on_stall=OnStall.THROTTLE,
        bandwidth=None,
        streams=None,
        compress=Compress(Codec.AUTO),
        tracker=TrackerChoice.AUTO,
        pid_policy=PidPolicy.AUTO,
        dry_run=False,
    )


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("64kB", 64_000),
        ("8G", 8 << 30),
        ("8 GiB", 8 << 30),
        ("8GB", 8_000_000_000),
        ("1.5M", 3 << 19),
        ("2T", 2 << 40),
    ],
)
def test_a_size_is_understood(text: str, size_bytes: int) -> None:
    """A bare letter is a power of 1024, one with a B alone a power of 1000."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("200MB/s", 200_000_000),
        ("50M", 50 << 20),
        ("50MiB/s", 50 << 20),
        ("1Gbit/s", 125_000_000),
        ("8bit/s", 1),
    ],
)
def test_a_rate_is_understood(text: str, bytes_per_s: int) -> None:
    """Bytes as in a size, or bits as links are sold."""
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "1e3",
        "M",
        "1Q",
        "1.M",
        "0x10",
        "1M/s/s",
        "nan",
        "\u0663",
        "9999999T",
    ],
)
def test_another_rate_is_named_in_the_error(text: str) -> None:
    """With an example of one that would do."""
    with pytest.raises(OptionError) as caught:
        parse_rate(text)
    assert repr(text) in str(caught.value)
    assert "200MB/s" in str(caught.value)


def test_a_duration_is_understood() -> None:
    """Milliseconds for a downtime, seconds for all else; both are given in seconds."""
    assert parse_milliseconds("0.5") == 0.0005
    assert parse_seconds("60") == 60.0
    for text in ("", "0", "-1", "nan", "inf", "1e9", "1_0", "9999999999999"):
        for parse in (parse_seconds, parse_milliseconds):
            with pytest.raises(OptionError):
                parse(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("b:7077", "b", 7077),
        ("10.0.0.2:1", "10.0.0.2", 1),
        ("node-1.example.org:65535", "node-1.example.org", 65535),
        ("[::1]:7077", "::1", 7077),
        ("[fe80::1%eth0]:7077", "fe80::1%eth0", 7077),
        ("[::ffff:10.0.0.1]:7077", "::ffff:10.0.0.1", 7077),
    ],
)
def test_a_peer_is_understood(text: str, host: str, port: int) -> None:
    """And written again as it was."""
    assert parse_peer(text) == Peer(host, port)
    assert str(parse_peer(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("b", "HOST:PORT"),
        ("", "HOST:PORT"),
        (":7077", "no host"),
        ("b:", "is not a port"),
        ("b:0", "from 1 to 65535"),
        ("b:65536", "from 1 to 65535"),
        ("b:\u0667", "is not a port"),
        ("b:7_0", "is not a port"),
        ("::1:7077", "brackets"),
        ("[::1]", "HOST:PORT"),
        ("[b]:7077", "no IPv6 address"),
        ("b\x1b[2J:7077", "neither a host name"),
        ("a b:7077", "neither a host name"),
    ],
)
def test_another_peer_is_refused_with_the_reason(text: str, why: str) -> None:
    """So that the next try can be right."""
    with pytest.raises(OptionError) as caught:
        parse_peer(text)
    assert why in str(caught.value)


def test_only_who_listens_may_ask_for_any_port() -> None:
    """To a listener port 0 is a free one; nobody can connect to it."""
    assert parse_peer("127.0.0.1:0", any_port=True) == Peer("127.0.0.1", 0)


@given(st.text())
def test_whatever_is_typed_is_parsed_or_refused(text: str) -> None:
    """Nothing else comes out of a parser than a value or an OptionError."""
    for parse in (
        parse_size,
        parse_rate,
        parse_seconds,
        parse_milliseconds,
        parse_peer,
        parse_streams,
        parse_compress,
    ):
        try:
            parse(text)
        except OptionError:
            pass


def test_streams_are_counted_or_left_to_us() -> None:
    """At most 16, which is what a destination takes."""
    assert parse_streams("auto") is None
    assert parse_streams("16") == 16
    for text in ("0", "17", "-1", "two"):
        with pytest.raises(OptionError):
            parse_streams(text)


@pytest.mark.parametrize(
    ("text", "compress"),
    [
        ("auto", Compress(Codec.AUTO)),
        ("none", Compress(Codec.NONE)),
        ("zstd", Compress(Codec.ZSTD)),
        ("zstd:3", Compress(Codec.ZSTD, 3)),
    ],
)
def test_a_codec_is_understood(text: str, compress: Compress) -> None:
    """With its level, where it has one."""
    assert parse_compress(text) == compress


@pytest.mark.parametrize("text", ["", "lz4", "none:1", "zstd:", "zstd:0", "zstd:20"])
def test_another_codec_is_refused(text: str) -> None:
    """Only zstd has levels, from 1 to 19."""
    with pytest.raises(OptionError):
        parse_compress(text)
