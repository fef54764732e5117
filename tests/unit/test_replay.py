"""The replay against a naive list: whatever arrives in whatever order, every sampled row is a true transition."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from learner.config import ReplayConfig
from learner.noise import Noise
from learner.replay import Batch, Replay
from learner.replay_buffer import ReplayBuffer
from learner.row_set import RowSet
from policy.encoder import EncoderInput
from policy.spec import Field, ObservationSpec
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition

# Observations, actions and rewards are small integers over 1024: exact in float32, so rows compare bit for bit.
UNIT = 1 / 1024
SPEC = ObservationSpec((Field(name="number", unit="m", low=(-1.0,), high=(1.0,)),))
POLICY, DEMONSTRATION, INTERVENTION = (
    ActionSource.POLICY,
    ActionSource.HUMAN_DEMONSTRATION,
    ActionSource.HUMAN_INTERVENTION,
)

Row = tuple[float, float, float, float, bool, bool]  # observation, action, reward, next observation, terminal, human
Record = tuple[RecordId, Transition]


def observation(number: int) -> dict[str, np.ndarray]:
    return {"number": np.array([number * UNIT], np.float32)}


def make_record(
    stream: tuple[str, str], sequence: int, episode: int, step: int, number: int, source: ActionSource, end: str
) -> Record:
    """A step whose observation, action and reward all carry `number`; `end` is "", terminated, truncated or aborted."""
    is_last = end in ("terminated", "truncated")
    return RecordId(*stream, sequence), Transition(
        episode=episode,
        step=step,
        observation=observation(number),
        policy_action=np.full(1, -1, np.float32),
        executed_action=np.array([number * UNIT], np.float32),
        source=source,
        reward=number * UNIT,
        terminated=end == "terminated",
        truncated=end == "truncated",
        weights_version=0,
        weights_age_s=0.0,
        wall_time_s=0.0,
        monotonic_time_s=0.0,
        final_observation=observation(-number) if is_last else None,
    )


@dataclass(frozen=True)
class EpisodePlan:
    """Sources of an episode's steps, how it ends, and whether the actor is a new incarnation from here on."""

    sources: tuple[ActionSource, ...]
    end: str
    is_restart: bool


def write_streams(actors: list[list[EpisodePlan]], order_seed: int) -> list[Record]:
    """Turn each actor's plans into its stream and interleave the streams at random, each in its own order."""
    streams: list[list[Record]] = []
    numbers = iter(range(1, 1024))
    for actor, plans in enumerate(actors):
        records: list[Record] = []
        incarnation, sequence, episode = 0, 0, 0
        for plan in plans:
            if plan.is_restart:
                incarnation, sequence, episode = incarnation + 1, 0, 0
            for step, source in enumerate(plan.sources):
                end = plan.end if step == len(plan.sources) - 1 else ""
                # Actors 0 and 2 are one robot whose crashed incarnation's spool drains beside its next one's.
                stream = (f"actor-{actor % 2}", f"incarnation-{actor}-{incarnation}")
                records.append(make_record(stream, sequence, episode, step, next(numbers), source, end))
                sequence += 1
            episode += 1
        streams.append(records)
    turns = [index for index, stream in enumerate(streams) for _ in stream]
    random.Random(order_seed).shuffle(turns)
    queues = [iter(stream) for stream in streams]
    return [next(queues[turn]) for turn in turns]


def naive_rows(records: list[Record]) -> list[tuple[int, ActionSource, Row]]:
    """All true transitions as (index of the record, source, row), found by searching the whole list."""
    rows = []
    place = {(i.actor_id, i.incarnation, t.episode, t.step): t.observation for i, t in records}
    for index, (i, t) in enumerate(records):
        following = t.final_observation or place.get((i.actor_id, i.incarnation, t.episode, t.step + 1))
        if following is not None:
            now, then, action = (float(x[0]) for x in (t.observation["number"], following["number"], t.executed_action))
            rows.append((index, t.source, (now, action, t.reward, then, t.terminated, t.is_human)))
    return rows


def rows_of(batch: Batch) -> list[Row]:
    feature, action, following = batch.observation.vector[:, 0], batch.action[:, 0], batch.next_observation.vector[:, 0]
    columns = (feature, action, batch.reward, following, batch.is_terminal.bool(), batch.is_human)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def fill(records: Sequence[tuple[RecordId, Recordable]], **settings: object) -> Replay:
    values: dict[str, object] = {"capacity": 4096, "batch_size": 64, "demonstration_fraction": 0.5}
    replay = Replay(ReplayConfig(**(values | settings)), SPEC, action_dim=1, seed=0)  # type: ignore[arg-type]
    for record_id, body in records:
        replay.add(record_id, body)
    return replay


def drawn_rows(buffer: ReplayBuffer) -> set[Row]:
    """Rows of a draw that misses any one of n with probability exp(-20)."""
    if not len(buffer):
        return set()
    rows = buffer.sample_rows(20 * len(buffer), Noise([0], is_population=False))
    vector, action, reward, next_vector, *flags = buffer.gather(rows)
    return set(rows_of(Batch(EncoderInput(vector), action, reward, EncoderInput(next_vector), *flags)))


mixed_sources = st.lists(st.sampled_from([POLICY, INTERVENTION]), min_size=1, max_size=8).map(tuple)
demonstration_sources = st.integers(1, 5).map(lambda length: (DEMONSTRATION,) * length)
episode_plans = st.builds(
    EpisodePlan,
    sources=mixed_sources | demonstration_sources,
    end=st.sampled_from(["terminated", "truncated", "aborted"]),
    is_restart=st.sampled_from([False, False, True]),
)
all_actors = st.lists(st.lists(episode_plans, max_size=5), min_size=1, max_size=3)
seeds = st.integers(0, 2**16)


@given(all_actors, seeds)
def test_buffers_hold_exactly_the_true_transitions(actors: list[list[EpisodePlan]], order_seed: int) -> None:
    records = write_streams(actors, order_seed)
    replay = fill(records)
    rows = naive_rows(records)
    online = {row for _, source, row in rows if source is not DEMONSTRATION}
    demonstrations = {row for _, source, row in rows if source is not POLICY}
    for buffer, expected in ((replay.online, online), (replay.demonstrations, demonstrations)):
        assert len(buffer) == len(expected)
        assert not expected or drawn_rows(buffer) == expected
    assert replay.num_transitions == len(records)


@given(all_actors, seeds, st.integers(2, 12))
def test_a_full_ring_forgets_the_oldest_and_never_mixes(
    actors: list[list[EpisodePlan]], order_seed: int, capacity: int
) -> None:
    records = write_streams(actors, order_seed)
    replay = fill(records, capacity=capacity)
    # A record takes one row in a buffer, an episode's last one two, so the latest ones of this many still fit.
    room, first_kept = capacity, len(records)
    while first_kept and room >= (needed := 1 + records[first_kept - 1][1].is_last):
        first_kept, room = first_kept - 1, room - needed
    for buffer, absent in ((replay.online, DEMONSTRATION), (replay.demonstrations, POLICY)):
        true_rows = {row for _, source, row in naive_rows(records) if source is not absent}
        kept = {row for index, source, row in naive_rows(records) if source is not absent and index >= first_kept}
        drawn = drawn_rows(buffer) if len(buffer) else set()
        assert kept <= drawn <= true_rows
        assert len(buffer) == len(drawn) < capacity  # a transition needs its next observation's row as well


@given(all_actors, seeds)
def test_same_records_and_seed_give_the_same_batches(actors: list[list[EpisodePlan]], order_seed: int) -> None:
    records = write_streams(actors, order_seed)
    first, again = fill(records), fill(records)
    assume(len(first.online) or len(first.demonstrations))
    for _ in range(3):
        assert rows_of(first.sample()) == rows_of(again.sample())


@dataclass(frozen=True)
class MarkPlan:
    """A mark after the record at `position` (modulo their number): about an episode of the same stream."""

    position: int
    kind: MarkKind
    episodes_back: int
    step: int


mark_plans = st.builds(
    MarkPlan,
    position=st.integers(0, 100),
    kind=st.sampled_from(MarkKind),
    episodes_back=st.sampled_from([0, 0, 1]),
    step=st.integers(0, 6),
)


def with_marks(records: list[Record], plans: list[MarkPlan]) -> list[tuple[RecordId, Recordable]]:
    marked: list[tuple[RecordId, Recordable]] = list(records)
    for plan in plans:
        steps = [index for index, (_, body) in enumerate(marked) if isinstance(body, Transition)]
        if steps:
            index = steps[plan.position % len(steps)]
            record_id, body = marked[index]
            mark = EpisodeMark(
                episode=max(0, body.episode - plan.episodes_back), step=plan.step, kind=plan.kind, wall_time_s=0.0
            )
            marked.insert(index + 1, (record_id, mark))
    return marked


Key = tuple[str, str, int, int]  # actor, incarnation, episode, step


@dataclass
class NaiveRow:
    observation: float
    key: Key | None = None  # None: only somebody's next observation
    action: float = 0.0
    reward: float = 0.0
    is_terminal: bool = False
    is_human: bool = False
    following: "NaiveRow | None" = None


@dataclass
class NaiveReplay:
    """What marks and rings mean, by searching lists. A ring keeps the last `capacity` observations ever written."""

    capacity: int
    buffers: tuple[list[NaiveRow], list[NaiveRow]] = field(default_factory=lambda: ([], []))  # online, demonstrations
    last_steps: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def kept(self, buffer: list[NaiveRow]) -> list[NaiveRow]:
        return buffer[-self.capacity :]

    def find(self, key: Key) -> list[NaiveRow]:
        return [row for buffer in self.buffers for row in self.kept(buffer) if row.key == key]

    def add(self, record_id: RecordId, body: Recordable) -> None:
        episode = (record_id.actor_id, record_id.incarnation, body.episode)
        if isinstance(body, EpisodeMark):
            self.mark(episode, body)
            return
        is_left_out = body.step > self.last_steps.get(episode, body.step)
        for buffer, is_home in zip(self.buffers, (body.source != DEMONSTRATION, body.source != POLICY), strict=True):
            row = NaiveRow(float(body.observation["number"][0]))
            before = [
                other
                for other in self.kept(buffer)
                if other.key == (*episode, body.step - 1) and other.following is None
            ]
            if is_left_out or not is_home:
                if not before:
                    continue
            else:
                row = NaiveRow(
                    row.observation,
                    (*episode, body.step),
                    float(body.executed_action[0]),
                    body.reward,
                    body.terminated,
                    body.is_human,
                )
            buffer.append(row)
            for other in before:
                if any(other is kept for kept in self.kept(buffer)):
                    other.following = row
            if row.key and body.final_observation is not None:
                buffer.append(NaiveRow(float(body.final_observation["number"][0])))
                row.following = buffer[-1]

    def mark(self, episode: tuple[str, str, int], mark: EpisodeMark) -> None:
        about = self.find((*episode, mark.step))
        if mark.kind is MarkKind.DISCARD:
            self.cut(episode, -1)
        for row in about:
            if mark.kind is MarkKind.SUCCESS:
                row.reward, row.is_terminal = 1.0, True
            elif mark.kind is MarkKind.FAILURE:
                row.reward, row.is_terminal = 0.0, False
        if about and mark.kind is MarkKind.SUCCESS:
            self.cut(episode, mark.step)
        if about and mark.kind is MarkKind.FAILURE and self.last_steps.get(episode) == mark.step:
            del self.last_steps[episode]

    def cut(self, episode: tuple[str, str, int], last_step: int) -> None:
        self.last_steps[episode] = last_step
        for row in (row for buffer in self.buffers for row in buffer):
            if row.key and row.key[:3] == episode and row.key[3] > last_step:
                row.key = None

    def rows(self, buffer: list[NaiveRow]) -> set[Row]:
        return {
            (row.observation, row.action, row.reward, row.following.observation, row.is_terminal, row.is_human)
            for row in self.kept(buffer)
            if row.key and row.following
        }


@given(all_actors, seeds, st.lists(mark_plans, max_size=6), st.sampled_from([3, 7, 12, 4096]))
def test_marks_and_rings_of_any_size_mean_what_a_list_makes_of_them(
    actors: list[list[EpisodePlan]], order_seed: int, plans: list[MarkPlan], capacity: int
) -> None:
    records = with_marks(write_streams(actors, order_seed), plans)
    naive = NaiveReplay(capacity)
    for record_id, body in records:
        naive.add(record_id, body)
    replay = fill(records, capacity=capacity)
    for buffer, rows in zip((replay.online, replay.demonstrations), naive.buffers, strict=True):
        expected = naive.rows(rows)
        assert len(buffer) == len(expected)
        assert drawn_rows(buffer) == expected


@given(all_actors, seeds, st.lists(mark_plans, max_size=4), st.sampled_from([7, 4096]))
def test_batches_follow_from_records_and_random_state_whatever_was_drawn_before(
    actors: list[list[EpisodePlan]], order_seed: int, plans: list[MarkPlan], capacity: int
) -> None:
    records = with_marks(write_streams(actors, order_seed), plans)
    at_once, in_parts = fill(records, capacity=capacity), fill([], capacity=capacity)
    for record_id, body in records:
        in_parts.add(record_id, body)
        if len(in_parts.online) or len(in_parts.demonstrations):
            in_parts.sample()
    assume(len(at_once.online) or len(at_once.demonstrations))
    in_parts.noise.generators[0].set_state(at_once.noise.generators[0].get_state())
    assert rows_of(in_parts.sample()) == rows_of(at_once.sample())


@given(st.integers(1, 200), st.lists(st.tuples(st.booleans(), st.integers(0, 199)), max_size=300))
def test_ranks_in_a_row_set_are_those_of_the_sorted_members(capacity: int, changes: list[tuple[bool, int]]) -> None:
    rows, members = RowSet(capacity, torch.device("cpu")), set[int]()
    for is_added, row in changes:
        (rows.add if is_added else rows.discard)(row % capacity)
        (members.add if is_added else members.discard)(row % capacity)
    assert len(rows) == len(members)
    assert rows.at(torch.arange(len(members))).tolist() == sorted(members)


def episode(sources: tuple[ActionSource, ...], end: str = "truncated", actor: str = "robot") -> list[Record]:
    stream = (actor, "incarnation")
    last = len(sources) - 1
    return [
        make_record(stream, step, 0, step, 100 + step, source, end if step == last else "")
        for step, source in enumerate(sources)
    ]


def test_a_missing_step_leaves_a_gap_and_no_false_transition() -> None:
    records = episode((POLICY,) * 5)
    del records[2]
    numbers = sorted(round(row[0] / UNIT) for row in drawn_rows(fill(records).online))
    assert numbers == [100, 103, 104]  # 101 waits for the step that was lost


def test_a_step_whose_row_the_ring_reached_again_is_forgotten() -> None:
    """Three rows: two of another actor come between the robot's two steps, so the second overwrites the first."""
    (robot_first, robot_second), others = episode((POLICY,) * 2, "aborted"), episode((POLICY,) * 2, "aborted", "other")
    replay = fill([robot_first, *others, robot_second], capacity=3)
    assert {(row[0] / UNIT, row[3] / UNIT) for row in drawn_rows(replay.online)} == {(100, 101)}
    assert len(replay.online) == 1


def test_an_intervention_is_in_both_buffers_with_the_next_observation_of_the_policy_step() -> None:
    replay = fill(episode((POLICY, INTERVENTION, INTERVENTION, POLICY)))
    assert sorted(row[0] / UNIT for row in drawn_rows(replay.online)) == [100, 101, 102, 103]
    human = {(row[0] / UNIT, row[3] / UNIT, row[5]) for row in drawn_rows(replay.demonstrations)}
    assert human == {(101, 102, True), (102, 103, True)}
    flags = {row[0] / UNIT: row[5] for row in drawn_rows(replay.online)}
    assert flags == {100: False, 101: True, 102: True, 103: False}


@pytest.mark.parametrize(("timeout_bootstrap", "expected"), [(True, False), (False, True)])
def test_time_limits_bootstrap_unless_told_otherwise(timeout_bootstrap: bool, expected: bool) -> None:
    replay = fill(episode((POLICY,) * 3), timeout_bootstrap=timeout_bootstrap)
    terminal = {row[0] / UNIT: row[4] for row in drawn_rows(replay.online)}
    assert terminal == {100: False, 101: False, 102: expected}


@pytest.mark.parametrize("timeout_bootstrap", [False, True])
def test_a_finished_task_never_bootstraps(timeout_bootstrap: bool) -> None:
    replay = fill(episode((POLICY,) * 2, "terminated"), timeout_bootstrap=timeout_bootstrap)
    assert {row[0] / UNIT: row[4] for row in drawn_rows(replay.online)} == {100: False, 101: True}


def test_rewards_are_scaled() -> None:
    batch = fill(episode((POLICY,) * 4), reward_scale=10.0).sample()
    torch.testing.assert_close(batch.reward, 10 * batch.observation.vector[:, 0])


def test_actions_are_the_executed_ones() -> None:
    batch = fill(episode((POLICY, INTERVENTION))).sample()
    assert batch.action.min() > 0  # the proposed ones are -1 throughout


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 32), (0.25, 16), (0.0, 0), (1.0, 64)])
def test_a_batch_holds_the_configured_share_of_demonstrations(fraction: float, expected: int) -> None:
    records = episode((POLICY,) * 9) + episode((DEMONSTRATION,) * 3, actor="operator")
    batch = fill(records, demonstration_fraction=fraction).sample()
    assert len(batch.reward) == 64
    assert int(batch.is_human.sum()) == expected


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("source", "is_human"), [(POLICY, False), (DEMONSTRATION, True)])
def test_an_empty_buffer_leaves_its_share_to_the_other(fraction: float, source: ActionSource, is_human: bool) -> None:
    batch = fill(episode((source,) * 4), demonstration_fraction=fraction).sample()
    assert len(batch.reward) == 64
    assert bool((batch.is_human == is_human).all())


def test_ready_once_enough_steps_are_in_and_one_of_them_is_a_transition() -> None:
    first, *rest = episode((POLICY,) * 5)
    replay = fill([first], training_starts=3)
    ready = [replay.is_ready()]
    for record_id, transition in rest:
        replay.add(record_id, transition)
        ready.append(replay.is_ready())
    assert ready == [False, False, True, True, True]
    assert not fill([first], training_starts=1).is_ready()  # its next observation is unknown


def test_features_are_normalised_and_batches_are_float32() -> None:
    spec = ObservationSpec((Field(name="number", unit="m", low=(0.0,), high=(0.5,), fine_scale=0.1),))
    replay = Replay(ReplayConfig(capacity=8, batch_size=4), spec, action_dim=1, seed=0)
    for record_id, transition in episode((POLICY,)):
        replay.add(record_id, transition)
    batch = replay.sample()
    now, final = 100 * UNIT, -100 * UNIT
    torch.testing.assert_close(
        batch.observation.vector[0], torch.tensor([4 * now - 1, np.tanh(10 * now)], dtype=torch.float32)
    )
    # -1.39 lies within the range of 1.5 that values beyond the bounds keep.
    torch.testing.assert_close(
        batch.next_observation.vector[0], torch.tensor([4 * final - 1, np.tanh(10 * final)], dtype=torch.float32)
    )
    columns = (batch.observation.vector, batch.action, batch.reward, batch.next_observation.vector, batch.is_terminal)
    assert {column.dtype for column in columns} == {torch.float32}
    assert batch.is_human.dtype == torch.bool


def mark(kind: MarkKind, step: int, episode: int = 0) -> tuple[RecordId, EpisodeMark]:
    return RecordId("robot", "incarnation", 99), EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=0.0)


def numbers(buffer: ReplayBuffer) -> list[float]:
    return sorted(row[0] / UNIT for row in drawn_rows(buffer))


def test_a_discarded_episode_is_gone_from_both_buffers_with_what_is_still_to_come() -> None:
    steps = episode((POLICY, INTERVENTION, POLICY, INTERVENTION, POLICY))
    replay = fill([*steps[:3], mark(MarkKind.DISCARD, 2), *steps[3:]])  # step 2 was open
    assert numbers(replay.online) == numbers(replay.demonstrations) == []
    assert replay.num_transitions == 5


def test_success_ends_the_episode_there() -> None:
    steps = episode((POLICY, POLICY, INTERVENTION, POLICY, POLICY))
    replay = fill([*steps[:4], mark(MarkKind.SUCCESS, 2), *steps[4:]], reward_scale=10.0)
    rows = {round(row[0] / UNIT): row for row in drawn_rows(replay.online)}
    assert sorted(rows) == [100, 101, 102]
    _, _, reward, following, is_terminal, _ = rows[102]
    assert (reward, following, is_terminal) == (10.0, 103 * UNIT, True)
    assert not rows[101][4]
    assert drawn_rows(replay.demonstrations) == {rows[102]}


def test_success_of_the_step_that_was_just_recorded_counts_once_its_next_observation_is_here() -> None:
    steps = episode((POLICY,) * 4)
    replay = fill([*steps[:2], mark(MarkKind.SUCCESS, 1)])
    assert numbers(replay.online) == [100]
    for record_id, step in steps[2:]:
        replay.add(record_id, step)
    rows = {round(row[0] / UNIT): row for row in drawn_rows(replay.online)}
    assert sorted(rows) == [100, 101]
    assert rows[101][2:5] == (1.0, 102 * UNIT, True)


@pytest.mark.parametrize(("timeout_bootstrap", "is_terminal"), [(True, False), (False, True)])
def test_a_vetoed_success_is_truncated(timeout_bootstrap: bool, is_terminal: bool) -> None:
    steps = episode((POLICY,) * 3, "terminated")
    replay = fill([*steps, mark(MarkKind.FAILURE, 2)], timeout_bootstrap=timeout_bootstrap)
    rows = {round(row[0] / UNIT): row for row in drawn_rows(replay.online)}
    assert rows[102][2:5] == (0.0, -102 * UNIT, is_terminal)


def test_a_success_that_is_taken_back_lets_later_steps_in_again() -> None:
    steps = episode((POLICY,) * 6)
    replay = fill(
        [*steps[:3], mark(MarkKind.SUCCESS, 1), steps[3], mark(MarkKind.FAILURE, 1), *steps[4:]], reward_scale=10.0
    )
    rows = {round(row[0] / UNIT): row for row in drawn_rows(replay.online)}
    assert sorted(rows) == [100, 101, 104, 105]
    assert rows[101][2:5] == (0.0, 102 * UNIT, False)


@pytest.mark.parametrize("kind", MarkKind)
def test_a_mark_about_a_step_that_is_not_here_changes_nothing_and_is_logged(
    kind: MarkKind, caplog: pytest.LogCaptureFixture
) -> None:
    steps = episode((POLICY,) * 3)
    with caplog.at_level(logging.INFO):
        replay = fill([*steps, mark(kind, 1, episode=7)])
    assert drawn_rows(replay.online) == drawn_rows(fill(steps).online)
    assert ("changes nothing here" in caplog.text) == (kind not in (MarkKind.BOOKMARK, MarkKind.ABORTED))


def test_a_mark_about_an_evicted_step_changes_nothing() -> None:
    """Three rows: the final observation takes that of step 0."""
    steps = episode((POLICY,) * 3)
    replay = fill([*steps, mark(MarkKind.SUCCESS, 0)], capacity=3)
    assert drawn_rows(replay.online) == drawn_rows(fill(steps, capacity=3).online)
    assert numbers(replay.online) == [101, 102]
