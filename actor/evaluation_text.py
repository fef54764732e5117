"""The report of an evaluation as text."""

from collections.abc import Mapping, Sequence
from typing import Any

_SIGNIFICANT = 0.05
_NOTHING = "-"
_MEASURE_NAMES = {
    "cycle_time_s": ("cycle time", "s"),
    "ee_jerk_m_s3": ("jerk of the end effector", "m/s³"),
    "action_jerk_s3": ("jerk of the actions", "1/s³"),
}
_NOTES = """\
## How to read it

- **Success** is the judge's verdict in a trial in which nobody helped. Intervals are 95 % Wilson intervals.
- **McNemar's exact test** compares the two policies on the same start states: only starts where one succeeds and the
  other fails say anything. **Fisher's exact test** ignores the pairs: take its value where starts were not really
  the same, as when a person puts objects back by hand.
- **Cycle time, jerk**: successful trials only, since a failure lasts as long as the limit. Differences are B minus A
  over starts where both succeed, tested by flipping signs (exact up to 16 pairs, else 65,536 random patterns).
- **Cycle time** is the number of control steps times the control period; a pause does not count.
- **Jerk** is the root mean square of the third difference over the control period cubed: of the end effector's measured
  position in O, and of the executed action in [-1, 1] without the gripper's. It depends on the control rate; compare
  equal tasks and rates only.
- p-values are two-sided and not corrected for their number: success is the question, the rest describes.
"""


def verdict(report: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    rates = [f"{label} {_rate(figures)}" for label, figures in report["policies"].items()]
    if "comparison" not in report:
        return f"{_rate(report['policies']['A'])} without help"
    p = report["comparison"]["mcnemar_p"]
    if p >= _SIGNIFICANT:
        answer = "no difference shown"
    else:
        better = max("AB", key=lambda label: report["policies"][label]["successes"])
        answer = f"{better} is better"
    return f"{', '.join(rates)}: {answer} (McNemar p = {_p(p)})"


def markdown(report: Mapping[str, Any], plots: Sequence[str]) -> str:
    """Return report.md."""
    settings = report["settings"]
    parts = [
        f"# Evaluation on {settings['task']}",
        verdict(report),
        f"Backend {settings['backend']}, {'camera images' if settings['pixels'] else 'no images'}, "
        f"{settings['episodes']} start states, seed {settings['seed']}, judge: {settings['reward']['source']}.",
        _policy_table(report["policies"]),
        *[f"![{name.removesuffix('.png')}]({name})" for name in plots],
    ]
    if "comparison" in report:
        parts += ["## B against A, start by start", _comparison_text(report["comparison"])]
    parts += ["## Help", _help_text(report["interventions"])]
    if report["void"]:
        listed = "\n".join(f"- trial {row['trial']} ({row['policy']}): {row['reason']}" for row in report["void"])
        parts += ["## Void trials, run again", listed]
    parts += ["## Trials", _trial_table(report["trials"]), _NOTES]
    return "\n\n".join(parts)


def _policy_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("", *policies)]
    rows += [("policy", *(f"`{figures['path']}`" for figures in policies.values()))]
    rows += [("weights", *(_weights(figures) for figures in policies.values()))]
    rows += [("kind", *(_kind(figures["architecture"]) for figures in policies.values()))]
    rows += [("**success**", *(f"**{_rate(figures)}**" for figures in policies.values()))]
    for name, (title, unit) in _MEASURE_NAMES.items():
        cells = [_centre(figures[name]) for figures in policies.values()]
        rows.append((f"{title}, {unit}: mean, median", *cells))
    rows += [("steps clipped by the safety gate", *(_share(figures) for figures in policies.values()))]
    rows += [("steps with an old image", *(str(figures["stale_image_steps"]) for figures in policies.values()))]
    return _table(rows)


def _comparison_text(comparison: Mapping[str, Any]) -> str:
    success = _table(
        [
            ("", "B succeeds", "B fails"),
            ("A succeeds", str(comparison["both_succeed"]), str(comparison["only_a_succeeds"])),
            ("A fails", str(comparison["only_b_succeeds"]), str(comparison["neither_succeeds"])),
        ]
    )
    tests = f"McNemar p = {_p(comparison['mcnemar_p'])}; without pairs, Fisher p = {_p(comparison['fisher_p'])}."
    rows: list[Sequence[str]] = [("where both succeed", "starts", "mean difference", "median difference", "p")]
    for name, (title, unit) in _MEASURE_NAMES.items():
        paired = comparison[name]
        cells = [_NOTHING, _NOTHING, _NOTHING]
        if paired["pairs"]:
            cells = [f"{paired['mean_difference']:+.3g}", f"{paired['median_difference']:+.3g}"]
            cells.append(_p(paired["sign_flip_p"]))
        rows.append((f"{title}, {unit}", str(paired["pairs"]), *cells))
    return f"{success}\n\n{tests}\n\n{_table(rows)}"


def _help_text(interventions: Sequence[Mapping[str, Any]]) -> str:
    if not interventions:
        return "Nobody helped in any trial."
    lines = [
        f"- trial {row['trial']} ({row['policy']}): {row['interventions']} interventions, {row['intervention_steps']} "
        f"steps; it {'reached' if row['verdict'] else 'did not reach'} the goal and counts as no success"
        for row in interventions
    ]
    return "\n".join(lines)


def _trial_table(trials: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = [
        ("trial", "start", "seed", "policy", "result", "cycle time, s", "jerk, m/s³", "judge", "video")
    ]
    for row in trials:
        result = "void" if row["void"] else "success" if row["is_success"] else "failure"
        jerk = _NOTHING if row["ee_jerk_m_s3"] is None else f"{row['ee_jerk_m_s3']:.3g}"
        video = f"[film]({row['video']})" if row["video"] else _NOTHING
        time = f"{row['cycle_time_s']:.2f}"
        numbers = (str(row["trial"]), str(row["start"]), str(row["seed"]))
        rows.append((*numbers, row["policy"], result, time, jerk, row["judged_by"], video))
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body])


def _weights(figures: Mapping[str, Any]) -> str:
    step = f", learner step {figures['learner_step']}" if figures["learner_step"] else ""
    return f"version {figures['version']}{step}, SHA-256 {figures['sha256'][:12]}…"


def _kind(architecture: Mapping[str, Any]) -> str:
    if architecture["encoder"] == "none":
        return f"{architecture['distribution']}"
    random = ", **random weights**" if architecture["encoder_weights"] == "random" else ""
    return f"{architecture['distribution']}, image encoder {architecture['encoder']}{random}"


def _rate(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['successes']} of {figures['episodes']} "
        f"({100 * figures['wilson_low']:.0f} to {100 * figures['wilson_high']:.0f} %)"
    )


def _share(figures: Mapping[str, Any]) -> str:
    return f"{100 * figures['clipped_steps'] / max(1, figures['steps']):.1f} %"


def _centre(centre: Mapping[str, Any]) -> str:
    return f"{centre['mean']:.3g}, {centre['median']:.3g}" if centre["count"] else _NOTHING


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
