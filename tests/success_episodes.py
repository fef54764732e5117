"""Episodes of a toy with one coordinate that shows success at 0.5 and above; as a log holds them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policy.config import PolicyConfig
from policy.episode_log import EpisodeLog
from policy.log_records import LogEntry
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition

SPECS = Specs(
    ObservationSpec((Field(name="x", unit="m", low=(-1.0, -1.0), high=(1.0, 1.0)),)),
    ActionSpec((Field(name="delta", unit="m", low=(-1.0,), high=(1.0,)),)),
)
POLICY = PolicyConfig(success_classifier=True, proprioception_feature_dim=16)


def episode(
    number: int,
    xs: Sequence[float | tuple[float, float]],
    *,
    success: bool,
    source: str = "task",
    sources: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Transition]:
    """Return the steps between the observations `xs`; the last one pays where success is set, else it is cut off.

    Where only the first coordinate is given the second is drawn from [-1, 1].
    """
    rng = np.random.default_rng((seed, number))
    pairs = [x if isinstance(x, tuple) else (x, rng.uniform(-1, 1)) for x in xs]
    observations = [{"x": np.array(pair, np.float32)} for pair in pairs]
    last = len(xs) - 2
    return [
        Transition(
            episode=number,
            step=step,
            observation=observations[step],
            policy_action=np.zeros(1, np.float32),
            executed_action=np.zeros(1, np.float32),
            source=ActionSource.POLICY,
            reward=float(success and step == last),
            terminated=success and step == last,
            truncated=not success and step == last,
            weights_version=1,
            weights_age_s=0.0,
            wall_time_s=0.0,
            monotonic_time_s=0.0,
            reward_source=sources[step] if sources else source,
            final_observation=observations[-1] if step == last else None,
        )
        for step in range(last + 1)
    ]


def mark(number: int, step: int, kind: MarkKind) -> EpisodeMark:
    return EpisodeMark(episode=number, step=step, kind=kind, wall_time_s=0.0)


def entries(bodies: Sequence[Recordable]) -> list[LogEntry]:
    """Return what reading them from a log would."""
    return [LogEntry(index + 1, RecordId("robot", "first", index), body) for index, body in enumerate(bodies)]


def append(run_dir: Path, bodies: Sequence[Recordable]) -> None:
    """Append to the log of a run folder, and make it a learner's."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "specs.json").write_text(SPECS.to_json())
    (run_dir / "policy.json").write_text(POLICY.to_json())
    log = EpisodeLog(run_dir / "log.sqlite", SPECS)
    start = log.next_sequence("robot", run_dir.name)
    log.append([(RecordId("robot", run_dir.name, start + index), body) for index, body in enumerate(bodies)])
    log.close()


def judged_by_task(first: int, count: int, seed: int = 0) -> list[Recordable]:
    """Return episodes that reach x >= 0.6 with the task's word for it, alternating with some that stay below 0.3."""
    rng = np.random.default_rng((seed, first))
    bodies: list[Recordable] = []
    for number in range(first, first + count):
        xs: list[float | tuple[float, float]] = [*rng.uniform(-1, 0.3, 5), rng.uniform(0.6, 1.0) if number % 2 else 0.2]
        bodies += episode(number, xs, success=bool(number % 2), seed=seed)
    return bodies
