"""The learner step at the speed of its kernels: on CUDA one captured graph, elsewhere the same calls one by one.

An update is a few thousand small kernels, and Python takes longer to start one than the device to run it. A graph
starts all of them at once. It repeats exactly what was captured, on the same memory: what an algorithm must leave out
for that is in learner.algorithms.base. Nothing here changes what is computed.
"""

import logging
import traceback
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from learner.algorithms.base import Algorithm, SampleBatch
from learner.algorithms.guarded_adam import SkippedSteps, read_counters
from learner.config import LearnerConfig
from learner.metric_sums import Average, MetricSums

logger = logging.getLogger(__name__)

_STEPS_BEFORE_CAPTURE = 3  # optimisers have their moments then, and libraries their kernels and workspaces


class GraphedUpdate:
    """Does an algorithm's learner steps. Make a new one after `algorithm.load_state`, which may replace tensors.

    The steps before the capture are steps like all others, in their order, and a graph draws the random numbers that
    single calls would have drawn: a run is the same with and without it, but for the order of sums within kernels.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        sample_batch: SampleBatch,
        config: LearnerConfig,
        prepare: Callable[[], Hashable] = lambda: None,
    ) -> None:
        """`prepare` is called before each step, outside of any graph, and may move new data to the device.

        When it returns something else than before, batches are made in another way now: another graph is captured.
        """
        self._algorithm = algorithm
        self._sample_batch = sample_batch
        self._prepare = prepare
        self._device = torch.device(config.device)
        self._may_capture = self._device.type == "cuda" and config.cuda_graph == "auto"
        self._sums = MetricSums()
        self._names: list[str] = []  # of the metrics in the graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch_kind: Hashable = None
        self._steps_of_kind = 0  # since batches are made like this and the algorithm is warm
        self._generators: set[torch.Generator] = set()  # that the steps so far drew from
        set_matmul_precision(config.matmul_precision)
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._counters = _LateCounters(algorithm, self._device)
        if not self._may_capture:
            logger.info("updates: %s", self.path)

    @property
    def path(self) -> str:
        """How the next step is computed."""
        if self._graph is not None:
            return f"one CUDA graph on {self._device}"
        return f"eager on {self._device}"

    def step(self) -> None:
        """Do one learner step.

        On CUDA the device may still be at it when this returns, but has done the one before: Python is never more than
        one step ahead.
        """
        kind = self._prepare()
        if self._device.type != "cuda":
            self._sums.count(self._work())
            return
        if kind != self._batch_kind:
            self._batch_kind, self._graph, self._steps_of_kind = kind, None, 0
        if self._graph is None and self._may_capture and self._steps_of_kind >= _STEPS_BEFORE_CAPTURE:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            self._sums.count(self._names)
        elif self._may_capture:
            self._step_before_capture()
        else:
            self._sums.count(self._work())
        self._counters.note()

    def take_metrics(self) -> dict[str, Average]:
        """Return the averages of what the steps since the last call reported. Waits for the device."""
        return self._sums.take()

    def skipped_steps(self) -> dict[str, SkippedSteps]:
        """Return what each optimiser left out, without waiting: on CUDA as it was before the latest step."""
        if self._device.type != "cuda":
            return self._algorithm.skipped_steps()
        return self._counters.read()

    def _work(self) -> list[str]:
        """Do all that belongs in a graph; returns the names of the metrics that it adds to."""
        metrics = self._algorithm.update_step(self._sample_batch)
        self._sums.add(metrics)
        return list(metrics)

    def _step_before_capture(self) -> None:
        """Do one step call by call, on the stream that the capture will use: libraries prepare for one stream each."""
        is_warm = self._steps_of_kind > 0 or not self._algorithm.is_warming_up()
        present = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(present)
        try:
            with torch.cuda.stream(self._stream), _GeneratorsIn(self._generators):
                self._sums.count(self._work())
        finally:
            present.wait_stream(self._stream)
        self._steps_of_kind += is_warm
        elsewhere = sorted({str(generator.device) for generator in self._generators if not self._is_here(generator)})
        if elsewhere:
            self._do_without_graph(f"batches or noise are drawn on {', '.join(elsewhere)}, see replay.device")

    def _is_here(self, generator: torch.Generator) -> bool:
        return generator.device.type == self._device.type and self._device.index in (None, generator.device.index)

    def _do_without_graph(self, reason: str) -> None:
        self._may_capture = False
        logger.warning("updates: %s. The step cannot be captured as a CUDA graph: %s", self.path, reason)

    def _capture(self) -> None:
        """Capture the step, which runs nothing; where that fails, say why and go on without."""
        graph = torch.cuda.CUDAGraph()
        before = {generator: generator.clone_state() for generator in self._generators}
        try:
            with warnings.catch_warnings():  # newer versions of PyTorch register by themselves, and say so
                warnings.simplefilter("ignore")
                for generator in self._generators:
                    graph.register_generator_state(generator)
            # Only this thread's calls are part of it: the one that writes checkpoints may go on.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                names = self._work()
        except RuntimeError as error:
            # A capture that fails leaves its generators in a state in which they refuse to draw.
            for generator, state in before.items():
                generator.graphsafe_set_state(state)
            self._do_without_graph(_first_failure(error))
        else:
            self._graph, self._names = graph, names
            logger.info("updates: %s", self.path)


class _LateCounters:
    """What each optimiser left out, as it was before the latest step: reading it then waits for nothing."""

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self._device = device
        self._counters = algorithm.counters()
        # After the latest step and after the one before it, in turn; none has been made yet.
        self._copies = [torch.stack(list(self._counters.values())).cpu().pin_memory() for _ in range(2)]
        self._are_there = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._latest = 0

    def note(self) -> None:
        """Have the counters copied once the device has done all steps until here; wait for the copy before."""
        before, self._latest = self._latest, 1 - self._latest
        self._copies[self._latest].copy_(torch.stack(list(self._counters.values())), non_blocking=True)
        self._are_there[self._latest].record(torch.cuda.current_stream(self._device))
        self._are_there[before].synchronize()  # returns at once while it was never recorded

    def read(self) -> dict[str, SkippedSteps]:
        return read_counters(dict(zip(self._counters, self._copies[1 - self._latest], strict=True)))


class _GeneratorsIn(TorchFunctionMode):
    """Collects the generators from which random numbers are drawn meanwhile; a graph has to know all of its own."""

    def __init__(self, generators: set[torch.Generator]) -> None:
        super().__init__()
        self._generators = generators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            self._generators.add(generator)
        return func(*args, **kwargs)


def set_matmul_precision(precision: str) -> None:
    """Let CUDA multiply float32 matrices in fp32 or, sooner, from operands rounded to TF32, for the whole process.

    So for convolutions, in which cuDNN rounds unless it is told not to.
    """
    name = {"fp32": "ieee", "tf32": "tf32"}[precision]
    torch.backends.cuda.matmul.fp32_precision = name
    torch.backends.cudnn.conv.fp32_precision = name  # type: ignore[attr-defined]


def _first_failure(error: BaseException) -> str:
    """Return what went wrong first, and the line that did it; what follows from it hides it in the exception."""
    while error.__context__ is not None:
        error = error.__context__
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    place = f", at {ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}" if ours else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}"
