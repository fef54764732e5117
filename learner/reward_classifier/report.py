"""What a trained classifier is worth, for people: report.md, report.json and plots beside its weights."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from learner.config import ClassifierConfig
from learner.reward_classifier.examples import PEERS_POSITIVES, Frame
from learner.reward_classifier.frames import FrameStore
from learner.reward_classifier.training import Judged, Trained
from policy.files import replace_durably
from policy.image_codec import CodedImage
from policy.spec import Observation
from policy.success_classifier import ClassifierManifest

_MISTAKES = 12  # held-out frames that are shown

logger = logging.getLogger(__name__)


def write_report(
    folder: Path, manifest: ClassifierManifest, trained: Trained, store: FrameStore, config: ClassifierConfig
) -> None:
    """Write the report of one version; without matplotlib there are no plots, and the report says so."""
    mistakes = find_mistakes(trained.judged, manifest.threshold)
    if importlib.util.find_spec("matplotlib") is not None:
        _plot(folder, trained.judged, manifest)
        _plot_mistakes(folder, [(store.observation(frame), frame, value) for frame, value in mistakes[:_MISTAKES]])
    else:
        logger.warning("no plots: matplotlib is not installed. It comes with: pip install -e '.[sim]'")
    replace_durably(folder / "report.json", json.dumps(_report_values(manifest, trained, mistakes), indent=1).encode())
    replace_durably(folder / "report.md", _markdown(folder, manifest, trained, config).encode())


def find_mistakes(judged: Judged, threshold: float) -> list[tuple[Frame, float]]:
    """Return the held-out frames on the wrong side of the threshold with their probabilities, worst first."""
    wrong = np.flatnonzero((judged.probability >= threshold) != judged.is_success)
    by_error = wrong[np.argsort(-np.abs(judged.probability[wrong] - judged.is_success[wrong]))]
    return [(judged.frames[row], float(judged.probability[row])) for row in by_error]


def _report_values(
    manifest: ClassifierManifest, trained: Trained, mistakes: list[tuple[Frame, float]]
) -> dict[str, Any]:
    roc = trained.judged.roc
    return {
        "version": manifest.version,
        "threshold": manifest.threshold,
        "counts": trained.counts,
        "held_out": trained.metrics,
        "roc": {
            "thresholds": [float(value) if np.isfinite(value) else None for value in roc.thresholds],
            "false_positive_rates": roc.false_positive_rates.tolist(),
            "true_positive_rates": roc.true_positive_rates.tolist(),
        },
        "mistakes": [{**frame._asdict(), "probability": value} for frame, value in mistakes],
        "losses": trained.losses,
    }


def _markdown(folder: Path, manifest: ClassifierManifest, trained: Trained, config: ClassifierConfig) -> str:
    training, held_out, judged = trained.training, trained.held_out, trained.judged
    found = judged.confusion
    lines = [
        f"# Success classifier, version {manifest.version}",
        "",
        f"Tested on {found.total} frames of {held_out.episodes} episodes that it was not trained on, "
        f"{held_out.success_episodes} of them with success.",
        "",
        "| held-out figure | value |",
        "| --- | --- |",
        f"| accuracy | {_percent(found.accuracy)} ({found.true_positives + found.true_negatives} of {found.total}) |",
        f"| balanced accuracy | {_percent(found.balanced_accuracy)} |",
        f"| precision at threshold {manifest.threshold:.2f} | {_percent(found.precision)} |",
        f"| recall at threshold {manifest.threshold:.2f} | {_percent(found.recall)} |",
        f"| area under the ROC curve | {judged.roc.auc:.4f} |",
        "",
        "| shows | said success | said no success |",
        "| --- | --- | --- |",
        f"| success | {found.true_positives} | {found.false_negatives} |",
        f"| no success | {found.false_positives} | {found.true_negatives} |",
        "",
        f"Trained on {len(training.positives)} frames of success, {len(training.negatives)} without and "
        f"{len(training.hard_negatives)} vetoed ones, of {training.episodes} episodes ({training.success_episodes} "
        f"with success), in {len(trained.losses)} batches of {config.frames_per_batch}.",
    ]
    if len(training.positives) < PEERS_POSITIVES:
        lines += ["", f"Fewer than the usual {PEERS_POSITIVES} frames of success: record more before relying on it."]
    if not (folder / "roc.png").exists():
        lines += ["", "No plots: matplotlib is not installed (`pip install -e '.[sim]'`)."]
    pictures = {"roc.png": "ROC curve and confusion matrix", "mistakes.png": "Held-out mistakes, worst first"}
    for name, caption in pictures.items():
        if (folder / name).exists():
            lines += ["", f"![{caption}]({name})"]
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _plot(folder: Path, judged: Judged, manifest: ClassifierManifest) -> None:
    plt = _pyplot()
    found = judged.confusion
    figure, (roc_axes, matrix_axes) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    roc_axes.plot(judged.roc.false_positive_rates, judged.roc.true_positive_rates, label=f"AUC {judged.roc.auc:.4f}")
    if found.false_positive_rate is not None and found.recall is not None:
        label = f"threshold {manifest.threshold:.2f}"
        roc_axes.plot(found.false_positive_rate, found.recall, "o", label=label)
    roc_axes.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    roc_axes.set(xlabel="false positive rate", ylabel="true positive rate", title="held-out frames")
    roc_axes.legend(loc="lower right")
    counts = np.array([[found.true_positives, found.false_negatives], [found.false_positives, found.true_negatives]])
    shares = counts / counts.sum(axis=1, keepdims=True)
    matrix_axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        matrix_axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=14)
    matrix_axes.set_xticks([0, 1], ["said success", "said no"])
    matrix_axes.set_yticks([0, 1], ["success", "no success"])
    matrix_axes.set_title("confusion, frames")
    figure.savefig(folder / "roc.png", dpi=110)
    plt.close(figure)


def _plot_mistakes(folder: Path, mistakes: list[tuple[Observation, Frame, float]]) -> None:
    """Show what the cameras saw, one column per mistake."""
    path = folder / "mistakes.png"
    path.unlink(missing_ok=True)
    columns = [[value.pixels for value in seen.values() if isinstance(value, CodedImage)] for seen, _, _ in mistakes]
    if not any(columns):
        return
    plt = _pyplot()
    size = (2 * len(columns), 2 * len(columns[0]) + 0.5)
    figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, layout="constrained")
    for axis, images, (_, frame, probability) in zip(axes[0], columns, mistakes, strict=True):
        axis.imshow(np.concatenate(images))
        axis.set_title(f"record {frame.position}\nsaid {probability:.2f}", fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
