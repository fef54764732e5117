"""When an update is captured, what is replayed and what is said about it; on a GPU, parity with single calls.

Without a GPU the CUDA functions are stood in for by ones that keep the order of things: a capture undoes what ran in
it, a replay runs it again.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner import graphed_update
from learner.algorithms import make_algorithm, make_population
from learner.algorithms.guarded_adam import SkippedSteps, read_counters
from learner.graphed_update import GraphedUpdate, set_matmul_precision
from learner.metric_sums import MetricSums
from learner.noise import Noise
from learner.tensor_replay import TensorReplay
from tests.oracles import make_specs, small_config

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")


class Counting:
    """An algorithm whose one weight counts its steps, and whose metric is that count."""

    def __init__(self, warm_up_steps: int = 0) -> None:
        self.weight = torch.zeros(())
        self.calls = 0  # of update_step: a replay makes none
        self.batches: list[Any] = []
        self._warm_up_steps = warm_up_steps
        self._counters = torch.zeros(4)

    def update_step(self, sample_batch: Callable[[], Any]) -> dict[str, Tensor]:
        self.calls += 1
        self.batches.append(sample_batch())
        self.weight += 1
        self._counters += torch.tensor([1.0, 1.0, 0.0, 0.0])
        return {"warm_up" if self.is_warming_up() else "count": self.weight.clone()}

    def is_warming_up(self) -> bool:
        return bool(self.weight <= self._warm_up_steps) and self._warm_up_steps > 0

    def counters(self) -> dict[str, Tensor]:
        return {"optimiser": self._counters}

    def skipped_steps(self) -> dict[str, SkippedSteps]:
        return read_counters(self.counters())


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: pytest.fail("replayed before it was captured")
        self.registered: list[Any] = []

    def register_generator_state(self, generator: Any) -> None:
        self.registered.append(generator)


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None:
        pass


class FakeEvent:
    def record(self, stream: FakeStream) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeCuda:
    """Stands in for torch.cuda with an algorithm whose state is `algorithm`'s weight and counters."""

    def __init__(self, algorithm: Counting) -> None:
        self._algorithm = algorithm
        self.update: GraphedUpdate | None = None
        self.graphs: list[FakeGraph] = []
        self.failure: str | None = None

    def _tensors(self) -> list[Tensor]:
        assert self.update is not None
        return [self._algorithm.weight, *self._algorithm.counters().values(), *self.update._sums._sums.values()]

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        before = [tensor.clone() for tensor in self._tensors()]
        yield
        for tensor, value in zip(self._tensors(), before, strict=True):
            tensor.copy_(value)
        if self.failure:
            raise RuntimeError(self.failure)
        calls = self._algorithm.calls

        def run_again() -> None:
            assert self.update is not None
            self.update._work()
            self._algorithm.calls = calls

        graph.replay = run_again
        self.graphs.append(graph)

    def namespace(self) -> SimpleNamespace:
        return SimpleNamespace(
            Stream=lambda device: FakeStream(),
            current_stream=lambda device: FakeStream(),
            stream=lambda stream: contextlib.nullcontext(),
            Event=FakeEvent,
            CUDAGraph=FakeGraph,
            graph=self.graph,
        )


@pytest.fixture
def on_fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Counting, GraphedUpdate, FakeCuda]]:
    def make(
        sample_batch: Callable[[], Any] = lambda: None, warm_up_steps: int = 0, **settings: Any
    ) -> tuple[Counting, GraphedUpdate, FakeCuda]:
        algorithm = Counting(warm_up_steps)
        cuda = FakeCuda(algorithm)
        monkeypatch.setattr(torch, "cuda", cuda.namespace())
        monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
        prepare = settings.pop("prepare", lambda: None)
        update = GraphedUpdate(algorithm, sample_batch, small_config(device="cuda", **settings), prepare)  # type: ignore[arg-type]
        cuda.update = update
        return algorithm, update, cuda

    return make


def test_first_steps_are_single_calls_then_one_graph_does_the_rest(on_fake_cuda: Any) -> None:
    algorithm, update, cuda = on_fake_cuda()
    for step in range(1, 10):
        update.step()
        assert algorithm.weight == step  # the capture itself was none
        assert algorithm.calls == min(step, 3) + (step > 3)
    assert len(cuda.graphs) == 1
    assert update.path == "one CUDA graph on cuda"


def test_the_capture_waits_for_the_end_of_the_warm_up(on_fake_cuda: Any) -> None:
    algorithm, update, cuda = on_fake_cuda(warm_up_steps=5)
    paths = []
    for _ in range(12):
        update.step()
        paths.append(len(cuda.graphs))
    assert paths == [0] * 9 + [1] * 3  # the sixth step is the first of the other kind, the tenth is captured
    assert algorithm.weight == 12
    assert update.take_metrics() == {"warm_up": 3.0, "count": 9.0}


def test_another_kind_of_batch_is_another_graph(on_fake_cuda: Any) -> None:
    kinds = iter([1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    algorithm, update, cuda = on_fake_cuda(prepare=lambda: next(kinds))
    for step in range(10):
        update.step()
        assert algorithm.weight == step + 1
    assert len(cuda.graphs) == 2
    assert algorithm.calls == 8  # three and the capture, of each


def test_a_step_that_cannot_be_captured_is_done_call_by_call_and_the_reason_is_told(
    on_fake_cuda: Any, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm, update, cuda = on_fake_cuda()
    cuda.failure = "operation not permitted when stream is capturing\nmore"
    with caplog.at_level(logging.INFO, logger="learner.graphed_update"):
        for _ in range(6):
            update.step()
    assert algorithm.weight == 6
    assert update.take_metrics() == {"count": 3.5}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "eager on cuda" in warnings[0]
    assert "RuntimeError: operation not permitted when stream is capturing, at " in warnings[0]
    assert "more" not in warnings[0]


def test_generators_of_the_step_are_known_to_the_graph_and_come_back_when_it_fails(
    on_fake_cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = Noise([3], is_population=False), Noise([4], is_population=False)
    restored: list[Any] = []

    class Recorded(torch.Generator):
        device = torch.device("cuda")

        def graphsafe_set_state(self, state: torch.Generator) -> torch.Generator:
            restored.append(state.get_state())
            return self

    source.generators = [Recorded().manual_seed(3)]
    _, update, cuda = on_fake_cuda(sample_batch=lambda: (source.normal(2), source.integers(5, 3)))
    other.normal(2)
    for _ in range(3):
        update.step()
    assert update._generators == {source.generators[0]}
    before = source.generators[0].get_state()
    cuda.failure = "no"
    update.step()
    assert len(restored) == 1
    assert torch.equal(restored[0], before)


def test_a_step_that_draws_on_the_cpu_is_not_captured_and_that_is_said_once(
    on_fake_cuda: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As with replay.device = cpu: a graph would repeat the batch that it was captured with."""
    source, alone = (Noise([3], is_population=False) for _ in range(2))
    algorithm, update, cuda = on_fake_cuda(sample_batch=lambda: source.normal(2))
    cuda.failure = "operation not permitted when stream is capturing"
    for _ in range(8):
        update.step()
    assert algorithm.calls == algorithm.weight == 8
    assert not cuda.graphs
    expected = [alone.normal(2) for _ in range(8)]
    assert all(torch.equal(*pair) for pair in zip(algorithm.batches, expected, strict=True))
    assert update.path == "eager on cuda"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "cannot be captured as a CUDA graph: batches or noise are drawn on cpu, see replay.device" in warning


def test_a_resumed_algorithms_counters_are_known_before_its_first_step(on_fake_cuda: Any) -> None:
    algorithm, _, _ = on_fake_cuda()
    algorithm.counters()["optimiser"][0] = 5.0
    update = GraphedUpdate(algorithm, lambda: None, small_config(device="cuda"))  # type: ignore[arg-type, return-value]
    assert update.skipped_steps()["optimiser"].total == 5
    update.step()
    assert update.skipped_steps()["optimiser"].total == 5
    update.step()
    assert update.skipped_steps()["optimiser"].total == 6


def test_counters_are_those_before_the_latest_step(on_fake_cuda: Any) -> None:
    _, update, _ = on_fake_cuda()
    for step in range(6):
        update.step()
        assert update.skipped_steps()["optimiser"].total == step


def test_the_graph_can_be_switched_off(on_fake_cuda: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="learner.graphed_update"):
        algorithm, update, cuda = on_fake_cuda(cuda_graph="off")
        for _ in range(6):
            update.step()
    assert algorithm.calls == 6
    assert not cuda.graphs
    assert [record.getMessage() for record in caplog.records] == ["updates: eager on cuda"]


def test_on_the_cpu_nothing_lags_and_nothing_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    algorithm = Counting()
    with caplog.at_level(logging.INFO, logger="learner.graphed_update"):
        update = GraphedUpdate(algorithm, lambda: None, small_config())  # type: ignore[arg-type, return-value]
    for step in range(1, 6):
        update.step()
        assert update.skipped_steps()["optimiser"].total == step
    assert update.take_metrics() == {"count": 3.0}
    assert [record.getMessage() for record in caplog.records] == ["updates: eager on cpu"]


def test_precision_is_set_for_cuda_alone() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for name, expected in (("tf32", "tf32"), ("fp32", "ieee")):
            set_matmul_precision(name)
            assert [backend.fp32_precision for backend in backends] == [expected, expected]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


# --- averages -----------------------------------------------------------------------------------------------------


def test_averages_are_over_the_steps_that_reported_and_begin_anew() -> None:
    sums = MetricSums()
    for step in range(1, 5):
        metrics = {"loss": torch.tensor([step, 10.0 * step])}
        if step > 2:
            metrics["late"] = torch.tensor(float(step), requires_grad=True) * 2
        sums.add(metrics)
        sums.count(list(metrics))
    assert sums.take() == {"loss": [2.5, 25.0], "late": 7.0}
    assert sums.take() == {}
    sums.add({"loss": torch.tensor([1.0, 2.0])})
    sums.count(["loss"])
    assert sums.take() == {"loss": [1.0, 2.0]}


# --- on a GPU -----------------------------------------------------------------------------------------------------


def cuda_run(cuda_graph: str, algorithm_name: str, num_agents: int | None) -> tuple[dict[str, Tensor], GraphedUpdate]:
    """Return the state of an algorithm after a few steps on a GPU, on data that do not depend on the path."""
    config = small_config(algorithm=algorithm_name, device="cuda", cuda_graph=cuda_graph)
    if num_agents is None:
        algorithm = make_algorithm(config, make_specs(3, 2))
    else:
        algorithm = make_population([replace(config, seed=seed) for seed in range(num_agents)], make_specs(3, 2))
    leading = () if num_agents is None else (num_agents,)
    replay, source = TensorReplay(num_agents, 50, 3, 2, "cuda"), torch.Generator().manual_seed(0)
    noise = Noise(range(num_agents or 1), "cuda", is_population=num_agents is not None)
    update = GraphedUpdate(algorithm, lambda: replay.sample(16, noise), config)
    for step in range(30):
        for _ in range(10 if step == 0 else 1):
            now, action, following = (torch.rand(*leading, size, generator=source) for size in (3, 2, 3))
            replay.add(now, action, torch.rand(leading, generator=source), following, torch.zeros(leading))
        update.step()
    return {name: tensor.cpu() for name, tensor in algorithm.state().items()}, update


@needs_gpu
@pytest.mark.parametrize("num_agents", [None, 2])
@pytest.mark.parametrize("name", ["cgpo", "sac", "td3", "tqc", "qvpo", "dipo"])
def test_a_graph_computes_what_single_calls_do(name: str, num_agents: int | None) -> None:
    expected, _ = cuda_run("off", name, num_agents)
    found, update = cuda_run("auto", name, num_agents)
    assert update.path == "one CUDA graph on cuda"
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)  # generators' states included


@needs_gpu
def test_a_capture_that_waits_for_the_device_fails_and_training_goes_on() -> None:
    config = small_config(device="cuda")
    algorithm, noise = make_algorithm(config, make_specs(3, 2)), Noise([0], "cuda", is_population=False)
    replay = TensorReplay(None, 50, 3, 2, "cuda")
    for _ in range(10):
        replay.add(torch.rand(3), torch.rand(2), 0.0, torch.rand(3), 0.0)

    def sample_and_wait() -> Any:
        batch = replay.sample(8, noise)
        float(batch.reward.sum())
        return batch

    update = GraphedUpdate(algorithm, sample_and_wait, config)
    for _ in range(8):
        update.step()
    assert update.path == "eager on cuda"
    assert update.skipped_steps()["critic_optimiser"].total == 0
    assert graphed_update._STEPS_BEFORE_CAPTURE < 8
