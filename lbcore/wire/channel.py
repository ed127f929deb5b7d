"""How every process of ours opens channels and servers: one set of gRPC options, said once."""

from __future__ import annotations

import grpc

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Room for a batch of long prompts; what a client may send is bounded far below this at the gateway."""

UNREAD_BYTES = 16 * 1024
"""What one stream may have on its way to a client that has not read it: some five hundred tokens. Beyond, its writer
waits, and what comes meanwhile goes into one message: a reader that falls behind gets fewer and larger ones, and
catches up. A larger message has all the room it needs as soon as its reader has seen its length."""

UNTAKEN_BYTES = 4 * 1024 * 1024
"""The same towards a server: twenty prompts of 200 KB go out whole, where gRPC's own 64 KB would have each of them wait
for the server's word three times."""

FRAME_BYTES = 1024 * 1024
"""What a server takes in one frame of HTTP/2. A prompt is one or a few, and others need not come between: a stream has
its connection to itself."""

KEEPALIVE_S = 10.0
"""A peer that says nothing for so long is asked for a sign of life."""

KEEPALIVE_TIMEOUT_S = 5.0
"""A peer that was asked and says nothing for so long is given up."""

CONNECT_S = 1.0
"""What one attempt to connect may take: some round trips, to a peer that is busy."""

_BOTH = (
    # The measuring of bandwidth would widen that to megabytes, and costs a ping for every few messages.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer whose machine vanished, or whose process stands still, sends no reset: pings find it within the sum of time
    # and timeout. Without the second timeout a ping that the peer's kernel acknowledged would be waited for a minute.
    ("grpc.keepalive_time_ms", round(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.http2.ping_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    # Streams are often quiet, and gRPC stops its pings after two that no data came between.
    ("grpc.http2.max_pings_without_data", 0),
)

_CLIENT = (
    *_BOTH,
    ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
    # A restarted peer is back within a second or two; gRPC's own back-off of up to two minutes would outlast it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name this is how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", round(CONNECT_S * 1000)),
    # Channels of one process to one address share a connection, and with it the pause after a failed attempt: a client
    # made anew because its worker is back would wait for what the old one found closed.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_SERVER = (
    *_BOTH,
    ("grpc.http2.lookahead_bytes", UNTAKEN_BYTES),
    ("grpc.http2.max_frame_size", FRAME_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Without this two processes could share a port, and each would get half of the calls.
    ("grpc.so_reuseport", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to HOST:PORT; it connects when first used and again whenever it must."""
    return grpc.aio.insecure_channel(address, options=_CLIENT)


def new_server() -> grpc.aio.Server:
    """A server with no services and no port yet."""
    return grpc.aio.server(options=_SERVER)
