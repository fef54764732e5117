"""`show`: the steps of an episode, one step whole, its images as files, and what was refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner.log.episodes import EpisodeRecord
from learner.log.listing import clock, table, versions_text
from learner.log.source import Source
from policy.errors import ConfigError
from policy.files import make_folder
from policy.image_codec import CodedImage, encode_image
from policy.spec import Observation
from policy.text import clean
from policy.transition import ActionSource, Transition

_WHO = {
    ActionSource.POLICY: "policy",
    ActionSource.HUMAN_DEMONSTRATION: "human",
    ActionSource.HUMAN_INTERVENTION: "human took over",
}
_ENDINGS = {"jpeg": ".jpg", "png": ".png", "raw": ".png"}
_HEAD = (
    "step",
    "position",
    "s",
    "who",
    "reward",
    "judge",
    "end",
    "weights",
    "age s",
    "executed action",
    "policy's action",
)


def show_episode(source: Source, episode: EpisodeRecord) -> str:
    """Return the episode's facts, its marks, and a line per step as it was recorded."""
    lines = [*_heading(episode), ""]
    began_s = episode.wall_times_s[0]
    rows = [_row(position, step, began_s) for position, step in _transitions(source, episode)]
    return "\n".join([*lines, *table(_HEAD, rows)]) + "\n"


def show_step(source: Source, episode: EpisodeRecord, number: int) -> str:
    """Return all of one step but its pixels. Raises ConfigError when the log does not hold it."""
    position, step = next(_transitions(source, episode, number))
    lines = [
        *_heading(episode),
        "",
        f"step {number} at position {position}, {clock(step.wall_time_s)}, {step.monotonic_time_s:.3f} s on the "
        "actor's monotonic clock",
        f"  acted            {_WHO[step.source]}{', the gripper moved' if step.gripper_toggled else ''}",
        f"  executed action  {_vector(step.executed_action)}  (normalised to [-1, 1])",
        f"  policy's action  {_vector(step.policy_action)}",
        f"  reward           {step.reward:g}, judged by {step.reward_source}{_ending(step, ', ')}",
        f"  weights          version {step.weights_version}, {step.weights_age_s:.1f} s old, the learner was "
        f"{step.weights_lag_steps} steps ahead",
        "  observation",
        *_observation(source, step.observation),
    ]
    if step.final_observation is not None:
        lines += ["  observation at the end", *_observation(source, step.final_observation)]
    return "\n".join(lines) + "\n"


def show_quarantine(source: Source) -> str:
    """Return what was refused, and why."""
    refused = source.log.quarantine()
    lines = [f"{source.path}: {len(refused)} records in quarantine; none of them is learned from"]
    for number, record in enumerate(refused, start=1):
        name = record.record_id
        lines += [
            f"{number}. {clock(record.wall_time_s)}  {name.actor_id}, incarnation {name.incarnation}, record "
            f"{name.sequence}, {len(record.payload):,} bytes: {record.payload[:16].hex(' ')}",
            f"   {clean(record.reason)}",
        ]
    return "\n".join(lines) + "\n"


def save_images(source: Source, episode: EpisodeRecord, number: int | None, folder: Path) -> int:
    """Write the images of all steps, or of one, as they were sent (raw ones as PNG); return how many those were.

    Raises ConfigError when the folder cannot be written.
    """
    make_folder(folder)
    count = 0
    for _, step in _transitions(source, episode, number):
        for suffix, observation in (("", step.observation), ("_end", step.final_observation or {})):
            for image in source.specs.observation.images:
                if image.name not in observation:
                    continue
                coded: CodedImage = observation[image.name]
                data = encode_image(coded.pixels, "png").data if coded.codec == "raw" else coded.data
                path = folder / f"{image.name}_{step.step:05d}{suffix}{_ENDINGS[coded.codec]}"
                try:
                    path.write_bytes(data)
                except OSError as error:
                    raise ConfigError(f"cannot write {path}: {error.strerror}. {count} images are written.") from error
                count += 1
    return count


def _transitions(source: Source, episode: EpisodeRecord, number: int | None = None) -> Iterator[tuple[int, Transition]]:
    """Yield the recorded steps, or the one asked for, with their positions."""
    if number is not None and number not in episode.recorded:
        steps = f"{min(episode.recorded)} to {max(episode.recorded)}" if episode.recorded else "none"
        raise ConfigError(f"episode {episode.number} has no step {number} in this log, it has {steps}")
    for step in sorted(episode.recorded) if number is None else [number]:
        position = episode.recorded[step].position
        (entry,) = source.log.read_after(position - 1, 1)
        assert isinstance(entry.body, Transition)
        yield position, entry.body


def _heading(episode: EpisodeRecord) -> list[str]:
    actor_id, incarnation, number = episode.key
    began_s, ended_s = episode.wall_times_s
    when = f", from {clock(began_s)} for {ended_s - began_s:.1f} s" if episode.recorded else ""
    lines = [
        f"episode {episode.number}: {actor_id}, incarnation {incarnation}, its episode {number}{when}",
        f"{episode.kind}, {len(episode.recorded)} steps, {episode.human_steps} of them a person's, weights version "
        f"{versions_text(episode)}; with its marks {len(episode.steps)} steps, return {episode.total_reward:g}, "
        f"{episode.result}",
    ]
    return lines + [
        f"mark {mark.kind.name} of step {mark.step}, {clock(mark.wall_time_s)}{': ' if mark.note else ''}{mark.note}"
        for mark in episode.marks
    ]


def _row(position: int, step: Transition, began_s: float) -> list[str]:
    return [
        str(step.step),
        str(position),
        f"{step.wall_time_s - began_s:.2f}",
        _WHO[step.source],
        f"{step.reward:g}",
        step.reward_source,
        _ending(step),
        str(step.weights_version),
        f"{step.weights_age_s:.1f}",
        _vector(step.executed_action),
        _vector(step.policy_action),
    ]


def _ending(step: Transition, before: str = "") -> str:
    names = [name for name in ("terminated", "truncated") if getattr(step, name)]
    return before + " and ".join(names) if names else ""


def _observation(source: Source, observation: Observation) -> list[str]:
    lines = [
        f"    {field.name:<16} {_vector(observation[field.name], 4)} {field.unit}"
        for field in source.specs.observation.fields
    ]
    for image in source.specs.observation.images:
        coded: CodedImage = observation[image.name]
        lines.append(
            f"    {image.name:<16} {coded.codec}, {image.width} x {image.height} pixels, {len(coded.data):,} bytes"
        )
    return lines


def _vector(values: NDArray[np.float32], digits: int = 2) -> str:
    return " ".join(f"{value:+.{digits}f}" for value in values)
