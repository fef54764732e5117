"""The codec: what is encoded comes back, and nothing that is not a transition of the specs gets through."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cgpo_proto import link_pb2
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from policy.errors import DamagedRecordError, WireError
from policy.grpc_options import MAX_TRANSITION_BYTES
from policy.transition import ActionSource, EpisodeMark, MarkKind, RecordId, Transition
from policy.wire import decode_body, encode_body, make_record, record_crc32, record_id_of
from tests.transitions import SPECS, assert_equal, make_transition

RECORD_ID = RecordId("robot-1", "20261121T000000.000000000Z-0a1b2c3d", 7)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
times_s = st.floats(allow_nan=False, allow_infinity=False)
printable = st.text(max_size=20).filter(str.isprintable)
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
        reward_source=draw(printable),
        final_observation=draw(observations) if terminated or truncated else None,
        gripper_toggled=draw(st.booleans()),
        weights_lag_steps=draw(st.integers(0, 2**63 - 1)),
    )


def marks() -> st.SearchStrategy[EpisodeMark]:
    return st.builds(
        EpisodeMark,
        episode=st.integers(0, 2**63 - 1),
        step=st.integers(0, 2**32 - 1),
        kind=st.sampled_from(MarkKind),
        wall_time_s=times_s,
        note=printable,
    )


@given(transition=transitions())
def test_every_field_of_a_transition_survives(transition: Transition) -> None:
    assert_equal(decode_body(encode_body(transition), SPECS), transition)


@given(mark=marks())
def test_every_field_of_a_mark_survives(mark: EpisodeMark) -> None:
    assert decode_body(encode_body(mark), SPECS) == mark


def test_a_note_is_kept_as_a_terminal_may_show_it() -> None:
    mark = EpisodeMark(episode=0, step=0, kind=MarkKind.BOOKMARK, wall_time_s=0.0, note="look\n\x1b[2J" + "x" * 2000)
    kept = decode_body(encode_body(mark), SPECS)
    assert isinstance(kept, EpisodeMark)
    assert kept.note == "look\\n\\x1b[2J" + "x" * 986 + "…"
    forged = link_pb2.Body(mark=link_pb2.EpisodeMark(kind=int(mark.kind), note=mark.note))  # type: ignore[arg-type]
    assert decode_body(forged.SerializeToString(), SPECS).note == kept.note  # type: ignore[union-attr]


def test_fields_come_back_in_the_order_of_the_spec() -> None:
    transition = make_transition()
    backwards = dict(reversed(list(transition.observation.items())))
    received = decode_body(encode_body(make_transition(observation=backwards)), SPECS)
    assert isinstance(received, Transition)
    assert list(received.observation) == ["q", "gripper_width"]


def first_tensor(message: link_pb2.Body) -> link_pb2.NamedTensor:
    return message.transition.observation.fields[0]


def set_data(message: link_pb2.Body, values: list[float]) -> None:
    first_tensor(message).data = np.array(values, "<f4").tobytes()


def repeat_field(message: link_pb2.Body) -> None:
    message.transition.observation.fields[1].CopyFrom(first_tensor(message))


REFUSALS: list[tuple[str, Callable[[link_pb2.Body], object], str]] = [
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
    ("field too many", lambda m: m.transition.observation.fields.add(), "has 3 fields and 0 images, the spec 2 and 0"),
    ("field unknown", lambda m: setattr(first_tensor(m), "name", "x"), "['gripper_width', 'x']"),
    ("wrong dtype", lambda m: setattr(first_tensor(m), "dtype", link_pb2.DTYPE_UINT8), "dtype 2"),
    ("wrong shape", lambda m: first_tensor(m).shape.__setitem__(0, 6), "28 bytes, shape [6] needs 24"),
    ("wrong rank", lambda m: first_tensor(m).shape.append(1), "has 2 dimensions, expected 1"),
    ("bytes missing", lambda m: setattr(first_tensor(m), "data", b"\0" * 27), "27 bytes"),
    ("observation not finite", lambda m: set_data(m, [float("nan")] * 7), "rad is not finite"),
    ("last without final", lambda m: setattr(m.transition, "terminated", True), "no final observation"),
    ("final without last", lambda m: m.transition.final_observation.SetInParent(), "a final observation"),
    ("unprintable", lambda m: setattr(m.transition, "reward_source", "task\x1b[2J"), "do not print"),
    ("too large", lambda m: setattr(m.transition, "reward_source", "x" * MAX_TRANSITION_BYTES), "above the limit"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_breaks_the_promise_is_refused_by_name(damage: Callable[[link_pb2.Body], object], message: str) -> None:
    body = link_pb2.Body.FromString(encode_body(make_transition()))
    damage(body)
    with pytest.raises(WireError) as refusal:
        decode_body(body.SerializeToString(), SPECS)
    assert message in str(refusal.value)


def test_a_transition_above_the_limit_is_not_even_encoded() -> None:
    with pytest.raises(WireError, match="above the limit of 1048576"):
        encode_body(make_transition(reward_source="x" * MAX_TRANSITION_BYTES))


BODY = encode_body(make_transition())


def test_a_record_keeps_name_body_and_checksum() -> None:
    record = link_pb2.Record.FromString(make_record(RECORD_ID, BODY, record_crc32(RECORD_ID, BODY)).SerializeToString())
    assert record_id_of(record) == RECORD_ID
    assert record.body == BODY


@pytest.mark.parametrize(
    ("record_id", "message"),
    [
        (replace(RECORD_ID, actor_id=""), "actor_id ''"),
        (replace(RECORD_ID, incarnation="a\nb"), "incarnation 'a"),
        (replace(RECORD_ID, actor_id="a" * 129), "1 to 128"),
        (replace(RECORD_ID, sequence=2**63), "sequence 9223372036854775808"),
    ],
    ids=["no actor", "control characters", "long name", "sequence beyond SQLite"],
)
def test_a_name_that_cannot_be_one_is_refused(record_id: RecordId, message: str) -> None:
    with pytest.raises(WireError) as refusal:
        record_id_of(make_record(record_id, BODY, record_crc32(record_id, BODY)))
    assert not isinstance(refusal.value, DamagedRecordError)
    assert message in str(refusal.value)


@given(bit=st.integers(0, 8 * len(BODY) - 1))
def test_one_wrong_bit_in_a_body_is_damage(bit: int) -> None:
    damaged = bytearray(BODY)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedRecordError, match="was damaged on its way"):
        record_id_of(make_record(RECORD_ID, bytes(damaged), record_crc32(RECORD_ID, BODY)))


@pytest.mark.parametrize(
    "other",
    [replace(RECORD_ID, actor_id="robot-2"), replace(RECORD_ID, incarnation="b"), replace(RECORD_ID, sequence=8)],
    ids=["actor", "incarnation", "sequence"],
)
def test_a_body_under_another_name_is_damage(other: RecordId) -> None:
    with pytest.raises(DamagedRecordError):
        record_id_of(make_record(other, BODY, record_crc32(RECORD_ID, BODY)))
