"""A policy as a learner published it: weights, architecture and specs, read from a run folder. No learner needed.

The learner's run folder holds specs.json, policy.json and weights/ (policy/weights_store.py); that of launch/sim.sh
holds it as learner/. A copy has the same form.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actor.policy_runner import FixedWeights, PolicyRunner
from policy.config import PolicyConfig, from_dict
from policy.errors import ConfigError, CorruptFileError, SpecMismatchError, WeightsError, WireError
from policy.files import make_folder, replace_durably
from policy.spec import Specs
from policy.spec_differences import spec_differences
from policy.weights import PolicyWeights, deserialise
from policy.weights_store import WeightsManifest, WeightsStore, sha256

_NAMED = 5  # differences that a message names


@dataclass(frozen=True)
class PublishedPolicy:
    """One version of a policy and everything that is needed to act with it."""

    specs: Specs
    config: PolicyConfig
    weights: PolicyWeights
    data: bytes  # the safetensors file

    @staticmethod
    def read(path: Path) -> "PublishedPolicy":
        """Read the newest version in a run folder, or the one in a weights file of such a folder.

        Raises ConfigError where there is none, WeightsError or CorruptFileError for damage.
        """
        run_dir, file = _locate(path)
        manifest, data = _read_weights(run_dir / "weights", file)
        tensors = deserialise(data, manifest.sha256)
        weights = PolicyWeights(manifest.version, manifest.learner_step, manifest.published_wall_s, tensors)
        try:
            specs = Specs.from_json((run_dir / "specs.json").read_text())
            config = from_dict(PolicyConfig, json.loads((run_dir / "policy.json").read_text()), "policy.")
        except (OSError, ValueError, WireError) as error:
            raise CorruptFileError(
                f"{run_dir} does not say what its policy observes (specs.json) and how it is built (policy.json): "
                f"{error}"
            ) from error
        return PublishedPolicy(specs, config, weights, data)

    def keep(self, folder: Path) -> None:
        """Write a copy that `read` takes. Durable when this returns."""
        make_folder(folder)
        replace_durably(folder / "specs.json", self.specs.to_json().encode())
        replace_durably(folder / "policy.json", self.config.to_json().encode())
        WeightsStore(folder / "weights").publish(
            self.data, self.weights.version, self.weights.learner_step, self.weights.published_wall_s
        )

    def check(self, name: str, task: Specs) -> None:
        """Raise SpecMismatchError, naming what differs first, for a policy of another task or variant."""
        differences = spec_differences(("task", task), (name, self.specs))
        if differences:
            more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
            raise SpecMismatchError(
                f"{name} was trained with other specs than the task has: {'; '.join(differences[:_NAMED])}{more}. Give "
                "the task and options of its training: --task, --pixels or --no-pixels, --gripper, --frame, "
                "--cameras.image-size-px."
            )

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it, as JSON values."""
        return {
            "version": self.weights.version,
            "learner_step": self.weights.learner_step,
            "sha256": sha256(self.data),
            "architecture": json.loads(json.dumps(asdict(self.config))),
        }


class FixedPolicy(PolicyRunner):
    """Acts with one published policy that never changes."""

    def __init__(self, published: PublishedPolicy, candidates: int | None) -> None:
        """candidates as in ActingPolicy.select_action. Raises ConfigError or WeightsError if it cannot act so."""
        weights = published.weights
        super().__init__(published.specs, published.config, 0, FixedWeights(weights), candidates=candidates)
        self.use(weights)
        self.published = published


def check_candidates(name: str, config: PolicyConfig, candidates: int | None) -> None:
    """Raise ConfigError when a policy has no critic to choose with."""
    has_critic = config.distribution == "diffusion" and config.behavior_candidates > 1
    if candidates is not None and candidates > 1 and not has_critic:
        raise ConfigError(
            f"--eval-candidates {candidates}: {name} was published without a critic to choose with. Give 1, or 0 for "
            "what each policy was trained to do."
        )


def _locate(path: Path) -> tuple[Path, Path | None]:
    """Return the learner's run folder, and the weights file if that is what `path` names."""
    if path.is_file() and path.suffix == ".safetensors" and path.parent.name == "weights":
        return path.parent.parent, path
    for folder in (path, path / "learner"):
        if (folder / "weights" / "latest.json").exists() and (folder / "specs.json").exists():
            return folder, None
    hint = ""
    if path.name == "state.safetensors" or (path / "state.safetensors").exists():
        hint = " That is the trainer's own checkpoint, of which a robot needs the policy only."
    raise ConfigError(
        f"{path} is no published policy.{hint} Give the run folder of a learner or of launch/sim.sh (it has "
        "weights/latest.json and specs.json), or a file in its folder weights."
    )


def _read_weights(folder: Path, file: Path | None) -> tuple[WeightsManifest, bytes]:
    store = WeightsStore(folder)
    latest = store.latest()
    if file is None or (latest is not None and latest.file == file.name):
        if latest is None:
            raise WeightsError(f"{folder} holds no weights.")
        return latest, store.read(latest)
    data = file.read_bytes()
    if not file.stem.isdigit():
        raise ConfigError(f"{file} is not named by its version, as the learner names weights (00000042.safetensors)")
    # Only the newest version's step and hash are on record.
    return WeightsManifest(
        version=int(file.stem),
        learner_step=0,
        published_wall_s=file.stat().st_mtime,
        file=file.name,
        num_bytes=len(data),
        sha256=sha256(data),
        tensors=(),
    ), data
