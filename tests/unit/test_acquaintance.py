"""Keys, peers, rules and pairing: what is believed, and what is refused."""

import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import config_directory, identity, pairing, peers
from migrate.cli import run
from migrate.config_directory import NotOurs
from migrate.doorway import ChangedKey, NotTrusted, UnknownKey, UnknownVisitor, leave
from migrate.identity import words
from migrate.options import OptionError, Peer
from migrate.peers import KnownPeer, Peers, parse, parse_fingerprint, text_of
from migrate.policy import ANYBODY, ROOT, Member, Rule, decide
from tests.unit.tls_pair import key, only
from transport import tls
from transport.errors import ConnectionLost, RemoteProtocolError
from transport.tls import Fingerprint, Purpose, as_destination, as_source

FP = Fingerprint("SHA256:" + "00ff" * 16)
OTHER = Fingerprint("SHA256:" + "11ee" * 16)
WHERE = Peer("b.example", 7077)


@pytest.fixture(autouse=True)
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration directory of our own."""
    folder = tmp_path / "etc"
    monkeypatch.setenv(config_directory.VARIABLE, str(folder))
    monkeypatch.setenv("MIGRATE_STATE_DIR", str(tmp_path / "state"))
    return folder


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        yield near, far


def test_an_identity_is_made_once(ours: Path) -> None:
    """0600, and the same for ever after."""
    first = identity.load()
    assert identity.load().fingerprint == first.fingerprint
    assert (ours / identity.FILE).stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(first)
    identity.require_own_kind(first.certificate)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_key_that_others_can_read_is_refused(ours: Path, mode: int) -> None:
    """With what to do about it."""
    identity.load()
    (ours / identity.FILE).chmod(mode)
    with pytest.raises(NotOurs, match="chmod 600"):
        identity.load()


@pytest.mark.parametrize("text", ["", "hello", identity.new().split("-----END")[0]])
def test_a_key_file_that_is_none(ours: Path, text: str) -> None:
    """Is not replaced by a new one in silence."""
    config_directory.make(ours)
    config_directory.write_ours(ours / identity.FILE, text, anew=True)
    with pytest.raises(NotOurs, match="Restore it"):
        identity.load()


def test_what_is_no_file_is_no_key(ours: Path) -> None:
    """A link, a folder and a FIFO are refused without being waited for."""
    config_directory.make(ours)
    file = ours / identity.FILE
    file.symlink_to("/etc/hostname")
    with pytest.raises(NotOurs):
        identity.load()
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(NotOurs, match="no regular file"):
        identity.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_somebody_else_s_file_decides_nothing(ours: Path) -> None:
    """Nor does one in a folder where others may write."""
    peers.admit(FP, (Rule("*"),))
    (file,) = (ours / peers.FOLDER).iterdir()
    os.chown(file, 65534, 65534)
    with pytest.raises(NotOurs, match="belongs to uid 65534"):
        Peers.load()
    os.chown(file, 0, 0)
    (ours / peers.FOLDER).chmod(0o777)
    with pytest.raises(NotOurs, match="go-w"):
        Peers.load()


def test_words_tell_keys_apart() -> None:
    """They are the proquints of the first 96 bits: 127.0.0.1 is lusab-babad."""
    assert identity.spoken(bytes([127, 0, 0, 1])) == "lusab-babad"
    assert words(FP) != words(OTHER)
    assert len(words(FP).split("-")) == 6


def test_pin_and_admit_are_two_things() -> None:
    """To send there is not to receive from there; what is pinned stays."""
    peers.pin(FP, WHERE)
    known = Peers.load()
    assert known.pinned(WHERE) == (FP,)
    (peer,) = known.by_name.values()
    assert not peer.allow_in and peer.allow_out
    peers.admit(FP, (Rule("alice"),))
    (peer,) = Peers.load().by_name.values()
    assert peer.allow_in == (Rule("alice"),) and peer.is_at(WHERE)
    with pytest.raises(NotOurs, match="pinned to"):
        peers.pin(OTHER, WHERE)


_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
_RULES = st.lists(
    st.builds(
        Rule,
        user=st.sampled_from(["*", "alice", "_x-1", "svc$"]),
        exe=st.lists(_TEXT, max_size=3).map(tuple),
        memory_max=st.none() | st.sampled_from(["8G", "1", "64MiB"]),
        processes_max=st.none() | st.integers(1, 4096),
    ),
    max_size=3,
).map(tuple)


@given(_RULES, _RULES, _RULES, st.lists(_TEXT, max_size=3).map(tuple))
def test_what_is_written_is_read(
    allow_in: tuple[Rule, ...],
    deny_in: tuple[Rule, ...],
    allow_out: tuple[Rule, ...],
    addresses: tuple[str, ...],
) -> None:
    """Whatever stands in a rule."""
    peer = KnownPeer(FP, addresses, allow_in, deny_in, allow_out)
    assert parse(text_of(peer), Path("x.toml")) == peer


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_breaks_the_reader(text: str) -> None:
    """It is a peer, or a sentence."""
    try:
        parse(text, Path("x.toml"))
    except NotOurs:
        return
    raise AssertionError("no such text is a peer")


@pytest.mark.parametrize(
    "text",
    [
        f'fingerprint = "{FP}"\nallow_ins = []',
        f'fingerprint = "{FP}"\nfingerprint = "{FP}"',
        f'fingerprint = "{FP}"\n[[allow_in]]\nuser = "*"\nexe = "/bin/*"',
        f'fingerprint = "{FP}"\n[[allow_in]]\nexe = ["*"]',
        f'fingerprint = "{FP}"\n[[allow_in]]\nuser = "*"\nmemory_max = "lots"',
        f'fingerprint = "{FP}"\n[[allow_in]]\nuser = "*"\nprocesses_max = true',
        f'fingerprint = "{FP}"\n[[allow_in]]\nuser = "a b"',
        f'fingerprint = "{FP.upper()}"',
        "[" * 5000,
    ],
)
def test_a_mistake_in_a_rule_is_no_rule(text: str) -> None:
    """A misspelt word must not make it wider."""
    with pytest.raises(NotOurs):
        parse(text, Path("x.toml"))


def test_one_key_in_two_files_is_nobody_s() -> None:
    """Which of them holds is not to be guessed."""
    twice = Peers({"one": KnownPeer(FP), "two": KnownPeer(FP)})
    with pytest.raises(NotOurs, match="one and two"):
        twice.named(FP)


@pytest.mark.parametrize("text", ["", "SHA256:", FP[:-1], FP + "0", FP.upper()])
def test_a_fingerprint_is_written_in_one_way(text: str) -> None:
    """So that it can be compared by eye."""
    with pytest.raises(OptionError):
        parse_fingerprint(text)


def member(user: str | None = "alice", *uids: int, exe: str = "/usr/bin/x") -> Member:
    return Member(frozenset(uids or {1000}), user, exe)


@pytest.mark.parametrize(
    ("who", "rules", "allowed"),
    [
        (member(), (), False),
        (member(), (Rule("bob"),), False),
        (member(), (Rule("alice"),), True),
        (member(), (Rule(ANYBODY),), True),
        (member(None), (Rule(ANYBODY),), True),
        (member(None), (Rule("alice"),), False),
        (member("root", 0), (Rule(ANYBODY),), False),
        (member("toor", 0), (Rule("toor"),), False),
        (member("root", 0), (Rule(ROOT),), True),
        (member("root", 1000), (Rule(ROOT),), True),
        (member("alice", 1000, 0), (Rule(ANYBODY), Rule(ROOT)), False),
        (member("alice", 1000, 1001), (Rule(ANYBODY),), False),
        (member(), (Rule("alice", exe=("/opt/*",)),), False),
        (member(), (Rule("alice", exe=("/opt/*", "/usr/bin/?")),), True),
        (member(), (Rule("alice", exe=()),), False),
        (member(), (Rule("alice", memory_max="1K"),), False),
        (member(), (Rule("alice", memory_max="1K"), Rule("alice")), True),
        (member(), (Rule("alice", memory_max="4K"),), True),
    ],
)
def test_nothing_is_allowed_but_what_a_rule_says(
    who: Member, rules: tuple[Rule, ...], allowed: bool
) -> None:
    """And root only where root is named."""
    decision = decide([who], 4096, allow=rules)
    assert decision.allowed is allowed, decision.why
    assert decision.why.endswith(".")


def test_what_comes_is_held_to_the_rules_that_let_it_in() -> None:
    """How much it has is not known then: the most generous of them counts."""
    small, large = Rule("alice", memory_max="1K"), Rule("alice", memory_max="4K")
    of_others = (Rule("bob"), Rule("alice", exe=("/opt/*",)))

    def limit(*rules: Rule) -> int | None:
        return decide([member()], 0, allow=rules).memory_bytes_max()

    assert limit(small, large, *of_others) == 4096
    assert limit(small, Rule("alice"), *of_others) is None


@pytest.mark.parametrize("path", ["guests", "/", "/a//b", "/../b", "/a/.", "/a\0", ""])
def test_a_slice_is_the_path_of_a_cgroup(path: str) -> None:
    """From the root of the hierarchy, and nowhere else."""
    text = f'user = "alice"\nslice = {json.dumps(path)}\n'
    with pytest.raises(msgspec.ValidationError):
        msgspec.toml.decode(text, type=Rule)
    good = msgspec.toml.decode('user = "alice"\nslice = "/a/b..c/.d"', type=Rule)
    assert good.slice == "/a/b..c/.d"


def test_a_tree_passes_as_a_whole() -> None:
    """One rule for all of it; nothing that is denied for any."""
    both = [member("alice", 1), member("bob", 2)]
    assert not decide(both, 0, allow=(Rule("alice"), Rule("bob"))).allowed
    assert decide(both, 0, allow=(Rule(ANYBODY),)).allowed
    assert not decide(both, 0, allow=(Rule(ANYBODY),), deny=(Rule("bob"),)).allowed
    assert not decide(both, 0, allow=(Rule(ANYBODY, processes_max=1),)).allowed
    assert not decide([], 0, allow=(Rule(ANYBODY),)).allowed


def test_an_unknown_agent_is_not_sent_to(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """The sentence has its key, and what to type."""
    found = found_at(ends, UnknownKey)
    assert f"migrate pair {WHERE} --fingerprint {key('b').fingerprint}" in str(found)


def test_a_changed_key_shows_both(ends: tuple[socket.socket, socket.socket]) -> None:
    """And is not asked about."""
    peers.pin(FP, WHERE)
    found = found_at(ends, ChangedKey)
    assert FP in str(found) and key("b").fingerprint in str(found)


def found_at(
    ends: tuple[socket.socket, socket.socket], error: type[NotTrusted]
) -> NotTrusted:
    """What ``leave`` says of an agent with the key b."""
    with ThreadPoolExecutor(1) as pool:
        far = pool.submit(as_destination, ends[1], key("b"), lambda found: None)
        with pytest.raises(error) as raised:
            leave(ends[0], WHERE)
        assert far.exception() is not None
    return raised.value


def test_an_agent_that_does_not_know_us(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """It says nothing, and we say what is to be said there."""
    peers.pin(key("b").fingerprint, WHERE)

    def nobody(found: tls.Introduced) -> None:
        raise UnknownVisitor(found.fingerprint, "")

    with ThreadPoolExecutor(1) as pool:
        far = pool.submit(as_destination, ends[1], key("b"), nobody)
        with pytest.raises(NotTrusted, match="--accept") as raised:
            leave(ends[0], WHERE)
        assert identity.load().fingerprint in str(raised.value)
        assert isinstance(far.exception(), UnknownVisitor)


def test_both_ends_show_one_code(
    ends: tuple[socket.socket, socket.socket],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what was asked is kept for who decides."""
    a, b = key("a"), key("b")

    def agent() -> pairing.Pending:
        with as_destination(ends[1], b, only(a)) as link:
            return pairing.answer(link, b.fingerprint, tmp_path)

    monkeypatch.setattr(socket, "create_connection", lambda *_: ends[0])
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(agent)
        met = pairing.meet(WHERE, a)
        assert asked.result().code == met.code
    assert met.fingerprint == b.fingerprint
    (kept,) = pairing.pending(tmp_path)
    assert (kept.fingerprint, kept.code) == (a.fingerprint, met.code)
    pairing.settled(a.fingerprint, tmp_path)
    assert pairing.pending(tmp_path) == ()


@pytest.mark.parametrize("said", [bytes(32), b"", bytes(31)])
def test_a_number_that_was_not_promised(
    said: bytes, ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """Who could choose it late could choose the code."""
    a, b = key("a"), key("b")

    def agent() -> None:
        with as_destination(ends[1], b, only(a)) as link:
            pairing.answer(link, b.fingerprint, tmp_path)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(agent)
        with as_source(ends[0], a, Purpose.PAIR, only(b)) as link:
            link.socket.settimeout(20)
            pairing._say(link, bytes(32))
            pairing._hear(link, 32)
            pairing._say(link, said)
        assert isinstance(asked.exception(), RemoteProtocolError | ConnectionLost)
    assert pairing.pending(tmp_path) == ()


def test_who_asks_often_pushes_himself_out(tmp_path: Path) -> None:
    """The list is bounded."""
    for number in range(pairing.PENDING_MAX + 5):
        fingerprint = Fingerprint(f"SHA256:{number:064x}")
        pairing._keep(pairing.Pending(fingerprint, "x", "y", 0.0), tmp_path)
    assert len(pairing.pending(tmp_path)) == pairing.PENDING_MAX


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """identity, pair --accept and policy test, as a script says them."""
    assert run(["identity", "--fingerprint"]) == 0
    own = capsys.readouterr().out.strip()
    assert parse_fingerprint(own) == identity.load().fingerprint
    assert run(["pair", "--accept", FP, "--as", "nobody"]) == 0
    assert run(["policy", "test", FP, "--user", "nobody"]) == 0
    assert run(["policy", "test", FP, "--user", "root"]) == 5
    assert run(["pair", "--accept", FP]) == 0
    assert run(["policy", "test", FP, "--user", "root"]) == 5
    assert run(["policy", "test", FP, "--user", "nobody", "--out"]) == 5
    assert run(["policy", "test", "stranger", "--user", "root"]) == 2
    assert run(["pair", "--accept", "SHA256:0"]) == 2
    assert run(["pair", "--accept", FP, "--as", "a b"]) == 2
    assert run(["pair"]) == 0
    assert "Nobody has asked" in capsys.readouterr().out
