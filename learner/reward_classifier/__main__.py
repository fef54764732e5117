"""python -m learner.reward_classifier: train a success classifier from recorded episodes, or keep one trained."""

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from learner.config import ClassifierConfig, LearnerConfig
from policy.cli import help_text, run_main
from policy.config import PolicyConfig, from_dict
from policy.errors import ConfigError

_SPECS_POLL_S = 0.2
_NICENESS = 10  # below trainer and ingest

logger = logging.getLogger("learner.reward_classifier")


@dataclass(frozen=True)
class TrainCommand:
    """What `train` is told."""

    log: tuple[Path, ...]
    """Learner run folders, each with log.sqlite, specs.json and policy.json."""
    out: Path
    """Folder for the classifier and its report; a version there before stays as a file."""
    classifier: Annotated[ClassifierConfig, tyro.conf.arg(name="")] = field(default_factory=ClassifierConfig)
    seed: int = 0
    """Seed of weights and batches."""
    device: str = "cpu"
    """torch device."""
    torch_threads: int = 1
    """CPU threads."""


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["watch"] and len(arguments) == 2:
        return watch(Path(arguments[1]))
    description = "Train a success classifier from the episodes that a learner has logged (docs/rewards.md)."
    example = "python -m learner.reward_classifier train --log runs/learner --out runs/success_classifier"
    if arguments[:1] != ["train"]:
        if arguments[:1] not in (["--help"], ["-h"]):
            raise ConfigError(f"give a command: train, or watch CONFIG.json, not {' '.join(arguments) or 'nothing'}")
        arguments = ["train", "--help"]
    command = tyro.cli(
        TrainCommand,
        prog="python -m learner.reward_classifier train",
        description=help_text(description, example),
        args=arguments[1:],
    )
    return train_command(command)


def train_command(command: TrainCommand) -> int:
    """Train from whole logs, save, report."""
    import torch

    from learner.reward_classifier.logs import RunLogs, common_specs
    from learner.reward_classifier.report import write_report
    from learner.reward_classifier.training import make_classifier, split_of, train
    from policy.success_classifier import load_classifier, read_manifest, save_classifier

    torch.set_num_threads(command.torch_threads)
    config, policy = command.classifier, read_policy(command.log[0])
    specs = common_specs(command.log, policy)
    classifier, earlier = make_classifier(specs, policy, config.threshold, command.seed), None
    if config.initial is not None:
        classifier, earlier = load_classifier(config.initial, specs, policy)
        classifier.threshold.fill_(config.threshold)
    logs = RunLogs(command.log, specs, policy, config, command.device)
    logger.info("read %d records of %d episodes", logs.read(), len(logs.index.episodes))
    trained = train(
        logs.index,
        logs.store,
        classifier,
        config,
        batches=config.batches,
        seed=command.seed,
        earlier_split=split_of(earlier),
        device=command.device,
    )
    present = read_manifest(command.out)
    manifest = save_classifier(
        command.out,
        classifier,
        specs,
        policy,
        present.version + 1 if present else 1,
        counts=trained.counts,
        metrics=trained.metrics,
        episodes=trained.episodes,
        logs=[str(path.resolve()) for path in command.log],
    )
    write_report(command.out, manifest, trained, logs.store, config)
    logs.close()
    sys.stdout.write((command.out / "report.md").read_text())
    return 0


def watch(config_path: Path) -> int:
    """Retrain until SIGTERM or SIGINT; waits for the specs, which the run's first actor brings."""
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    os.nice(_NICENESS)
    import torch

    from learner.log.folder import read_specs
    from learner.resolved_config import load_config
    from learner.reward_classifier.watch import ClassifierWatch

    config: LearnerConfig = load_config(config_path)
    torch.set_num_threads(1)
    while not (config.run_dir / "specs.json").exists():
        if stop.wait(_SPECS_POLL_S):
            return 0
    ClassifierWatch(config, read_specs(config.run_dir)).run(stop)
    return 0


def read_policy(run_dir: Path) -> PolicyConfig:
    """Return the policy architecture of a learner's run. Raises ConfigError when there is none."""
    path = run_dir / "policy.json"
    try:
        return from_dict(PolicyConfig, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Give the run folder of a learner, as runs/learner.") from error


if __name__ == "__main__":
    sys.exit(run_main(main))
