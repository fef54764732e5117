"""Learner steps per second of one trainer and of several that share each batch, and whether they stay the same.

    python -m benchmarks.data_parallel --preset paper_robot --ranks 4 --device cuda      one GPU a rank
    python -m benchmarks.data_parallel --preset reduced_mujoco --ranks 2                 processes on the CPU

Random transitions, the same joint batch size for any number of ranks; steps are single calls, not a CUDA graph. Ranks
may draw the same rows, on which speed does not depend; their noise differs.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.learner.cases import make_case, make_synthetic_replay
from benchmarks.runs import machine
from learner.algorithms import make_algorithm
from learner.data_parallel import joined, share_of
from learner.rank_state import largest_difference, synchronise
from policy.cli import run_main
from policy.errors import CgpoError, ConfigError
from policy.process import die_with_parent
from policy.revision import read_revision

_STEPS_BEFORE = 3  # first steps are slower


def train_rank(preset: str, device: str, steps: int, rank: int, num_ranks: int, rendezvous: Path) -> dict[str, float]:
    """Do `steps` learner steps as one of the ranks; returns seconds for them and the difference from rank 0."""
    torch.set_num_threads(1)
    own_device = f"cuda:{rank}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(rank)
    case = make_case(preset, own_device)
    case = dataclasses.replace(case, config=share_of(case.config, rank, num_ranks))
    with joined(rank, num_ranks, rendezvous, own_device):
        algorithm = make_algorithm(case.config, case.specs)
        replay = make_synthetic_replay(case, None)
        synchronise(algorithm, own_device)
        for step in range(_STEPS_BEFORE + steps):
            if step == _STEPS_BEFORE:
                _wait_for_device(device)
                began_s = time.monotonic()
            replay.prepare()
            algorithm.update_step(replay.sample)
        _wait_for_device(device)
        took_s = time.monotonic() - began_s
        return {"seconds": took_s, "difference": largest_difference(algorithm, own_device)}


def _wait_for_device(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(options: argparse.Namespace, num_ranks: int) -> list[dict[str, float]]:
    """Run all ranks as processes of their own and return what each has measured."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.data_parallel", "--preset", options.preset, "--device",
                    options.device, "--steps", str(options.steps), "--ranks", str(num_ranks), "--rank", str(rank),
                    "--rendezvous", f"{folder}/rendezvous",
                ],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=die_with_parent,
            )
            for rank in range(num_ranks)
        ]  # fmt: skip
        outputs = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise CgpoError(f"ranks ended with codes {[rank.returncode for rank in ranks]}; their messages are above")
        return [json.loads(output) for output in outputs]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="reduced_mujoco", help="PRESET or PRESET@SIZE, as for benchmarks.learner")
    parser.add_argument("--ranks", type=int, default=2, help="trainers (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=50, help="learner steps that are timed (default: %(default)s)")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rendezvous", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        raise ConfigError(
            f"--ranks {options.ranks} on cuda needs as many GPUs, PyTorch finds {torch.cuda.device_count()} here"
        )
    if options.rank is not None:
        found = train_rank(
            options.preset, options.device, options.steps, options.rank, options.ranks, options.rendezvous
        )
        print(json.dumps(found))
        return 0
    print(f"{options.preset} on {options.device}, {machine()}, revision {read_revision() or 'unknown'}")
    for num_ranks in sorted({1, options.ranks}):
        results = measure(options, num_ranks)
        speed = options.steps / max(result["seconds"] for result in results)
        difference = max(result["difference"] for result in results)
        print(f"{num_ranks} ranks: {speed:.2f} learner steps/s, largest difference of a weight {difference:g}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
