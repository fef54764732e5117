"""What both ends of the link must set alike: protocol version, sizes, keepalive. Imports nothing of gRPC itself."""

PROTOCOL_VERSION = 3

MAX_TRANSITION_BYTES = 1 << 20
WEIGHTS_CHUNK_BYTES = 1 << 20
MAX_PING_BYTES = 1 << 20
SESSION_KEY = "cgpo-session-bin"  # metadata of Append and WatchWeights: what Hello replied
_MAX_MESSAGE_BYTES = 8 << 20  # anything larger is refused before it is read into memory

Options = tuple[tuple[str, int], ...]

_COMMON: Options = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # A frozen peer is noticed within 4.5 s. Without ping_timeout_ms, gRPC's default of 60 s decides (measured: 62 s). A
    # record on its way keeps a ping waiting: at 256 kbit/s two raw images take 3 s (measured: with 2 s none arrives).
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 3500),
    ("grpc.http2.ping_timeout_ms", 3500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: Options = (
    *_COMMON,
    ("grpc.enable_retries", 0),  # the link resends by itself: gRPC cannot know what was stored
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, without the old one's back-off
    ("grpc.enable_http_proxy", 0),  # http_proxy is meant for the web, and would redirect even 127.0.0.1
)

SERVER_OPTIONS: Options = (
    *_COMMON,
    # With gRPC's defaults the server closes the connection of a client that pings every 2 s (measured: after 8.1 s).
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    # Connections that never finish their handshake are dropped, and bounded before they cost all file descriptors: with
    # gRPC's 120 s and no bound, 250 idle ones keep every actor out (measured with ulimit -n 256).
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.max_allowed_incoming_connections", 128),
    ("grpc.so_reuseport", 0),  # a second learner on the same port must fail, not take half of the actors
)
