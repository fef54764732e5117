"""The schedule of a run folder: planned, resumed, and every change of stage written down and said."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from actor.config import ActorConfig
from actor.protocol_stages import ADVICE, EpisodePlan, StageChange, make_schedule, stage_line
from actor.report import EpisodeReport, append_json_line, drop_torn_line, read_json_lines

logger = logging.getLogger(__name__)


class LoggedSchedule:
    """The configured schedule after the episodes that a run folder holds; its changes go to stages.jsonl.

    The state is rebuilt from the episodes alone. A change that the last process died before writing is written now.
    """

    def __init__(self, config: ActorConfig, episodes: Iterable[EpisodeReport], say: Callable[[str], None]) -> None:
        self._schedule = make_schedule(config.stages, config.demonstrations)
        self._path: Path = config.run_dir / "stages.jsonl"
        self._say = say
        self._env_steps = 0
        drop_torn_line(self._path)
        logged = {row["episode"] for row in read_json_lines(self._path)}
        for episode in episodes:
            change = self._take(episode)
            if change is not None and episode.episode not in logged:
                self._write(change, episode)

    def plan(self) -> EpisodePlan:
        """Return how to run the next episode."""
        return self._schedule.plan()

    def say_where_it_stands(self) -> None:
        plan = self.plan()
        if plan.stage is not None:
            self._say(f"stage {plan.stage}: {plan.reason}. {ADVICE[plan.stage].capitalize()}.")

    def observe(self, episode: EpisodeReport) -> None:
        """Take the result of an episode; write and say the change of stage that it causes, if any."""
        change = self._take(episode)
        if change is not None:
            self._write(change, episode)
            advice = ADVICE[change.after].capitalize()
            self._say(f"stage {change.before} -> {change.after}: {change.reason}. {advice}.")

    def _take(self, episode: EpisodeReport) -> StageChange | None:
        self._env_steps += episode.length
        return self._schedule.observe(episode)

    def _write(self, change: StageChange, episode: EpisodeReport) -> None:
        try:
            append_json_line(self._path, stage_line(change, episode.episode, self._env_steps, time.time()))
        except OSError as error:  # the next process here writes what is missing
            logger.error("%s takes no line: %s. Free some space there, or check the disk.", self._path, error)
