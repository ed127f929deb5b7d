"""The way out of a stream that many requests share: in turn, in batches, and no further than there is room.

Every request has a lane. Events that are small and have room leave with the next message. Large ones, and those of a
request whose caller takes no more for now, wait in their lane; lanes that may go on take turns. So neither a caller
that reads slowly nor an answer of many megabytes holds up another's tokens.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from lbcore.errors import Cancelled, InvalidRequest, LoadBalancerError
from lbcore.generation import Delta, Embedding, Event, Failed, Finished, Started
from lbcore.wire.outbox import Bell

BULKY_BYTES = 4 * 1024
"""An event of this size goes behind the small ones of all other lanes."""

TURN_BYTES = 256 * 1024
"""What of the waiting lanes goes into one message: a quarter of a millisecond for machines in one rack."""

MAX_EVENTS = 1024
"""Small events in one message: reading a thousand tokens is half a millisecond of somebody's event loop."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""What one lane may keep: the largest answers of embeddings, or a million tokens that nobody reads."""

MAX_STREAM_WAITING_BYTES = 512 * 1024 * 1024
"""What all lanes of one stream may keep together: eight of the fullest, or a thousand requests with half a megabyte."""

MAX_UNWRITTEN_EVENTS = MAX_EVENTS
"""What one lane may have with the writer, however much room its caller says it has: what the caller does not read must
wait in its lane, where it is joined and counted. A message's worth, and twice what our gateways ask for."""

UNLIMITED = 2**62
"""Room without end."""

_ENDS = frozenset((Finished, Failed))
_EVENT_BYTES = 64
"""Of an event beside its text."""


class Lane:
    """One request's way out."""

    __slots__ = (
        "_has_spoken",
        "_is_let_go",
        "_is_whole",
        "_lanes",
        "_waiting",
        "call_id",
        "is_gone",
        "left",
        "reserve",
        "room",
        "stop",
        "waiting_bytes",
        "with_token_ids",
    )

    def __init__(self, lanes: Lanes, call_id: int, room: int, with_token_ids: bool, is_whole: bool) -> None:
        self._lanes = lanes
        self._waiting: deque[Event] = deque()
        self._is_whole = is_whole
        self._has_spoken = False
        self._is_let_go = True
        self.call_id = call_id
        self.with_token_ids = with_token_ids
        self.room = min(room, MAX_UNWRITTEN_EVENTS)
        """Events that may go to the writer now."""
        self.reserve = room - self.room
        """Events that may follow when as many of those before were written."""
        self.waiting_bytes = 0
        """Of events that wait here; those of all lanes are counted in `Lanes.waiting_bytes` too."""
        self.is_gone = False
        """Whether its end is with the writer or it was dropped: nothing more goes there."""
        self.left: Callable[[Lane], None] = _nobody_waits
        """Called once, when its end was written, or never will be."""
        self.stop: Callable[[LoadBalancerError], None] = _nothing_to_stop
        """Ends the request in an error; called when more waits here than may."""

    def put(self, event: Event) -> None:
        """Adds an event. An error overtakes what waits, which nobody needs any more."""
        if self._waiting and type(event) is not Failed:
            self._wait(event)
        elif type(event) in _ENDS:
            self._lanes.end(self, event)
        elif self.room > 0 and not self._has_spoken and (type(event) is Started or _size(event) < BULKY_BYTES):
            self.room -= 1
            if self._is_whole and type(event) is Delta:
                # The first token tells that the answer has begun; nobody reads the others before the last.
                self._has_spoken = True
                self._is_let_go = False
            self._lanes.pass_on(self, event)
        else:
            self._wait(event)

    def next(self) -> tuple[Event, int]:
        """Takes the first that waits, and its size; what was said in small pieces meanwhile is said in larger ones."""
        waiting = self._waiting
        event = waiting.popleft()
        size = _size(event)
        self.room -= 1
        if type(event) is Delta and waiting:
            pieces = [event]
            joined = size
            while waiting and joined < BULKY_BYTES and _continues(pieces[-1], following := waiting[0]):
                waiting.popleft()
                assert type(following) is Delta
                pieces.append(following)
                joined += _size(following)
            if len(pieces) > 1:
                event = _joined(pieces)
            size = joined
        self.waiting_bytes -= size
        self._lanes.waiting_bytes -= size
        if self._has_spoken and not waiting:
            self._is_let_go = False
        return event, size

    def nudge(self) -> None:
        """Lets go of what waits for more to travel with."""
        if self._waiting and not self._is_let_go:
            self._is_let_go = True
            if self.may_go_on:
                self._lanes.queue_up(self)

    @property
    def may_go_on(self) -> bool:
        """Whether something waits that has room, or needs none, and that somebody wants to read now."""
        waiting = self._waiting
        if not waiting or not (self.room > 0 or type(waiting[0]) is Finished):
            return False
        return self._is_let_go

    def forget(self) -> None:
        """Gives up what waits."""
        self._waiting.clear()
        self._lanes.waiting_bytes -= self.waiting_bytes
        self.waiting_bytes = 0

    def give_up(self) -> None:
        """Ends the request, or what is left of its answer: its caller takes it too slowly."""
        error = Cancelled("The caller takes the answer too slowly.")
        self.stop(error)
        if not self.is_gone:
            # The engine has answered all of it, so that nothing was there to be stopped.
            self.put(Failed(error))

    def _wait(self, event: Event) -> None:
        if self.is_gone:
            return
        lanes = self._lanes
        size = _size(event)
        self._waiting.append(event)
        self.waiting_bytes += size
        lanes.waiting_bytes += size
        if self.waiting_bytes >= BULKY_BYTES or type(event) is not Delta:
            # All that waits, however many events that are, so that what cannot be joined travels in company.
            self._is_let_go = True
        if self.waiting_bytes > MAX_WAITING_BYTES:
            self.give_up()
        elif self.may_go_on:
            lanes.queue_up(self)
        if lanes.waiting_bytes > MAX_STREAM_WAITING_BYTES:
            lanes.give_up_fullest()


class Lanes:
    """All lanes of one stream: a `Source` of events."""

    def __init__(self) -> None:
        self._lanes: dict[int, Lane] = {}
        self._ready: list[tuple[int, Event, bool]] = []
        self._queue: dict[Lane, None] = {}
        #: Whose end is in `_ready`, in the same order.
        self._ending: list[Lane] = []
        #: Whose end is in the message that is being written.
        self._leaving: list[Lane] = []
        #: Those with a reserve, and the numbers of the calls in the message that is being written, if there are any.
        self._reserved: dict[int, Lane] = {}
        self._writing: list[int] = []
        self._bell = Bell()
        self._half_closed = False
        self._closed = False
        self.waiting_bytes = 0
        """Of events that wait in all lanes together."""

    def open(self, call_id: int, room: int, with_token_ids: bool = True, is_whole: bool = False) -> Lane:
        """A new lane with room for so many events (0: without limit); gone when Finished or Failed went through it.

        Of one whose caller reads the answer as a whole the first delta leaves at once, and the others joined.

        Raises:
            InvalidRequest: there is a lane with this number.
        """
        if call_id in self._lanes:
            raise InvalidRequest("call_id is that of a call under way", param="call_id")
        lane = self._lanes[call_id] = Lane(self, call_id, room or UNLIMITED, with_token_ids, is_whole)
        if lane.reserve:
            self._reserved[call_id] = lane
        return lane

    def __iter__(self) -> Iterator[Lane]:
        return iter([*self._lanes.values()])

    def drop(self, call_id: int) -> Lane | None:
        """Forgets a lane and what waits in it; returns it, if it was there and had not ended."""
        lane = self._forget(call_id)
        if lane is not None:
            lane.left(lane)
        return lane

    def drop_all(self) -> list[Lane]:
        """Nothing is written any more: forgets all lanes, and returns those that had not ended."""
        gone, self._leaving, self._ending = [*self._leaving, *self._ending], [], []
        for lane in gone:
            lane.left(lane)
        return [lane for lane in self if self.drop(lane.call_id)]

    def refuse(self, call_id: int, error: LoadBalancerError) -> None:
        """Ends a call in the error that the message being written tells: nothing leaves of it any more."""
        self._ready = [one for one in self._ready if one[0] != call_id]
        self._leaving += [lane for lane in self._ending if lane.call_id == call_id]
        self._ending = [lane for lane in self._ending if lane.call_id != call_id]
        lane = self._forget(call_id)
        if lane is not None:
            self._leaving.append(lane)
            lane.stop(error)

    def give_up_fullest(self) -> None:
        """Ends the request of which most waits."""
        max(self._lanes.values(), key=lambda lane: lane.waiting_bytes).give_up()

    def make_room(self, call_id: int, events: int) -> None:
        """The caller can take so many more events of a call; one that is gone is ignored."""
        lane = self._lanes.get(call_id)
        if lane is not None:
            if lane.reserve:
                lane.reserve += events
                return
            lane.room += events
            if lane.room > MAX_UNWRITTEN_EVENTS:
                lane.reserve = lane.room - MAX_UNWRITTEN_EVENTS
                lane.room = MAX_UNWRITTEN_EVENTS
                self._reserved[call_id] = lane
            if lane.may_go_on:
                self.queue_up(lane)

    def pass_on(self, lane: Lane, event: Event) -> None:
        """Has an event leave with the next message; nothing leaves a lane that was dropped."""
        if lane.is_gone:
            return
        ready = self._ready
        if not ready:
            # Once for all that will leave together: nobody sleeps while something is ready.
            self._bell.ring()
        ready.append((lane.call_id, event, lane.with_token_ids))

    def end(self, lane: Lane, event: Event) -> None:
        """Has the last event of a lane leave; its number is free from now on."""
        if not lane.is_gone:
            self.pass_on(lane, event)
            self._ending.append(lane)
            self._forget(lane.call_id)
            # A request knows its lane: without this neither would go before somebody looked for cycles.
            lane.stop = _nothing_to_stop

    def queue_up(self, lane: Lane) -> None:
        """Gives a lane its turn when those before it had theirs."""
        if not lane.is_gone:
            self._queue[lane] = None
            self._bell.ring()

    def half_close(self) -> None:
        """No call will come any more: closes when the last lane has ended."""
        self._half_closed = True
        self._close_if_done()

    def close(self) -> None:
        """Nothing more will come: `take` hands out what is left and then empty lists."""
        self._closed = True
        self._bell.ring()

    async def take(self) -> list[tuple[int, Event, bool]]:
        """Waits for events and returns those that go into the next message; an empty list means closed.

        Each comes with the number of its call, and with whether its caller reads token ids. Who asks has written what
        was handed out before.
        """
        if self._leaving:
            leaving, self._leaving = self._leaving, []
            for lane in leaving:
                lane.left(lane)
        if self._writing:
            self._draw_on_reserves()
        while not self._ready and not self._queue and not self._closed:
            await self._bell.sleep()
        if self._queue:
            self._let_some_go_on()
        ready = self._ready
        self._ready = ready[MAX_EVENTS:]
        message = ready[:MAX_EVENTS] if self._ready else ready
        if self._ending:
            ends = sum(type(event) in _ENDS for _, event, _ in message) if self._ready else len(self._ending)
            self._leaving += self._ending[:ends]
            del self._ending[:ends]
        if self._reserved:
            self._writing = [call_id for call_id, _, _ in message]
        return message

    def _forget(self, call_id: int) -> Lane | None:
        lane = self._lanes.pop(call_id, None)
        if lane is not None:
            lane.is_gone = True
            lane.forget()
            if self._queue:
                self._queue.pop(lane, None)
            if lane.reserve:
                del self._reserved[call_id]
            if self._half_closed:
                self._close_if_done()
        return lane

    def _draw_on_reserves(self) -> None:
        """Gives lanes the room back that what was written took, as far as their callers have it."""
        written, self._writing = Counter(self._writing), []
        for call_id, events in written.items():
            lane = self._reserved.get(call_id)
            if lane is None:
                continue
            # A number that was used before may stand for events of another lane.
            events = min(events, lane.reserve, MAX_UNWRITTEN_EVENTS - lane.room)
            lane.room += events
            lane.reserve -= events
            if not lane.reserve:
                del self._reserved[call_id]
            if lane.may_go_on:
                self.queue_up(lane)

    def _let_some_go_on(self) -> None:
        left = TURN_BYTES
        queue = self._queue
        while queue and left > 0:
            lane = next(iter(queue))
            del queue[lane]
            event, size = lane.next()
            left -= size
            if type(event) is Finished:
                self.end(lane, event)
            else:
                self.pass_on(lane, event)
            if lane.may_go_on:
                queue[lane] = None

    def _close_if_done(self) -> None:
        if not self._lanes:
            self.close()


def _nobody_waits(lane: Lane) -> None:
    """For the end of a lane."""


def _nothing_to_stop(error: LoadBalancerError) -> None:
    """Of a request that has not begun, or has ended."""


def _size(event: Event) -> int:
    """About how many bytes an event has as a message."""
    if type(event) is Delta:
        # Once per token: taking it apart in one go costs less than asking for each field.
        _, text, token_ids, reasoning, _, logprobs, _ = event
        size = _EVENT_BYTES + len(text) + len(reasoning) + 4 * len(token_ids)
        if logprobs:
            size += sum(_EVENT_BYTES * (1 + len(entry.top)) for entry in logprobs)
        return size
    if type(event) is Embedding:
        return _EVENT_BYTES + len(event.values)
    return _EVENT_BYTES


def _continues(first: Event, following: Event) -> bool:
    """Whether two deltas can be said as one without anything being lost; one that ends its choice may be the second."""
    return (
        type(first) is Delta
        and type(following) is Delta
        and first.choice == following.choice
        and not (first.reasoning or first.tool_calls or first.logprobs or first.finish_reason)
        and not (following.reasoning or following.tool_calls or following.logprobs)
    )


def _joined(pieces: list[Delta]) -> Delta:
    text = "".join(piece.text for piece in pieces)
    token_ids = tuple(token for piece in pieces for token in piece.token_ids)
    return Delta(pieces[0].choice, text, token_ids, finish_reason=pieces[-1].finish_reason)
