"""Tables and pictures from hand-made runs: what a run leaves, what is kept of it, and the numbers of the document."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from benchmarks.mujoco import plots, sweep
from benchmarks.mujoco.curves import Curve, keep, parse, read_kept, read_runs, render
from benchmarks.mujoco.groups import group_curves
from benchmarks.mujoco.plots import common_points, spread_out
from benchmarks.mujoco.settings import resolve_config
from benchmarks.mujoco.table import write_results
from learner.algorithm_config import CgpoConfig
from learner.config import LearnerConfig
from policy.config import presets_dir, to_json
from policy.errors import ConfigError

Rows = Sequence[Mapping[str, float]]
PROTOCOL = {"episodes": 10, "evaluation_every": 50_000, "probe_states": 64}


def write_run(
    out: Path, rows: Rows, *, task: str = "Hopper-v4", algorithm: str = "cgpo", preset: str = "paper_mujoco",
    overrides: Sequence[str] = (), seed: int = 0, steps: int = 0, is_finished: bool = True,
    learner: Mapping[str, Any] | None = None, protocol: Mapping[str, Any] = PROTOCOL, machine: str = "m",
) -> Path:  # fmt: skip
    """Write the folder of a run as benchmarks.mujoco leaves it; `steps` are those asked for."""
    if learner is None:
        config_of_preset = resolve_config(preset, overrides, algorithm=algorithm, device="cpu", threads=1)
        learner = json.loads(to_json(config_of_preset))
    folder = out / task / algorithm / ",".join([Path(preset).stem, *overrides]) / f"seed_{seed}"
    folder.mkdir(parents=True)
    command = [
        "python",
        "-m",
        "benchmarks.mujoco",
        "--task",
        task,
        "--seeds",
        str(seed),
        "--out",
        "/home/somebody/runs",
    ]
    start = {
        "env_step": 0,
        "command": command,
        "revision": "0123456789abcdef-dirty",
        "machine": machine,
        "device": "cpu",
    }
    config: dict[str, Any] = {"task": task, "algorithm": algorithm, "preset": preset, "overrides": list(overrides)}
    config |= {"seed": seed, "population": [], "protocol": protocol, "learner": learner, "starts": [start]}
    (folder / "config.json").write_text(json.dumps(config))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    (folder / "curve.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    reached = int(rows[-1]["env_step"]) if rows else 0
    (folder / "status.json").write_text(json.dumps({"env_step": reached, "steps": steps or reached}))
    if is_finished:
        (folder / "summary.json").write_text(json.dumps({"env_step": reached}))
    return folder


def rows_of(returns: Sequence[float], candidates: int = 4, every: int = 50_000) -> list[dict[str, float]]:
    return [
        {"env_step": (index + 1) * every, f"return_mean_k{candidates}": value} for index, value in enumerate(returns)
    ]


def document_of(out: Path) -> str:
    write_results(out, out / "results.md")
    return (out / "results.md").read_text()


def row_of(document: str, start: str) -> list[str]:
    (line,) = [line for line in document.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def only(curves: list[Curve]) -> Curve:
    (curve,) = curves
    return curve


def test_best_and_last_tenth_are_means_over_seeds_with_their_spread(tmp_path: Path) -> None:
    """Of 20 evaluations the last tenth is two: 300 and 100, and 500 and 300; the best are 900 and 700."""
    write_run(tmp_path, rows_of([0] * 10 + [900] + [0] * 7 + [300, 100]), seed=0)
    write_run(tmp_path, rows_of([0] * 17 + [700] + [500, 300]), seed=1)
    cells = row_of(document_of(tmp_path), "| CGPO |")
    assert cells[:2] + cells[3:] == [
        "CGPO", "`paper_mujoco`", "2", "1,000,000", "**4**", "20", "800 ± 141", "300 ± 141", "4,170.5 (165.6) (a)",
    ]  # fmt: skip


def test_a_run_that_is_not_finished_is_said_to_be(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1000, 2000]), seed=0)
    write_run(tmp_path, rows_of([1500]), seed=1, steps=100_000, is_finished=False)
    write_run(tmp_path, [], seed=2, steps=100_000, is_finished=False)
    document = document_of(tmp_path)
    assert row_of(document, "| CGPO |")[3:5] == ["2", "50,000 to 100,000 of 100,000, **1 unfinished**"]
    assert "Without an evaluation yet, and so not in the tables: Hopper-v4/cgpo-paper_mujoco-" in document
    assert "50,000, unfinished" in document
    assert row_of(document, "| CGPO, K_e = 4 |")[1:] == ["1,250 ± 354", "2,000 (1 of 2 seeds)"]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, rows_of([1000]))
    with (folder / "curve.csv").open("a") as file:
        file.write("100000,20")
    assert only(read_runs(tmp_path)).returns(4) == [(50_000, 1000.0)]


def test_each_number_of_candidates_has_its_own_evaluations(tmp_path: Path) -> None:
    rows = rows_of([1000, 2000, 3000])
    rows[1]["return_mean_k32"] = 2500
    write_run(tmp_path, rows, seed=0)
    write_run(tmp_path, rows_of([1000, 2000, 3000]), seed=1)
    document = document_of(tmp_path)
    assert row_of(document, "| CGPO |")[5:8] == ["**4**", "3", "3,000 ± 0.0"]
    assert row_of(document, "|  |  |  | 1 |")[3:9] == ["1", "", "32", "1", "2,500", "2,500"]


def test_presets_and_overrides_are_kept_apart_and_reduced_values_marked(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1000]))
    write_run(tmp_path, rows_of([2000]), preset="reduced_mujoco")
    write_run(tmp_path, rows_of([3000]), preset="reduced_mujoco", overrides=["cgpo.guidance.type=none"])
    groups = group_curves(read_runs(tmp_path))["Hopper-v4"]
    assert [group.label for group in groups] == [
        "CGPO", "CGPO (reduced)", "CGPO, cgpo.guidance.type=none (reduced)",
    ]  # fmt: skip
    document = document_of(tmp_path)
    assert row_of(document, "| CGPO | `paper")[7:] == ["1,000", "1,000", "4,170.5 (165.6) (a)"]
    assert row_of(document, "| CGPO | `reduced")[7:] == ["2,000 (reduced)", "2,000 (reduced)", "4,170.5 (165.6) (a)"]
    assert row_of(document, "| CGPO, cgpo.guidance.type=none | `reduced")[-1] == "-", "another algorithm than theirs"
    assert "(a) the paper prints no number of critics" in document


def test_what_is_reduced_and_what_is_the_papers_follow_from_values_not_from_names(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    paper = (presets_dir() / "paper_mujoco.toml").read_text()
    for text, label, papers in (
        (paper, "CGPO", "4,170.5 (165.6) (a)"),
        (paper.replace("batch_size = 256", "batch_size = 64"), "CGPO (reduced)", "4,170.5 (165.6) (a)"),
        (paper.replace("rate = 0.95", "rate = 0.5"), "CGPO", "-"),
    ):
        preset.write_text(text)
        out = tmp_path / f"runs{len(list(tmp_path.iterdir()))}"
        write_run(out, rows_of([1000]), preset=str(preset))
        assert group_curves(read_runs(out))["Hopper-v4"][0].label == label
        assert row_of(document_of(out), "| CGPO | `mine`")[-1] == papers
    assert "`cgpo.guidance.rate` 0.5 (paper's: 0.95)" in document_of(out)
    write_run(tmp_path / "sac", rows_of([1.0], candidates=1), algorithm="sac", preset="paper_mujoco_sac")
    assert "(a) the paper fixes alpha at 0.2, here it is tuned" in document_of(tmp_path / "sac")


def test_seeds_of_different_runs_are_not_averaged(tmp_path: Path) -> None:
    """Of the same preset and overrides: other values, and other ways to measure."""
    changed = json.loads(to_json(LearnerConfig(cgpo=CgpoConfig(discount=0.9))))
    write_run(tmp_path, rows_of([1000]), seed=0)
    write_run(tmp_path, rows_of([2000]), seed=1)
    write_run(tmp_path, rows_of([3000]), seed=2, learner=changed)
    write_run(tmp_path, rows_of([4000]), seed=3, protocol={**PROTOCOL, "episodes": 3})
    write_run(tmp_path, rows_of([5000]), seed=4, protocol={**PROTOCOL, "evaluation_every": 5000})
    write_run(tmp_path, rows_of([6000], candidates=1), seed=5)
    groups = group_curves(read_runs(tmp_path))["Hopper-v4"]
    assert sorted([curve.seed for curve in group.curves] for group in groups) == [[0, 1], [2], [3], [4], [5]]
    assert len({group.label for group in groups}) == 5, "their labels in tables and pictures must differ"
    document = document_of(tmp_path)
    configurations = document.partition("## Configurations")[2].partition("\n## ")[0]
    for group in groups:
        assert f"| `{group.first.digest}` |" in document
        assert f"| `{group.first.digest}` |" in configurations
    assert "`cgpo.discount` 0.9 (paper's: 0.99)" in configurations
    assert "3 episodes every 50,000 steps" in configurations


def test_settings_that_a_newer_program_added_keep_seeds_together(tmp_path: Path) -> None:
    older = json.loads(to_json(LearnerConfig()))
    write_run(tmp_path, rows_of([2000]), seed=1, learner=older)
    del older["cgpo"]["shared_prefix"], older["replay"]["device"]
    write_run(tmp_path, rows_of([1000]), seed=0, learner=older)
    (group,) = group_curves(read_runs(tmp_path))["Hopper-v4"]
    assert len(group.curves) == 2


def test_seeds_of_unequal_length_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1000, 2000]), seed=0)
    write_run(tmp_path, rows_of([1500]), seed=1)
    assert row_of(document_of(tmp_path), "| CGPO |")[4] == "50,000 to 100,000, **unequal**"


def test_presets_of_one_name_do_not_overwrite_each_others_curves(tmp_path: Path) -> None:
    changed = json.loads(to_json(LearnerConfig(cgpo=CgpoConfig(discount=0.9))))
    write_run(tmp_path / "one", rows_of([1000]), preset="a/mine.toml", learner={})
    write_run(tmp_path / "two", rows_of([2000]), preset="b/mine.toml", learner=changed)
    for out in ("one", "two"):
        keep(read_runs(tmp_path / out), tmp_path / "kept")
    assert sorted(curve.returns(4)[0][1] for curve in read_kept(tmp_path / "kept")) == [1000, 2000]
    (path, _) = sorted((tmp_path / "kept").glob("*/*.csv"))
    shutil.copy(path, path.with_name("renamed.csv"))
    with pytest.raises(ConfigError, match="holds the same run as another file"):
        read_kept(tmp_path / "kept")


def test_one_command_on_two_machines_is_shown_twice(tmp_path: Path) -> None:
    for seed, machine in ((0, "fast"), (2, "slow"), (10, "slow")):
        write_run(tmp_path, rows_of([1000]), seed=seed, machine=machine)
    block = document_of(tmp_path).partition("```\n")[2].partition("```")[0].splitlines()
    assert [line.partition("#")[2] for line in block] == [
        f" cpu, ? threads, {machine}, revision 0123456789ab-dirty" for machine in ("fast", "slow")
    ]
    assert ["--seeds 0 --out" in block[0], "--seeds 2,10 --out" in block[1]] == [True, True]


def test_pictures_need_a_package_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, rows_of([1000]))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib is not installed\. Run launch/setup\.sh sim"):
        document_of(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep", "--tasks", "InvertedPendulum-v4", "--out", str(tmp_path / "sweep")])
    with pytest.raises(ConfigError, match="matplotlib is not installed"):
        sweep.main()
    assert not (tmp_path / "sweep").exists(), "before anything is run"


def test_returns_stand_beside_published_ones_at_the_same_step(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([100.0] * 5, candidates=1), algorithm="sac", preset="paper_mujoco_sac")
    document = document_of(tmp_path)
    assert row_of(document, "|  | 50,000")[1:] == ["50,000", "100,000", "200,000"]
    assert row_of(document, "| *SAC, published (1)*")[1:] == ["451", "897", "3,052"]
    assert row_of(document, "| *TD3, published (2)*")[1:] == ["285", "659 ± 752", "2,441 ± 746"]
    assert "In the paper and not run here: CGPO 4,170.5 (165.6)" in document


def test_the_fifth_version_of_a_task_is_not_compared_with_the_third(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1000]), task="Ant-v5")
    document = document_of(tmp_path)
    assert row_of(document, "| CGPO |")[-1] == "-"
    assert "published" not in document.partition("## Tasks' versions")[0]


def test_the_document_is_made_of_what_is_kept_alone(tmp_path: Path) -> None:
    out, document = tmp_path / "runs", tmp_path / "results" / "mujoco.md"
    write_run(out, rows_of([1000, 2000]), seed=0)
    write_results(out, document)
    first = document.read_text()
    shutil.rmtree(out)
    write_results(None, document)
    assert document.read_text() == first
    write_run(out, rows_of([4000, 6000]), seed=1)
    write_results(out, document)
    assert row_of(document.read_text(), "| CGPO |")[7] == "4,000 ± 2,828"
    picture = document.parent / "mujoco" / "Hopper-v4" / "learning_curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"({picture.relative_to(document.parent).as_posix()})" in first


def test_a_kept_curve_says_how_it_was_made_but_not_where(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1000.5]), overrides=["a=b"], seed=3, learner={})
    curve = only(read_runs(tmp_path))
    keep([curve], tmp_path / "kept")
    path = tmp_path / "kept" / "Hopper-v4" / f"cgpo-paper_mujoco,a=b-{curve.digest}-s3.csv"
    assert "somebody" not in path.read_text()
    assert only(read_kept(tmp_path / "kept")) == curve
    assert curve.starts[0]["command"][-1] == "runs"


@pytest.mark.parametrize("damage", ["# task: no JSON\n", "# seed: 0\nenv_step\n", "nothing"])
def test_a_file_that_is_no_curve_is_named(damage: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.csv is not a curve"):
        parse(damage, "x.csv")


def test_no_run_at_all_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        write_results(tmp_path, tmp_path / "results.md")


def test_a_contrast_that_was_measured_is_drawn(tmp_path: Path) -> None:
    rows = [{**row, "contrast": 5.0, "guided_contrast": 7.0, "value_std": 2.0} for row in rows_of([1000.0, 1100.0])]
    write_run(tmp_path, rows)
    document = document_of(tmp_path)
    assert "results/Hopper-v4/critic_contrast.png" in document
    assert "drawn from the replay once, and kept: 64 after 50,000 steps (CGPO)." in document
    write_run(tmp_path / "random", [{**row, "env_step": row["env_step"] / 5} for row in rows])
    assert "64 after 10,000 steps, all of random actions (CGPO)." in document_of(tmp_path / "random")


def test_the_spread_that_contrasts_are_divided_by_is_named_as_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "contrast": 5.0, "guided_contrast": 7.0, "value_std": 2.0} for row in rows_of([1000.0, 1100.0])]
    write_run(tmp_path, rows)
    labels: list[str] = []
    monkeypatch.setattr(plt, "close", lambda figure: labels.extend(axes.get_ylabel() for axes in figure.axes))
    plots.draw_task("Hopper-v4", group_curves(read_runs(tmp_path))["Hopper-v4"], tmp_path / "pictures")
    assert "share of the values' standard deviation over states and samples" in [
        label.replace("\n", " ") for label in labels
    ]


def test_the_mean_curve_has_the_steps_that_all_seeds_have() -> None:
    assert common_points([[(1, 2.0), (2, 3.0)], [(2, 5.0), (3, 6.0)]]) == [(2, [3.0, 5.0])]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [([0.1, 0.5], [0.1, 0.5]), ([0.5, 0.5, 0.5], [0.5, 0.6, 0.7]), ([0.95, 0.99], [0.9, 1.0]), ([], [])],
)
def test_labels_are_moved_apart(heights: list[float], expected: list[float]) -> None:
    assert spread_out(heights, 0.1) == pytest.approx(expected)


def test_a_curve_survives_writing_and_reading(tmp_path: Path) -> None:
    write_run(tmp_path, rows_of([1 / 3, -2e-7]), is_finished=False, steps=7)
    curve = only(read_runs(tmp_path))
    again = parse(render(curve), "again")
    assert (again.task, again.steps, again.is_finished, again.candidates) == ("Hopper-v4", 7, False, (4,))
    assert [step for step, _ in again.returns(4)] == [50_000, 100_000]
    assert [value for _, value in again.returns(4)] == pytest.approx([1 / 3, -2e-7])
