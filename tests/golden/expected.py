"""What the recorded bodies say, value by value, written out by hand."""

import numpy as np
from numpy.typing import NDArray

from policy.image_codec import Image, encode_image
from policy.spec import ActionSpec, Field, ImageField, Observation, ObservationSpec, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, Transition

SPECS = Specs(
    ObservationSpec(
        (
            Field(name="q", unit="rad", low=(-3.0, -3.0), high=(3.0, 3.0)),
            Field(name="gripper_width", unit="m", low=(0.0,), high=(0.08,)),
        )
    ),
    ActionSpec((Field(name="delta", unit="m", low=(-0.01,) * 2, high=(0.01,) * 2),)),
)
IMAGE_SPECS = Specs(
    ObservationSpec(
        SPECS.observation.fields,
        tuple(ImageField(name=name, height=8, width=9) for name in ("raw_view", "png_view", "jpeg_view")),
    ),
    SPECS.action,
)


def _float32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _picture(brightness: int) -> Image:
    """A smooth image (8, 9, 3): JPEG keeps it to within a few of 255."""
    row, column, channel = np.indices((8, 9, 3))
    pixels: Image = (brightness + 4 * row + 3 * column + 20 * channel).astype(np.uint8)
    return pixels


def _observation(q: float, brightness: int | None = None) -> Observation:
    vectors = {"q": _float32(q, -q), "gripper_width": _float32(0.0625)}
    if brightness is None:
        return vectors
    return vectors | {
        "raw_view": encode_image(_picture(brightness), "raw"),
        "png_view": encode_image(_picture(brightness + 1), "png"),
        "jpeg_view": encode_image(_picture(brightness + 2), "jpeg"),
    }


STEP = Transition(
    episode=12,
    step=345,
    observation=_observation(0.5),
    policy_action=_float32(0.25, -1.0),
    executed_action=_float32(0.125, 1.0),
    source=ActionSource.HUMAN_INTERVENTION,
    reward=-0.5,
    terminated=False,
    truncated=False,
    weights_version=678,
    weights_age_s=9.5,
    wall_time_s=1.75e9,
    monotonic_time_s=123.0625,
)
"""A step as protocol 2 knew it: later fields at their defaults."""

BODIES: dict[str, Recordable] = {
    "last_step_with_images": Transition(
        episode=12,
        step=346,
        observation=_observation(0.75, brightness=40),
        policy_action=_float32(0.5, -0.5),
        executed_action=_float32(0.375, 0.0),
        source=ActionSource.HUMAN_DEMONSTRATION,
        reward=1.0,
        terminated=True,
        truncated=False,
        weights_version=679,
        weights_age_s=0.25,
        wall_time_s=1.75e9 + 0.5,
        monotonic_time_s=124.0,
        reward_source="classifier:held",
        gripper_toggled=True,
        weights_lag_steps=4321,
        final_observation=_observation(1.25, brightness=90),
    ),
    "truncated_step": Transition(
        episode=(1 << 63) - 1,
        step=(1 << 32) - 1,
        observation=_observation(-1.5),
        policy_action=_float32(-1.0, 1.0),
        executed_action=_float32(-0.75, 0.75),
        source=ActionSource.POLICY,
        reward=0.0,
        terminated=False,
        truncated=True,
        weights_version=(1 << 63) - 1,
        weights_age_s=0.0,
        wall_time_s=0.0,
        monotonic_time_s=1e-9,
        reward_source="human",
        weights_lag_steps=(1 << 63) - 1,
        final_observation=_observation(-1.75),
    ),
    **{
        f"mark_{kind.name.lower()}": EpisodeMark(
            episode=12, step=346, kind=kind, wall_time_s=1.75e9 + 8.5, note=f"ein Würfel fällt: {kind.value}"
        )
        for kind in MarkKind
    },
}
"""What `python -m tests.golden.record` writes where it has no bytes yet."""

OLD_BODIES: dict[str, Recordable] = {
    "protocol_2_step": STEP,
    "protocol_2_mark": EpisodeMark(
        episode=12, step=345, kind=MarkKind.FAILURE, wall_time_s=1.75e9 + 1.5, note="slipped"
    ),
}
"""What programs of protocol 2 wrote; their bytes cannot be made any more."""
