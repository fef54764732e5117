"""Figures of an evaluation against values worked out by hand, and how they are told."""

from typing import Any

import pytest

from actor.evaluation_report import Labelled, analyse
from actor.evaluation_text import markdown, verdict
from actor.trials import Trial, draw_order

POSE = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
DESCRIBED = {
    "path": "/runs/x",
    "version": 3,
    "learner_step": 150,
    "sha256": "0123456789abcdef",
    "architecture": {"distribution": "diffusion", "encoder": "resnet10", "encoder_weights": "random"},
}
SETTINGS = {
    "task": "reach",
    "backend": "fake",
    "pixels": False,
    "episodes": 4,
    "seed": 0,
    "reward": {"source": "task"},
}


def trial(number: int, start: int, is_success: bool, **values: Any) -> Trial:
    base: dict[str, Any] = {
        "trial": number,
        "start": start,
        "seed": 10 + start,
        "O_T_EE": POSE,
        "objects": {},
        "is_success": is_success,
        "verdict": is_success,
        "judged_by": "task",
        "length": 20,
        "cycle_time_s": 2.0,
        "interventions": 0,
        "intervention_steps": 0,
        "clipped_steps": 1,
        "stale_image_steps": 0,
        "ee_jerk_m_s3": 1.0,
        "action_jerk_s3": 100.0,
        "video": "",
        "void": "",
    }
    return Trial(**(base | values))


# Starts 0 to 3: both, both, only B, B with help only (so neither).
TRIALS = [
    Labelled("A", trial(1, 0, True, cycle_time_s=3.0, ee_jerk_m_s3=5.0)),
    Labelled("B", trial(2, 0, True, cycle_time_s=2.0, ee_jerk_m_s3=None)),
    Labelled("B", trial(3, 1, True, cycle_time_s=1.0, ee_jerk_m_s3=2.0)),
    Labelled("A", trial(4, 1, True, cycle_time_s=4.0, ee_jerk_m_s3=6.0)),
    Labelled("A", trial(5, 2, False, cycle_time_s=9.0, void="wrist: unplugged")),
    Labelled("A", trial(5, 2, False, cycle_time_s=9.0)),
    Labelled("B", trial(6, 2, True, cycle_time_s=6.0, clipped_steps=5)),
    Labelled("B", trial(7, 3, False, verdict=True, interventions=2, intervention_steps=7)),
    Labelled("A", trial(8, 3, False)),
]


@pytest.fixture
def report() -> dict[str, Any]:
    return analyse(TRIALS, {"A": DESCRIBED, "B": DESCRIBED}) | {"settings": SETTINGS}


def test_rates_and_times_of_each_policy(report: dict[str, Any]) -> None:
    a, b = report["policies"]["A"], report["policies"]["B"]
    assert (a["successes"], a["episodes"], b["successes"], b["episodes"]) == (2, 4, 3, 4)
    assert (a["wilson_low"], a["wilson_high"]) == pytest.approx((0.150, 0.850), abs=5e-4)
    assert a["cycle_time_s"] == {"count": 2, "mean": 3.5, "median": 3.5}
    assert b["cycle_time_s"] == {"count": 3, "mean": 3.0, "median": 2.0}
    assert b["ee_jerk_m_s3"] == {"count": 2, "mean": 1.5, "median": 1.5}  # of one trial none is known
    assert (a["clipped_steps"], b["clipped_steps"], a["steps"]) == (4, 8, 80)  # the void trial is in none


def test_the_pairs_are_the_start_states(report: dict[str, Any]) -> None:
    comparison = report["comparison"]
    cells = ("both_succeed", "only_a_succeeds", "only_b_succeeds", "neither_succeeds")
    assert [comparison[cell] for cell in cells] == [2, 0, 1, 1]
    assert comparison["mcnemar_p"] == 1.0
    # Margins 4 + 4 with 5 successes: 1, 2, 3, 4 of the first weigh 4, 24, 24, 4 of 56.
    assert comparison["fisher_p"] == 1.0
    assert comparison["cycle_time_s"] == {
        "pairs": 2,
        "mean_difference": -2.0,  # 2 - 3 and 1 - 4
        "median_difference": -2.0,
        "sign_flip_p": 0.5,
    }
    assert comparison["ee_jerk_m_s3"]["pairs"] == 1
    assert comparison["ee_jerk_m_s3"]["mean_difference"] == -4.0


def test_help_and_void_trials_are_told(report: dict[str, Any]) -> None:
    text = markdown(report, [])
    assert "trial 7 (B): 2 interventions, 7 steps; it reached the goal and counts as no success" in text
    assert "trial 5 (A): wrist: unplugged" in text
    assert "random weights" in text
    assert [row["trial"] for row in report["void"]] == [5]


def test_the_verdict_needs_evidence(report: dict[str, Any]) -> None:
    assert "no difference shown" in verdict(report)
    report["comparison"]["mcnemar_p"] = 0.049
    assert "B is better" in verdict(report)
    alone = analyse([row for row in TRIALS if row.policy == "A"], {"A": DESCRIBED}) | {"settings": SETTINGS}
    assert verdict(alone) == "2 of 4 (15 to 85 %) without help"
    assert "comparison" not in alone


def test_the_order_is_balanced_and_cannot_be_foreseen() -> None:
    order = draw_order(["A", "B"], 200)
    pairs = [tuple(order[index : index + 2]) for index in range(0, 400, 2)]
    assert set(pairs) == {("A", "B"), ("B", "A")}
    assert draw_order(["A", "B"], 200) != order
    assert draw_order(["A"], 3) == ["A", "A", "A"]
