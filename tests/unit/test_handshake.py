"""Handshake: the first actor fixes the specs, and whoever differs learns in what."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from learner.handshake import Handshake, read_policy
from policy.config import PolicyConfig
from policy.errors import ConfigError, CorruptFileError, SpecMismatchError, WireError
from policy.grpc_options import PROTOCOL_VERSION
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from tests.transitions import SPECS

POLICY = PolicyConfig()


@pytest.fixture
def handshake(tmp_path: Path) -> Handshake:
    return Handshake(tmp_path / "specs.json", json.loads(POLICY.to_json()))


def check(handshake: Handshake, specs: Specs = SPECS, policy: PolicyConfig = POLICY) -> None:
    handshake.check(PROTOCOL_VERSION, specs.to_json(), policy.to_json())


def refusal(handshake: Handshake, specs: Specs = SPECS, policy: PolicyConfig = POLICY) -> str:
    with pytest.raises(SpecMismatchError) as error:
        check(handshake, specs, policy)
    return str(error.value)


def with_observation(*fields: Field) -> Specs:
    return Specs(ObservationSpec(fields), SPECS.action)


def test_the_first_actor_fixes_the_specs_for_ever(handshake: Handshake, tmp_path: Path) -> None:
    assert handshake.specs is None
    check(handshake)
    restarted = Handshake(tmp_path / "specs.json", json.loads(POLICY.to_json()))
    assert restarted.specs == handshake.specs == SPECS
    check(restarted)


def test_a_refused_first_actor_fixes_nothing(handshake: Handshake, tmp_path: Path) -> None:
    refusal(handshake, policy=replace(POLICY, denoising_steps=7))
    assert handshake.specs is None
    assert not (tmp_path / "specs.json").exists()


def test_each_differing_value_is_named_with_both_sides_and_a_remedy(handshake: Handshake) -> None:
    check(handshake)
    q, gripper = SPECS.observation.fields
    other = replace(gripper, high=(0.085,), unit="mm")
    text = refusal(handshake, with_observation(q, other))
    assert "observation.gripper_width.high: actor (0.085,), learner (0.08,)" in text
    assert "observation.gripper_width.unit: actor mm, learner m" in text
    assert "observation.q" not in text
    assert "--run-dir" in text
    text = refusal(handshake, Specs(SPECS.observation, ActionSpec((replace(SPECS.action.fields[0], low=(-1.0,) * 3),))))
    assert "action.delta.low: actor (-1.0, -1.0, -1.0), learner (-0.01, -0.01, -0.01)" in text


def test_missing_and_reordered_fields_are_told_by_their_names(handshake: Handshake) -> None:
    check(handshake)
    q, gripper = SPECS.observation.fields
    assert "observation fields: actor ['q'], learner ['q', 'gripper_width']" in refusal(handshake, with_observation(q))
    text = refusal(handshake, with_observation(gripper, q))
    assert "observation fields: actor ['gripper_width', 'q'], learner ['q', 'gripper_width']." in text


def test_a_policy_of_another_architecture_is_refused_by_its_fields(handshake: Handshake) -> None:
    text = refusal(handshake, policy=replace(POLICY, denoising_steps=7, critic_layer_norm=True))
    assert "policy.denoising_steps: actor 7, learner 20" in text
    assert "policy.critic_layer_norm: actor True, learner False" in text
    assert "--preset" in text


def test_fields_that_only_one_side_knows_are_differences(handshake: Handshake) -> None:
    newer = json.loads(POLICY.to_json()) | {"dropout": 0.1}
    with pytest.raises(SpecMismatchError, match=r"policy\.dropout: actor 0\.1, learner nothing"):
        handshake.check(PROTOCOL_VERSION, SPECS.to_json(), json.dumps(newer))


def test_many_differences_are_cut_to_five(handshake: Handshake) -> None:
    with pytest.raises(SpecMismatchError, match=f"and {len(fields(PolicyConfig)) - 5} more"):
        handshake.check(PROTOCOL_VERSION, SPECS.to_json(), "{}")


def test_another_protocol_is_refused_with_both_versions(handshake: Handshake) -> None:
    with pytest.raises(SpecMismatchError, match=f"actor speaks link protocol 99, the learner {PROTOCOL_VERSION}"):
        handshake.check(99, SPECS.to_json(), POLICY.to_json())


@pytest.mark.parametrize(("specs", "policy"), [("{", "{}"), (SPECS.to_json(), "["), (SPECS.to_json(), "[]")])
def test_what_is_no_json_object_is_a_wire_error(handshake: Handshake, specs: str, policy: str) -> None:
    with pytest.raises(WireError):
        handshake.check(PROTOCOL_VERSION, specs, POLICY.to_json() if policy == "{}" else policy)


def test_damaged_specs_of_a_run_are_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "specs.json").write_text("")
    with pytest.raises(CorruptFileError, match=r"specs\.json"):
        Handshake(tmp_path / "specs.json", {})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_policy_file_that_cannot_be_used_is_a_config_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read_policy(path)


def test_a_first_actor_cannot_name_files(handshake: Handshake, tmp_path: Path) -> None:
    specs = SPECS.to_json().replace('"q"', '"../../up"')
    with pytest.raises(WireError, match="cannot name a field or image"):
        handshake.check(PROTOCOL_VERSION, specs, POLICY.to_json())
    assert not (tmp_path / "specs.json").exists()
