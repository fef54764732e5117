"""What an evaluation came to: report.json, report.md, plots, and one zip file of all of it. Discloses the order."""

import importlib.util
import json
import logging
import statistics
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actor.evaluation_text import markdown, verdict
from actor.published_policy import PublishedPolicy
from actor.statistics import fisher_exact, mcnemar_exact, sign_flip_test, wilson_interval
from actor.trials import Trial, TrialFolder
from policy.files import replace_durably

_log = logging.getLogger(__name__)

MEASURES = ("cycle_time_s", "ee_jerk_m_s3", "action_jerk_s3")
PLOTS = ("success.png", "motion.png")
_EXPORTED = ("report.md", "report.json", *PLOTS, "trials.jsonl", "key.json", "evaluation.json")


@dataclass(frozen=True)
class Labelled:
    """A trial and the policy that had it."""

    policy: str
    trial: Trial


def write_report(folder: TrialFolder, export: Path | None = None) -> list[str]:
    """Write the report of a complete evaluation into its folder; return the lines to show."""
    labelled = [Labelled(folder.order[trial.trial - 1], trial) for trial in folder.trials]
    settings = json.loads((folder.path / "evaluation.json").read_text())
    policies = {
        label: {"path": path, **PublishedPolicy.read(folder.policy_folder(label)).describe()}
        for label, path in settings["policies"].items()
    }
    report = analyse(labelled, policies) | {"settings": settings}
    plots = _plot(folder.path, report, [row for row in labelled if not row.trial.void])
    replace_durably(folder.path / "report.json", json.dumps(report, indent=1).encode())
    replace_durably(folder.path / "report.md", markdown(report, plots).encode())
    lines = [verdict(report), f"report: {folder.path / 'report.md'}"]
    if export is not None:
        _export(folder.path, export, [row.trial.video for row in labelled if row.trial.video])
        lines.append(f"exported: {export}")
    return lines


def analyse(trials: Sequence[Labelled], policies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a complete evaluation as JSON values."""
    counted = [row for row in trials if not row.trial.void]
    by_policy = {label: [row.trial for row in counted if row.policy == label] for label in policies}
    report: dict[str, Any] = {
        "policies": {label: {**policies[label], **_summary(rows)} for label, rows in by_policy.items()},
        "interventions": [_listed(row) for row in counted if row.trial.interventions],
        "void": [{**_listed(row), "reason": row.trial.void} for row in trials if row.trial.void],
        "trials": [{"policy": row.policy, **asdict(row.trial)} for row in trials],
    }
    if "B" in by_policy:
        by_start = [{trial.start: trial for trial in by_policy[label]} for label in "AB"]
        report["comparison"] = _comparison([(by_start[0][start], by_start[1][start]) for start in sorted(by_start[0])])
    return report


def _summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return one policy's figures; times and jerk are those of its successes."""
    successes = [trial for trial in trials if trial.is_success]
    low, high = wilson_interval(len(successes), len(trials))
    return {
        "episodes": len(trials),
        "successes": len(successes),
        "success_rate": len(successes) / len(trials),
        "wilson_low": low,
        "wilson_high": high,
        "judged_by": dict(Counter(trial.judged_by for trial in trials)),
        "clipped_steps": sum(trial.clipped_steps for trial in trials),
        "stale_image_steps": sum(trial.stale_image_steps for trial in trials),
        "steps": sum(trial.length for trial in trials),
        **{name: _centre(_values(successes, name)) for name in MEASURES},
    }


def _comparison(pairs: Sequence[tuple[Trial, Trial]]) -> dict[str, Any]:
    """Return how B differs from A over the start states."""
    successes = (sum(a.is_success for a, _ in pairs), sum(b.is_success for _, b in pairs))
    only_a = sum(a.is_success and not b.is_success for a, b in pairs)
    only_b = sum(b.is_success and not a.is_success for a, b in pairs)
    both = [pair for pair in pairs if pair[0].is_success and pair[1].is_success]
    return {
        "pairs": len(pairs),
        "both_succeed": len(both),
        "only_a_succeeds": only_a,
        "only_b_succeeds": only_b,
        "neither_succeeds": len(pairs) - len(both) - only_a - only_b,
        "mcnemar_p": mcnemar_exact(only_a, only_b),
        "fisher_p": fisher_exact(successes, (len(pairs), len(pairs))),
        **{name: _paired(both, name) for name in MEASURES},
    }


def _paired(pairs: Sequence[tuple[Trial, Trial]], name: str) -> dict[str, Any]:
    known = [pair for pair in pairs if all(getattr(trial, name) is not None for trial in pair)]
    differences = [getattr(b, name) - getattr(a, name) for a, b in known]
    return {
        "pairs": len(differences),
        "mean_difference": statistics.fmean(differences) if differences else None,
        "median_difference": statistics.median(differences) if differences else None,
        "sign_flip_p": sign_flip_test(differences) if differences else None,
    }


def _values(trials: Sequence[Trial], name: str) -> list[float]:
    values = [getattr(trial, name) for trial in trials]
    return [value for value in values if value is not None]


def _centre(values: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "mean": statistics.fmean(values) if values else None,
        "median": statistics.median(values) if values else None,
    }


def _listed(row: Labelled) -> dict[str, Any]:
    trial = row.trial
    return {
        "trial": trial.trial,
        "policy": row.policy,
        "start": trial.start,
        "interventions": trial.interventions,
        "intervention_steps": trial.intervention_steps,
        "verdict": trial.verdict,
    }


def _plot(folder: Path, report: dict[str, Any], counted: Sequence[Labelled]) -> list[str]:
    """Return the names of the plots drawn: none without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        _log.warning("no plots: matplotlib is not installed. It comes with: pip install -e '.[sim]' -c constraints.txt")
        return []
    from actor import evaluation_plots

    draw: dict[str, Callable[[], None]] = {
        "success.png": lambda: evaluation_plots.draw_success(folder / "success.png", report),
        "motion.png": lambda: evaluation_plots.draw_motion(
            folder / "motion.png", report, [(row.policy, row.trial) for row in counted]
        ),
    }
    for name in PLOTS:
        draw[name]()
    return list(PLOTS)


def _export(folder: Path, target: Path, videos: Sequence[str]) -> None:
    """Write the zip file in one step: whoever finds it has all of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*_EXPORTED, *videos):
            if (folder / name).exists():
                archive.write(folder / name, f"{target.stem}/{name}")
    temporary.replace(target)
