"""The model card: what is known of a model, filled in from its run; what is not is marked to be filled in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from divcon.config import RunConfig, flag
from divcon.config_file import as_yaml
from divcon.export.backbone_origin import Origin, backbone_origin
from divcon.export.marks import TO_FILL_IN
from divcon.models import EmbeddingModel
from divcon.run import kept_epoch
from divcon.run_folder import RunFolder

__all__ = ["TO_FILL_IN", "model_card"]


def model_card(
    name: str,
    model: EmbeddingModel,
    about: dict[str, Any],
    run: RunFolder | None,
    scores: dict[str, Any] | None,
) -> str:
    """The card as Markdown with YAML before it, as the Hugging Face hub reads it.

    Args:
        name: what the model is called.
        model: what the folder holds.
        about: see `divcon.export.about.about_model`.
        run: the folder that it is of.
        scores: of test classes, what ``divcon evaluate --json`` wrote.
    """
    found = None if run is None else run.origin()
    origin = backbone_origin(model, found)
    parts = [
        _header(name, model, origin, scores),
        f"# {name}\n\n{_introduction(model, about)}",
        f"## Use\n\n{_use(model)}",
        f"## Data\n\n{_data(about, run, found)}",
        f"## Scores\n\n{_scores(about, run, scores)}",
        f"## Training\n\n{_training(found)}",
        f"## Licences\n\n{_licences(model, origin)}",
        f"## Uses and limits\n\n**{TO_FILL_IN}:** what it is for, what it was not tried on, and whom it could harm.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(name: str, model: EmbeddingModel, origin: Origin, scores: dict[str, Any] | None) -> str:
    images = model.vector_dim is None
    tree: dict[str, Any] = {
        "library_name": "divcon",
        "pipeline_tag": "image-feature-extraction" if images else "feature-extraction",
        "tags": ["metric-learning", "embeddings", *(["image-retrieval"] if images else [])],
        "license": "other",
        "license_name": "to-fill-in",
    }
    if origin.hub_id:
        tree["base_model"] = origin.hub_id
    if scores is not None:
        metrics = [{"type": key, "value": value} for key, value in _numbers(scores)]
        result = {
            "task": {"type": tree["pipeline_tag"]},
            "dataset": {"name": scores["benchmark"], "type": scores["benchmark"]},
            "metrics": metrics,
        }
        tree["model-index"] = [{"name": name, "results": [result]}]
    comments = {("license",): f"{TO_FILL_IN}: the licence of this model, by its name on the hub"}
    return f"---\n{as_yaml(tree, comments)}---"


def _introduction(model: EmbeddingModel, about: dict[str, Any]) -> str:
    made = about["model"]
    what = "images" if model.vector_dim is None else f"vectors of {model.vector_dim} dimensions"
    length = f"{model.embedding_dim} dimensions, of length one: the larger the inner product, the more alike"
    by = (
        f"by one metric ({made['method']})"
        if made["num_learners"] == 1
        else (f"by divide and conquer ({made['num_learners']} learners, method {made['method']})")
    )
    part = (
        "" if about["learner"] is None else f" Of that model this is the subspace of learner {about['learner']} alone."
    )
    pooled = "" if made.get("pooling", "auto") == "auto" else f", pooling {made['pooling']}"
    seen = ""
    if preprocessing := about["preprocessing"]:
        size, resize = preprocessing["size"], preprocessing["resize"]
        seen = (
            f" It sees the middle {size} x {size} pixels of an image whose shorter side is resized to {resize} "
            f"({preprocessing['interpolation']}); an image of just {size} x {size} is taken whole."
        )
    return (
        f"Embeds {what} in {length}. Trained {by} with divcon {about['divcon']}; backbone "
        f"`{made['backbone']}`{pooled}.{part}{seen}"
    )


def _use(model: EmbeddingModel) -> str:
    what = "photos/" if model.vector_dim is None else "vectors.parquet"
    code = (
        'import divcon as dc\n\nmodel = dc.EmbeddingModel.load("PATH/TO/THIS/FOLDER")\n'
        f'embeddings = model.encode("{what}")  # (N, {model.embedding_dim}) float32'
    )
    own = ""
    if not type(model.head).__module__.startswith("divcon."):
        own = (
            f"\n\nIts method is one of its author's own: import the module that defines `{type(model.head).__name__}` "
            f"before. **{TO_FILL_IN}:** where that is."
        )
    return (
        f"Needs divcon, and no network: the folder holds all weights. `divcon encode PATH/TO/THIS/FOLDER {what} --out "
        f"embeddings.parquet` does the same from the command line.\n\n```python\n{code}\n```{own}"
    )


def _data(about: dict[str, Any], run: RunFolder | None, found: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if run is None or found is None:
        return f"**{TO_FILL_IN}:** the model does not say what it was trained on."
    classes = json.loads(run.classes.read_text()) if run.classes.exists() else {}
    counts = [f"{len(classes[part]):,} {part} classes" for part in ("train", "validation") if classes.get(part)]
    return (
        _table(
            [
                ("benchmark", _code(about["benchmark"])),
                ("trained on", ", ".join(counts) or "unknown"),
                ("protocol of testing", _code(about["protocol"])),
                ("hash of the test split", _code(about["split_hash"])),
            ]
        )
        + f"\n\n**{TO_FILL_IN}:** where the data come from, and what they show."
    )


def _scores(about: dict[str, Any], run: RunFolder | None, scores: dict[str, Any] | None) -> str:
    said = []
    if scores is not None:
        own = about["split_hash"]
        of = (
            ""
            if own is None
            else ", that of its run"
            if own == scores["split_hash"]
            else f", another than its run's ({own})"
        )
        said.append(
            f"On {_code(scores['benchmark'])}, protocol {_code(scores['protocol'])}, split "
            f"{_code(scores['split_hash'])}{of}: {scores['num_queries']:,} queries of {scores['num_classes']:,} "
            f"classes, gallery {scores['num_gallery']:,}."
        )
        rows = [(key, f"{100 * value:.1f} %") for key, value in _numbers(scores)]
        if interval := scores.get("recall_at_1_interval"):
            low, high = (f"{100 * value:.1f}" for value in interval)
            rows.append(("recall_at_1, 95 % interval", f"{low} to {high} %"))
        said.append(_table(rows))
    else:
        said.append(
            f"**{TO_FILL_IN}:** scores on test classes. `divcon evaluate RUN --json scores.json`, and `--scores "
            "scores.json` to export again."
        )
    lines = [] if run is None or about["learner"] is not None else run.lines()
    kept = next((line for line in lines if line["epoch"] == kept_epoch(lines)), None)
    if kept is not None and "validation" in kept:
        judged = kept["validation"]
        said.append(
            f"Recall@1 on {judged['num_classes']:,} validation classes ({judged['num_queries']:,} queries), by which "
            f"epoch {kept['epoch'] + 1} was kept: {100 * judged['recall_at_1']:.1f} %."
        )
    return "\n\n".join(said)


def _training(found: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if found is None:
        return f"**{TO_FILL_IN}:** the model does not say how it was trained."
    config, record = found
    tree = config.to_dict()
    if config.model.weights is not None:
        tree["model"]["weights"] = Path(config.model.weights).name  # not where it lies
    changed = [
        (f"`{flag(field.name)}`", _code(tree[part.name][field.name]))
        for part in dataclasses.fields(RunConfig)
        for field in dataclasses.fields(getattr(config, part.name))
        if getattr(getattr(config, part.name), field.name) != getattr(getattr(RunConfig(), part.name), field.name)
    ]
    said = (
        ["Settings that are not divcon's defaults:", _table(changed)]
        if changed
        else ["All settings at their defaults."]
    )
    if pruned := record.get("pruned"):
        kept = "" if pruned["learners"] is None else f", learners {', '.join(map(str, pruned['learners']))}"
        said.append(f"Then pruned to {pruned['dims']} dimensions ({pruned['by']}{kept}).")
    versions = ", ".join(f"{package} {number}" for package, number in record.get("versions", {}).items())
    said.append(f"Trained with {versions}." if versions else "")
    said.append(
        "<details><summary>All settings, as a file for <code>divcon train DATA --config</code></summary>\n\n```yaml\n"
        f"{as_yaml(tree)}```\n\n</details>"
    )
    return "\n\n".join(part for part in said if part)


def _licences(model: EmbeddingModel, origin: Origin) -> str:
    rows = [
        (f"backbone's weights, `{model.made_with['backbone']}`", origin.said),
        ("data", f"**{TO_FILL_IN}**"),
        ("this model", f"**{TO_FILL_IN}**, here and in the lines above the title"),
    ]
    return _table(rows, ("of", "licence"))


def _numbers(scores: dict[str, Any]) -> list[tuple[str, float]]:
    return [(key, value) for key, value in scores.items() if isinstance(value, float) and not key.endswith("_std")]


def _table(rows: list[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    cells = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in cells)


def _code(value: Any) -> str:
    """A value of the user's, which may hold anything, within a line of Markdown."""
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "/").split()) + "`"
