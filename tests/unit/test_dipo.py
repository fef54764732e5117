"""DIPO's parts by hand and against torch's own Adam, and the moved actions that it keeps beside the replay."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.agents import Agents
from learner.algorithms.dipo import Dipo
from learner.noise import Noise
from learner.replay import Batch
from learner.tensor_replay import TensorReplay
from policy.encoder import EncoderInput
from policy.errors import ConfigError
from tests.oracles import make_specs, random_batch, small_config

CAPACITY = 40


def make_dipo(feature_dim: int = 3, action_dim: int = 2, **dipo: Any) -> Dipo:
    """One agent; moved actions are kept unless `dipo` says otherwise."""
    tables: dict[str, Any] = {"dipo": {"write_back": True, **dipo}, "replay": {"capacity": CAPACITY}}
    config = small_config(algorithm="dipo", kernels="plain", **tables)
    return Dipo(Agents.single(config), make_specs(feature_dim, action_dim))


def filled_replay(steps: int, num_agents: int | None = None, first_seed: int = 0) -> TensorReplay:
    """Steps of (F, A) = (3, 2); agent p of a population has those of first_seed + p."""
    replay = TensorReplay(num_agents, CAPACITY, 3, 2)
    agents = [random_batch(steps, 3, 2, first_seed + agent) for agent in range(num_agents or 1)]
    for step in range(steps):
        columns = [(b.observation.vector, b.action, b.reward, b.next_observation.vector, b.is_terminal) for b in agents]
        stacked = [torch.stack([own[column][step] for own in columns]) for column in range(5)]
        replay.add(*(column if num_agents else column[0] for column in stacked))
    return replay


def rows_of(replay: TensorReplay, size: int = 16, seed: int = 0) -> Batch:
    return replay.sample(size, Noise([seed], is_population=False))


def quadratic_critics(centres: tuple[float, ...], scale: float = 1.0) -> Any:
    """Critics (B, N, 1) of value -scale ||a - c_n||^2."""

    def critic(feature: Tensor, action: Tensor) -> Tensor:
        return torch.stack(
            [-scale * (action - centre).square().sum(dim=-1, keepdim=True) for centre in centres], dim=-2
        )

    return critic


# --- moving actions uphill ----------------------------------------------------------------------------------------


def test_the_first_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step is its step size times g / (|g| + eps): towards the centre of the smaller critic."""
    algorithm = make_dipo(action_steps=1, action_learning_rate=0.03, action_grad_ratio=0.0)
    monkeypatch.setattr(algorithm._critics, "critic", quadratic_critics((0.2, 3.0)))  # the second is always smaller
    action = torch.tensor([[0.0, 0.5], [0.99, -1.0]])
    moved = algorithm._uphill(torch.zeros(2, 3), action)
    torch.testing.assert_close(moved, torch.tensor([[0.03, 0.53], [1.0, -0.97]]))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3])
def test_actions_move_as_torchs_adam_moves_them(ratio: float) -> None:
    """The procedure of the paper's code with torch.optim.Adam and its clipping of gradients, on a random critic."""
    algorithm = make_dipo(action_steps=20, action_grad_ratio=ratio)
    for weight in algorithm._critics.critic.weights:
        weight.data.mul_(4)  # or the gradients were too small to be clipped
    batch = random_batch(16, 3, 2)
    feature, action = batch.observation.vector, batch.action
    expected = action.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([expected], lr=0.03, eps=1e-5)
    norms = []
    for _ in range(20):
        optimiser.zero_grad()
        (-algorithm._critics.critic(feature, expected).squeeze(-1).amin(dim=-1)).sum().backward()
        if ratio:
            norms.append(float(nn.utils.clip_grad_norm_([expected], ratio * 2)))
        optimiser.step()
        expected.data.clamp_(-1, 1)
    assert not ratio or max(norms) > ratio * 2
    moved = algorithm._uphill(feature, action)
    torch.testing.assert_close(moved, expected.detach(), rtol=0, atol=1e-5)
    assert (moved - action).abs().max() > 0.1


def test_moved_actions_are_better_and_within_bounds_and_no_network_notices() -> None:
    algorithm = make_dipo(action_steps=40, action_learning_rate=0.1)
    batch = random_batch(64, 3, 2)
    before = algorithm.state()
    moved = algorithm._uphill(batch.observation.vector, batch.action)
    values = [algorithm._value_of(batch.observation.vector, action) for action in (batch.action, moved)]
    assert (values[1] > values[0]).float().mean() > 0.95
    assert moved.abs().max() == 1.0  # some would leave
    assert not moved.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in algorithm.state().items())
    assert all(parameter.grad is None for parameter in algorithm._critics.critic.parameters())


def test_what_cannot_be_moved_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make_dipo(action_grad_ratio=0.0)
    critic = quadratic_critics((0.5,))

    def broken(feature: Tensor, action: Tensor) -> Tensor:
        quantiles: Tensor = critic(feature, action)
        return quantiles * feature[:, :1, None]

    monkeypatch.setattr(algorithm._critics, "critic", broken)
    moved = algorithm._uphill(torch.tensor([[1.0, 0, 0], [torch.nan, 0, 0]]), torch.zeros(2, 2))
    assert moved[0].min() > 0.3
    assert moved[1].tolist() == [0, 0]


# --- moved actions beside the replay ------------------------------------------------------------------------------


def test_moved_actions_are_moved_on_and_the_critics_see_those_that_were_executed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    algorithm, replay = make_dipo(), filled_replay(30)
    batch = rows_of(replay)
    assert torch.equal(algorithm._latest_action(batch), batch.action)
    critic_saw: list[Tensor] = []
    original = algorithm._critics.descend

    def descend(batch: Batch, *others: Any) -> Any:
        critic_saw.append(batch.action)
        return original(batch, *others)

    monkeypatch.setattr(algorithm._critics, "descend", descend)
    for _ in range(3):
        algorithm.update_step(lambda: rows_of(replay))
    again = rows_of(replay)
    assert torch.equal(again.action, batch.action)  # the replay is as it was
    assert all(torch.equal(seen, batch.action) for seen in critic_saw)
    latest = algorithm._latest_action(again)
    # 3 times 20 steps; with one time's alone nothing could be further than 0.6 away.
    assert ((latest - batch.action).abs() > 0.6).any()
    others = rows_of(replay, size=200, seed=1)
    assert batch.rows is not None
    assert others.rows is not None
    never_drawn = ~torch.isin(others.rows, batch.rows)
    assert never_drawn.any()
    assert torch.equal(algorithm._latest_action(others)[never_drawn], others.action[never_drawn])


def test_a_row_that_is_overwritten_starts_from_its_new_action() -> None:
    algorithm, replay = make_dipo(), filled_replay(CAPACITY)
    for seed in range(30):
        algorithm._update_actor(rows_of(replay, seed=seed))
    kept = rows_of(replay, size=500)
    assert not (algorithm._latest_action(kept) == kept.action).all(dim=-1).any()
    for step in range(25):
        one = random_batch(1, 3, 2, seed=1000 + step)
        replay.add(one.observation.vector, one.action, one.reward, one.next_observation.vector, one.is_terminal)
    drawn = rows_of(replay, size=500)
    assert drawn.rows is not None
    is_new = drawn.rows >= CAPACITY
    is_executed = (algorithm._latest_action(drawn) == drawn.action).all(dim=-1)
    assert is_new.any()
    assert torch.equal(is_executed, is_new)


def test_without_write_back_every_action_starts_from_the_executed_one() -> None:
    algorithm, replay = make_dipo(write_back=False), filled_replay(30)
    for _ in range(3):
        algorithm.update_step(lambda: rows_of(replay))
    batch = rows_of(replay)
    assert torch.equal(algorithm._latest_action(batch), batch.action)
    assert "moved" not in algorithm.state()


def test_the_critics_do_not_depend_on_how_actions_are_moved() -> None:
    """With a target policy that stands still, only moved actions in the critics' loss could make a difference."""
    states = []
    for action_steps in (0, 20):
        algorithm, replay = make_dipo(action_steps=action_steps, target_update_rate=0.0), filled_replay(30)
        noise = Noise([5], is_population=False)
        for _ in range(4):
            algorithm.update_step(lambda replay=replay, noise=noise: replay.sample(8, noise))  # type: ignore[misc]
        states.append(algorithm.state())
    first, second = states
    for name in first:
        if name.startswith("critic."):
            assert torch.equal(first[name], second[name])
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("denoiser."))


def test_a_replay_that_does_not_number_its_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dipo\.write_back = false"):
        make_dipo().update_step(lambda: random_batch(8, 3, 2))


def test_a_restored_run_moves_on_the_same_actions() -> None:
    replay = filled_replay(30)
    original, restored = make_dipo(), make_dipo()

    def update(algorithm: Dipo, seed: int) -> None:
        noise = Noise([seed], is_population=False)
        algorithm.update_step(lambda: replay.sample(8, noise))

    for seed in range(4):
        update(original, seed)
    update(restored, 99)
    restored.load_state(original.state())
    for seed in range(4, 7):
        update(original, seed)
        update(restored, seed)
    first, second = original.state(), restored.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_population_keeps_its_agents_actions_apart() -> None:
    """Their step sizes differ too."""
    tables: list[dict[str, Any]] = [
        {"seed": seed, "dipo": {"write_back": True, "action_learning_rate": rate}, "replay": {"capacity": CAPACITY}}
        for seed, rate in ((3, 0.03), (8, 0.1))
    ]
    configs = [small_config(algorithm="dipo", **table) for table in tables]
    together = Dipo(Agents(configs, is_population=True), make_specs(3, 2))
    both, noise = filled_replay(30, num_agents=2), Noise([3, 8], is_population=True)
    for _ in range(3):
        together.update_step(lambda: both.sample(8, noise))
    for index, config in enumerate(configs):
        alone = Dipo(Agents.single(config), make_specs(3, 2))
        replay, own_noise = filled_replay(30, first_seed=index), Noise([config.seed], is_population=False)
        for _ in range(3):
            alone.update_step(lambda replay=replay, noise=own_noise: replay.sample(8, noise))  # type: ignore[misc]
        assert torch.equal(together._moved_step[index], alone._moved_step)
        torch.testing.assert_close(together._moved[index], alone._moved, rtol=0, atol=1e-4)
        assert alone._moved_step.max() > 0


# --- targets and acting -------------------------------------------------------------------------------------------


def test_the_denoiser_is_regressed_onto_the_moved_actions_of_a_second_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, again = make_dipo(), make_dipo()
    replay = filled_replay(30)
    first, second = rows_of(replay, seed=1), rows_of(replay, seed=2)
    targets: list[Tensor] = []
    original = algorithm._diffusion.denoising_error

    def denoising_error(denoiser: nn.Module, clean_action: Tensor, *others: Any) -> Tensor:
        targets.append(clean_action)
        return original(denoiser, clean_action, *others)

    monkeypatch.setattr(algorithm._diffusion, "denoising_error", denoising_error)
    batches = [first, second]
    algorithm.update_step(lambda: batches.pop(0))
    assert not batches
    # The other one's critics have learned from the same first batch by then.
    batches = [first, replace(second, action=torch.zeros_like(second.action))]
    again.update_step(lambda: batches.pop(0))
    (moved,) = targets
    torch.testing.assert_close(moved, again._uphill(second.observation.vector, second.action))
    assert not torch.equal(moved, second.action)


def test_targets_follow_by_their_rate() -> None:
    algorithm, replay = make_dipo(target_update_rate=0.25), filled_replay(30)
    before = algorithm.state()
    algorithm.update_step(lambda: rows_of(replay))
    after = algorithm.state()
    for name, tensor in after.items():
        if name.startswith(("denoiser.", "critic.")):
            assert not torch.equal(tensor, before[name])
            followed = 0.75 * before[f"target_{name}"] + 0.25 * tensor
            torch.testing.assert_close(after[f"target_{name}"], followed)


def test_one_sample_of_the_target_policy_is_the_next_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target critics' values of it are (4, 3): the smaller one counts, and after the end none."""
    algorithm = make_dipo(1, 1, discount=0.9)

    def sample(denoiser: object, feature: Tensor, noise: Tensor) -> Tensor:
        assert denoiser is algorithm._target_denoiser
        assert noise.shape == (6, 2, 1)
        return torch.full((2, 1), 0.5)

    def critic(feature: Tensor, action: Tensor) -> Tensor:
        assert bool((action == 0.5).all())
        return torch.tensor([[4.0], [3.0]]).expand(2, 2, 1)

    monkeypatch.setattr(algorithm._kernels, "sample", sample)
    monkeypatch.setattr(algorithm._critics, "target_critic", critic)
    batch = replace(random_batch(2, 1, 1), reward=torch.ones(2), is_terminal=torch.tensor([0.0, 1.0]))
    targets = algorithm._critic_targets(batch, algorithm._critics.next_feature(batch))
    assert targets.tolist() == [[pytest.approx(1 + 0.9 * 3)], [1.0]]


def test_the_critics_loss_is_the_sum_of_their_errors() -> None:
    """Its gradient is clipped at 2, so its size counts."""
    algorithm, again = (make_dipo(1, 1, write_back=False) for _ in range(2))
    batch = random_batch(8, 1, 1)
    following = algorithm._critics.next_feature(batch)
    targets = algorithm._critic_targets(batch, following)
    values = algorithm._critics.critic(batch.observation.vector, batch.action).squeeze(-1)
    first, second = ((values[:, index] - targets[:, 0]).square().mean().item() for index in range(2))
    assert float(again.update_step(lambda: batch)["critic_loss"]) == pytest.approx(first + second, rel=1e-5)


@pytest.mark.parametrize("evaluation_noise", [False, True])
def test_reverse_steps_add_noise_in_evaluation_only_if_asked_to(
    evaluation_noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make_dipo(evaluation_noise=evaluation_noise)
    seen: list[Tensor] = []
    original = algorithm._kernels.sample

    def sample(denoiser: nn.Module, feature: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return original(denoiser, feature, noise)

    monkeypatch.setattr(algorithm._kernels, "sample", sample)
    observation, noise = EncoderInput(torch.zeros(5, 3)), Noise([0], is_population=False)
    for action in (algorithm.exploit(observation, noise, 3), algorithm.explore(observation, noise)):
        assert action.shape == (5, 2)
        assert action.abs().max() <= 1
    evaluated, explored = seen
    assert evaluated.shape == (6, 15, 2)
    assert bool((evaluated[:-1] != 0).any()) == evaluation_noise
    assert evaluated[-1].std() > 0.5
    assert (explored != 0).all()
