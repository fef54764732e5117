"""How fast the learner is, where its time goes, and what the machine would allow, in one run.

    python -m benchmarks.learner --write benchmarks/results/learner.md     # every case, about ten minutes
    python -m benchmarks.learner --preset paper_mujoco@Ant --seconds 20    # one case, longer
    python -m benchmarks.learner --device cuda --population 5

A preset may be given a size, PRESET@SIZE. On a machine with other work, --clock cpu measures what this process ran.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from benchmarks.acting import DECISIONS, measure_acting
from benchmarks.learner.cases import default_names, make_case
from benchmarks.learner.measure import measure_case, measure_products
from benchmarks.learner.race import Clock
from benchmarks.learner.report import markdown
from benchmarks.learner.results import Machine, Run
from learner.graphed_update import set_matmul_precision
from policy.cli import run_main
from policy.errors import ConfigError
from policy.revision import read_revision


def main() -> int:
    options = parse(sys.argv[1:])
    logging.getLogger("learner").setLevel(logging.WARNING)  # each path says how it computes; so does the report
    torch.set_num_threads(options.threads)
    run = measure(options, shlex.join(["python", "-m", "benchmarks.learner", *sys.argv[1:]]))
    text = markdown(run)
    print(text)
    if options.json:
        run.save(options.json)
    if options.write:
        options.write.write_text(text)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options of `measure`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--preset", nargs="+", metavar="NAME", help="cases (default: CGPO and every baseline)")
    parser.add_argument("--population", type=int, default=5, help="agents trained as one (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timed for each case (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=DECISIONS, help="of acting (default: %(default)s); 0: none")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="default: %(default)s")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round the factors of its products to 10 bits")
    parser.add_argument("--json", type=Path, help="keep all figures there")
    parser.add_argument("--write", type=Path, help="write the report there, besides printing it")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, command: str) -> Run:
    """Measure what the options name. Raises ConfigError for an unknown case or a device that is not there."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here. Is it a build for CPUs (+cpu)?")
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        raise ConfigError("--clock cpu adds up all threads' time: it means something for --device cpu --threads 1 only")
    if options.population < 1:
        raise ConfigError(f"--population {options.population}: at least one agent is needed")
    precision: Literal["fp32", "tf32"] = "tf32" if options.tf32 else "fp32"
    set_matmul_precision(precision)  # of the products that the machine's speed is measured with
    cases = [make_case(name, options.device, precision) for name in options.preset or default_names(options.device)]
    run = Run(_machine(options, command))
    clock = Clock(options.device, is_wall=options.clock == "wall")
    began_s, ran_s = time.perf_counter(), time.process_time()
    run.products, fastest = measure_products(clock)
    for case in cases:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        result, missing = measure_case(case, options.population, fastest, clock, options.seconds)
        run.cases.append(result)
        run.skipped += missing
    if options.decisions:
        print("acting ...", file=sys.stderr, flush=True)
        run.acting = measure_acting(decisions=options.decisions)
    else:
        run.skipped.append("acting: --decisions 0")
    if options.device == "cpu":
        run.skipped.append("CUDA, its captured graphs included, and presets with cameras: this run was on the CPU")
    run.machine.wall_s = time.perf_counter() - began_s
    run.machine.running_share = (time.process_time() - ran_s) / run.machine.wall_s
    run.machine.load_after = os.getloadavg()[0]
    return run


def _machine(options: argparse.Namespace, command: str) -> Machine:
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    return Machine(
        command=command,
        device=device,
        processor=_processor(),
        threads=torch.get_num_threads(),
        clock=options.clock,
        matmul_precision="tf32" if options.tf32 else "fp32",
        torch_version=torch.__version__,
        revision=_short_revision(),
        began_utc=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        load_before=os.getloadavg()[0],
    )


def _short_revision() -> str:
    commit, _, dirty = read_revision().partition("-")
    return (commit[:12] or "unknown") + ("-dirty" if dirty else "")


def _processor() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    return f"{os.cpu_count()} cores of {name}"


if __name__ == "__main__":
    sys.exit(run_main(main))
