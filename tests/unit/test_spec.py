"""Observation and action specs: bounds to [-1, 1] and back, and what they refuse."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, WireError
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs

POSITION = Field(name="position", unit="m", low=(0.3, -0.2), high=(0.7, 0.2))
OFFSET = Field(name="offset", unit="m", low=(-0.1,), high=(0.1,), fine_scale=0.002)
OBSERVATION = ObservationSpec((POSITION, OFFSET))
ACTION = ActionSpec((POSITION, Field(name="grip", unit="m", low=(0.0,), high=(0.08,))))
SPECS = Specs(OBSERVATION, ACTION)


def observe(position: tuple[float, ...], offset: float = 0.0) -> dict[str, np.ndarray]:
    return {"position": np.array(position, np.float32), "offset": np.array([offset], np.float32)}


@pytest.mark.parametrize(
    ("position", "expected"),
    [((0.3, -0.2), (-1, -1)), ((0.7, 0.2), (1, 1)), ((0.5, 0.0), (0, 0)), ((5.0, -5.0), (1.5, -1.5))],
)
def test_bounds_become_one_and_values_far_outside_are_clipped(
    position: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert OBSERVATION.normalise(observe(position))[:2].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_fine_scale_shows_millimetres_in_a_channel_of_their_own() -> None:
    assert OBSERVATION.vector_dim == 4
    coarse, fine = OBSERVATION.normalise(observe((0.5, 0.0), offset=0.002))[2:]
    assert (coarse, fine) == pytest.approx((0.02, np.tanh(1)), abs=1e-6)


def test_features_are_float32_also_from_float64_sensors_in_the_specs_order() -> None:
    values = {"offset": np.array([0.1]), "position": np.array([0.7, -0.2])}  # another order, another type
    feature = OBSERVATION.normalise(values)
    assert feature.dtype == np.float32
    assert feature[:3].tolist() == pytest.approx([1, -1, 1], abs=1e-6)


@given(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3))
def test_actions_return_from_physical_units_unchanged(action: list[float]) -> None:
    normalised = np.array(action, np.float32)
    physical = ACTION.to_physical(normalised)
    low, high = ACTION.bounds()
    rounding = 1e-12
    assert ((low - rounding <= physical) & (physical <= high + rounding)).all()
    np.testing.assert_allclose(ACTION.to_normalised(physical), normalised, rtol=0, atol=1e-6)


def test_actions_beyond_the_bounds_are_clipped_both_ways() -> None:
    assert ACTION.to_physical(np.array([3, -3, 0], np.float32)).tolist() == pytest.approx([0.7, -0.2, 0.04])
    assert ACTION.to_normalised(np.array([9.0, -9.0, 0.02])).tolist() == pytest.approx([1, -1, -0.5])


@pytest.mark.parametrize("action", [[0.0, 0.0], [0.0, 0.0, np.nan], [np.inf, 0.0, 0.0], [[0.0, 0.0, 0.0]]])
def test_an_action_of_another_shape_or_without_a_value_never_becomes_physical(action: list[float]) -> None:
    with pytest.raises(WireError, match="not 3 finite values"):
        ACTION.to_physical(np.array(action, np.float32))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"position": np.zeros(2)}, "expected.*offset"),
        ({**observe((0, 0)), "extra": np.zeros(1)}, "extra"),
        ({**observe((0, 0)), "position": np.zeros(3)}, r"position has shape \(3,\), expected \(2,\)"),
        (observe((0, 0), offset=np.nan), "offset.*not finite; check its sensor"),
    ],
)
def test_an_observation_that_breaks_the_spec_is_named(observation: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(WireError, match=message):
        OBSERVATION.check(observation)
    OBSERVATION.check(observe((0.5, 0.0)))


@pytest.mark.parametrize(
    ("low", "high"),
    [((0.0,), (0.0,)), ((1.0,), (0.0,)), ((0.0,), (np.nan,)), ((-np.inf,), (0.0,)), ((0.0, 0.0), (1.0,)), ((), ())],
)
def test_bounds_must_be_intervals(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="field force"):
        Field(name="force", unit="N", low=low, high=high)


def test_specs_survive_json_and_any_change_changes_the_digest() -> None:
    again = Specs.from_json(SPECS.to_json())
    assert again == SPECS
    assert again.digest() == SPECS.digest()
    changes = [
        {"name": "place"},
        {"unit": "mm"},
        {"low": (0.3, -0.3)},
        {"high": (0.7, 0.3)},
        {"fine_scale": 0.1},
    ]
    fields = [dataclasses.replace(POSITION, **change) for change in changes]  # type: ignore[arg-type]
    variants = [Specs(ObservationSpec((field, OFFSET)), ACTION) for field in fields]
    variants += [Specs(ObservationSpec((OFFSET, POSITION)), ACTION), Specs(OBSERVATION, ActionSpec((POSITION,)))]
    digests = {specs.digest() for specs in [SPECS, *variants]}
    assert len(digests) == 1 + len(variants)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"observation": {"fields": []}}',
        json.dumps({"observation": {"fields": [1]}, "action": {"fields": []}}),
        SPECS.to_json().replace("fine_scale", "coarse_scale"),
        SPECS.to_json().replace("0.08", "-0.08"),
        SPECS.to_json().replace("0.08", '"wide"'),
        SPECS.to_json().replace("0.08", "NaN"),
        SPECS.to_json()[:-1],
    ],
)
def test_text_that_is_not_a_pair_of_specs_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="not a pair of observation and action specs"):
        Specs.from_json(text)


@pytest.mark.parametrize("spec", [ObservationSpec, ActionSpec])
def test_a_field_named_twice_is_refused(spec: type[ObservationSpec] | type[ActionSpec]) -> None:
    with pytest.raises(ConfigError, match=r"twice: \['position', 'position'\]"):
        spec((POSITION, POSITION))


@pytest.mark.parametrize(
    "name", ["/tmp/x", "../../up", "..", ".hidden", "a/b", "a\\b", "", "x\n", "a b", "\x1b[2J", "n" * 129, "größe"]
)
def test_a_name_that_cannot_be_that_of_a_file_is_refused(name: str) -> None:
    for spec in (
        lambda: ObservationSpec((), (ImageField(name=name, height=8, width=8),)),
        lambda: ActionSpec((dataclasses.replace(POSITION, name=name),)),
    ):
        with pytest.raises(ConfigError, match="cannot name a field or image") as refusal:
            spec()
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("unit", ["m\n", "\x1b[2J", "m" * 129])
def test_a_unit_that_garbles_a_message_is_refused(unit: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a unit"):
        dataclasses.replace(POSITION, unit=unit)
