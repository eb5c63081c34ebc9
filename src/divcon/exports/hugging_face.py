"""A folder as Hugging Face has them: weights, configuration, preprocessing, model card."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from PIL import Image

from divcon.config.files import as_yaml
from divcon.config.settings import SECTION_OF, RunConfig
from divcon.errors import ConfigError, DataError, OutputError
from divcon.evaluation.compare import read_scores
from divcon.exports.program import Embedder, check_equal
from divcon.models import EmbeddingModel, keep_learner
from divcon.runs.folder import RunFolder
from divcon.runs.run import kept_epoch

TO_FILL_IN = "TO FILL IN"


@dataclass(frozen=True)
class Origin:
    """Of a backbone's weights."""

    said: str
    """Their licence and where they come from, in Markdown."""
    hub_id: str | None = None
    """Their name on the Hugging Face hub, where they are timm's beyond doubt."""


def backbone_origin(model: EmbeddingModel, found: tuple[RunConfig, dict[str, Any]] | None) -> Origin:
    """What is known of the weights that training began with.

    Args:
        found: of the model's run; see `divcon.runs.folder.RunFolder.origin`.
    """
    if model.vector_dim is not None:
        return Origin(f"none were taken; **{TO_FILL_IN}:** which model made the vectors, and its licence")
    name = model.config["backbone"]
    by_timm = _by_timm(name)
    if found is None:
        if not model.freeze_batch_norm:
            return Origin(f"none were taken, or **{TO_FILL_IN}**")
        return Origin(f"{by_timm}, if it began from those; **{TO_FILL_IN}** otherwise")
    config, record = found
    if record.get("init"):
        return Origin(f"**{TO_FILL_IN}:** it began from another model of divcon's; {by_timm} of this name")
    if config.model.weights is not None:
        return Origin(f"**{TO_FILL_IN}:** they came from a file, `{config.model.weights.name}`")
    if not config.model.pretrained:
        return Origin("none were taken: it began from random weights")
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Origin(by_timm, known.hf_hub_id if known else None)


def _by_timm(name: str) -> str:
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.license:
        return f"timm does not say: **{TO_FILL_IN}**"
    full = ".".join(part for part in (known.architecture, known.tag) if part)
    return f"{known.license}, as timm {timm.__version__} says of `{full}`"


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
        about: see `divcon.exports.program.about_model`.
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
    changed = [(f"`{name}`", _code(tree[SECTION_OF[name]][name])) for name in RunConfig().differences(config)]
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
        (f"backbone's weights, `{model.config['backbone']}`", origin.said),
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


_SAID = ("recall_at_1", "benchmark", "protocol", "split_hash", "num_queries", "num_gallery", "num_classes")


def write_folder(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    run: str | Path | None,
    scores: str | Path | None,
) -> tuple[float, int]:
    """Write the folder beside, and put it in its place when `EmbeddingModel.load` gives the model's embeddings.

    Nothing of where the run or its data lie is in it.

    Returns:
        The largest difference from the model's embeddings, and how many places of the card are to be filled in.

    Raises:
        ConfigError, OutputError, DataError: as `divcon.exports.export`.
    """
    folder = None if run is None else RunFolder(run)
    found = None if scores is None else _scores_of(scores, learner)
    kept = model if learner is None else keep_learner(model, learner)
    card = model_card(out.absolute().name, kept, about, folder, found)
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            made = Path(beside, target.name)
            kept.save(made)
            if about["preprocessing"] is not None:
                text = json.dumps(_processor(about["preprocessing"]), indent=2) + "\n"
                (made / "preprocessor_config.json").write_text(text)
            (made / "README.md").write_text(card, encoding="utf-8")
            difference = check_equal(model, learner, Embedder(EmbeddingModel.load(made), None), out)
            if target.exists():
                target.rmdir()
            made.replace(target)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return difference, card.count(TO_FILL_IN)


def _processor(seen: dict[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json``, as transformers' image processor that resizes the shorter side and crops has it."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": seen["resize"]},
        "resample": Image.Resampling[seen["interpolation"].upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": seen["size"], "width": seen["size"]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": seen["mean"],
        "image_std": seen["std"],
    }


def _scores_of(path: str | Path, learner: int | None) -> dict[str, Any]:
    """The scores of the embedding, or of a learner's."""
    scores = read_scores(path)
    missing = [name for name in _SAID if name not in scores]
    if missing:
        raise DataError(f"{path}: holds no {' and no '.join(missing)}; give what divcon evaluate --json wrote")
    if learner is None:
        return scores
    alone = scores.get("learners")
    if not isinstance(alone, list) or learner >= len(alone):
        raise ConfigError(
            f"--scores {path}: has no scores of learner {learner} alone; give what divcon evaluate --parts --json wrote"
        )
    return {**{name: scores[name] for name in _SAID}, **alone[learner]}
