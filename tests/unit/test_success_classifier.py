"""The success classifier and its making: labels from verdicts and marks, the split, the figures, and files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.config import ClassifierConfig
from learner.reward_classifier.drift import num_corrections, usage
from learner.reward_classifier.examples import (
    EpisodeIndex,
    EpisodeKey,
    EpisodeRecord,
    Frame,
    Labels,
    TooFewExamplesError,
    gather_examples,
    label_episode,
    split_episodes,
)
from learner.reward_classifier.frames import EncodedFrames, random_shift
from learner.reward_classifier.metrics import confusion, roc_curve
from learner.reward_classifier.training import fit, make_classifier
from policy.config import PolicyConfig
from policy.encoder import EncoderInput
from policy.errors import ConfigError, WeightsError
from policy.resnet import MAP_CHANNELS
from policy.spec import ImageField, ObservationSpec, Specs
from policy.success_classifier import load_classifier, read_manifest, save_classifier
from policy.transition import MarkKind, Recordable
from tests.success_episodes import POLICY, SPECS, entries, episode, judged_by_task, mark

CONFIG = ClassifierConfig(min_positives=3, reaction_steps=1, held_frames=1)
CAMERA_SPECS = Specs(
    ObservationSpec(SPECS.observation.fields, (ImageField(name="wrist", height=64, width=64),)), SPECS.action
)
CAMERA_POLICY = PolicyConfig(encoder="resnet10", encoder_weights="random", image_feature_dim=8, spatial_blocks=2)


def indexed(bodies: Sequence[Recordable]) -> EpisodeIndex:
    index = EpisodeIndex()
    for entry in entries(bodies):
        index.add(entry)
    return index


def only_episode(bodies: Sequence[Recordable]) -> EpisodeRecord:
    (record,) = indexed(bodies).episodes.values()
    return record


def steps_of(frames: Sequence[Frame]) -> list[int]:
    """Return which step each frame comes after, for an episode of 4 steps at the beginning of a log."""
    return [3 if frame.is_final else frame.position - 2 for frame in frames]


XS = [0.0, 0.1, 0.2, 0.3, 0.9]  # what is seen before step 0, and after steps 0 to 3
FAILURE, SUCCESS, DISCARD, BOOKMARK = MarkKind.FAILURE, MarkKind.SUCCESS, MarkKind.DISCARD, MarkKind.BOOKMARK


@pytest.mark.parametrize(
    ("source", "success", "marks", "positives", "negatives", "hard"),
    [
        ("task", True, [], [3], [-1, 0, 1, 2], []),
        ("task", False, [], [], [-1, 0, 1, 2, 3], []),
        ("human", True, [], [3], [-1, 0, 1], []),  # the key came later than the eye: step 2 says nothing
        ("classifier", True, [], [], [-1, 0, 1], []),  # nobody confirmed the claim: it teaches nothing
        ("classifier", True, [(3, SUCCESS)], [3], [-1, 0, 1], []),
        ("classifier", True, [(3, FAILURE)], [], [-1, 0, 1, 2], [3]),  # a veto
        ("classifier", False, [], [], [-1, 0, 1, 2, 3], []),
        ("classifier", False, [(3, SUCCESS)], [3], [-1, 0, 1], []),  # a miss
        ("classifier", False, [(1, SUCCESS)], [1], [-1], []),  # afterwards it may have lasted
        ("task", True, [(3, FAILURE)], [], [-1, 0, 1, 2], [3]),
        ("task", True, [(3, FAILURE), (3, SUCCESS)], [3], [-1, 0, 1], []),  # the later mark counts
        ("task", True, [(3, BOOKMARK)], [3], [-1, 0, 1, 2], []),
        ("task", True, [(3, DISCARD)], [], [], []),
    ],
)
def test_labels_follow_verdicts_and_marks(
    source: str,
    success: bool,
    marks: list[tuple[int, MarkKind]],
    positives: list[int],
    negatives: list[int],
    hard: list[int],
) -> None:
    bodies: list[Recordable] = [*episode(0, XS, success=success, source=source)]
    bodies += [mark(0, step, kind) for step, kind in marks]
    labels = label_episode(only_episode(bodies), CONFIG)
    assert steps_of(labels.positives) == positives
    assert steps_of(labels.negatives) == negatives
    assert steps_of(labels.hard_negatives) == hard


def test_frames_of_held_success_are_examples_of_it() -> None:
    sources = ["task", "task:held", "task:held", "task"]
    labels = label_episode(only_episode(episode(0, XS, success=True, sources=sources)), CONFIG)
    assert (steps_of(labels.positives), steps_of(labels.negatives)) == ([1, 2, 3], [-1, 0])
    declared = only_episode(episode(0, XS, success=True, source="human"))
    labels = label_episode(declared, replace(CONFIG, held_frames=2))
    assert (steps_of(labels.positives), steps_of(labels.negatives)) == ([2, 3], [-1, 0])


def test_an_episode_that_is_not_over_says_nothing() -> None:
    assert label_episode(only_episode(episode(0, XS, success=True)[:-1]), CONFIG) == Labels()


def frame(number: int) -> Frame:
    return Frame(0, number, False)


def labels_of(positives: int, negatives: int, hard: int = 0, first: int = 0) -> Labels:
    numbers = iter(range(first, first + positives + negatives + hard))
    counts = (positives, negatives, hard)
    return Labels(*(tuple(frame(next(numbers)) for _ in range(count)) for count in counts))


def key(number: int) -> EpisodeKey:
    return EpisodeKey("robot", "first", number)


def test_the_split_is_by_episode_keeps_earlier_decisions_and_trains_on_vetoes() -> None:
    labels = {key(number): labels_of(number % 2, 5) for number in range(40)}
    split = split_episodes(labels, {}, 0.2)
    held_out = [number for number in range(40) if split[key(number)]]
    assert len(held_out) == 8
    assert sum(number % 2 for number in held_out) == 4  # as many with success as without

    labels |= {key(number): labels_of(1, 5) for number in range(40, 60)}
    labels[key(held_out[0])] = labels_of(0, 4, hard=1)
    labels[key(60)] = Labels()
    later = split_episodes(labels, split, 0.2)
    assert key(60) not in later
    changed = [number for number in range(40) if later[key(number)] != split[key(number)]]
    assert changed == [held_out[0]]
    assert not later[key(held_out[0])]


def test_no_frame_is_on_both_sides() -> None:
    index = indexed(judged_by_task(0, 40))
    labels = {key: label_episode(record, CONFIG) for key, record in index.episodes.items()}
    split = split_episodes(labels, {}, CONFIG.held_out_fraction)
    training, held_out = gather_examples(labels, split, CONFIG)
    sides = [{*side.positives, *side.negatives} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert len(training.negatives) == 3 * len(training.positives)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "0 training frames of success, needed 3"),
        ({key(n): labels_of(1, 0) for n in range(20)}, "0 training frames without success, needed 3"),
        ({key(n): labels_of(0, 5) for n in range(20)}, "0 training frames of success, needed 3"),
        ({key(n): labels_of(1, 5) for n in range(4)}, "0 held-out frames of success"),  # too few to spare one
    ],
)
def test_one_sided_or_too_few_examples_are_refused_with_what_to_record(
    labels: dict[EpisodeKey, Labels], message: str
) -> None:
    with pytest.raises(TooFewExamplesError, match=message) as refused:
        gather_examples(labels, split_episodes(labels, {}, 0.2), CONFIG)
    assert "Record demonstrations that end in success" in str(refused.value)


def test_roc_and_confusion_agree_with_a_hand_calculation() -> None:
    probability = np.array([0.9, 0.8, 0.8, 0.6, 0.3, 0.1])
    is_success = np.array([True, True, False, True, False, False])
    roc = roc_curve(probability, is_success)
    # From the strictest threshold: above all, 0.9, 0.8 (one of each), 0.6, 0.3, 0.1.
    np.testing.assert_allclose(roc.true_positive_rates, [0, 1 / 3, 2 / 3, 1, 1, 1])
    np.testing.assert_allclose(roc.false_positive_rates, [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    # Of the 9 pairs of a success and another frame 7 are in order and one is a tie.
    assert roc.auc == pytest.approx(7.5 / 9)

    found = confusion(probability, is_success, threshold=0.8)
    counts = (found.true_positives, found.false_positives, found.true_negatives, found.false_negatives)
    assert counts == (2, 1, 2, 1)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.precision == found.recall == pytest.approx(2 / 3)
    assert found.false_positive_rate == pytest.approx(1 / 3)
    assert confusion(probability, np.zeros(6, bool), 0.95).precision is None


def test_drift_compares_verdicts_with_marks() -> None:
    bodies: list[Recordable] = []
    for number in range(4):  # the first two are claimed
        bodies += episode(number, XS, success=number < 2, source="classifier")
    bodies += episode(4, XS, success=True, sources=["classifier", "classifier", "classifier", "human"])
    bodies += episode(5, XS, success=True, source="task")
    assert usage(indexed(bodies).episodes.values(), latest=10).agreement == pytest.approx(4 / 5)  # episode 4: a miss
    assert num_corrections(indexed(bodies).episodes.values()) == 1
    bodies += [mark(1, 3, FAILURE), mark(2, 3, SUCCESS), mark(5, 3, FAILURE)]
    records = indexed(bodies).episodes.values()
    present = usage(records, latest=10)
    assert (present.episodes, present.vetoes, present.misses) == (5, 1, 2)
    assert present.agreement == pytest.approx(2 / 5)
    assert present.confusion.false_positive_rate == pytest.approx(1 / 2)
    assert usage(records, latest=3).misses == 2
    assert num_corrections(records) == 3


def test_a_shift_moves_the_image_and_repeats_its_edge() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rows = np.arange(8)
    expected = {
        (down, right): image[np.clip(rows + down, 0, 7)][:, np.clip(rows + right, 0, 7)]
        for down in range(-2, 3)
        for right in range(-2, 3)
    }
    rng = np.random.default_rng(1)
    found = set()
    for _ in range(200):
        shifted = random_shift(image, 2, rng)
        found |= {shift for shift, candidate in expected.items() if np.array_equal(candidate, shifted)}
        assert any(np.array_equal(candidate, shifted) for candidate in expected.values())
    assert len(found) == 25


def random_maps(count: int, seed: int = 0) -> EncodedFrames:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 2, MAP_CHANNELS, 2, 2, generator=generator).half()
    return EncodedFrames(torch.zeros(count, SPECS.observation.vector_dim), (maps,))


def test_training_is_repeatable_and_learns_where_something_is() -> None:
    """The two kinds differ in the place of one strong activation, which pooling would lose."""
    left, right = random_maps(40, 1), random_maps(40, 2)
    left.maps[0][:, :, 7, 0, 0] += 20
    right.maps[0][:, :, 7, 1, 1] += 20
    config = replace(CONFIG, frames_per_batch=32, learning_rate=1e-3)
    runs = []
    for _ in range(2):
        classifier = make_classifier(CAMERA_SPECS, CAMERA_POLICY, 0.5, seed=3)
        fit(classifier, left, right, random_maps(0), config, batches=40, seed=4, device="cpu")
        runs.append(classifier)
    for first, second in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(first, second)
    for frames, is_left in ((left, True), (right, False)):
        judged = runs[0].probability(frames.originals(slice(None), "cpu"))
        assert ((judged > 0.5) == is_left).all()


def test_a_saved_classifier_comes_back_to_the_bit_and_only_for_its_inputs(tmp_path: Path) -> None:
    classifier = make_classifier(CAMERA_SPECS, CAMERA_POLICY, 0.9, seed=1)
    save_classifier(tmp_path, classifier, CAMERA_SPECS, CAMERA_POLICY, 1, metrics={"accuracy": 0.5})
    seen = EncoderInput(torch.zeros(3, 4), (torch.randn(3, MAP_CHANNELS, 2, 2),))
    loaded, manifest = load_classifier(tmp_path, CAMERA_SPECS, CAMERA_POLICY)
    assert torch.equal(loaded.probability(seen), classifier.probability(seen))
    assert float(loaded.threshold) == pytest.approx(0.9)
    assert manifest.metrics == {"accuracy": 0.5}

    other_camera = ObservationSpec(SPECS.observation.fields, (ImageField(name="wrist", height=96, width=64),))
    with pytest.raises(ConfigError, match=r"images: trained with .*'height': 64.*here .*'height': 96"):
        load_classifier(tmp_path, Specs(other_camera, SPECS.action), CAMERA_POLICY)
    with pytest.raises(ConfigError, match="encoder_weights: trained with random"):
        load_classifier(tmp_path, CAMERA_SPECS, replace(CAMERA_POLICY, encoder_weights="0" * 64))
    with pytest.raises(ConfigError, match="fields: trained with None"):
        load_classifier(tmp_path, CAMERA_SPECS, replace(CAMERA_POLICY, success_classifier_vector=True))


def test_a_damaged_classifier_is_refused_and_a_torn_update_is_not_seen(tmp_path: Path) -> None:
    classifier = make_classifier(SPECS, POLICY, 0.9, seed=1)
    first = save_classifier(tmp_path, classifier, SPECS, POLICY, 1)
    (tmp_path / "000002.safetensors").write_bytes(b"the writer died before the manifest")
    assert load_classifier(tmp_path, SPECS, POLICY)[1] == first
    data = bytearray((tmp_path / first.file).read_bytes())
    data[-1] ^= 1
    (tmp_path / first.file).write_bytes(data)
    with pytest.raises(WeightsError, match="corrupt"):
        load_classifier(tmp_path, SPECS, POLICY)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(WeightsError, match="no manifest"):
        read_manifest(tmp_path)
