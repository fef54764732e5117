"""Who holds which actor id: a lease for each, so that two processes cannot feed the log as one robot."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from policy.errors import CgpoError

LEASE_S = 10.0
"""An actor id is free again this long after its last stream ended, unless the actor said goodbye."""


class ActorInUseError(CgpoError):
    """Another living process holds the actor id."""


class TooManyActorsError(CgpoError):
    """The learner has as many actors as it may."""


@dataclass
class Session:
    """One actor process on one connection, from its Hello to its last stream's end."""

    actor_id: str
    incarnation: str
    holder: str  # of the lease, for messages: host, process
    since_wall_s: float
    expires_s: float
    oldest_sequences: Mapping[str, int]  # of each incarnation in the actor's spool
    streams: set[str] = field(default_factory=set)
    is_over: bool = False
    is_taken_over: bool = False  # by another process


class Sessions:
    """The leases of one ingest process. They end with it: whoever says Hello first to the next one holds the id."""

    def __init__(self, max_actors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_actors = max_actors
        self._clock = clock
        self._lock = threading.Lock()
        self._by_key: dict[bytes, Session] = {}

    def open(
        self,
        actor_id: str,
        incarnation: str,
        holder: str,
        *,
        take_over: bool = False,
        oldest_sequences: Mapping[str, int] | None = None,
    ) -> bytes:
        """Lease the id to an incarnation and return the key of its session.

        oldest_sequences: of each incarnation in the caller's spool the oldest record there.

        A session that the incarnation had before ends, and with take_over another's does too. So does that of an
        incarnation without streams whose records are in the caller's spool: one process at a time can have it open, so
        that one is dead, and nobody waits for its lease to end. Raises ActorInUseError while another incarnation holds
        the id, TooManyActorsError when no more ids are leased.
        """
        with self._lock:
            now_s = self._clock()
            self._forget_expired(now_s)
            held = {session.actor_id: session for session in self._by_key.values()}
            other = held.get(actor_id)
            oldest = oldest_sequences or {}
            is_dead = other is not None and not other.streams and other.incarnation in oldest
            if other is not None and other.incarnation != incarnation and not (take_over or is_dead):
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(other.since_wall_s))
                raise ActorInUseError(
                    f"actor id {actor_id!r} is in use by {other.holder}, since {since}. Each robot needs an id of its "
                    f"own (--actor-id). If that process is gone, its lease ends within {LEASE_S:.0f} s; if it hangs, "
                    "stop it, or start this one with --take-over."
                )
            if other is None and len(held) >= self._max_actors:
                raise TooManyActorsError(
                    f"{len(held)} actors are connected, which is the limit ({', '.join(sorted(held))}). Stop one, or "
                    "start the learner with a higher --max-actors."
                )
            since_wall_s = other.since_wall_s if other and other.incarnation == incarnation else time.time()
            self._end(actor_id, is_taken_over=other is not None and other.incarnation != incarnation)
            key = secrets.token_bytes(16)
            self._by_key[key] = Session(actor_id, incarnation, holder, since_wall_s, now_s + LEASE_S, oldest)
            return key

    def open_stream(self, key: bytes | None, name: str) -> Session | None:
        """Return the session of a stream that begins; None for one that is over or has such a stream already."""
        with self._lock:
            session = self._by_key.get(key) if key else None
            if session is None or name in session.streams:
                return None
            session.streams.add(name)
            return session

    def close_stream(self, session: Session, name: str, *, is_goodbye: bool) -> None:
        """Note a stream's end; after a goodbye the actor id is free at once."""
        with self._lock:
            session.streams.discard(name)
            session.expires_s = self._clock() + LEASE_S
            if is_goodbye and not session.is_over:
                self._end(session.actor_id, is_taken_over=False)

    def _end(self, actor_id: str, *, is_taken_over: bool) -> None:
        for key in [key for key, session in self._by_key.items() if session.actor_id == actor_id]:
            session = self._by_key.pop(key)
            session.is_over, session.is_taken_over = True, is_taken_over

    def _forget_expired(self, now_s: float) -> None:
        for key in [key for key, session in self._by_key.items() if not session.streams and session.expires_s < now_s]:
            self._by_key.pop(key).is_over = True
