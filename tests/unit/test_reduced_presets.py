"""Reduced presets depart from the paper's only where they say so, in the same line."""

import tomllib
from typing import Any

import pytest

from policy.config import load_preset, presets_dir


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tables.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


@pytest.mark.parametrize("algorithm", ["", "_qvpo", "_dipo"])
def test_every_reduced_value_is_marked_and_nothing_else_differs(algorithm: str) -> None:
    paper, reduced = flat(load_preset(f"paper_mujoco{algorithm}")), flat(load_preset(f"reduced_mujoco{algorithm}"))
    assert paper.keys() == reduced.keys()
    different = {key for key in paper if paper[key] != reduced[key]}
    marked = set()
    table = ""
    for line in (presets_dir() / f"reduced_mujoco{algorithm}.toml").read_text().splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        elif "# reduced" in line:
            (key,) = tomllib.loads(line)
            marked.add(f"{table}.{key}")
    assert marked == different
    assert {"policy.denoising_steps", "policy.critic_hidden", "learner.replay.batch_size"} < marked
