"""The run as Markdown, for somebody who has to decide by it. Computes no figure."""

from collections.abc import Iterable

from benchmarks import acting
from benchmarks.learner.paths import FAST, PLAIN, POPULATION, PathResult
from benchmarks.learner.phases import PHASES
from benchmarks.learner.results import CaseResult, Run
from benchmarks.link.report import Section, Table, Target, target_table

_RESOLUTION = 2.0**-23  # of float32: means of values that differ a little more are often equal
_QUIET_SHARE = 0.95  # of wall time: below it something else ran on this core
_ACTING_LIMITS_MS = {("paper_mujoco", 0): 2.0, ("paper_robot", 2): 25.0}
_ANT, _TWIN, _ROBOT = "paper_mujoco@Ant", "sim_quick@peg_in_hole", "paper_robot@two_cameras"


def markdown(run: Run) -> str:
    sections = [_updates(run), *(_phases(case) for case in run.cases), _products(run), *_acting(run)]
    targets = [target for section in sections for target in section.targets]
    parts = [
        "# The learner's speed, measured",
        _introduction(run),
        *(["## Targets", target_table(sections).markdown()] if targets else []),
        *(section.markdown() for section in sections),
        *(["## Not measured", "\n".join(f"- {reason}" for reason in run.skipped)] if run.skipped else []),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(run: Run) -> str:
    machine = run.machine
    text = (
        f"`{machine.command}` on {machine.device} ({machine.processor}), {machine.threads} "
        f"{'thread' if machine.threads == 1 else 'threads'}, PyTorch {machine.torch_version}, products in "
        f"{machine.matmul_precision}, revision "
        f"{machine.revision}, {machine.began_utc} UTC, {machine.wall_s:.0f} s in all. Load average "
        f"{machine.load_before:.1f} before and {machine.load_after:.1f} after; the process ran "
        f"{machine.running_share:.0%} of the time. "
    )
    if machine.clock == "cpu":
        text += "Times are CPU time of this process, so that other work on the machine does not lengthen them. "
    has_wall_times = machine.clock == "wall" or run.acting
    if has_wall_times and machine.running_share < _QUIET_SHARE and machine.device == "cpu":
        times = "acting's times" if machine.clock == "cpu" else "times"
        text += f"**The machine was not quiet: {times} are too long, the best are nearest the truth.** "
    return text + (
        "Within a case all paths and the matrix product take turns, so other load meets them alike. A time is the "
        "median over the rounds, in brackets the best; ratios are the median of the rounds' own ratios; shares of the "
        "matrix speed are of the best times."
    )


# --- updates ------------------------------------------------------------------------------------------------------


def _updates(run: Run) -> Section:
    header = [
        "preset", "size (observation, action)", "batch", "plain, ms", "fast, ms", "fast, updates/s", "speed-up",
        "losses differ by",
    ]  # fmt: skip
    rows = [
        [
            case.preset,
            f"{case.size} ({case.widths[0]}, {case.widths[1]})",
            str(case.batch_size),
            _milliseconds(case.paths.get(PLAIN)),
            _milliseconds(case.paths.get(FAST)),
            _rate(case.paths.get(FAST)),
            f"{case.speedup:.2f}x" if case.speedup else "",
            _difference(case.loss_difference),
        ]
        for case in run.cases
    ]
    text = (
        "One update of one agent, its batch drawn from a replay of tensors. *Losses differ by*: the largest relative "
        "difference between the losses of both paths' first updates, from the same weights, batch and noise. "
        "Operations are those of matrix products: *as written* and *split* by formula, for CGPO alone (its equations "
        "as they stand; first layers split and the common beginning of both chains computed once), the others counted "
        "while they were executed."
    )
    tables = [Table(header, rows), _operations(run.cases), _populations(run.cases)]
    return Section("Updates", text, tables, _targets(run))


def _operations(cases: Iterable[CaseResult]) -> Table:
    header = [
        "preset", "size", "as written, GFLOP", "plain executes", "split, GFLOP", "fast executes", "plain, GFLOP/s",
        "fast, GFLOP/s", "plain, share of the matrix speed", "fast, share",
    ]  # fmt: skip
    rows = []
    for case in cases:
        plain, fast = case.paths[PLAIN], case.paths.get(FAST)
        rows.append(
            [
                case.preset,
                case.size,
                _giga(case.written_operations),
                _giga(plain.operations),
                _giga(case.split_operations),
                _giga(fast.operations if fast else None),
                f"{plain.speed / 1e9:.0f}",
                f"{fast.speed / 1e9:.0f}" if fast else "",
                f"{case.share(PLAIN):.0%}",
                f"{case.share(FAST):.0%}" if fast else "",
            ]
        )
    return Table(header, rows)


def _populations(cases: Iterable[CaseResult]) -> Table:
    header = [
        "preset",
        "size",
        "agents P",
        "P as one, ms",
        "P single ones, ms",
        "as one : one agent",
        "agents' updates/s",
    ]
    rows = []
    for case in cases:
        population = case.paths.get(POPULATION)
        if population is None or case.population_cost is None:
            continue
        rows.append(
            [
                case.preset,
                case.size,
                str(population.agents),
                _milliseconds(population),
                f"{1e3 * population.agents * case.single.times.median:.1f}",
                f"{case.population_cost:.2f}x",
                f"{population.agents / population.times.median:.1f}",
            ]
        )
    return Table(header, rows)


def _targets(run: Run) -> list[Target]:
    by_name = {case.name: case for case in run.cases}
    is_cuda = run.machine.device != "cpu"
    targets = []
    for name, least in ((_ANT, 10.0 if is_cuda else 1.6), *(() if is_cuda else ((_TWIN, 2.5),))):
        case = by_name.get(name)
        if case is not None and case.speedup is not None:
            promise = f"{name}: the fast path at least {least:g}x the plain one"
            targets.append(Target(promise, f"{case.speedup:.2f}x", case.speedup >= least))
    robot = by_name.get(_ROBOT)
    if robot is not None and is_cuda:
        rate = 1 / robot.single.times.median
        targets.append(Target(f"{_ROBOT}: 100 learner steps/s", f"{rate:.0f}", rate >= 100))
    ant = by_name.get(_ANT)
    if ant is None or FAST not in ant.paths:
        return targets
    if is_cuda:
        rate = 1 / ant.paths[FAST].times.median
        targets.append(Target(f"{_ANT}: 1,000 updates/s", f"{rate:.0f}", rate >= 1000))
        if ant.population_cost is not None and ant.paths[POPULATION].agents == 5:
            cost = ant.population_cost
            targets.append(Target(f"{_ANT}: five agents at less than twice the time of one", f"{cost:.2f}x", cost < 2))
    else:
        share = ant.share(FAST)
        targets.append(Target(f"{_ANT}: 60 % of the matrix speed", f"{share:.0%}", share >= 0.6))
    return targets


# --- phases -------------------------------------------------------------------------------------------------------


def _phases(case: CaseResult) -> Section:
    """Where the time of one agent's update goes."""
    paths = [name for name in (PLAIN, FAST) if name in case.paths]
    header = ["phase"]
    for name in paths:
        header += [f"{name}, ms", "share", "GFLOP", "GFLOP/s"]
    rows = []
    for phase in PHASES:
        if any(phase in case.paths[name].phase_seconds for name in paths):
            rows.append([phase, *(cell for name in paths for cell in _phase_cells(case.paths[name], phase))])
    rows.append(["**all**", *(cell for name in paths for cell in _total_cells(case.paths[name]))])
    text = f"{case.algorithm}; " + ", ".join(f"{name}: {case.paths[name].how}" for name in paths) + "."
    return Section(f"Phases of {case.name}", text, [Table(header, rows)])


def _phase_cells(path: PathResult, phase: str) -> list[str]:
    seconds, operations = path.phase_seconds.get(phase, 0.0), path.phase_operations.get(phase, 0.0)
    share = seconds / sum(path.phase_seconds.values())
    speed = f"{operations / seconds / 1e9:.0f}" if operations and seconds else ""
    return [f"{1e3 * seconds:.2f}", f"{share:.0%}", _giga(operations), speed]


def _total_cells(path: PathResult) -> list[str]:
    seconds, operations = sum(path.phase_seconds.values()), sum(path.phase_operations.values())
    return [f"{1e3 * seconds:.2f}", "", _giga(operations), f"{operations / seconds / 1e9:.0f}"]


# --- the rest -----------------------------------------------------------------------------------------------------


def _products(run: Run) -> Section:
    shapes = list(dict.fromkeys(product.shape for product in run.products))
    speeds = {(product.operator, product.shape): product.speed for product in run.products}
    rows = [
        [operator, *(f"{speeds[operator, shape] / 1e9:.0f}" for shape in shapes)]
        for operator in dict.fromkeys(product.operator for product in run.products)
    ]
    text = (
        "GFLOP/s of float32 matrix products (rows x fan in x fan out) on the same device and threads, the best of a "
        "few trials. The fastest takes its turns in every case, and the shares above are of its best time there: "
        + ", ".join(f"{case.peak / 1e9:.0f} GFLOP/s in {case.name}" for case in run.cases)
        + "."
    )
    return Section("Matrix speed", text, [Table(["operator", *("x".join(map(str, shape)) for shape in shapes)], rows)])


def _acting(run: Run) -> list[Section]:
    if not run.acting:
        return []
    text = (
        "How long the robot PC takes to choose an action, on one thread of this machine's CPU whatever trains "
        "(benchmarks/acting.py): *prepared*, as the actor runs it, and *plain*, by turns. Wall time. *Differs by*: the "
        "largest difference between any elements of their actions.\n\n" + acting.table(run.acting)
    )
    prepared = {row.case: row for row in run.acting if row.form == "prepared"}
    targets = []
    for case, row in prepared.items():
        limit_ms = _ACTING_LIMITS_MS.get((case.partition("@")[0], row.cameras))
        if limit_ms is not None:
            promise = f"acting {case}, {row.cameras} cameras, T = {row.denoising_steps}: p99 at most {limit_ms:g} ms"
            targets.append(Target(promise, f"{row.p99_ms:.2f} ms", row.p99_ms <= limit_ms))
    return [Section("Acting", text, targets=targets)]


def _milliseconds(path: PathResult | None) -> str:
    return f"{1e3 * path.times.median:.2f} ({1e3 * path.times.best:.2f})" if path else ""


def _difference(relative: float | None) -> str:
    if relative is None:
        return ""
    return f"{relative:.0e}" if relative > _RESOLUTION else "rounding"


def _rate(path: PathResult | None) -> str:
    return f"{1 / path.times.median:.1f}" if path else ""


def _giga(operations: float | None) -> str:
    return f"{operations / 1e9:.2f}" if operations else ""
