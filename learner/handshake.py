"""What an actor must agree on before its data is taken: protocol, specs of the run, policy architecture."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.errors import ConfigError, CorruptFileError, SpecMismatchError, WireError
from policy.files import replace_durably
from policy.grpc_options import PROTOCOL_VERSION
from policy.spec import Specs
from policy.spec_differences import spec_differences
from policy.text import clean

_NAMED = 5  # differences that a message names
_MAX_CHARACTERS = 400  # of each, because gRPC carries 8 KiB of a refusal


class Handshake:
    """Checks actors against one run. The first actor ever fixes the run's specs, kept in `specs_path`.

    Any thread may call `check`.
    """

    def __init__(self, specs_path: Path, policy: Mapping[str, Any]) -> None:
        """`policy` is the learner's policy architecture as JSON values. Raises CorruptFileError on bad saved specs."""
        self._specs_path = specs_path
        self._policy = policy
        self._lock = threading.Lock()
        try:
            self.specs = Specs.from_json(specs_path.read_text()) if specs_path.exists() else None
        except WireError as error:
            raise CorruptFileError(f"{specs_path}: {error}. Restore it; the episode log is read with it.") from error

    def check(self, protocol_version: int, specs_json: str, policy_json: str) -> None:
        """Raise SpecMismatchError naming both sides' values unless all agree, WireError on text that is not JSON."""
        if protocol_version != PROTOCOL_VERSION:
            raise SpecMismatchError(
                f"the actor speaks link protocol {protocol_version}, the learner {PROTOCOL_VERSION}. "
                "Install the same release on both machines."
            )
        self._check_policy(policy_json)
        with self._lock:
            self._check_or_fix_specs(Specs.from_json(specs_json))

    def _check_policy(self, text: str) -> None:
        try:
            actor = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the actor's policy architecture is not JSON: {error}") from error
        if not isinstance(actor, dict):
            raise WireError(f"the actor's policy architecture is not an object: {text[:100]}")
        differences = [
            f"policy.{key}: actor {actor.get(key, 'nothing')}, learner {self._policy.get(key, 'nothing')}"
            for key in sorted(actor.keys() | self._policy.keys())
            if actor.get(key) != self._policy.get(key)
        ]
        if differences:
            raise _mismatch(
                "policy architecture", differences, "Start both with the same --preset and the same policy options."
            )

    def _check_or_fix_specs(self, specs: Specs) -> None:
        if self.specs is None:
            replace_durably(self._specs_path, specs.to_json().encode())
            self.specs = specs
        differences = spec_differences(("actor", specs), ("learner", self.specs))
        if differences:
            raise _mismatch(
                "specs",
                differences,
                f"The learner's were fixed by the first actor or imported log of its run, in {self._specs_path}. Start "
                "the actor with that run's task and settings, or the learner with another --run-dir.",
            )


def read_policy(path: Path) -> dict[str, Any]:
    """Read the learner's policy architecture from a JSON file. Raises ConfigError."""
    try:
        policy = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the policy architecture from {path}: {error}") from error
    if not isinstance(policy, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return policy


def _mismatch(what: str, differences: list[str], remedy: str) -> SpecMismatchError:
    named = "; ".join(clean(difference, _MAX_CHARACTERS) for difference in differences[:_NAMED])
    more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
    return SpecMismatchError(f"actor and learner differ in {what}: {named}{more}. {remedy}")
