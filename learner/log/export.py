"""`export`: chosen episodes in robomimic's HDF5 layout, or as an episode log that --from-log takes.

What is written appears under its name when it is whole and on the disk, or not at all.
"""

import contextlib
import io
import itertools
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learner.log.episodes import EpisodeRecord, Step
from learner.log.source import Source
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError
from policy.files import make_folder, replace_durably, sync_directory
from policy.spec import Observation
from policy.transition import Transition

_GYM_TYPE = 2  # robomimic.envs.env_base.EnvType; its loader wants one, though nobody can make this environment there

# Beside actions, rewards and dones those that robomimic does not know. With the marks applied; dones is where nothing
# is bootstrapped. The wire lets float32 rounding exceed 1, robomimic's check of a dataset does not.
_COLUMNS: dict[str, tuple[Any, Callable[[Step, Transition], Any]]] = {
    "actions": (np.float32, lambda step, transition: np.clip(transition.executed_action, -1, 1)),
    "rewards": (np.float32, lambda step, transition: step.reward),
    "dones": (np.int64, lambda step, transition: step.terminated),
    "terminated": (np.bool_, lambda step, transition: step.terminated),
    "truncated": (np.bool_, lambda step, transition: step.truncated),
    "policy_action": (np.float32, lambda step, transition: np.clip(transition.policy_action, -1, 1)),
    "is_human": (np.bool_, lambda step, transition: transition.is_human),
    "weights_version": (np.int64, lambda step, transition: transition.weights_version),
    "wall_time": (np.float64, lambda step, transition: transition.wall_time_s),
    "reward_source": ("S", lambda step, transition: transition.reward_source.encode()),
}


@dataclass(frozen=True)
class Choice:
    """Which episodes to take: those that meet every condition."""

    numbers: frozenset[int]  # empty: any
    only_demonstrations: bool
    only_successes: bool
    with_discarded: bool

    def of(self, source: Source) -> list[EpisodeRecord]:
        """Raises ConfigError when none is left."""
        found = source.episodes(self.numbers or None)
        chosen = [episode for episode in found if self._takes(episode)]
        if not chosen:
            results = ", ".join(sorted({f"{episode.kind}: {episode.result}" for episode in found})) or "none at all"
            raise ConfigError(f"none of {len(found)} episodes in {source.path} is among the chosen ({results})")
        return chosen

    def _takes(self, episode: EpisodeRecord) -> bool:
        return (
            (self.with_discarded or not episode.is_discarded)
            and (not self.only_demonstrations or episode.kind == "demonstration")
            and (not self.only_successes or episode.result == "success")
        )


def export_hdf5(source: Source, choice: Choice, out: Path) -> str:
    """Write the chosen episodes for robomimic; return what to tell the person.

    An episode becomes one demo, or several where a step has no next observation: at a pause and around a record that
    was refused. Such a step, as the last one of an aborted episode, is left out. Raises ConfigError.
    """
    h5py = _import_h5py()
    episodes = choice.of(source)
    demos = [(episode, steps) for episode in episodes for steps in consecutive_steps(episode)]
    with _appearing_whole(out) as temporary:
        with _PatientFile(temporary, "x+") as written:
            with h5py.File(written, "w") as file:
                total = _write_demos(file, source, demos, written)
            written.flush_durably()
            num_bytes = os.fstat(written.fileno()).st_size
            if written.failure is not None:
                raise _no_space(out, written.failure)
    left_out = sum(len(episode.steps) for episode in episodes) - total
    return (
        f"{out}: {len(demos)} demos of {len(episodes)} episodes, {total:,} samples, {num_bytes / 1e6:,.1f} MB; "
        f"{left_out} steps without a next observation left out\n"
    )


def consecutive_steps(episode: EpisodeRecord) -> list[list[int]]:
    """Return the numbers of the steps that have a next observation, in runs without a gap."""
    recorded = episode.recorded
    usable = [number for number in sorted(episode.steps) if number + 1 in recorded or recorded[number].is_last]
    groups = itertools.groupby(enumerate(usable), key=lambda pair: pair[1] - pair[0])
    return [[number for _, number in group] for _, group in groups]


class _PatientFile(io.FileIO):
    """A file that keeps its first failure to itself: HDF5 crashes the process when it cannot write while it closes."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.failure is None and written < len(view):
            try:
                written += super().write(view[written:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0

    def flush_durably(self) -> None:
        if self.failure is None:
            try:
                os.fsync(self.fileno())
            except OSError as error:
                self.failure = error


def _no_space(out: Path, error: Exception) -> ConfigError:
    return ConfigError(f"cannot write {out}: {error}. Nothing was left there: free some space.")


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            "exports need the package h5py, which the learner's installation has: launch/setup.sh learner, or "
            "pip install -c constraints.txt h5py. --to-log needs nothing."
        ) from error
    return h5py


def _write_demos(
    file: Any, source: Source, demos: Sequence[tuple[EpisodeRecord, list[int]]], written: _PatientFile
) -> int:
    """Fill the file, as long as it takes what is written; return the number of samples."""
    data = file.create_group("data")
    listed: dict[str, list[str]] = {}
    for number, (episode, steps) in enumerate(demos):
        if written.failure is not None:
            break
        name = f"demo_{number}"
        _write_demo(data.create_group(name), source, episode, steps)
        for key, is_listed in (
            ("demonstrations", episode.kind == "demonstration"),
            ("interventions", episode.kind == "interventions"),
            ("successes", episode.result == "success"),
            ("discarded", episode.is_discarded),
        ):
            if is_listed:
                listed.setdefault(key, []).append(name)
    total = sum(len(steps) for _, steps in demos)
    data.attrs["total"] = total
    kwargs = {"specs": json.loads(source.specs.to_json()), "log": str(source.path.absolute())}
    data.attrs["env_args"] = json.dumps({"env_name": "cgpo", "type": _GYM_TYPE, "env_kwargs": kwargs})
    for key, names in listed.items():
        file[f"mask/{key}"] = np.array(names, dtype="S")
    return total


def _write_demo(group: Any, source: Source, episode: EpisodeRecord, steps: list[int]) -> None:
    """Write one demo: images as they are read, so that memory does not grow with its length."""
    actor_id, incarnation, number = episode.key
    group.attrs.update(
        {
            "num_samples": len(steps),
            "actor_id": actor_id,
            "incarnation": incarnation,
            "episode": number,
            "first_step": steps[0],
            "kind": episode.kind,
            "result": episode.result,
        }
    )
    spec = source.specs.observation
    images = {
        (part, image.name): group.create_dataset(
            f"{part}/{image.name}", (len(steps), image.height, image.width, 3), np.uint8
        )
        for part in ("obs", "next_obs")
        for image in spec.images
    }
    values: dict[str, list[Any]] = {}
    for row, (name, transition, following) in enumerate(_samples(source, episode, steps)):
        for column, (_, value_of) in _COLUMNS.items():
            values.setdefault(column, []).append(value_of(episode.steps[name], transition))
        for part, observation in (("obs", transition.observation), ("next_obs", following)):
            for image in spec.images:
                images[part, image.name][row] = observation[image.name].pixels
            for field in spec.fields:
                values.setdefault(f"{part}/{field.name}", []).append(observation[field.name])
    for column, found in values.items():
        group[column] = np.array(found, _COLUMNS[column][0] if column in _COLUMNS else np.float32)
    group["states"] = np.zeros((len(steps), 0), np.float32)  # a simulator's, which robomimic wants to find


def _samples(source: Source, episode: EpisodeRecord, steps: list[int]) -> Iterator[tuple[int, Transition, Observation]]:
    """Yield each step with the observation that it led to; every record is read once."""
    following: Transition | None = None
    for number in steps:
        transition = following if following is not None else _read(source, episode, number)
        following = _read(source, episode, number + 1) if number + 1 in episode.recorded else None
        after = transition.final_observation if following is None else following.observation
        assert after is not None, "a step without next observation was chosen"
        yield number, transition, after


def _read(source: Source, episode: EpisodeRecord, number: int) -> Transition:
    (entry,) = source.log.read_after(episode.recorded[number].position - 1, 1)
    assert isinstance(entry.body, Transition)
    return entry.body


def export_log(source: Source, choice: Choice, out: Path) -> str:
    """Write the folder `out` with a log of the chosen episodes and its specs; return what to tell the person."""
    episodes = choice.of(source)
    with _appearing_whole(out) as temporary:
        temporary.mkdir()
        with contextlib.closing(EpisodeLog(temporary / "log.sqlite")) as copy:
            try:
                (count,) = copy.copy_from([(source.log, {episode.key for episode in episodes})])
            except sqlite3.Error as error:
                raise _no_space(out, error) from error
        replace_durably(temporary / "specs.json", source.specs.to_json().encode())
        sync_directory(temporary)
    return f"{out}: {count:,} records of {len(episodes)} episodes, marks included, for --from-log {out}\n"


@contextlib.contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """Give a path beside `out` to write to, and its name at the end; whatever fails leaves nothing behind."""
    if out.exists():
        raise ConfigError(f"{out} is there already. Choose another name, or remove it.")
    make_folder(out.absolute().parent)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as folder:
        temporary = Path(folder) / out.name
        yield temporary
        os.rename(temporary, out)
    sync_directory(out.absolute().parent)
