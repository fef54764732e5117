"""What ingest tells actors: the newest weights and how the trainer is. One thread reads both for all streams."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from learner.trainer_status import TrainerStatus, read_status
from policy.errors import WeightsError
from policy.weights_store import WeightsManifest, WeightsStore

logger = logging.getLogger(__name__)

_PERIOD_S = 0.05


@dataclass(frozen=True)
class News:
    """The state of the learner at one moment; `number` grows with each change."""

    number: int
    status: TrainerStatus
    manifest: WeightsManifest | None = None
    data: bytes = b""  # of the manifest's version


class WeightsFeed:
    """Watches a run folder and wakes whoever waits for a change."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._store = WeightsStore(run_dir / "weights")
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._problem = ""
        self.news = News(0, read_status(run_dir))
        self._look()
        self._thread = threading.Thread(target=self._run, name="weights-feed", daemon=True)
        self._thread.start()

    def wait(self, number: int, timeout_s: float) -> News:
        """Return the newest state, at once when it is another than `number`, else after a change or timeout_s."""
        with self._changed:
            self._changed.wait_for(lambda: self.news.number != number, timeout_s)
            return self.news

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            self._look()

    def _look(self) -> None:
        old = self.news
        status, manifest, data = read_status(self._run_dir), old.manifest, old.data
        try:
            newest = self._store.latest() if self._problem or self._store.has_changed() else manifest
            if newest is not None and (manifest is None or newest.sha256 != manifest.sha256):
                data, manifest = self._store.read(newest), newest
            self._problem = ""
        except WeightsError as error:
            if str(error) != self._problem:
                logger.error("%s", error)
            self._problem = str(error)
        if (status, manifest) != (old.status, old.manifest):
            with self._changed:
                self.news = News(old.number + 1, status, manifest, data)
                self._changed.notify_all()
