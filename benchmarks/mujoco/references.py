"""Numbers of others that a table sets beside ours: data, with what each of them is. Tasks without their version."""

from typing import NamedTuple

PAPER_SOURCE = "CGPO, arXiv:2605.30056, Table 1: v3, best return in 1,000,000 steps, mean (std) of 5 seeds"

PAPER_SETTINGS: dict[str, str] = {
    "cgpo": "the paper prints no number of critics, quantiles and dropped quantiles, `paper_mujoco` has TQC's 5, 25 "
    "and 2; it says 2 hidden layers, `paper_mujoco` has 3 as in QVPO's code, from which the paper's descends",
    "sac": "the paper fixes alpha at 0.2, here it is tuned; `sac.tune_temperature=false sac.initial_temperature=0.2` "
    "is its setting",
    "qvpo": "the paper says 2 hidden layers, `paper_mujoco_qvpo` has 3 as in QVPO's code",
    "dipo": "the paper says 2 hidden layers, `paper_mujoco_dipo` has 3 as in DIPO's code, which loses the actions that "
    "it moves; here they are kept, as DIPO's paper says",
}
"""Where a setting of the paper's column is not the one of our preset."""


class Reported(NamedTuple):
    """Mean and standard deviation over seeds."""

    mean: float
    std: float


PAPER_BEST: dict[str, dict[str, Reported]] = {
    "Ant": {
        "cgpo": Reported(7272.1, 74.6),
        "qvpo": Reported(6425.1, 67.6),
        "dipo": Reported(6100.0, 177.3),
        "sac": Reported(5030.9, 1000.3),
        "td3": Reported(4583.8, 69.5),
    },
    "HalfCheetah": {
        "cgpo": Reported(14368.6, 310.6),
        "qvpo": Reported(11385.6, 164.5),
        "dipo": Reported(9555.0, 1654.3),
        "sac": Reported(10616.9, 72.8),
        "td3": Reported(10388.6, 80.4),
    },
    "Hopper": {
        "cgpo": Reported(4170.5, 165.6),
        "qvpo": Reported(3728.5, 13.8),
        "dipo": Reported(3724.1, 240.7),
        "sac": Reported(2996.6, 111.9),
        "td3": Reported(3267.5, 8.5),
    },
    "Humanoid": {
        "cgpo": Reported(7131.4, 243.8),
        "qvpo": Reported(5306.6, 14.5),
        "dipo": Reported(5280.1, 54.6),
        "sac": Reported(5159.7, 475.3),
        "td3": Reported(5353.5, 53.7),
    },
    "Walker2d": {
        "cgpo": Reported(6482.6, 170.9),
        "qvpo": Reported(5191.8, 60.2),
        "dipo": Reported(4917.1, 181.9),
        "sac": Reported(4888.1, 80.0),
        "td3": Reported(3513.9, 40.7),
    },
}
"""What the paper reports of the algorithms that are here too; TQC is not in it."""

CURVE_STEPS = (50_000, 100_000, 200_000, 300_000, 500_000, 1_000_000)

ZOO_SOURCE = (
    "Stable-Baselines3's rl-trained-agents: v3, one run each, mean of deterministic evaluations at that step (their "
    "TQC has 2 critics; Humanoid from runs of 2,000,000 steps)"
)
ZOO_CURVES: dict[str, dict[str, tuple[float, ...]]] = {
    "HalfCheetah": {
        "sac": (3044, 4961, 6700, 7197, 8647, 9537),
        "td3": (3309, 5217, 7231, 8488, 9550, 10385),
        "tqc": (2685, 5326, 6859, 8257, 10063, 12072),
    },
    "Hopper": {
        "sac": (451, 897, 3052, 1540, 3137, 2279),
        "td3": (351, 350, 1432, 2671, 3534, 3607),
        "tqc": (305, 609, 3400, 3601, 1651, 3750),
    },
    "Walker2d": {
        "sac": (433, 394, 439, 533, 2774, 3914),
        "td3": (215, 390, 2351, 3047, 4484, 4006),
        "tqc": (242, 448, 1130, 711, 2713, 4306),
    },
    "Ant": {
        "sac": (678, 953, 1082, 1373, 3773, 4839),
        "td3": (302, 466, 3437, 4103, 5271, 5945),
        "tqc": (640, 651, 625, 827, 2435, 3477),
    },
    "Humanoid": {
        "sac": (395, 513, 1570, 3915, 3133, 5471),
        "td3": (368, 446, 594, 2063, 4012, 5154),
        "tqc": (408, 568, 1845, 2221, 4900, 6471),
    },
}
"""Returns at CURVE_STEPS."""

TD3_AUTHORS_SOURCE = "TD3's authors: v1, mean ± std of 10 seeds"
TD3_AUTHORS_CURVES: dict[str, dict[int, Reported | float]] = {
    "HalfCheetah": {
        50_000: Reported(3352, 851),
        100_000: Reported(5514, 554),
        200_000: Reported(6833, 683),
        300_000: Reported(7697, 727),
        1_000_000: Reported(9567, 833),
    },
    "Hopper": {
        50_000: 285,
        100_000: Reported(659, 752),
        200_000: Reported(2441, 746),
        300_000: Reported(2410, 900),
        1_000_000: Reported(3391, 378),
    },
    "Walker2d": {
        50_000: 368,
        100_000: Reported(770, 586),
        200_000: Reported(2421, 872),
        300_000: Reported(3335, 957),
        1_000_000: Reported(4413, 1030),
    },
    "Ant": {
        50_000: 330,
        100_000: Reported(586, 185),
        200_000: Reported(931, 387),
        300_000: Reported(1953, 1014),
        1_000_000: Reported(4243, 1098),
    },
}

VERSIONS = """\
The paper used the v3 tasks of gym 0.21 with mujoco-py 2.1; Gymnasium has v4 and v5 and no v3. Unless a version is
named, runs here are v4, the closest there is. What differs, by Gymnasium's version histories and its source:

| task | v3 with mujoco-py 2.1 | v4 | v5 |
| --- | --- | --- | --- |
| HalfCheetah | 17 observations | as v3 | as v3 |
| Hopper | 11 observations | as v3 | no reward for being healthy on the step that ends in a fall |
| Walker2d | 17 observations; friction of the left foot 1.9, of the right one 0.9 | as v3 | as Hopper; both feet 1.9 |
| Ant | 111 observations, of which 84 are contact forces and always 0 (mujoco-py since MuJoCo 2.0), and so is the \
contact cost | the other 27 observations, no contact cost: what v3 really told and rewarded | as Hopper; 105 \
observations with contact forces, which are not 0, and a contact cost: another task |
| Humanoid | 376 observations, of which 84 are contact forces and always 0, and so is the contact cost | 376 \
observations with contact forces, which are not 0 (up to 2,693 in 200 random steps), no contact cost | as Hopper; 348 \
observations with contact forces, and a contact cost |

So v4 may be compared with the paper's column, for Humanoid with the reservation that its observations say more and are
on a much wider scale; v5 only with v5. Policies here act in [-1, 1], scaled to each task's bounds (Humanoid: ±0.4).
Episodes end after 1,000 steps; learning here bootstraps from such an end, the code that the paper builds on took it for
the end of the task.
"""


def paper_best(task: str) -> dict[str, Reported]:
    """Return the paper's results by algorithm, none for a task that is another one than the paper's."""
    return PAPER_BEST.get(_comparable(task), {})


def zoo_curves(task: str) -> dict[str, tuple[float, ...]]:
    """Return published returns at CURVE_STEPS by algorithm."""
    return ZOO_CURVES.get(_comparable(task), {})


def td3_authors_curve(task: str) -> dict[int, Reported | float]:
    """Return the published returns of TD3's authors by step."""
    return TD3_AUTHORS_CURVES.get(_comparable(task), {})


def _comparable(task: str) -> str:
    """Return a task's name without its version, nothing if that version is not to be compared with v3."""
    name, _, version = task.rpartition("-v")
    return name if version == "4" else ""
