"""What an update does with its time, or its operations: every call that matters is charged to a phase while it runs."""

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from learner.algorithms.guarded_adam import GuardedAdam
from learner.noise import Noise

REPLAY = "drawing batches"
NOISE = "random numbers"
TARGET_CHAIN = "target chain"
TARGETS = "target values"
CRITIC = "critic training"
CHAINS = "guided and unguided chains"
UPHILL = "actions moved uphill"
VALUES = "values and baseline"
ACTOR = "actor training"
STEPS = "optimisers and averages"
REST = "rest"
PHASES = (REPLAY, NOISE, TARGET_CHAIN, TARGETS, CRITIC, CHAINS, UPHILL, VALUES, ACTOR, STEPS, REST)

Choice = str | Callable[[str], str]  # a phase, or how it follows from the one that the call is made in

# By the names that learner.algorithms gives its parts; an algorithm without one of them has nothing to charge there.
_METHODS: dict[str, Choice] = {
    "_next_candidates": TARGET_CHAIN,
    "_update_critic": CRITIC,
    "_critic_targets": TARGETS,
    "_update_actor": ACTOR,
    "_sampled_actions": CHAINS,
    "_uphill": UPHILL,
    "_value_of": VALUES,
    "_base_value": VALUES,
}
_CRITIC_LEARNER: dict[str, Choice] = {"descend": CRITIC}
_SOFT_ACTOR: dict[str, Choice] = {"ascend": ACTOR}
_KERNELS: dict[str, Choice] = {
    "sample": lambda caller: TARGET_CHAIN if caller in (TARGETS, CRITIC, TARGET_CHAIN) else CHAINS,
    "sample_pair": CHAINS,
    "value": lambda caller: VALUES if caller in (ACTOR, CHAINS) else caller,
}


class Ledger:
    """Charges the growth of a gauge (a clock, a count of operations) to the innermost open phase."""

    def __init__(self, gauge: Callable[[], float]) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self._gauge = gauge
        self._open = [REST]
        self._charged = gauge()

    def close(self) -> None:
        """Charge what has grown since the last call."""
        reading = self._gauge()
        self.totals[self._open[-1]] += reading - self._charged
        self._charged = reading

    @contextmanager
    def phase(self, choice: Choice) -> Iterator[None]:
        self.close()
        self._open.append(choice if isinstance(choice, str) else choice(self._open[-1]))
        try:
            yield
        finally:
            self.close()
            self._open.pop()


def ledger_of(
    algorithm: Any, sample_batch: Callable[[], Any], updates: int, gauge: Callable[[], float]
) -> dict[str, float]:
    """Run updates and return what each phase took of one of them; together they are all of it."""
    with charged(algorithm, gauge) as ledger:
        sample = charging(ledger, REPLAY, sample_batch)
        for _ in range(updates):
            algorithm.update_step(sample)
        ledger.close()
    return {phase: ledger.totals[phase] / updates for phase in PHASES if phase in ledger.totals}


@contextmanager
def charged(algorithm: Any, gauge: Callable[[], float]) -> Iterator[Ledger]:
    """Charge the calls that this algorithm makes to the ledger while the context lasts. Its code does not know."""
    ledger = Ledger(gauge)
    parts: dict[Any, dict[str, Choice]] = {
        type(algorithm): _METHODS,
        type(kernels_of(algorithm)): _KERNELS,
        type(getattr(algorithm, "_critics", None)): _CRITIC_LEARNER,
        type(getattr(algorithm, "_actor", None)): _SOFT_ACTOR,
        GuardedAdam: {"step_along": STEPS},  # not `descend`, whose backward pass belongs to the loss
        Noise: {"_of_each": NOISE},
    }
    for name, module in list(sys.modules.items()):
        if name.startswith("learner.algorithms."):
            parts[module] = {"update_ema": STEPS}
    with ExitStack() as patches:
        for owner, names in parts.items():
            for name, choice in names.items():
                if hasattr(owner, name):
                    function = charging(ledger, choice, getattr(owner, name))
                    patches.enter_context(mock.patch.object(owner, name, function))
        yield ledger


def charging(ledger: Ledger, choice: Choice, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ledger.phase(choice):
            return function(*args, **kwargs)

    return call


def kernels_of(algorithm: Any) -> Any:
    """Return an algorithm's learner.kernels.Kernels; None if it has none."""
    owner = getattr(algorithm, "_critics", algorithm)
    return getattr(owner, "_kernels", None)
