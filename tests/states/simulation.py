"""Simulated time, hosts that die, and links that are cut: nothing in here is random.

What runs on a host is a generator: it yields what it waits for, and is dropped where it
stands when its host or its agent dies. The talk is that of the real ``Connection``, in
bytes, over a link that delays, and that is cut and healed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tests.states.disks import EMPTY, Disk
from transport import messages as m
from transport.connection import Connection
from transport.errors import TransportError
from transport.frames import FrameDecoder
from transport.states import Role

USER_TIMEOUT_S: Final = 10.0  # as transport.channel has it
Said: TypeAlias = "m.AnyMessage | m.Pages"
# What a story waits for: a message (or None, when it is too late), or time to pass.
Story: TypeAlias = Generator["Wait", "Said | None", None]


class Lost(Exception):
    """The link, as whoever talks on it sees it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """For so long, or for what the end hears before."""

    seconds: float
    end: End | None = None


class Clock:
    """What happens when; the same again for the same calls."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do it then."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + seconds, self._count, what))

    def run_until(self, end_s: float) -> None:
        """All that happens before that."""
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, what = heapq.heappop(self._queue)
            what()
        self.now_s = end_s


class Task:
    """A story that is being told on a host."""

    def __init__(self, host: Machine, story: Story, end: End | None) -> None:
        self.host = host
        self._end = end
        self._story = story
        self._turn = 0
        self.is_alive = True

    def go_on(self, said: Said | None = None, error: Lost | None = None) -> None:
        """Up to where it waits for the next thing."""
        if not self.is_alive:
            return
        self._turn += 1
        try:
            wait = self._story.throw(error) if error else self._story.send(said)
        except StopIteration:
            self.die()
            return
        self._wait(wait)

    def _wait(self, wait: Wait) -> None:
        turn = self._turn
        clock = self.host.clock

        def wake(said: Said | None = None, error: Lost | None = None) -> None:
            if self.is_alive and self._turn == turn:
                self.go_on(said, error)

        if (end := wait.end) is not None:
            if end.heard or end.is_lost:
                clock.after(0.0, lambda: end.tell(wake))
            else:
                end.listener = wake
        clock.after(wait.seconds, wake)

    def die(self) -> None:
        """Nothing more of it, and the other end of its link hears of that."""
        self.is_alive = False
        self._story.close()
        if self._end is not None:
            self._end.close()
        if self in self.host.tasks:
            self.host.tasks.remove(self)


@dataclass
class Machine:
    """A host: its disk, and what runs on it."""

    name: str
    clock: Clock
    disk: Disk = field(default_factory=lambda: Disk([EMPTY, EMPTY], [EMPTY, EMPTY]))
    tasks: list[Task] = field(default_factory=list)
    has_power: bool = True
    keeper: Task | None = None  # who has locked the journal

    def tell(self, story: Story, end: End | None = None) -> Task:
        """Begin it now; it owns the ``end``."""
        task = Task(self, story, end)
        self.tasks.append(task)
        self.clock.after(0.0, task.go_on)
        return task

    def kill_all(self) -> None:
        """SIGKILL to everything of ours."""
        for task in tuple(self.tasks):
            task.die()


class Link:
    """The network between the hosts."""

    def __init__(self, clock: Clock, delay_s: Callable[[], float]) -> None:
        self.clock = clock
        self.delay_s = delay_s
        self.is_up = True
        self.held: list[Callable[[], None]] = []

    def set(self, *, is_up: bool) -> None:
        """Cut it, or heal it."""
        self.is_up = is_up
        if is_up:
            held, self.held = self.held, []
            for carry in held:
                carry()


class End:
    """One end of a connection, with the real state machine of the talk."""

    def __init__(self, link: Link, role: Role) -> None:
        self.talk = Connection(role)
        self.heard: deque[Said] = deque()
        self.is_lost = False
        self.listener: Callable[..., None] | None = None
        self._link = link
        self._decoder = FrameDecoder()
        self._peer: End | None = None
        self._ready_s = 0.0  # bytes do not overtake one another

    @classmethod
    def pair(cls, link: Link) -> tuple[End, End]:
        """Both ends of a new one: the source's, and the destination's."""
        source, destination = cls(link, Role.SOURCE), cls(link, Role.DESTINATION)
        source._peer, destination._peer = destination, source
        return source, destination

    def say(self, message: m.AnyMessage) -> None:
        """Whether it is heard, nobody knows.

        Raises:
            Lost: it is known that it will not be.
        """
        if self.is_lost:
            raise Lost
        data = b"".join(bytes(part) for part in self.talk.send(message))
        peer = self._peer
        assert peer is not None
        clock = self._link.clock
        if not self._link.is_up:
            clock.after(USER_TIMEOUT_S, self._notice)

        self._carry(lambda: peer._hear(data))

    def close(self) -> None:
        """The other end hears of it, if the link carries that."""
        peer = self._peer
        if peer is not None and not peer.is_lost:
            self._carry(peer._lose)
        self.is_lost = True

    def tell(self, wake: Callable[..., None]) -> None:
        """What was heard first; or that nothing will be."""
        if self.heard:
            wake(self.heard.popleft())
        elif self.is_lost:
            wake(None, Lost())

    def _carry(self, what: Callable[[], None]) -> None:
        link = self._link
        if not link.is_up:
            link.held.append(lambda: self._carry(what))
            return
        at_s = max(self._ready_s, link.clock.now_s + link.delay_s())
        self._ready_s = at_s
        link.clock.after(at_s - link.clock.now_s, what)

    def _notice(self) -> None:
        if not self._link.is_up:
            self._lose()

    def _hear(self, data: bytes) -> None:
        if self.is_lost:
            return
        try:
            for frame in self._decoder.feed(data):
                said = self.talk.receive(frame.kind, frame.body)
                if said is not None:
                    self.heard.append(said)
        except TransportError:
            self._lose()
            return
        self._wake()

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.talk.lost()
            self._wake()

    def _wake(self) -> None:
        listener, self.listener = self.listener, None
        if listener is not None:
            self.tell(listener)
