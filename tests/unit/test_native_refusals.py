"""What the compiled kernels refuse: they check every shape, for nothing behind them does."""

from collections.abc import Callable

import pytest
from torch import Tensor

from policy.fast import native_kernels
from policy.fast.native_kernels import first_sums, mish_of_negated, network_of, norm_sigmoid, norm_sigmoid_back
from tests.native import needs_native, random

pytestmark = needs_native


@pytest.mark.parametrize(
    "wrong", [lambda x: x.double(), lambda x: x.t(), lambda x: x[:, ::2]], ids=["double", "transposed", "gaps"]
)
def test_other_memory_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="not contiguous float32"):
        mish_of_negated(wrong(random(4, 6)))


def forward(width: int = 32, outputs: int = 16, **changes: Tensor) -> Tensor:
    """Two networks of 32 inputs."""
    given = {"states": random(2, 2, 32), "x": random(4, 32)} | changes
    network = network_of([random(2, 32, width), random(2, width, outputs)], [random(2, 1, outputs)])
    return native_kernels.forward_each(network, **given)


def uphill(num_dropped: int = 1, backs: tuple[Tensor, ...] = (random(2, 16, 32),), **changes: Tensor) -> Tensor:
    """Two critics of 32 inputs and 16 quantiles."""
    given = {"states": random(2, 2, 32), "x": random(4, 32)} | changes
    network = network_of([random(2, 32, 32), random(2, 32, 16)], [random(2, 1, 16)], (), backs)
    return native_kernels.ascent(network, **given, num_dropped=num_dropped)


def chain(count: int = 1, stop: int = 0, **changes: Tensor) -> Tensor:
    """Three steps with an action of 5."""
    given = {"states": random(2, 32), "level_sums": random(3, 32), "levels": random(3, 5), "noise": random(4, 4, 5)}
    network = network_of([random(count, 5, 32), random(count, 32, 16)], [random(count, 1, 16)])
    return native_kernels.denoise(network, **(given | changes), stop=stop)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    rows, wide, narrow = random(4, 32), random(32), random(31)
    assert forward().shape == (2, 4, 16)
    assert chain().shape == (4, 5)
    assert uphill().shape == (4, 32)
    calls: list[Callable[[], object]] = [
        lambda: native_kernels.product(rows, random(30, 48).t(), None),
        lambda: native_kernels.product(rows, random(32, 48).t(), narrow),
        lambda: native_kernels.product(rows, random(32, 48).double().t(), None),
        lambda: first_sums(random(3, 32), None, random(4, 2), random(2, 32)),
        lambda: first_sums(random(8, 32), None, random(4, 2), random(2, 32)),
        lambda: first_sums(random(0, 32), None, random(0, 2), random(2, 32)),
        lambda: first_sums(rows, None, random(4, 2), random(3, 32)),
        lambda: first_sums(rows, narrow, random(4, 2), random(2, 32)),
        lambda: norm_sigmoid(rows, narrow, wide, is_kept=True),
        lambda: norm_sigmoid(rows, wide, narrow, is_kept=True),
        lambda: norm_sigmoid_back(rows, random(3, 32), rows, random(4), wide, has_parameters=True),
        lambda: norm_sigmoid_back(rows, rows, rows, random(3), wide, has_parameters=True),
        lambda: native_kernels.quantile_huber(rows, random(3, 5), wide, 1.0),
        lambda: native_kernels.quantile_huber(rows, random(4, 5), narrow, 1.0),
        lambda: forward(states=random(3, 2, 32)),
        lambda: forward(states=random(2, 2, 48)),
        lambda: forward(states=random(2, 3, 32)),
        lambda: forward(x=random(4, 31)),
        lambda: forward(x=random(0, 32)),
        lambda: forward(width=40),
        lambda: forward(outputs=25),
        lambda: network_of([random(2, 32, 32), random(2, 48, 16)], [random(2, 1, 16)]),
        lambda: network_of([random(2, 32, 32), random(3, 32, 16)], [random(3, 1, 16)]),
        lambda: network_of([random(2, 32, 32), random(2, 16, 32).mT], [random(2, 1, 16)]),
        lambda: network_of([random(2, 32, 32), random(2, 32, 16)], [random(2, 1, 32)]),
        lambda: network_of([random(2, 32, 32), random(2, 32, 16)], [random(2, 1, 16)], [(random(2, 1, 16),) * 2]),
        lambda: network_of([random(2, 32, 32).double(), random(2, 32, 16)], [random(2, 1, 16)]),
        lambda: uphill(states=random(3, 2, 32)),
        lambda: uphill(x=random(4, 31)),
        lambda: uphill(backs=(random(2, 32, 16),)),
        lambda: uphill(backs=(random(2, 32, 16).mT,)),
        lambda: uphill(backs=()),
        lambda: uphill(num_dropped=16),
        lambda: uphill(num_dropped=17),
        lambda: uphill(num_dropped=-1),
        lambda: chain(states=random(3, 32)),
        lambda: chain(states=random(2, 48)),
        lambda: chain(level_sums=random(3, 48)),
        lambda: chain(noise=random(5, 4, 5)),
        lambda: chain(noise=random(4, 4, 6)),
        lambda: chain(noise=random(4, 4, 17)),
        lambda: chain(levels=random(3, 4)),
        lambda: chain(count=2),
        lambda: chain(stop=4),
        lambda: chain(stop=-1),
    ]
    reasons = ("compiled kernel got", "no product", "rows of", "no network", "a layer from", "an action of")
    for call in calls:
        with pytest.raises(ValueError, match="|".join((*reasons, "cannot stop", "a way back", "quantiles dropped"))):
            call()


HEADER = (5, 16, 0)  # inputs, outputs, is_packed


def layers(count: int, width: int = 16) -> tuple[int, ...]:
    return (0, 0, 0, 0, 0, 0, width) * count


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 6, *HEADER, *layers(1)), "12 numbers are not those of 2 to 8 layers"),
        ((0, 6, *HEADER, *layers(9)), "68 numbers are not those of 2 to 8 layers"),
        ((0, 6, *HEADER, *layers(2), 1), "20 numbers are not those of 2 to 8 layers"),
        ((0, 6, *HEADER, *layers(2, width=17)), "a layer of width 17, no multiple of 16"),
        ((0, 6, *HEADER, *layers(2, width=0)), "a layer of width 0, no multiple of 16"),
        ((0, 0, *HEADER, *layers(2)), "blocks of 0 rows, 5 inputs"),
        ((0, 5, *HEADER, *layers(2)), "4 rows in blocks of 5, 2 of each state"),
    ],
)
def test_networks_that_cannot_be_are_refused(numbers: tuple[int, ...], message: str) -> None:
    assert native_kernels.native is not None
    with pytest.raises(ValueError, match=message):
        native_kernels.native.forward_each(0, 2, 0, 0, 1, 4, *numbers)
    with pytest.raises(ValueError, match=message):
        native_kernels.native.denoise(0, 2, 0, 0, 0, 0, 4, 1, 0, *numbers)
    with pytest.raises(ValueError, match=message):
        native_kernels.native.ascent(0, 2, 0, 0, 1, 4, 1, *numbers)


def test_a_wrong_number_of_arguments_is_an_error() -> None:
    assert native_kernels.native is not None
    for name in (
        "ascent",
        "denoise",
        "first_sums",
        "forward_each",
        "mish",
        "mish_and_slope",
        "norm_sigmoid",
        "norm_sigmoid_back",
        "quantile_huber",
        "value_weights",
    ):
        with pytest.raises(TypeError, match="arguments"):
            getattr(native_kernels.native, name)(1, 2)
    with pytest.raises(ValueError, match="a product of width 17, no multiple of 16"):
        native_kernels.native.product(0, 0, 0, 0, 0, 0, 0, 0, 17)
    with pytest.raises(ValueError, match="a layer of 8193, above 8192"):
        native_kernels.native.norm_sigmoid_back(0, 0, 0, 0, 0, 0, 0, 0, 8193)
