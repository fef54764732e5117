"""What a run has done so far, read from the files that learner and actor write, and its live panel."""

import contextlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actor.accounting import human_time

SUCCESS_WINDOW = 20  # episodes
_SHOWN_LINES = 6
# People at the robot read the colour first: orange is a human's turn, blue the policy's.
_STAGE_STYLES = {
    "guidance": "bold dark_orange",
    "exploration": "bold dodger_blue1",
    "correction": "bold yellow",
    "demonstration": "bold dark_orange",
}

Row = dict[str, Any]


class JsonLines:
    """A growing file of one JSON object per line. `rows` holds all that were complete at the last `update()`."""

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = []
        self._path = path
        self._position = 0
        self._inode = 0

    def update(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:  # replaced, as by a learner that goes on from a checkpoint
                self._inode, self._position, self.rows = inode, 0, []
            file.seek(self._position)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._position += len(complete) + len(newline)
        self.rows += [json.loads(line) for line in complete.splitlines() if line.strip()]


class Progress:
    """The episodes, evaluations and learner metrics of the run in `directory`.

    Rows are actor.report.EpisodeReport, actor.protocol_stages.stage_line, actor.evaluation.Evaluation and
    learner.metrics lines as they stand in the files, but `env_steps` counts all steps on the robot up to the row's end,
    demonstrations included.
    """

    def __init__(self, directory: Path) -> None:
        self._episodes = JsonLines(directory / "actor" / "episodes.jsonl")
        self._stages = JsonLines(directory / "actor" / "stages.jsonl")
        self._evaluations = JsonLines(directory / "actor" / "evaluations.jsonl")
        self._metrics = JsonLines(directory / "learner" / "metrics.jsonl")
        self._learner_summary = directory / "learner" / "learner_summary.json"
        self.transitions_by_actor: dict[str, int] = {}  # that the trainer has read

    def update(self) -> None:
        for file in (self._episodes, self._stages, self._evaluations, self._metrics):
            file.update()
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            summary = json.loads(self._learner_summary.read_text())
            self.transitions_by_actor = summary.get("transitions_by_actor", {})
        env_steps = 0
        for row in self.episodes:
            env_steps += row["length"]
            row["env_steps"] = env_steps

    @property
    def episodes(self) -> list[Row]:
        return self._episodes.rows

    @property
    def demonstrations(self) -> list[Row]:
        return [row for row in self.episodes if row["kind"] == "demonstration"]

    @property
    def stage_changes(self) -> list[Row]:
        return self._stages.rows

    @property
    def evaluations(self) -> list[Row]:
        return [{**row, "env_steps": self._all_steps(row["env_steps"])} for row in self._evaluations.rows]

    def _all_steps(self, training_steps: int) -> int:
        """Return the steps on the robot after the episode with which so many training steps were made."""
        made = env_steps = 0
        for row in self.episodes:
            if made >= training_steps and row["kind"] == "training":
                break
            made += row["length"] * (row["kind"] == "training")
            env_steps = row["env_steps"]
        return env_steps

    @property
    def metrics(self) -> list[Row]:
        return self._metrics.rows


def is_unassisted(episode: Row) -> bool:
    """Whether the policy alone acted in a training episode."""
    return bool(episode["kind"] == "training" and episode["intervention_steps"] == 0)


def intervention_share(episodes: Sequence[Row]) -> float | None:
    """Return which share of the training steps among `episodes` a human chose; None when there are no such steps."""
    training = [row for row in episodes if row["kind"] == "training"]
    steps = sum(row["length"] for row in training)
    return sum(row["intervention_steps"] for row in training) / steps if steps else None


class Display:
    """Shows a running simulation: a live panel on a terminal, otherwise the lines as they come."""

    def __init__(self, title: str, directory: Path, max_minutes: float) -> None:
        self._title = title
        self._limit_s = 60 * max_minutes
        self._started_monotonic_s = time.monotonic()
        self._progress = Progress(directory)
        self._lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def line(self, text: str) -> None:
        """Show one line. Any thread may call this."""
        if self._live:
            self._lines.append(text)
        else:
            print(text, flush=True)

    def refresh(self) -> None:
        """Redraw the panel with what the files hold by now."""
        if self._live:
            self._progress.update()
            self._live.update(self._panel(), refresh=True)

    def _panel(self) -> Panel:
        elapsed_s = time.monotonic() - self._started_monotonic_s
        left = _clock(max(0.0, self._limit_s - elapsed_s)) if self._limit_s else "no limit"
        figures = figures_table(self._progress)
        figures.add_row("elapsed", _clock(elapsed_s), "time left", left)
        stage = stage_text(self._progress)
        lines = Text("\n".join(self._lines), style="dim", no_wrap=True, overflow="ellipsis")
        parts: list[Table | Text] = [figures, *([Text(), stage] if stage else []), Text(), lines]
        return Panel(Group(*parts), title=self._title, subtitle="Ctrl-C: finish now and write the report")


def stage_text(progress: Progress) -> Text | None:
    """Return the present stage and why; None while the stages are off or nothing has happened yet."""
    changes, episodes = progress.stage_changes, progress.episodes
    stage = changes[-1]["to"] if changes else episodes[-1]["stage"] if episodes else None
    if stage is None:
        return None
    why = changes[-1]["reason"] if changes else "demonstrations first, then frequent help"
    return Text.assemble(("stage ", "dim"), (stage.upper(), _STAGE_STYLES[stage]), f"  {why}", no_wrap=False)


def figures_table(progress: Progress) -> Table:
    """Return the figures of a running simulation, two pairs of name and value in each row."""
    episodes = progress.episodes
    last_episode: Row = episodes[-1] if episodes else {}
    last_metrics: Row = progress.metrics[-1] if progress.metrics else {}
    unassisted = [row["is_success"] for row in episodes if is_unassisted(row)][-SUCCESS_WINDOW:]
    table = Table.grid(padding=(0, 3), expand=True)
    for _ in range(2):
        table.add_column(style="dim")
        table.add_column(justify="right")
    rows = [
        ("env steps", _number(last_episode.get("env_steps")), "updates", _number(last_metrics.get("updates"))),
        ("episodes", _number(len(episodes)), "updates/s", _number(last_metrics.get("updates_per_s"), ".1f")),
        (
            f"success, last {len(unassisted)} unassisted",
            _number(sum(unassisted) / len(unassisted) if unassisted else None, ".0%"),
            "weights version",
            _number(last_episode.get("weights_version")),
        ),
        (
            f"human share, last {SUCCESS_WINDOW}",
            _number(intervention_share(episodes[-SUCCESS_WINDOW:]), ".0%"),
            "weights age",
            _number(last_episode.get("weights_age_s"), ".1f", " s"),
        ),
        (
            "human drove, min",
            _human_time(episodes),
            "episodes judged by",
            _judges(episodes),
        ),
        (
            "evaluation",
            _evaluation(progress.evaluations),
            "records to send",
            _number(last_episode.get("backlog")),
        ),
    ]
    for row in rows:
        table.add_row(*row)
    by_actor = progress.transitions_by_actor
    if len(by_actor) > 1:
        table.add_row("actors", str(len(by_actor)), "steps of each", _each(by_actor))
    return table


def _each(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "-"


def _human_time(episodes: Sequence[Row]) -> str:
    times = human_time(episodes)
    return f"{_clock(times['human_s'])} of {_clock(times['robot_s'])}" if times["robot_s"] else "-"


def _judges(episodes: Sequence[Row]) -> str:
    counts = Counter(row["reward_source"] for row in episodes)
    return _each(counts)


def _evaluation(evaluations: Sequence[Row]) -> str:
    if not evaluations:
        return "-"
    return f"{evaluations[-1]['successes']} of {evaluations[-1]['episodes']}"


def _number(value: float | None, form: str = ",d", unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit


def _clock(duration_s: float) -> str:
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes}:{seconds:02d}"
