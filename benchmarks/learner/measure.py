"""One case: its paths and the machine's fastest matrix product, timed in turns."""

import torch

from benchmarks.learner import peak
from benchmarks.learner.cases import Case
from benchmarks.learner.flops import split_products, written_products
from benchmarks.learner.paths import FAST, PLAIN, largest_difference, make_paths, result_of
from benchmarks.learner.peak import Product
from benchmarks.learner.race import Clock, race
from benchmarks.learner.results import CaseResult, ProductSpeed

_PRODUCT = "matrix product"
_TRIALS = 5


def measure_products(clock: Clock) -> tuple[list[ProductSpeed], Product]:
    """Return the speed of every way to multiply, the best of a few trials, and the fastest of them."""
    speeds: dict[Product, float] = {}
    for product in peak.products(clock.device):
        repeats = peak.repeats_for(product, clock)
        speeds[product] = max(peak.speed(product, clock, repeats) for _ in range(_TRIALS))
    table = [ProductSpeed(product.operator, product.shape, speed) for product, speed in speeds.items()]
    return table, max(speeds, key=lambda product: speeds[product])


def measure_case(
    case: Case, num_agents: int, product: Product, clock: Clock, seconds: float
) -> tuple[CaseResult, list[str]]:
    """Return what the case costs, and what could not be measured of it."""
    paths, missing = make_paths(case, num_agents)

    def multiply() -> None:
        with torch.inference_mode():
            product.call()

    times = race({_PRODUCT: multiply, **{name: path.updates.step for name, path in paths.items()}}, clock, seconds)
    written = split = None
    if case.config.algorithm == "cgpo" and not case.specs.observation.images:
        written = written_products(case.config, case.specs).total
        split = split_products(case.config, case.specs).total
    difference = None
    if FAST in paths:
        difference = largest_difference(paths[FAST].first_losses, paths[PLAIN].first_losses)
    result = CaseResult(
        preset=case.preset,
        size=case.size,
        widths=case.widths,
        algorithm=case.config.algorithm,
        batch_size=case.config.replay.batch_size,
        written_operations=written,
        split_operations=split,
        product_operations=product.operations,
        product_seconds=times[_PRODUCT].seconds,
        paths={name: result_of(path, times[name], clock, seconds / 4) for name, path in paths.items()},
        loss_difference=difference,
    )
    return result, missing
