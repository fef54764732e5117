"""The compiled kernels against PyTorch in double precision, and what they refuse."""

import itertools
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policy.critic_network import conservative_value
from policy.fast import native_check, native_kernels
from policy.fast.native_check import trials
from policy.fast.native_kernels import first_sums, mish_and_slope, mish_of_negated, norm_sigmoid, norm_sigmoid_back

HAS_HEADER = (Path(sysconfig.get_path("include")) / "Python.h").exists()
CAN_COMPILE = platform.machine() == "x86_64" and bool(shutil.which("gcc")) and HAS_HEADER

needs_native = pytest.mark.skipif(native_kernels.native is None, reason="policy/fast/native.c was not compiled here")
WIDTHS = (1, 7, 16, 33, 128, 300)  # around the number of lanes that a processor computes at once
FAR = torch.tensor([-1e38, -1e36, -1e5, -300, -88, -30, -20, -1.19, -1e-4, 0, 1e-4, 0.7, 20, 30, 88, 300, 1e5])


def random(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not CAN_COMPILE, reason="no gcc for x86-64 or no Python.h")
def test_set_up_compiled_them() -> None:
    assert native_check.why_unused() is None


def test_several_threads_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_check, "why_unused", lambda: None)
    threads = torch.get_num_threads()
    try:
        for count, is_used in ((1, True), (2, False)):
            torch.set_num_threads(count)
            assert native_check.is_native_used() is is_used
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "was not compiled"),
        (SimpleNamespace(), "has changed since it was compiled"),
        (SimpleNamespace(VERSION=1, HAS_CLONES=1), "has changed since it was compiled"),
        (SimpleNamespace(VERSION=native_kernels.VERSION, HAS_CLONES=0), "not compiled by gcc for x86-64"),
    ],
)
def test_what_was_not_compiled_for_this_is_not_used(
    module: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernels, "native", module)
    assert reason in (native_check.why_unused.__wrapped__() or "")


@needs_native
@pytest.mark.parametrize("name", [trial.kernel for trial in trials()] if native_kernels.native else [])
def test_a_wrong_answer_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kernel in turn does nothing, which leaves memory as it was: full of what is not a number."""
    kernels = {key: value for key, value in vars(native_kernels.native).items() if not key.startswith("_")}
    monkeypatch.setattr(native_kernels, "native", SimpleNamespace(**kernels | {name: lambda *_: None}))
    torch.use_deterministic_algorithms(True)
    try:
        reason = native_check.why_unused.__wrapped__()
    finally:
        torch.use_deterministic_algorithms(False)
    assert reason is not None
    assert name in reason
    assert "give wrong answers on this machine" in caplog.text


@pytest.mark.skipif(not CAN_COMPILE, reason="no gcc for x86-64 or no Python.h")
def test_the_compiler_has_nothing_to_remark() -> None:
    source = Path(native_kernels.__file__).with_name("native.c")
    flags = ("-fsyntax-only", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")
    subprocess.run(["gcc", *flags, f"-I{sysconfig.get_path('include')}", source], check=True, timeout=120)


@needs_native
@pytest.mark.parametrize("width", WIDTHS)
def test_mish_and_its_slope(width: int) -> None:
    z = random(5, width).double().requires_grad_()
    expected = F.mish(z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    negated = -z.detach().float()
    values, slopes = mish_and_slope(negated.clone(), rows=3)
    assert_close(values, expected.detach())
    assert_close(slopes, (1 + slope[:3]) / 2)
    assert_close(mish_of_negated(negated), expected.detach())


@needs_native
def test_mish_far_from_zero() -> None:
    z = FAR.double().requires_grad_()
    expected = F.mish(z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    values, slopes = mish_and_slope(-FAR[None], rows=1)
    assert_close(values[0], expected.detach())
    assert_close(slopes[0], (1 + slope) / 2)


def sigmoid_of_norm(sums: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return torch.sigmoid(F.layer_norm(sums, gain.shape, gain, shift))


@needs_native
@pytest.mark.parametrize("width", WIDTHS[1:])
def test_norm_and_its_gradients(width: int) -> None:
    given = random(6, width), random(width, seed=1), random(width, seed=2)
    outward = random(6, width, seed=3)
    inputs = [part.double().requires_grad_() for part in given]
    expected = sigmoid_of_norm(*inputs)
    expected_gradients = torch.autograd.grad(expected, inputs, outward.double())
    sums, gain, shift = given
    in_place, _ = norm_sigmoid(sums.clone(), gain, shift, is_kept=False)
    values, inverse_stds = norm_sigmoid(sums, gain, shift, is_kept=True)
    assert torch.equal(in_place, values)
    assert_close(values, expected.detach())
    gradients = norm_sigmoid_back(outward.clone(), values, sums, inverse_stds, gain, has_parameters=True)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(actual, wanted, 2e-5)
    alone, _, _ = norm_sigmoid_back(outward, values, sums, inverse_stds, gain, has_parameters=False)
    assert torch.equal(alone, gradients[0])


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "gaps": lambda x: torch.stack([x, x], dim=2)[:, :, 0],
}


@needs_native
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [16, 48, 64, 144])
@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (2, 17), (5, 256), (6, 257), (13, 600)])
def test_products(rows: int, steps: int, width: int, order: str) -> None:
    """Numbers of rows, columns and steps that fill tiles and blocks, and that do not."""
    x, weights, bias = random(rows, steps) / 9, random(steps, width, seed=1) / 9, random(width, seed=2)
    assert native_kernels.multiplies(ORDERS[order](x), weights.t())
    for added in (bias, None):
        expected = x.double() @ weights.double() + (0 if added is None else added)
        assert_close(native_kernels.product(ORDERS[order](x), weights.t(), added), expected, 1e-5)


@needs_native
@pytest.mark.parametrize("inputs", [5, 300])
@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize(
    ("rows", "hidden", "outputs"), [(1, (16,), 16), (4, (64, 48, 80), 25), (7, (256, 256), 3), (5, (272, 512), 25)]
)
def test_networks_of_few_rows(rows: int, hidden: tuple[int, ...], outputs: int, is_normed: bool, inputs: int) -> None:
    count, widths = 2, (*hidden, native_kernels.padded(outputs))
    x, first_bias = random(rows, inputs) / 3, random(count, hidden[0], seed=1)
    parts = [random(count, inputs, hidden[0], seed=2) / (3 * inputs**0.5)]
    values = first_bias[:, None].double() + x.double() @ parts[0].double()
    for seed, (fan_in, width) in enumerate(itertools.pairwise((*hidden, outputs))):
        gain, shift = (random(count, 1, fan_in, seed=9 * seed + kind) for kind in (3, 4))
        weight = random(count, fan_in, width, seed=9 * seed + 5) / (3 * fan_in**0.5)
        bias = random(count, 1, width, seed=9 * seed + 6)
        if is_normed:
            parts += [gain, shift]
            values = torch.sigmoid(gain * F.layer_norm(values, (fan_in,)) + shift)
        else:
            values = F.mish(-values)
        parts += [weight, bias]
        values = values @ weight.double() + bias
    weights = native_kernels.packed(parts, widths[-1])
    actual = native_kernels.forward_each(first_bias, x, weights, widths, is_normed=is_normed)
    assert_close(actual[..., :outputs], values, 2e-5)
    assert not actual[..., outputs:].any()


def test_networks_of_other_widths_are_left_to_pytorch() -> None:
    assert native_kernels.runs((256, 16))
    for widths in ((16,), (256, 40, 16), (16,) * 9):
        assert not native_kernels.runs(widths)


def test_other_factors_are_left_to_pytorch() -> None:
    x, weights = random(4, 32), random(32, 48)
    assert native_kernels.multiplies(x, weights.t())
    assert not native_kernels.multiplies(x, weights.t().contiguous())
    assert not native_kernels.multiplies(x, weights[:, :32].t())
    assert not native_kernels.multiplies(x, random(32, 50).t())
    assert not native_kernels.multiplies(x.double(), weights.t())


@needs_native
@pytest.mark.parametrize("has_level", [False, True])
@pytest.mark.parametrize("per_state", [1, 4])
@pytest.mark.parametrize("width", WIDTHS)
def test_first_sums(width: int, per_state: int, has_level: bool) -> None:
    states, x, weights = random(3, width), random(3 * per_state, 2, seed=1), random(2, width, seed=2)
    level = random(width, seed=3) if has_level else None
    expected = states.double().repeat_interleave(per_state, dim=0) + x.double() @ weights.double()
    assert_close(first_sums(states, level, x, weights), expected if level is None else expected + level)


@needs_native
@pytest.mark.parametrize("num_dropped", [1, 2, 16])
@pytest.mark.parametrize("rows", [1, 31, 32, 70])
def test_conservative_values_and_their_weights(rows: int, num_dropped: int) -> None:
    """Quantiles are whole numbers, so that many are equal: which of them are dropped makes no difference."""
    columns = random(3, 20, rows).round()
    of_rows = columns.double().permute(2, 0, 1)
    expected = conservative_value(of_rows, num_dropped)
    assert_close(native_kernels.conservative_value(columns, num_dropped), expected)
    weights = native_kernels.value_weights(columns, num_dropped)
    assert_close((weights * columns).sum(dim=(0, 1)), expected, 1e-5)
    kept = weights * (3 * (20 - num_dropped))
    assert_close(kept.sum(dim=1), torch.full((3, rows), 20.0 - num_dropped).double())
    assert ((kept - kept.round()).abs() < 1e-5).all()


@needs_native
@pytest.mark.parametrize("num_dropped", [0, 17, 20])
def test_more_dropped_than_there_are_or_than_fit_is_an_error(num_dropped: int) -> None:
    for kernel in (native_kernels.conservative_value, native_kernels.value_weights):
        with pytest.raises(ValueError, match=f"{num_dropped} of 20 quantiles dropped, not 1 to 16"):
            kernel(random(3, 20, 4), num_dropped)


@needs_native
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """The guard before each optimiser step must see it, although the compiler was told that there is no such number."""

    def spoilt(index: int) -> Tensor:
        rows = random(2, 40)
        rows[0, index] = bad
        return rows

    weight = torch.rand(40)
    for index in (0, 17, 39):
        assert not mish_and_slope(spoilt(index), rows=2)[0][0].isfinite().all()
        assert not mish_of_negated(spoilt(index))[0].isfinite().all()
        assert not norm_sigmoid(spoilt(index), weight, weight, is_kept=False)[0][0].isfinite().any()
        assert norm_sigmoid(spoilt(index), weight, weight, is_kept=False)[0][1].isfinite().all()
    overflow = torch.full((1, 40), 3e38)
    overflow[0, ::2] = -3e38  # its variance is infinite
    assert norm_sigmoid(overflow, weight, weight, is_kept=False)[0].isnan().all()
    atoms, quantiles, tau = random(2, 40), random(2, 8), torch.rand(8)
    losses, _ = native_kernels.quantile_huber(quantiles, spoilt(17), tau, 1.0)
    assert losses.isfinite().tolist() == [False, True]
    assert not native_kernels.conservative_value(spoilt(17)[None], 1)[17].isfinite()
    quantiles[0, 3] = bad
    losses, _ = native_kernels.quantile_huber(quantiles, atoms, tau, 1.0)
    assert losses.isfinite().tolist() == [False, True]


@needs_native
@pytest.mark.parametrize(
    "wrong", [lambda x: x.double(), lambda x: x.t(), lambda x: x[:, ::2]], ids=["double", "transposed", "gaps"]
)
def test_other_memory_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="not contiguous float32"):
        mish_of_negated(wrong(random(4, 6)))


def network(**changes: Any) -> Tensor:
    """Two networks of 32 inputs."""
    given: dict[str, Any] = {
        "first_bias": random(2, 32),
        "x": random(4, 32),
        "weights": random(2, 32 * 32 + 33 * 16),
        "widths": (32, 16),
    }
    return native_kernels.forward_each(**(given | changes), is_normed=False)


def chain(**changes: Any) -> Tensor:
    """Three steps with an action of 16."""
    given: dict[str, Any] = {
        "first_bias": random(3, 32),
        "noise": random(4, 4, 16),
        "weights": random(16 * 32 + 33 * 16),
        "levels": random(3, 5),
    }
    return native_kernels.denoise(**(given | {"widths": (32, 16)} | changes))


@needs_native
def test_shapes_that_do_not_belong_together_are_refused() -> None:
    rows, wide, narrow = random(4, 32), random(32), random(31)
    assert network().shape == (2, 4, 16)
    assert chain().shape == (4, 16)
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
        lambda: network(first_bias=random(3, 32)),
        lambda: network(first_bias=random(2, 48)),
        lambda: network(weights=random(2, 1551)),
        lambda: network(x=random(0, 32)),
        lambda: chain(noise=random(5, 4, 16)),
        lambda: chain(noise=random(4, 4, 17)),
        lambda: chain(levels=random(3, 4)),
        lambda: chain(widths=(32, 33)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"compiled kernel got|no product|rows of|0 rows|a last layer"):
            call()


@needs_native
@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((32,), "1 layers, not 2 to 8"),
        ((16,) * 9, "9 layers, not 2 to 8"),
        ((32, 17), "a layer of width 17, no multiple of 16"),
        ((0, 16), "a layer of width 0, no multiple of 16"),
    ],
)
def test_layers_that_a_network_cannot_have_are_refused(widths: tuple[int, ...], message: str) -> None:
    size = sum(fan_in * width for fan_in, width in itertools.pairwise((32, *widths))) + sum(widths[1:])
    with pytest.raises(ValueError, match=message):
        network(first_bias=random(2, widths[0]), weights=random(2, size), widths=widths)
    assert not native_kernels.runs(widths)


@needs_native
def test_a_wrong_number_of_arguments_is_an_error() -> None:
    assert native_kernels.native is not None
    for name in (
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
