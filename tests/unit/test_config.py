"""Configuration objects from tables and overrides: what is refused, and whether the message helps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from policy.config import (
    PolicyConfig,
    apply_overrides,
    from_dict,
    load_preset,
    preset_names,
    to_toml,
    valid_keys,
)
from policy.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["round", "square"] = "round"


@dataclass(frozen=True)
class Program:
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)
    steps: int = 3
    widths: tuple[int, ...] = (4, 4)
    folder: Path = Path("somewhere")
    limit_s: float | None = None
    is_fast: bool = False


def test_tables_become_typed_values_and_missing_ones_keep_their_defaults() -> None:
    program = from_dict(Program, {"inner": {"rate": 1}, "widths": [8], "folder": "here", "limit_s": 2})
    assert program == Program(inner=Inner(rate=1.0), widths=(8,), folder=Path("here"), limit_s=2.0)
    assert isinstance(program.inner.rate, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"stepps": 1}, "'stepps'.*Did you mean 'steps'"),
        ({"inner": {"rat": 1.0}}, "'inner.rat'.*Did you mean 'inner.rate'"),
        ({"zzzzzzz": 1}, "Valid keys:.*widths"),
        ({"steps": "three"}, "steps = 'three': expected int, got str"),
        ({"steps": True}, "steps = True: expected int, got bool"),
        ({"steps": 1.5}, "steps = 1.5: expected int, got float"),
        ({"is_fast": 1}, "is_fast = 1: expected bool, got int"),
        ({"widths": 8}, "widths = 8: expected a list"),
        ({"widths": ["8"]}, "widths = '8': expected int"),
        ({"inner": 1}, "inner = 1: expected a table"),
        ({"inner": {"kind": "rond"}}, "inner.kind 'rond'.*Did you mean 'round'.*Valid: round, square"),
        ({"limit_s": "soon"}, "limit_s = 'soon': expected float"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place_and_the_remedy(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Program, table)


def test_overrides_reach_any_unique_tail_and_leave_the_preset_alone() -> None:
    preset = {"inner": {"rate": 0.1}}
    assignments = ["inner.kind=square", "steps=7", "widths=[1, 2]", "is_fast=true", 'folder="a b"', "other.rate = 2"]
    changed = apply_overrides(preset, assignments, valid_keys(Program))
    assert from_dict(Program, changed) == Program(
        inner=Inner(0.1, "square"), other=Inner(2.0), steps=7, widths=(1, 2), is_fast=True, folder=Path("a b")
    )
    assert preset == {"inner": {"rate": 0.1}}


def test_the_last_override_of_a_key_wins() -> None:
    assert apply_overrides({}, ["steps=1", "steps=2"], valid_keys(Program)) == {"steps": 2}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "'steps' is not of the form key=value"),
        ("kind=round", "'kind' is ambiguous: it could be inner.kind or other.kind"),
        ("num_critcs=2", "Did you mean 'policy.num_critics'"),
        ("innr.rate=2", "Did you mean 'inner.rate'"),
        ("inner=2", "unknown configuration key 'inner'"),
    ],
)
def test_a_wrong_override_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({}, [assignment], valid_keys(Program))


def test_an_override_of_the_wrong_type_names_key_and_type() -> None:
    with pytest.raises(ConfigError, match="steps = 'many': expected int"):
        from_dict(Program, apply_overrides({}, ["steps=many"], valid_keys(Program)))


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    program = Program(policy=PolicyConfig(num_critics=3), widths=(5,), limit_s=1.5, folder=Path("a/b"))
    path = tmp_path / "config.toml"
    path.write_text(to_toml({"learner": program}))
    tables = load_preset(str(path))
    assert from_dict(Program, {**tables["learner"], "policy": tables["policy"]}) == program


def test_an_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=f"Did you mean 'sim_quick'.*Valid: {', '.join(preset_names())}"):
        load_preset("sim_quik")


def test_an_unreadable_preset_says_which_file_and_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_preset(str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("[policy\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_preset(str(tmp_path / "broken.toml"))
    (tmp_path / "flat.toml").write_text("seed = 3\n")
    with pytest.raises(ConfigError, match="seed = 3 stands outside the tables policy, learner, actor"):
        load_preset(str(tmp_path / "flat.toml"))


@pytest.mark.parametrize(
    "values",
    [
        {"denoising_steps": 1},
        {"drop_quantiles": 25, "num_quantiles": 25},
        {"drop_quantiles": -1},
        {"behavior_candidates": 0},
        {"critic_hidden": ()},
        {"denoiser_hidden": (64, 0)},
    ],
)
def test_a_policy_that_cannot_work_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PolicyConfig(**values)  # type: ignore[arg-type]
