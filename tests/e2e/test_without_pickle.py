"""A whole run in which unpickling anything, anywhere, ends in an error: nothing needs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Start, ready_address, wait_until

pytestmark = pytest.mark.e2e

# Python imports a module of this name at the start of every process, so that children of children have it as well.
TRAP = '''
import importlib.abc, importlib.machinery, os, sys, traceback
import pickle, _pickle

def refuse(*_arguments, **_settings):
    with open(os.environ["PICKLE_TRAP"], "a") as file:
        file.write("".join(traceback.format_stack()) + "\\n")
    raise RuntimeError("something unpickles")

class Unpickler:
    __init__ = refuse

for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Unpickler
pickle._load = pickle._loads = refuse
pickle._Unpickler = Unpickler

class TorchTrap(importlib.abc.MetaPathFinder):
    """torch.load reads pickles with a reader of its own."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch.serialization":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        def execute_and_trap(module):
            execute(module)
            module.load = refuse
        spec.loader.exec_module = execute_and_trap
        return spec

sys.meta_path.insert(0, TorchTrap())
'''
RUN = (
    "--task", "reach", "--max-minutes", "3", "--set",
    "actor.backend=fake", "actor.pace=0", "actor.demonstrations=2", "actor.max_env_steps=150", "actor.videos=0",
    "actor.eval_every_steps=0", "actor.eval_episodes=1", "actor.max_steps_per_version=30",
    "policy.denoiser_hidden=[16]", "policy.critic_hidden=[16]", "learner.cgpo.value_hidden=[16]",
    "learner.replay.training_starts=10", "learner.replay.batch_size=16", "learner.cgpo.bc_warmup_steps=5",
    "learner.steps_per_update=10", "learner.checkpoint_period_s=1",
)  # fmt: skip


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the trap for every process from here on; return the file in which it says what fell into it."""
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sitecustomize.py").write_text(TRAP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "trap"), prepend=os.pathsep)
    monkeypatch.setenv("PICKLE_TRAP", str(tmp_path / "marker"))
    return tmp_path / "marker"


def test_a_run_and_its_continuation_unpickle_nothing(tmp_path: Path, start: Start, marker: Path) -> None:
    run = start("launch.sim", "--out", str(tmp_path / "run"), *RUN)
    assert run.finish() == 0, run.output
    summary = json.loads((tmp_path / "run" / "learner" / "learner_summary.json").read_text())
    assert summary["updates"] > 0, "it never trained"
    assert list((tmp_path / "run" / "learner" / "checkpoints").iterdir())
    assert list((tmp_path / "run" / "actor" / "weights").glob("*.safetensors")), "no weights came to the actor"
    learner_dir, preset = tmp_path / "run" / "learner", tmp_path / "run" / "config.toml"
    learner = start("learner", "--run-dir", str(learner_dir), "--port", "0", "--preset", str(preset))
    ready_address(learner_dir)
    wait_until(
        lambda: "resumed at" in learner.output or learner.process.poll() is not None, "a checkpoint to be loaded"
    )
    assert learner.stop() == 0, learner.output
    assert "resumed at" in learner.output
    assert not marker.exists(), marker.read_text()


@pytest.mark.parametrize(
    "program",
    [
        "import pickle; pickle.loads(pickle.dumps(1))",
        "import _pickle; _pickle.loads(_pickle.dumps(1))",
        "import io, pickle; pickle.Unpickler(io.BytesIO(pickle.dumps(1))).load()",
        "import io, pickle; pickle._Unpickler(io.BytesIO(pickle.dumps(1))).load()",
        "import shelve; shelf = shelve.open('shelf'); shelf['a'] = 1; shelf.sync(); shelf['a']",
        "import io, torch; file = io.BytesIO(); torch.save(1, file); file.seek(0); torch.load(file, weights_only=True)",
        "import numpy as np; np.save('a.npy', np.array([{}])); np.load('a.npy', allow_pickle=True)",
        "import multiprocessing as m; p = m.get_context('spawn').Process(target=print); p.start(); p.join()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import pickle; pickle.loads(b\"N.\")'])",
    ],
)
def test_the_trap_catches(program: str, tmp_path: Path, marker: Path) -> None:
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False)
    assert "sitecustomize.py" in marker.read_text()
