"""The acting benchmark: both forms of a policy decide alike, and the caller gets its threads back."""

import torch

from benchmarks.acting import CASES, ActingRow, measure_acting, table
from policy.config import load_preset


def test_both_forms_of_each_policy_are_measured_and_decide_alike() -> None:
    threads = torch.get_num_threads()
    rows = measure_acting(["sim_quick", "paper_robot"], decisions=2)
    assert torch.get_num_threads() == threads
    assert [(row.case, row.form, row.cameras) for row in rows] == [
        ("sim_quick@peg_in_hole", "plain", 0),
        ("sim_quick@peg_in_hole", "prepared", 0),
        ("paper_robot@cube_stacking", "plain", 2),
        ("paper_robot@cube_stacking", "prepared", 2),
    ]
    for row in rows:
        assert 0 < row.p50_ms <= row.p99_ms <= row.max_ms
        assert row.decisions == 2
        assert row.difference < 1e-5
    assert {row.candidates for row in rows} == {4}
    assert [row.denoising_steps for row in rows] == [10, 10, 20, 20]


def test_every_case_is_a_preset_with_a_diffusion_policy_and_its_critic() -> None:
    for preset, (_, make_specs) in CASES.items():
        policy = load_preset(preset)["policy"]
        assert policy["behavior_candidates"] > 1
        assert bool(make_specs().observation.images) == (policy.get("encoder") == "resnet10")


def test_the_table_shows_the_difference_beside_the_prepared_form_only() -> None:
    def row(form: str) -> ActingRow:
        return ActingRow("preset@task", form, 7, 4, 20, 2, 1.25, 2.5, 3.0, 4e-7)

    plain, prepared = table([row("plain"), row("prepared")]).splitlines()[2:]
    assert plain == "| preset@task | 20 | 4 | 2 | plain | 1.25 | 2.50 | 3.00 |  |"
    assert prepared == "| preset@task | 20 | 4 | 2 | prepared | 1.25 | 2.50 | 3.00 | 4e-07 |"
