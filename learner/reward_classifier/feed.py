"""The newest classifier as tensors to publish beside the policy's."""

import logging
from pathlib import Path

from torch import Tensor

from learner.config import LearnerConfig
from policy.errors import CgpoError
from policy.spec import Specs
from policy.success_classifier import TENSOR_PREFIX, load_classifier

logger = logging.getLogger(__name__)


class ClassifierFeed:
    """Reads what the watch writes into the run, and before that the classifier that the run began with."""

    def __init__(self, config: LearnerConfig, specs: Specs) -> None:
        """Raises ConfigError or WeightsError when the configured initial classifier cannot be used."""
        self._config = config
        self._specs = specs
        self._folder = config.run_dir / "classifier"
        self._seen = b""
        self._tensors: dict[str, Tensor] = {}
        if config.policy.success_classifier and config.classifier.initial is not None:
            self._load(config.classifier.initial)

    def tensors(self) -> dict[str, Tensor]:
        """Return the newest version's tensors, named for publication; none before there is one, or without need.

        A version that cannot be read is reported once, and the one before stays.
        """
        if not self._config.policy.success_classifier:
            return {}
        path = self._folder / "manifest.json"
        manifest = path.read_bytes() if path.exists() else b""
        if manifest != self._seen:
            self._seen = manifest
            try:
                self._load(self._folder)
            except CgpoError as error:
                logger.error("the newest success classifier is not published: %s", error)
        return self._tensors

    def _load(self, folder: Path) -> None:
        classifier, _ = load_classifier(folder, self._specs, self._config.policy)
        self._tensors = {TENSOR_PREFIX + name: tensor for name, tensor in classifier.state_dict().items()}
