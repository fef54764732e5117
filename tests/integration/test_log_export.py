"""Episodes exported by a process of its own for robomimic: what h5py reads is what the log holds, marks applied."""

import json
import os
import resource
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from policy.episode_log import EpisodeLog
from policy.errors import EXIT_CONFIG
from policy.image_codec import encode_image
from policy.log_records import EncodedRecord
from policy.spec import ImageField, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition
from tests.transitions import SPECS, make_transition

IMAGE_SPECS = Specs(
    replace(
        SPECS.observation,
        images=(ImageField(name="wrist", height=16, width=24), ImageField(name="side", height=8, width=8)),
    ),
    SPECS.action,
)


def with_images(step: Transition) -> Transition:
    rng = np.random.default_rng((step.episode, step.step))

    def add(observation: Any) -> Any:
        wrist = rng.integers(0, 256, (16, 24, 3), np.uint8)
        side = rng.integers(0, 256, (8, 8, 3), np.uint8)
        return {**observation, "wrist": encode_image(wrist, "jpeg"), "side": encode_image(side, "raw")}

    final = None if step.final_observation is None else add(step.final_observation)
    return replace(step, observation=add(step.observation), final_observation=final)


def episode(number: int, length: int, *, ends: bool = True, leaves_out: int = -1, **changes: Any) -> list[Transition]:
    steps = [
        make_transition(step, episode=number, is_last=ends and step == length - 1, **changes)
        for step in range(length)
        if step != leaves_out  # as after a pause
    ]
    return [with_images(step) for step in steps]


def mark(number: int, step: int, kind: MarkKind) -> EpisodeMark:
    return EpisodeMark(episode=number, step=step, kind=kind, wall_time_s=1.7e9)


DEMONSTRATION = episode(0, 4, source=ActionSource.HUMAN_DEMONSTRATION, reward_source="human")
VETOED = episode(1, 3)
PAUSED = episode(2, 6, leaves_out=2)
DISCARDED = episode(3, 2)
ABORTED = episode(4, 5, ends=False)
CUT = episode(5, 5, source=ActionSource.HUMAN_INTERVENTION)
BODIES: list[Recordable] = [
    *DEMONSTRATION,
    *VETOED,
    mark(1, 2, MarkKind.FAILURE),
    *PAUSED,
    *DISCARDED,
    mark(3, 1, MarkKind.DISCARD),
    *ABORTED,
    mark(4, 4, MarkKind.ABORTED),
    *CUT,
    mark(5, 2, MarkKind.SUCCESS),
]


def write_log(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "specs.json").write_text(IMAGE_SPECS.to_json())
    with closing(EpisodeLog(folder / "log.sqlite", IMAGE_SPECS)) as log:
        log.append_encoded(
            EncodedRecord.of(RecordId("robot", "first", number), body) for number, body in enumerate(BODIES)
        )


def export(*words: object, most_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if most_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.run(
        [sys.executable, "-m", "learner.log", "export", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )


def values_of(observation: Any, name: str) -> NDArray[Any]:
    value: NDArray[Any] = observation[name].pixels if name in ("wrist", "side") else observation[name]
    return value


def assert_holds(demo: Any, steps: list[Transition], nexts: list[Any]) -> None:
    """Assert that a demo holds these steps, each followed by that observation, in every value."""
    assert demo.attrs["num_samples"] == len(steps)
    for name in IMAGE_SPECS.observation.names:
        for part, observations in (("obs", [step.observation for step in steps]), ("next_obs", nexts)):
            stored = demo[part][name]
            assert stored.dtype == (np.uint8 if name in ("wrist", "side") else np.float32)
            np.testing.assert_array_equal(stored[:], np.stack([values_of(seen, name) for seen in observations]))
    np.testing.assert_array_equal(demo["actions"][:], np.stack([step.executed_action for step in steps]))
    np.testing.assert_array_equal(demo["policy_action"][:], np.stack([step.policy_action for step in steps]))
    assert demo["is_human"][:].tolist() == [step.is_human for step in steps]
    assert demo["weights_version"][:].tolist() == [step.weights_version for step in steps]
    assert demo["wall_time"][:].tolist() == [step.wall_time_s for step in steps]
    assert [source.decode() for source in demo["reward_source"][:]] == [step.reward_source for step in steps]
    assert demo["states"].shape == (len(steps), 0)


def following(steps: list[Transition]) -> list[Any]:
    return [step.observation for step in steps[1:]] + [steps[-1].final_observation] * (steps[-1].is_last)


def test_what_robomimic_reads_is_what_the_log_holds(tmp_path: Path) -> None:
    write_log(tmp_path / "run" / "learner")
    out = tmp_path / "new" / "episodes.hdf5"
    finished = export(tmp_path / "run", out)
    assert finished.returncode == 0, finished.stderr
    with h5py.File(out) as file:
        data = file["data"]
        # The pause leaves two demos of one episode: its last step before it has no next observation.
        assert list(data) == [f"demo_{number}" for number in range(6)]
        assert_holds(data["demo_0"], DEMONSTRATION, following(DEMONSTRATION))
        assert_holds(data["demo_1"], VETOED, following(VETOED))
        assert_holds(data["demo_2"], PAUSED[:1], following(PAUSED)[:1])
        assert_holds(data["demo_3"], PAUSED[2:], following(PAUSED[2:]))
        assert_holds(data["demo_4"], ABORTED[:-1], following(ABORTED))
        assert_holds(data["demo_5"], CUT[:3], following(CUT)[:3])
        judged = {
            name: [data[name][key][:].tolist() for key in ("rewards", "dones", "terminated", "truncated")]
            for name in ("demo_0", "demo_1", "demo_4", "demo_5")
        }
        assert judged == {
            "demo_0": [[0, 1, 2, 3], [0, 0, 0, 1], [False] * 3 + [True], [False] * 4],
            "demo_1": [[0, 1, 0], [0, 0, 0], [False] * 3, [False, False, True]],
            "demo_4": [[0, 1, 2, 3], [0] * 4, [False] * 4, [False] * 4],
            "demo_5": [[0, 1, 1], [0, 0, 1], [False, False, True], [False] * 3],
        }
        masks = {name: [demo.decode() for demo in demos[:]] for name, demos in file["mask"].items()}
        assert masks == {
            "demonstrations": ["demo_0"],
            "interventions": ["demo_5"],
            "successes": ["demo_0", "demo_2", "demo_3", "demo_5"],
        }
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        environment = json.loads(data.attrs["env_args"])
        assert set(environment) == {"env_name", "type", "env_kwargs"}
        assert Specs.from_json(json.dumps(environment["env_kwargs"]["specs"])) == IMAGE_SPECS
        assert dict(data["demo_4"].attrs) == {
            "num_samples": 4,
            "actor_id": "robot",
            "incarnation": "first",
            "episode": 4,
            "first_step": 0,
            "kind": "policy",
            "result": "aborted",
        }
    assert "6 demos of 5 episodes" in finished.stdout
    assert list(out.parent.iterdir()) == [out]


def test_demonstrations_alone_and_what_was_discarded_when_asked_for(tmp_path: Path) -> None:
    write_log(tmp_path / "learner")
    assert export(tmp_path, tmp_path / "a.hdf5", "--demonstrations", "--successes").returncode == 0
    assert export(tmp_path, tmp_path / "b.hdf5", "--discarded", "--episodes", "4").returncode == 0
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert list(file["data"]) == ["demo_0"]
        assert_holds(file["data/demo_0"], DEMONSTRATION, following(DEMONSTRATION))
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert_holds(file["data/demo_0"], DISCARDED, following(DISCARDED))
        assert list(file["mask/discarded"]) == [b"demo_0"]


def test_an_export_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    write_log(tmp_path / "learner")
    for words in ((tmp_path / "a.hdf5",), (tmp_path / "log", "--to-log")):
        finished = export(tmp_path, *words, most_bytes=40_000)  # SQLite needs 32 KiB to read
        assert finished.returncode == EXIT_CONFIG
        assert "Nothing was left there" in finished.stderr, finished.stderr
        assert "Traceback" not in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["learner"]
