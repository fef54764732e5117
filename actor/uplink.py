"""Opens what brings every step to the learner, for the actor and for the recorder alike: spool, archive and link."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actor.archive import DemonstrationArchive
from actor.channel import credentials_for
from actor.config import ActorConfig
from actor.link import Link
from actor.recording_state import RecordingState
from actor.spool import Spool
from policy.errors import ConfigError
from policy.files import replace_durably
from policy.spec import Specs

_STOPPED_DRAIN_S = 2.0  # whoever asked for a stop does not want to wait; the spool keeps the rest


def open_uplink(
    config: ActorConfig,
    specs: Specs,
    incarnation: str,
    num_reports: int,
    closing: contextlib.ExitStack,
    *,
    must_stop: Callable[[], bool],
    say: Callable[[str], None],
) -> tuple[Spool, Link]:
    """Open the run folder's spool and connect; `closing` gets what closes both, the link first.

    num_reports: lines of episodes.jsonl. An episode in which another process ended is closed on the way, and said.
    Raises ConfigError when another process uses the folder, and for credentials that cannot be used.
    """
    credentials = credentials_for(config.learner, config.credentials)
    if credentials is not None and credentials.name != config.actor_id:  # now, and not when the learner hears of it
        raise ConfigError(
            f"the credentials in {config.credentials} are those of {credentials.name!r}, and this is actor "
            f"{config.actor_id!r}. Start with --actor-id {credentials.name}, or with the folder that `python -m "
            f"learner.certs add-actor {config.actor_id}` makes on the learner's machine."
        )
    spool = Spool(
        config.run_dir / "spool.sqlite",
        config.actor_id,
        incarnation,
        archive=DemonstrationArchive(config.run_dir / "demonstrations", specs),
        min_free_gb=config.min_free_gb,
        undecided=RecordingState.load(config.run_dir).undecided(num_reports),
    )
    closing.callback(spool.close)
    _check_specs(config.run_dir / "spool_specs.json", specs, spool)
    if spool.closed_episode is not None:
        say(spool.closed_episode.sentence)
    link = Link(
        config.learner,
        spool,
        specs,
        config.policy,
        config.actor_id,
        incarnation,
        config.run_dir / "weights",
        take_over=config.take_over,
        credentials=credentials,
    )
    link.start()
    drain_s = config.drain_timeout_s
    closing.callback(lambda: link.close(min(drain_s, _STOPPED_DRAIN_S) if must_stop() else drain_s))
    return spool, link


def _check_specs(path: Path, specs: Specs, spool: Spool) -> None:
    """Keep the specs of what the spool holds beside it. Raises ConfigError when it holds steps of other ones.

    The episodes' file does not say: a process that is killed in its first episode leaves none.
    """
    text = specs.to_json()
    if path.exists() and spool.pending and path.read_text() != text:
        raise ConfigError(
            f"{spool.path} holds {spool.pending} steps of another task or variant that the learner has not "
            f"acknowledged (see {path}). Start with that task and its settings until they are sent, or choose another "
            "--run-dir."
        )
    replace_durably(path, text.encode())


def uplink_figures(spool: Spool, link: Link) -> dict[str, Any]:
    """Return what this process offered to its spool and what became of it, for the summary."""
    statistics = link.statistics
    return {
        "offered": spool.offered,
        "sent": statistics.sent,
        "acked": statistics.acked,
        "refused": statistics.refused,
        "last_refusal": statistics.last_refusal,
        "pending": spool.pending,
        "bytes_per_transition": statistics.bytes_sent / statistics.sent if statistics.sent else None,
        "reconnects": statistics.reconnects,
        "clock_offset_s": statistics.clock_offset_s,
        "alarm": statistics.alarm,
    }
