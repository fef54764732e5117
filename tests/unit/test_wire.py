"""The codec: what is encoded comes back, and nothing that is not a transition of the specs gets through."""

from collections.abc import Callable

import numpy as np
import pytest
from cgpo_proto import link_pb2
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from policy.errors import WireError
from policy.grpc_options import MAX_TRANSITION_BYTES
from policy.transition import ActionSource, RecordId, Transition
from policy.wire import body_from_bytes, body_to_bytes, record_from_message, record_to_message
from tests.transitions import SPECS, assert_equal, make_transition

RECORD_ID = RecordId("robot-1", "20261121T000000.000000000Z-0a1b2c3d", 7)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
times_s = st.floats(allow_nan=False, allow_infinity=False)
actions = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)


def as_float32(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


observations = st.fixed_dictionaries(
    {
        "q": st.lists(float32s, min_size=7, max_size=7).map(as_float32),
        "gripper_width": st.lists(float32s, min_size=1, max_size=1).map(as_float32),
    }
)


@st.composite
def transitions(draw: st.DrawFn) -> Transition:
    terminated, truncated = draw(st.booleans()), draw(st.booleans())
    return Transition(
        episode=draw(st.integers(0, 2**63 - 1)),
        step=draw(st.integers(0, 2**32 - 1)),
        observation=draw(observations),
        policy_action=as_float32(draw(actions)),
        executed_action=as_float32(draw(actions)),
        source=draw(st.sampled_from(ActionSource)),
        reward=draw(float32s),
        terminated=terminated,
        truncated=truncated,
        weights_version=draw(st.integers(0, 2**63 - 1)),
        weights_age_s=draw(float32s),
        wall_time_s=draw(times_s),
        monotonic_time_s=draw(times_s),
        reward_source=draw(st.text(max_size=20)),
        final_observation=draw(observations) if terminated or truncated else None,
    )


@given(transition=transitions())
def test_every_field_survives_the_wire(transition: Transition) -> None:
    sent = record_to_message(RECORD_ID, transition).SerializeToString()
    record_id, received = record_from_message(link_pb2.Record.FromString(sent), SPECS)
    assert record_id == RECORD_ID
    assert_equal(received, transition)


@given(transition=transitions())
def test_every_field_survives_the_disk(transition: Transition) -> None:
    assert_equal(body_from_bytes(body_to_bytes(transition), SPECS), transition)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_a_wire_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(WireError):
        body_from_bytes(data, SPECS)


def test_fields_come_back_in_the_order_of_the_spec() -> None:
    transition = make_transition()
    backwards = dict(reversed(list(transition.observation.items())))
    received = body_from_bytes(body_to_bytes(make_transition(observation=backwards)), SPECS)
    assert isinstance(received, Transition)
    assert list(received.observation) == ["q", "gripper_width"]


def first_tensor(message: link_pb2.Record) -> link_pb2.NamedTensor:
    return message.transition.observation.fields[0]


def set_data(message: link_pb2.Record, values: list[float]) -> None:
    first_tensor(message).data = np.array(values, "<f4").tobytes()


def repeat_field(message: link_pb2.Record) -> None:
    message.transition.observation.fields.append(first_tensor(message))


REFUSALS: list[tuple[str, Callable[[link_pb2.Record], object], str]] = [
    ("no actor", lambda m: m.ClearField("actor_id"), "actor_id ''"),
    ("control characters", lambda m: setattr(m, "incarnation", "a\nb"), "incarnation 'a"),
    ("long name", lambda m: setattr(m, "actor_id", "a" * 129), "1 to 128"),
    ("sequence beyond SQLite", lambda m: setattr(m, "sequence", 2**63), "sequence 9223372036854775808"),
    ("no transition", lambda m: m.ClearField("transition"), "empty"),
    ("unknown source", lambda m: setattr(m.transition, "source", 9), "source 9"),
    ("reward not finite", lambda m: setattr(m.transition, "reward", float("nan")), "reward = nan"),
    ("time not finite", lambda m: setattr(m.transition, "wall_time_s", float("inf")), "wall_time_s = inf"),
    ("action too short", lambda m: m.transition.policy_action.pop(), "policy_action has 2 values, expected 3"),
    ("action too long", lambda m: m.transition.executed_action.append(0), "executed_action has 4 values"),
    ("action out of range", lambda m: m.transition.executed_action.__setitem__(0, 1.5), "not within"),
    ("action not finite", lambda m: m.transition.policy_action.__setitem__(0, float("nan")), "not within"),
    ("field missing", lambda m: m.transition.observation.fields.pop(), "expected ['gripper_width', 'q']"),
    ("field twice", repeat_field, "names a field twice"),
    ("field unknown", lambda m: setattr(first_tensor(m), "name", "x"), "['gripper_width', 'x']"),
    ("wrong dtype", lambda m: setattr(first_tensor(m), "dtype", link_pb2.DTYPE_UINT8), "dtype 2"),
    ("wrong shape", lambda m: first_tensor(m).shape.__setitem__(0, 6), "28 bytes, shape [6] needs 24"),
    ("wrong rank", lambda m: first_tensor(m).shape.append(1), "shape (7, 1), expected (7,)"),
    ("bytes missing", lambda m: setattr(first_tensor(m), "data", b"\0" * 27), "27 bytes"),
    ("observation not finite", lambda m: set_data(m, [float("nan")] * 7), "rad is not finite"),
    ("last without final", lambda m: setattr(m.transition, "terminated", True), "no final observation"),
    ("final without last", lambda m: m.transition.final_observation.SetInParent(), "a final observation"),
    ("too large", lambda m: setattr(m.transition, "reward_source", "x" * MAX_TRANSITION_BYTES), "above the limit"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_breaks_the_promise_is_refused_by_name(damage: Callable[[link_pb2.Record], object], message: str) -> None:
    record = record_to_message(RECORD_ID, make_transition())
    damage(record)
    with pytest.raises(WireError) as refusal:
        record_from_message(record, SPECS)
    assert message in str(refusal.value)


def test_a_transition_above_the_limit_is_not_even_encoded() -> None:
    with pytest.raises(WireError, match="above the limit of 1048576"):
        record_to_message(RECORD_ID, make_transition(reward_source="x" * MAX_TRANSITION_BYTES))
