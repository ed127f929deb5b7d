"""A gRPC stream of ours, whose peer speaks HTTP/2 by another library: whatever the sizes, nothing is lost or mixed."""

from __future__ import annotations

from struct import pack

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, PingAckReceived, RequestReceived, SettingsAcknowledged, WindowUpdated
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from lbcore.wire.http2 import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    Call,
    ProtocolError,
    frame,
)

UNREAD = 1000
MAX_MESSAGE = 100_000

sizes = st.one_of(st.integers(0, 20), st.integers(900, 1100), st.integers(16_370, 16_400), st.integers(60_000, 70_000))


def framed(message: bytes) -> bytes:
    """A message as gRPC has it in a stream."""
    return pack(">BL", 0, len(message)) + message


class Pair:
    """A call and its peer; what either says waits until it is carried over."""

    def __init__(self, window: int = 65_535, frame_bytes: int = 16_384) -> None:
        self.to_peer = b""
        self.delivered: list[bytes] = []
        self.call = Call(self._write, self.delivered.append, unread_bytes=UNREAD, max_message_bytes=MAX_MESSAGE)
        self.peer = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.peer.initiate_connection()
        self.peer.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame_bytes})
        self.headers: dict[str, str] = {}
        self.heard = b""
        self.events: list[object] = []
        self.unsaid = b""
        self.call.begin("/lbcore.api.v1.GenerationService/GenerateStream", "host:1")

    def carry(self, pieces: int = 0) -> None:
        """Carries over what both have said, until neither says more; to the call in pieces of so many bytes."""
        while True:
            self._say_what_has_room()
            to_call = self.peer.data_to_send()
            to_peer, self.to_peer = self.to_peer, b""
            if not to_call and not to_peer:
                return
            for event in self.peer.receive_data(to_peer):
                self.events.append(event)
                if isinstance(event, RequestReceived):
                    self.headers = dict(event.headers)
                    self.peer.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                elif isinstance(event, DataReceived):
                    self.heard += event.data
                    self.peer.acknowledge_received_data(event.flow_controlled_length, 1)
            step = pieces or len(to_call) or 1
            for start in range(0, len(to_call), step):
                self.call.receive(to_call[start : start + step])

    def say(self, data: bytes) -> None:
        """Has the peer send data as soon as it may."""
        self.unsaid += data

    def _say_what_has_room(self) -> None:
        if not self.headers:
            return
        while self.unsaid:
            room = min(self.peer.local_flow_control_window(1), self.peer.max_outbound_frame_size)
            if room <= 0:
                return
            self.peer.send_data(1, self.unsaid[:room])
            self.unsaid = self.unsaid[room:]

    def _write(self, data: bytes) -> None:
        self.to_peer += data


def test_it_asks_as_grpc_asks() -> None:
    pair = Pair()
    pair.carry()
    assert pair.headers == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/lbcore.api.v1.GenerationService/GenerateStream",
        ":authority": "host:1",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "lbcore",
    }
    assert any(isinstance(event, SettingsAcknowledged) for event in pair.events)


@given(st.integers(1, 2000))
def test_long_addresses_are_said_whole(length: int) -> None:
    pair = Pair()
    pair.to_peer = b""
    pair.peer = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    pair.peer.initiate_connection()
    pair.call = Call(pair._write, pair.delivered.append, unread_bytes=UNREAD, max_message_bytes=MAX_MESSAGE)
    pair.call.begin("/a/b", "h" * length)
    pair.carry()
    assert pair.headers[":authority"] == "h" * length


@given(st.lists(sizes, max_size=6), st.integers(0, 3000))
def test_messages_arrive_whole_and_in_order_in_whatever_pieces(lengths: list[int], pieces: int) -> None:
    pair = Pair()
    pair.carry()
    messages = [bytes([index % 251]) * length for index, length in enumerate(lengths)]
    for message in messages:
        pair.say(framed(message))
    pair.carry(pieces)
    assert pair.delivered == messages
    assert not pair.call.is_over


@given(st.lists(sizes, max_size=6), st.sampled_from([2000, 65_535, 2**31 - 1]), st.sampled_from([16_384, 2**24 - 1]))
def test_messages_leave_whole_and_in_order_whatever_room_there_is(
    lengths: list[int], window: int, frame_bytes: int
) -> None:
    pair = Pair(window, frame_bytes)
    pair.carry()
    messages = [bytes([index % 251]) * length for index, length in enumerate(lengths)]
    for message in messages:
        assert pair.call.may_send
        pair.call.send(message)
        pair.carry()
    assert pair.heard == b"".join(map(framed, messages))


def test_nothing_is_sent_for_which_the_peer_has_no_room() -> None:
    pair = Pair(window=100)
    pair.carry()
    pair.call.send(b"x" * 1000)
    assert not pair.call.may_send
    assert len(pair.to_peer) == 100 + 9
    pair.carry()
    assert pair.call.may_send
    assert pair.heard == framed(b"x" * 1000)


def test_a_peer_has_no_more_on_its_way_than_may_be_unread() -> None:
    pair = Pair()
    pair.carry()
    assert pair.peer.local_flow_control_window(1) == UNREAD
    pair.peer.send_data(1, framed(b"x" * (UNREAD // 2)))
    data = pair.peer.data_to_send()
    assert pair.peer.local_flow_control_window(1) < UNREAD // 2
    pair.call.receive(data)
    pair.carry()
    assert any(isinstance(event, WindowUpdated) and event.stream_id == 1 for event in pair.events)
    assert pair.peer.local_flow_control_window(1) == UNREAD


def test_a_large_message_has_all_its_room_once_its_length_is_known() -> None:
    pair = Pair()
    pair.carry()
    pair.peer.send_data(1, framed(b"x" * 50_000)[:UNREAD])
    pair.call.receive(pair.peer.data_to_send())
    pair.peer.receive_data(pair.to_peer)
    assert pair.peer.local_flow_control_window(1) == 50_005 - UNREAD


def test_pings_are_answered_and_asked() -> None:
    pair = Pair()
    pair.carry()
    pair.peer.ping(b"12345678")
    pair.call.ping()
    pair.carry()
    assert any(isinstance(event, PingAckReceived) and event.ping_data == b"12345678" for event in pair.events)


@pytest.mark.parametrize(
    "said",
    [
        frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
        frame(HEADERS, END_STREAM | 4, 1, b""),
        frame(DATA, END_STREAM, 1, b""),
        frame(GOAWAY, 0, 0, bytes(8)),
    ],
    ids=["reset", "trailers", "data", "goaway"],
)
def test_it_hears_that_the_stream_is_over(said: bytes) -> None:
    pair = Pair()
    pair.call.receive(said)
    assert pair.call.is_over


@pytest.mark.parametrize(
    "said",
    [
        frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4)),
        frame(HEADERS, 4, 1, b""),
        frame(11, 9, 3, b"?"),
        frame(PING, ACK, 0, bytes(8)),
    ],
    ids=["goaway after this", "headers", "unknown", "pong"],
)
def test_other_frames_do_not_end_it(said: bytes) -> None:
    pair = Pair()
    pair.call.receive(said)
    assert not pair.call.is_over


@pytest.mark.parametrize(
    "said",
    [
        frame(DATA, 0, 1, pack(">BL", 1, 0)),
        frame(DATA, 0, 1, pack(">BL", 0, MAX_MESSAGE + 1)),
        frame(4, 0, 0, b"half"),
        frame(5, 0, 1, b""),
        b"\xff\xff\xff" + bytes(6),
    ],
    ids=["compressed", "too large", "settings", "push", "frame"],
)
def test_a_peer_that_does_not_keep_to_the_rules_is_heard_no_longer(said: bytes) -> None:
    with pytest.raises(ProtocolError):
        Pair().call.receive(said)


def test_padding_is_no_message() -> None:
    pair = Pair()
    message = framed(b"hello")
    pair.call.receive(frame(DATA, PADDED, 1, bytes((3,)) + message + bytes(3)))
    assert pair.delivered == [b"hello"]
