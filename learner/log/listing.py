"""`ls`: one line per episode, then what came from each actor."""

import json
import time
from collections.abc import Sequence
from typing import Any

from learner.log.episodes import EpisodeRecord
from learner.log.source import Source, count_by_actor

_SHORT = 8  # characters of an incarnation: its random end tells two of them apart


def list_log(source: Source, as_json: bool) -> str:
    """Return what `ls` writes."""
    episodes = source.episodes()
    actors = actor_totals(source, episodes)
    if as_json:
        described = [describe(episode) for episode in episodes]
        return json.dumps({"log": str(source.path), "episodes": described, "actors": actors}, indent=1) + "\n"
    lines = table(_EPISODE_HEAD, [_episode_row(episode) for episode in episodes])
    lines += ["", *table(_ACTOR_HEAD, [_actor_row(actor, totals) for actor, totals in actors.items()])]
    return "\n".join(lines) + "\n"


def describe(episode: EpisodeRecord) -> dict[str, Any]:
    """Return what is known of an episode, for programs. Steps and return are those that the marks leave."""
    actor_id, incarnation, number = episode.key
    began_s, ended_s = episode.wall_times_s
    return {
        "number": episode.number,
        "actor_id": actor_id,
        "incarnation": incarnation,
        "episode": number,
        "kind": episode.kind,
        "result": episode.result,
        "steps": len(episode.steps),
        "recorded_steps": len(episode.recorded),
        "human_steps": episode.human_steps,
        "return": round(episode.total_reward, 6),
        "weights_versions": list(episode.weights_versions),
        "began_wall_s": began_s,
        "duration_s": round(ended_s - began_s, 3),
        "marks": [{"kind": mark.kind.name, "step": mark.step, "note": mark.note} for mark in episode.marks],
    }


def actor_totals(source: Source, episodes: Sequence[EpisodeRecord]) -> dict[str, dict[str, Any]]:
    """Return each actor's totals.

    `missing` counts records that went to another log before the first that came here; in an archive, which holds chosen
    episodes only, it is null.
    """
    records, quarantined = count_by_actor(source.path, "records"), count_by_actor(source.path, "quarantine")
    statistics = source.log.statistics()
    totals = {}
    for actor in sorted(records | quarantined):
        own = [episode for episode in episodes if episode.key[0] == actor]
        steps = sum(len(episode.recorded) for episode in own)
        human_steps = sum(episode.human_steps for episode in own)
        came_here = [stream for stream in statistics if stream.actor_id == actor]
        minutes = _busy_s(own) / 60
        totals[actor] = {
            "records": records[actor],
            "imported": records[actor] - sum(stream.records for stream in came_here),
            "incarnations": len({episode.key[1] for episode in own}),
            "episodes": len(own),
            "steps": steps,
            "human_share": round(human_steps / steps, 4) if steps else None,
            "records_per_minute": round(records[actor] / minutes, 1) if minutes else None,
            "missing": None if source.is_archive else sum(stream.lost for stream in came_here),
            "quarantined": quarantined[actor],
        }
    return totals


def _busy_s(episodes: Sequence[EpisodeRecord]) -> float:
    """Return the time between first and last step of each incarnation, added up: nights between them do not count."""
    times: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.recorded:
            times.setdefault(episode.key[1], []).extend(episode.wall_times_s)
    return sum(max(found) - min(found) for found in times.values())


_EPISODE_HEAD = (
    *("#", "actor", "incarnation", "episode", "kind", "steps", "return", "result", "weights", "began", "seconds"),
)
_ACTOR_HEAD = (
    *("actor", "records", "imported", "episodes", "steps", "human", "records/min", "missing", "quarantined"),
)


def _episode_row(episode: EpisodeRecord) -> list[str]:
    actor_id, incarnation, number = episode.key
    began_s, ended_s = episode.wall_times_s
    steps = str(len(episode.steps))
    if len(episode.steps) != len(episode.recorded):
        steps += f" of {len(episode.recorded)}"
    return [
        str(episode.number),
        actor_id,
        incarnation[-_SHORT:],
        str(number),
        episode.kind,
        steps,
        f"{episode.total_reward:.4g}",
        episode.result,
        versions_text(episode),
        clock(began_s) if episode.recorded else "-",
        f"{ended_s - began_s:.1f}",
    ]


def _actor_row(actor: str, totals: dict[str, Any]) -> list[str]:
    share, rate, missing = totals["human_share"], totals["records_per_minute"], totals["missing"]
    return [
        actor,
        *(f"{totals[name]:,}" for name in ("records", "imported", "episodes", "steps")),
        "-" if share is None else f"{share:.0%}",
        "-" if rate is None else f"{rate:,.0f}",
        "-" if missing is None else f"{missing:,}",
        f"{totals['quarantined']:,}",
    ]


def versions_text(episode: EpisodeRecord) -> str:
    oldest, newest = episode.weights_versions
    return str(oldest) if oldest == newest else f"{oldest}-{newest}"


def clock(wall_s: float) -> str:
    """Return a time for people, in this computer's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns of equal width; figures are set to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    is_figure = [all(row[index][:1].isdigit() or row[index] == "-" for row in rows) for index in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, is_figure, strict=True)
        ).rstrip()
        for cells in (head, *rows)
    ]
