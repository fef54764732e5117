"""Small specs and transitions, for tests of what carries and stores them."""

from dataclasses import fields
from typing import Any

import numpy as np

from policy.spec import ActionSpec, Field, Observation, ObservationSpec, Specs
from policy.transition import ActionSource, Recordable, Transition

SPECS = Specs(
    ObservationSpec(
        (
            Field(name="q", unit="rad", low=(-3.0,) * 7, high=(3.0,) * 7),
            Field(name="gripper_width", unit="m", low=(0.0,), high=(0.08,)),
        )
    ),
    ActionSpec((Field(name="delta", unit="m", low=(-0.01,) * 3, high=(0.01,) * 3),)),
)


def make_transition(step: int = 0, *, is_last: bool = False, **changes: Any) -> Transition:
    """Return a transition of SPECS that differs from that of any other step; `changes` replace its fields."""
    rng = np.random.default_rng(step)
    values: dict[str, Any] = {
        "episode": 0,
        "step": step,
        "observation": _observation(rng),
        "policy_action": rng.uniform(-1, 1, SPECS.action.dim).astype(np.float32),
        "executed_action": rng.uniform(-1, 1, SPECS.action.dim).astype(np.float32),
        "source": ActionSource.POLICY,
        "reward": float(step),
        "terminated": is_last,
        "truncated": False,
        "weights_version": 3,
        "weights_age_s": 0.5,
        "wall_time_s": 1.7e9 + step,
        "monotonic_time_s": 0.1 * step,
        "final_observation": _observation(rng) if is_last else None,
    }
    return Transition(**(values | changes))


def assert_equal(left: Recordable, right: Recordable) -> None:
    """Assert that two transitions are the same in every field and bit."""
    assert type(left) is type(right)
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype == np.float32, field.name
            np.testing.assert_array_equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys(), field.name
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
        else:
            assert a == b, field.name


def _observation(rng: np.random.Generator) -> Observation:
    return {field.name: rng.uniform(field.low, field.high).astype(np.float32) for field in SPECS.observation.fields}
