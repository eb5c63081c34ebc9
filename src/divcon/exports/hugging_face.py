"""Export to a folder for the Hugging Face Hub: weights, configuration, preprocessing, model card; and pushing it."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from divcon.config.files import as_yaml
from divcon.config.settings import SECTION_OF, RunConfig
from divcon.errors import ConfigError, DataError, OutputError
from divcon.evaluation.baselines import BASELINES
from divcon.evaluation.compare import read_scores
from divcon.evaluation.metrics import Score, queries_in_words
from divcon.evaluation.threshold import THRESHOLD
from divcon.exports.program import Embedder, check_equal
from divcon.models import EmbeddingModel, keep_learner
from divcon.models.card import (
    METRICS,
    TO_FILL_IN,
    backbone_origin,
    closing,
    code,
    header,
    introduction,
    numbers,
    table,
    use,
)
from divcon.models.embedding_model import own_backbone, own_transform
from divcon.models.folder import model_folder
from divcon.runs.embedding import read_record
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.selection import reason
from divcon.runtime.copies import send_rest
from divcon.runtime.places import text_of

_NEEDED = ("recall_at_1", "benchmark", "protocol", "split_hash", "num_queries", "num_gallery", "num_classes")


def write_folder(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    run: str | Path | None,
    scores: str | Path | None,
    repo_id: str | None = None,
) -> tuple[float, int]:
    """Write the folder next to ``out``, and rename it once `EmbeddingModel.load` gives the model's embeddings.

    The folder holds no path of the run or its data.

    Args:
        repo_id: the name of the repository that it is to be pushed to, for the card.

    Returns:
        The largest difference from the model's embeddings, and the number of places to fill in in the card.

    Raises:
        ConfigError, OutputError, DataError: as `divcon.exports.export`.
    """
    folder = None if run is None else RunFolder(run)
    exported = model if learner is None else keep_learner(model, learner)
    of_test = _scores_of(scores, learner) if scores is not None else _own_scores(folder, learner)
    card = model_card(out.absolute().name, exported, about, folder, of_test, repo_id)
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            new = Path(beside, target.name)
            exported.save_pretrained(new, card=card)
            if run is not None and learner is None and (known := model_folder(run) / THRESHOLD).exists():
                shutil.copyfile(known, new / THRESHOLD)
            difference = check_equal(model, learner, Embedder(_loaded(new, exported), None), out)
            if target.exists():
                target.rmdir()
            new.replace(target)
            send_rest(target)
    except OSError as error:
        raise OutputError(f"{text_of(out)}: cannot be written ({error.strerror or error})") from error
    return difference, card.count(TO_FILL_IN)


def _loaded(folder: Path, model: EmbeddingModel) -> EmbeddingModel:
    """The model in the folder that ``model`` was saved to, whose own code is imported already."""
    own: Any = {"backbone": copy.deepcopy(own_backbone(model)), "eval_transform": own_transform(model)}
    return EmbeddingModel.load(folder, trust=True, **own)


def _scores_of(path: str | Path, learner: int | None) -> dict[str, Any]:
    """The scores of the full embedding, or of a learner's."""
    scores = read_scores(path)
    missing = [name for name in _NEEDED if name not in scores]
    if missing:
        raise DataError(f"{path}: holds no {' and no '.join(missing)}; use the JSON of divcon evaluate --json")
    if learner is None:
        return scores
    alone = scores.get("learners")
    if not isinstance(alone, list) or learner >= len(alone):
        raise ConfigError(
            f"`scores` {path}: no scores of learner {learner} alone; use the JSON of divcon evaluate --parts --json",
            field="scores",
        )
    return {**{name: scores[name] for name in _NEEDED}, **alone[learner]}


def _own_scores(run: RunFolder | None, learner: int | None) -> dict[str, Any] | None:
    """The test scores that a run keeps of the model that it keeps (``divcon evaluate RUN``)."""
    if run is None or learner is not None or run.read() is None:
        return None
    record = read_record(run.model)
    scores = run.test_scores_of(kept_epoch(run.lines()), None if record is None else record["chosen"])
    return scores if scores is not None and all(name in scores for name in _NEEDED) else None


def model_card(
    name: str,
    model: EmbeddingModel,
    about: dict[str, Any],
    run: RunFolder | None,
    scores: dict[str, Any] | None,
    repo_id: str | None = None,
) -> str:
    """The model card: Markdown after a header in YAML, as the Hugging Face Hub reads it.

    Args:
        name: of the model.
        model: the model in the folder.
        about: see `divcon.exports.program.about_model`.
        run: the folder of the model's run.
        scores: on test classes, by ``divcon evaluate --json``.
        repo_id: the name of its repository; None: it is a folder.
    """
    trained = None if run is None else run.origin()
    origin = backbone_origin(model, trained)
    sections = [
        header(name, model, origin, scores),
        f"# {name}\n\n{introduction(model, about['learner'])}",
        f"## Use\n\n{use(model, repo_id)}",
        f"## Data\n\n{_data(about, run, trained)}",
        f"## Scores\n\n{_scores(about, run, scores)}",
        f"## Training\n\n{_training(trained)}",
        *closing(model, origin),
    ]
    return "\n\n".join(sections) + "\n"


def _data(about: dict[str, Any], run: RunFolder | None, trained: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if run is None or trained is None:
        return f"**{TO_FILL_IN}:** the data it was trained on."
    classes = json.loads(run.classes.read_text()) if run.classes.exists() else {}
    counts = [f"{len(classes[name]):,} {name} classes" for name in ("train", "validation") if classes.get(name)]
    test = [("test protocol", code(about["protocol"])), ("hash of the test split", code(about["split_hash"]))]
    if trained[0].data.train_on == "all":
        counts, test = [f"all {len(classes.get('train', ())):,} classes, those of test too"], []
    return (
        table([("benchmark", code(about["benchmark"])), ("trained on", ", ".join(counts) or "unknown"), *test])
        + f"\n\n**{TO_FILL_IN}:** where the data comes from, and what it shows."
    )


def _scores(about: dict[str, Any], run: RunFolder | None, scores: dict[str, Any] | None) -> str:
    texts = []
    origin = None if run is None else run.origin()
    for_use = origin is not None and origin[0].data.train_on == "all"
    if for_use:
        texts.append(
            "Trained on all classes of its data, those of test too, for use: it has no test score of its own. It has "
            "the settings and the length of another run, which was trained without the test classes: that run's score "
            "says what to expect."
            if origin is not None and origin[1].get("like")
            else "Trained on all classes of its data, those of test too, for use: it has no test score of its own."
        )
    if scores is not None:
        if scores.get("trained_on_test"):
            texts.append("The model was trained on these test classes, so that these are no scores of a test.")
        own = about["split_hash"]
        of = (
            ""
            if own is None
            else ", that of its run"
            if own == scores["split_hash"]
            else f", which is not its run's ({own})"
        )
        texts.append(
            f"On {code(scores['benchmark'])}, protocol {code(scores['protocol'])}, split "
            f"{code(scores['split_hash'])}{of}: {queries_in_words(scores)} queries of {scores['num_classes']:,} "
            f"classes, gallery {scores['num_gallery']:,}."
        )
        texts.append(_panel(scores))
    elif not for_use:
        texts.append(
            f"**{TO_FILL_IN}:** scores on test classes. `divcon evaluate RUN --json scores.json`, and `--scores "
            "scores.json` to export again."
        )
    lines = [] if run is None or about["learner"] is not None else run.lines()
    best = next((line for line in lines if line["epoch"] == kept_epoch(lines)), None)
    if best is not None and "validation" in best:
        beside = None if run is None else run.baselines_of(best["epoch"])
        validation = beside if beside is not None and "recall_at_1" in beside else best["validation"]
        counts = best["validation"] | validation
        texts.append(
            f"On {counts['num_classes']:,} validation classes, {queries_in_words(counts)} queries, after epoch "
            f"{best['epoch']}:\n\n{_panel(validation)}"
        )
    trained = None if run is None else run.origin()
    if run is not None and trained is not None:
        if best is not None and any("kept" in line for line in lines):
            why = reason(lines, trained[0], run.selection_over_folds()).replace("`", "")
            ran = [line["epoch"] for line in lines]
            of = f", of {len(ran):,} that ran, {ran[0]} to {ran[-1]}" if len(ran) > 1 else ", the only one that ran"
            texts.append(f"Epoch {best['epoch']} was kept{of}: {why}.")
        if last := trained[1].get("last_epoch"):
            texts.append(f"The model is that of the run's last epoch, {last['epoch']}.")
    return "\n\n".join(texts)


def _panel(scores: dict[str, Any]) -> str:
    """A table of all metrics: of the embedding, with its interval; and of the pooled and the pretrained features, where
    they were computed."""
    baselines = scores.get("baselines") or {}
    beside = {title: baselines[name] for name, title in BASELINES.items() if name in baselines}
    intervals = {key: scores[f"{key}_interval"] for key in METRICS if scores.get(f"{key}_interval")}
    rows = []
    for key, value in numbers(scores):
        if key not in METRICS or key == "precision_at_1":  # which is Recall@1
            continue
        low, high = intervals.get(key, (None, None))
        interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"
        others = [_percent(each.get(key)) for each in beside.values()]
        rows.append([METRICS[key], _percent(value), *([interval] if intervals else []), *others])
    heads = ["", "embedding", *(["95 % interval"] if intervals else []), *beside]
    notes = [f"{title[0].upper()}{title[1:]}: {each['of']}." for title, each in beside.items() if each.get("of")]
    if intervals:
        method = scores.get("recall_at_1_interval_method", Score.interval_method)
        notes.insert(0, f"Interval by {method}.")
    return table(rows, heads) + (f"\n\n{' '.join(notes)}" if notes else "")


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else ""


def _training(trained: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if trained is None:
        return f"**{TO_FILL_IN}:** how it was trained."
    config, record = trained
    tree = config.to_dict()
    if config.model.weights is not None:
        tree["model"]["weights"] = Path(config.model.weights).name  # not its place on the disk
    changed = [(f"`{name}`", code(tree[SECTION_OF[name]][name])) for name in RunConfig().differences(config)]
    texts = (
        ["Settings that are not divcon's defaults:", table(changed)] if changed else ["All settings at their defaults."]
    )
    if pruned := record.get("pruned"):
        kept = "" if pruned["learners"] is None else f", learners {', '.join(map(str, pruned['learners']))}"
        texts.append(f"Then pruned to {pruned['dims']} dimensions ({pruned['by']}{kept}).")
    versions = ", ".join(f"{package} {number}" for package, number in record.get("versions", {}).items())
    texts.append(f"Trained with {versions}." if versions else "")
    texts.append(
        "<details><summary>All settings, as a file for <code>divcon train DATA --config</code></summary>\n\n```yaml\n"
        f"{as_yaml(tree)}```\n\n</details>"
    )
    return "\n\n".join(text for text in texts if text)
