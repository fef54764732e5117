"""Learner, actor and the twin NUC as processes: peg in hole through Deoxys' door, with both cameras streaming."""

import json
from pathlib import Path

import numpy as np
import pytest

from policy.episode_log import EpisodeLog
from policy.image_codec import CodedImage
from policy.spec import Specs
from policy.transition import Transition
from tests.e2e.conftest import Start, ready_address, wait_until

pytestmark = pytest.mark.e2e

SMALL = ("--policy.image-feature-dim", "16", "--policy.denoiser-hidden", "32", "--policy.critic-hidden", "32")


def test_the_actor_trains_on_a_twin_behind_deoxys_door(tmp_path: Path, start: Start) -> None:
    network, run_dir = tmp_path / "network.yml", tmp_path / "actor"
    nuc = start("robot.backends.twin.nuc", "--write-network", str(network), "--room", "127.0.0.1:0")
    learner = start("learner", "--preset", "sim_pixels", "--run-dir", str(tmp_path / "learner"), "--port", "0", *SMALL)
    wait_until(lambda: "ready" in nuc.output, "the twin NUC")
    room = nuc.output.split("room ")[1].split()[0]
    cameras = [
        argument
        for camera in ("wrist", "third-person")
        for argument in (f"--cameras.{camera}.driver", "room", f"--cameras.{camera}.device", room)
    ]
    actor = start(
        "actor", "--preset", "sim_pixels", *SMALL, "--task", "peg_in_hole", "--run-dir", str(run_dir),
        "--backend", "deoxys", "--deoxys.network", str(network), "--deoxys.reset-speed-m-s", "0.25", "--room", room,
        *cameras, "--pace", "1", "--eval-pace", "1", "--control-rate-hz", "20", "--max-steps-per-version", "0",
        "--learner", ready_address(tmp_path / "learner"), "--demonstrations", "2", "--max-env-steps", "30",
        "--eval-episodes", "1", "--videos", "0",
    )  # fmt: skip
    assert actor.finish() == 0, actor.output
    assert learner.stop() == 0, learner.output
    assert nuc.stop() == 0, nuc.output

    summary = json.loads((run_dir / "actor_summary.json").read_text())
    assert summary["demonstrations"] == {**summary["demonstrations"], "episodes": 2, "successes": 2}
    assert summary["safety"]["faults"] == 0
    assert summary["link"]["offered"] == summary["link"]["acked"] == summary["env_steps"] > 30
    log = EpisodeLog(
        tmp_path / "learner" / "log.sqlite",
        Specs.from_json((tmp_path / "learner" / "specs.json").read_text()),
        read_only=True,
    )
    steps = [entry.body for entry in log.read_after(0, 1000) if isinstance(entry.body, Transition)]
    log.close()
    assert len(steps) == summary["env_steps"]
    for camera in ("wrist", "third_person"):
        images = [step.observation[camera] for step in steps]
        assert all(isinstance(image, CodedImage) and image.pixels.std() > 5 for image in images)
        distinct = {image.data for image in images if isinstance(image, CodedImage)}
        assert len(distinct) > len(steps) / 10, "the cameras stream while the arm moves, be it slowly on a busy machine"
    positions = np.array([step.observation["O_p_EE"] for step in steps])
    assert np.ptp(positions, axis=0)[2] > 0.05, "the arm went down and came up again"
