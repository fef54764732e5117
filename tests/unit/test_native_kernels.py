"""The compiled kernels against PyTorch in double precision."""

import copy
import itertools
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policy.critic_network import conservative_value
from policy.fast import native_check, native_kernels
from policy.fast.native_check import trials
from policy.fast.native_kernels import (
    first_sums,
    mish_and_slope,
    mish_of_negated,
    network_of,
    norm_sigmoid,
    norm_sigmoid_back,
    packed_network,
)
from tests.native import needs_native, random

HAS_HEADER = (Path(sysconfig.get_path("include")) / "Python.h").exists()
CAN_COMPILE = platform.machine() == "x86_64" and bool(shutil.which("gcc")) and HAS_HEADER

WIDTHS = (1, 7, 16, 33, 128, 300)  # around the number of lanes that a processor computes at once
FAR = torch.tensor([-1e38, -1e36, -1e5, -300, -88, -30, -20, -1.19, -1e-4, 0, 1e-4, 0.7, 20, 30, 88, 300, 1e5])


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


BUILDERS = {"packed": packed_network, "as it is": network_of}


@needs_native
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("inputs", [5, 300])
@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize(("num_states", "per_state"), [(1, 1), (1, 4), (7, 1), (3, 33), (2, 150), (100, 2), (197, 1)])
@pytest.mark.parametrize(("hidden", "outputs"), [((16,), 16), ((64, 48, 80), 25), ((256, 272), 3)])
def test_networks(
    num_states: int, per_state: int, hidden: tuple[int, ...], outputs: int, is_normed: bool, inputs: int, build: str
) -> None:
    """Of one row and of several blocks, which may end within a block and hold more than one state or one."""
    count, rows = 2, num_states * per_state
    x, states = random(rows, inputs) / 3, random(count, num_states, hidden[0], seed=1)
    weights = [random(count, inputs, hidden[0], seed=2) / (3 * inputs**0.5)]
    biases, norms = [], []
    values = states.double().repeat_interleave(per_state, dim=1) + x.double() @ weights[0].double()
    for seed, (fan_in, width) in enumerate(itertools.pairwise((*hidden, outputs))):
        gain, shift = (random(count, 1, fan_in, seed=9 * seed + kind) for kind in (3, 4))
        weights.append(random(count, fan_in, width, seed=9 * seed + 5) / (3 * fan_in**0.5))
        biases.append(random(count, 1, width, seed=9 * seed + 6))
        if is_normed:
            norms.append((gain, shift))
            values = torch.sigmoid(gain * F.layer_norm(values, (fan_in,)) + shift)
        else:
            values = F.mish(-values)
        values = values @ weights[-1].double() + biases[-1]
    if build != "packed":
        padding = (0, native_kernels.padded(outputs) - outputs)
        weights[-1], biases[-1] = F.pad(weights[-1], padding), F.pad(biases[-1], padding)
        apart = torch.cat([weights[0], weights[0]], dim=1)  # gaps between the networks' first layers
        network = network_of([apart[:, inputs:], *weights[1:]], biases, norms, outputs=outputs)
    else:
        network = packed_network(weights, biases, norms)
    actual = native_kernels.forward_each(network, states, x)
    assert_close(actual, values, 2e-5)


@needs_native
@pytest.mark.parametrize("num_dropped", [0, 2, 16])
@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize(("num_states", "per_state"), [(1, 1), (7, 1), (50, 3), (2, 150), (197, 1)])
def test_gradients_of_the_conservative_value(
    num_states: int, per_state: int, is_normed: bool, num_dropped: int
) -> None:
    count, inputs, num_quantiles, widths = 3, 5, 25, (48, 80, 32)
    weights = [
        random(count, *shape, seed=seed) / (3 * shape[0] ** 0.5)
        for seed, shape in enumerate(itertools.pairwise((inputs, *widths)))
    ]
    weights[-1][..., num_quantiles:] = 7  # of outputs that are padding
    biases = [random(count, 1, width, seed=width) for width in widths[1:]]
    norms = [(random(count, 1, width, seed=8), random(count, 1, width, seed=9)) for width in widths[:-1] if is_normed]
    backs = [weight.mT.contiguous() for weight in (weights[1], weights[2][..., :num_quantiles])]
    states, x = random(count, num_states, widths[0], seed=5), random(num_states * per_state, inputs, seed=6) / 3
    point = x.double().requires_grad_()
    values = states.double().repeat_interleave(per_state, dim=1) + point @ weights[0].double()
    for index, (weight, bias) in enumerate(zip(weights[1:], biases, strict=True)):
        if is_normed:
            gain, shift = (part.double() for part in norms[index])
            values = torch.sigmoid(gain * F.layer_norm(values, values.shape[-1:]) + shift)
        else:
            values = F.mish(-values)
        values = values @ weight.double() + bias
    expected = conservative_value(values[..., :num_quantiles].transpose(0, 1), num_dropped)
    (gradient,) = torch.autograd.grad(expected.sum(), point)
    network = network_of(weights, biases, norms, backs, num_quantiles)
    assert_close(native_kernels.ascent(network, states, x, num_dropped), gradient, 1e-5)


@needs_native
def test_of_equal_quantiles_as_many_are_dropped_as_of_others() -> None:
    """Twenty equal ones: which of them goes makes no difference, how many does."""
    first, last = random(1, 5, 32), random(1, 32, 1).repeat(1, 1, 32)
    network = network_of([first, last], [torch.zeros(1, 1, 32)], (), [last[..., :20].mT.contiguous()], 20)
    states, x = random(1, 4, 32), random(4, 5)
    expected = native_kernels.ascent(network, states, x, 0)
    torch.testing.assert_close(native_kernels.ascent(network, states, x, 3), expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize("stop", [0, 2, 5])
@pytest.mark.parametrize(("num_states", "per_state"), [(None, 4), (None, 100), (7, 1), (50, 3), (2, 150)])
def test_chains(num_states: int | None, per_state: int, stop: int) -> None:
    num_steps, action_dim, rows = 5, 3, (num_states or 1) * per_state
    weights = [random(1, *shape, seed=seed) / 50 for seed, shape in enumerate(((action_dim, 48), (48, 32), (32, 16)))]
    biases = [random(1, 1, width, seed=width) for width in (32, 16)]
    levels, level_sums = random(num_steps, 5, seed=5).abs(), random(num_steps, 48, seed=6)
    noise = random(num_steps + 1, rows, action_dim, seed=7)
    states = None if num_states is None else random(num_states, 48, seed=8)
    x = noise[-1].double()
    for step in range(num_steps - 1, stop - 1, -1):
        error_gain, bound, clipped_weight, noisy_weight, sigma = levels[step].double()
        values = level_sums[step].double() + x @ weights[0][0].double()
        if states is not None:
            values = values + states.double().repeat_interleave(per_state, dim=0)
        for weight, bias in zip(weights[1:], biases, strict=True):
            values = F.mish(-values) @ weight[0].double() + bias[0]
        clipped = (x - error_gain * values[:, :action_dim]).clamp(-bound, bound)
        x = sigma * noise[step] + noisy_weight * x + clipped_weight * clipped
    actual = native_kernels.denoise(network_of(weights, biases), states, level_sums, levels, noise, stop)
    torch.testing.assert_close(actual.double(), x, rtol=1e-5, atol=1e-5)


@needs_native
def test_a_network_follows_weights_that_change_in_place_and_a_packed_one_does_not() -> None:
    weights, biases = [random(2, 4, 32), random(2, 32, 16)], [random(2, 1, 16)]
    networks = {name: build(weights, biases) for name, build in BUILDERS.items()}
    states, x = random(2, 1, 32), random(6, 4)
    before = {name: native_kernels.forward_each(network, states, x) for name, network in networks.items()}
    weights[1].zero_()
    after = {name: native_kernels.forward_each(network, states, x) for name, network in networks.items()}
    assert torch.equal(before["packed"], after["packed"])
    assert torch.equal(after["as it is"], biases[0].expand(2, 6, 16))


@needs_native
def test_a_network_is_not_copied_for_its_addresses_would_be_anothers() -> None:
    with pytest.raises(TypeError, match="not its own"):
        copy.deepcopy(network_of([random(1, 4, 32), random(1, 32, 16)], [random(1, 1, 16)]))


@needs_native
def test_a_chain_that_is_not_a_number_stays_so() -> None:
    weights, biases = [random(1, 3, 32) / 9, random(1, 32, 16) / 9], [random(1, 1, 16)]
    noise = random(3, 4, 3)
    noise[2, 1, 0] = torch.nan
    end = native_kernels.denoise(network_of(weights, biases), None, random(2, 32), random(2, 5).abs(), noise)
    assert end.isnan().any(dim=1).tolist() == [False, True, False, False]


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
