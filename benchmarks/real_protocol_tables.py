"""Tables of benchmarks.real_protocol_twin: what its runs reached, at what cost, and in which settings."""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from actor.config import ActorConfig
from actor.statistics import wilson_interval
from learner.config import LearnerConfig
from learner.log.folder import read_specs
from policy import config as config_module
from policy.cli import config_from_preset
from policy.episode_log import EpisodeLog
from policy.transition import Transition

GOAL = 0.8  # success of an interim evaluation that counts as learned
STEPS_PER_VERSION = 50  # Table 3: learner steps between two published weights
# Which run it is, where, and who talks to whom: no part of the protocol.
_OWN = frozenset(
    f"actor.{name}" for name in ("task", "run_dir", "learner", "seed", "max_minutes", "demonstrations")
) | frozenset(f"learner.{name}" for name in ("run_dir", "port", "seed", "from_log"))


@dataclass(frozen=True)
class Result:
    """A finished run and what its folder says."""

    group: tuple[str, str, str]  # task, variant, algorithm
    seed: int
    folder: Path
    summary: dict[str, Any]
    interim: list[dict[str, Any]]
    reference: str  # the full preset that the run is compared with

    @property
    def is_complete(self) -> bool:
        evaluation = self.summary["eval"]
        ended = self.summary["failure"] or self.summary["interrupted"]
        return not ended and evaluation["episodes"] == evaluation["requested_episodes"]


def pooled(results: Sequence[Result]) -> list[str]:
    rows = ["| task | variant | algorithm | seeds | success | reached | human min, each run | interventions |"]
    rows += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for group, members in groupby(sorted(results, key=lambda r: r.group), key=lambda r: r.group):
        runs = list(members)
        successes, episodes = (sum(run.summary["eval"][name] for run in runs) for name in ("successes", "episodes"))
        reached = sum(_first_at_goal(run) is not None for run in runs)
        minutes = [_human_min(run) for run in runs]
        steps = sum(run.summary["intervention"]["steps"] for run in runs)
        training = sum(run.summary["env_steps"] for run in runs)
        cells = [*group, len(runs), _success(successes, episodes), f"{GOAL:.0%} by {reached} of {len(runs)}"]
        cells += [
            " ".join(f"{value:.1f}" for value in minutes),
            f"{steps:,} of {training:,} steps ({_share(steps, training)})",
        ]
        rows.append(_row(cells))
    return rows


def each_run(results: Sequence[Result]) -> list[str]:
    names = [
        "task",
        "variant",
        "algorithm",
        "seed",
        "success",
        f"env steps to {GOAL:.0%}",
        f"learner steps to {GOAL:.0%}",
    ]
    names += ["interim successes", "human steps (share)", "human min", "robot min", "mean length, steps"]
    names += ["learner steps", "env steps", "interim steps", "wall min"]
    rows = [_row(names), _row(["---"] * len(names))]
    for result in results:
        summary, evaluation, human = result.summary, result.summary["eval"], result.summary["intervention"]
        goal = _first_at_goal(result)
        cells = [*result.group, result.seed, _success(evaluation["successes"], evaluation["episodes"])]
        cells += (
            ["not reached", "not reached"] if goal is None else [f"{goal['env_steps']:,}", f"{_learner_step(goal):,}"]
        )
        cells += [" ".join(str(row["successes"]) for row in result.interim) or "-"]
        cells += [f"{human['steps']:,} ({_share(human['steps'], summary['env_steps'])})", f"{_human_min(result):.1f}"]
        cells += [
            f"{_robot_min(result):.1f}",
            f"{evaluation['mean_length']:.1f}",
        ]
        cells += [f"{summary['updates']:,}", f"{summary['env_steps']:,}"]
        cells += [f"{sum(row['mean_length'] * row['episodes'] for row in result.interim):,.0f}"]
        cells += [f"{summary['wall_s'] / 60:.1f}"]
        rows.append(_row(cells))
    return rows


def motion(reports: Mapping[str, dict[str, Any]]) -> list[str]:
    """Tabulate what actor.evaluate reported of pairs of policies, by who met whom."""
    names = ("task", "variant", "policies", "seed", "success", "cycle time, s", "p", "jerk of the end effector, m/s³")
    rows = [_row([*names, "p"]), _row(["---"] * (len(names) + 1))]
    for label, report in reports.items():
        pair, compared = [report["policies"][name] for name in "AB"], report["comparison"]
        cells = [label, " / ".join(f"{policy['successes']} of {policy['episodes']}" for policy in pair)]
        for figure in ("cycle_time_s", "ee_jerk_m_s3"):
            cells.append(" / ".join(_mean(policy[figure]) for policy in pair))
            cells.append(f"{compared[figure]['sign_flip_p']:.1e}" if compared[figure]["pairs"] else "-")
        rows.append(_row(cells))
    return rows


def _mean(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.2f}" if figure["count"] else "-"


def demonstrations_agree(results: Sequence[Result]) -> str:
    """Compare the initial demonstrations in the runs' logs, vectors and actions, between algorithms."""
    found: dict[tuple[str, str, int], set[str]] = {}
    for result in results:
        task, variant, _ = result.group
        found.setdefault((task, variant, result.seed), set()).add(_demonstrations_digest(result.folder))
    different = [" ".join(map(str, key)) for key, digests in found.items() if len(digests) > 1]
    if different:
        return f"**The demonstrations differ between algorithms**: {', '.join(different)}."
    return "The logs hold the same demonstrations for every algorithm, observation by observation, action by action."


def _demonstrations_digest(folder: Path) -> str:
    episodes = config_module.load_preset(str(folder / "config.toml"))["actor"]["demonstrations"]
    specs = read_specs(folder / "learner")
    log = EpisodeLog(folder / "learner" / "log.sqlite", specs, read_only=True)
    digest, position = hashlib.sha256(), 0
    while entries := log.read_after(position, limit=100):
        for entry in entries:
            if isinstance(entry.body, Transition):
                if entry.body.episode >= episodes:
                    log.close()
                    return digest.hexdigest()
                digest.update(specs.observation.normalise(entry.body.observation).tobytes())
                digest.update(entry.body.executed_action.tobytes())
        position = entries[-1].position
    log.close()
    return digest.hexdigest()


def differences(results: Sequence[Result]) -> list[str]:
    """List what is not as in its full preset, from the values that the first run of each kind saved."""
    lines: list[str] = []
    kinds = {result.group[1:]: result for result in reversed(results)}
    for (variant, algorithm), result in sorted(kinds.items()):
        saved = _flat(config_module.load_preset(str(result.folder / "config.toml")))
        full = _flat(_resolved(config_module.load_preset(result.reference)))
        changed = [
            f"`{name}` {saved[name]} (full: {full[name]})"
            for name in sorted(saved.keys() & full.keys() - _OWN)
            if saved[name] != full[name]
        ]
        lines.append(f"- {algorithm}, {variant}, against `{result.reference}`: {', '.join(changed) or 'nothing'}.")
    return lines


def _resolved(tables: config_module.Tables) -> dict[str, Any]:
    programs = {
        "learner": config_from_preset(LearnerConfig, "learner", tables),
        "actor": config_from_preset(ActorConfig, "actor", tables),
    }
    return tomllib.loads(config_module.to_toml(programs))


def _flat(tables: config_module.Tables, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _first_at_goal(result: Result) -> dict[str, Any] | None:
    return next((row for row in result.interim if row["success_rate"] >= GOAL), None)


def _learner_step(evaluation: dict[str, Any]) -> int:
    """Return how many steps the learner of evaluated weights had made; it never started again, or this is too high."""
    return max(0, int(evaluation["weights_version"]) - 1) * STEPS_PER_VERSION


def _human_min(result: Result) -> float:
    return float(result.summary["human_time"]["human_s"]) / 60


def _robot_min(result: Result) -> float:
    return float(result.summary["human_time"]["robot_s"]) / 60


def _success(successes: int, episodes: int) -> str:
    low, high = wilson_interval(successes, episodes)
    return f"{successes} of {episodes} ({low:.0%} to {high:.0%})"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
