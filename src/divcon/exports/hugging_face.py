"""Export to a folder for the Hugging Face hub: weights, configuration, preprocessing, model card."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from PIL import Image

from divcon.config.backbone_names import HUB
from divcon.config.files import as_yaml
from divcon.config.image_size import size_in_words
from divcon.config.settings import SECTION_OF, RunConfig
from divcon.errors import ConfigError, DataError, OutputError
from divcon.evaluation.baselines import BASELINES, METRICS
from divcon.evaluation.compare import read_scores
from divcon.evaluation.metrics import Score, queries_in_words
from divcon.exports.program import Embedder, check_equal
from divcon.models import EmbeddingModel, keep_learner
from divcon.models.backbone import is_own
from divcon.models.embedding_model import own_backbone, own_parts, own_transform
from divcon.models.names import EMBEDDING_NAMES
from divcon.models.sources import is_sourced, repository_of
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.selection import reason
from divcon.runtime.copies import send_rest
from divcon.runtime.places import text_of

TO_FILL_IN = "TO FILL IN"
_NEEDED = ("recall_at_1", "benchmark", "protocol", "split_hash", "num_queries", "num_gallery", "num_classes")


def write_folder(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    run: str | Path | None,
    scores: str | Path | None,
) -> tuple[float, int]:
    """Write the folder next to ``out``, and rename it once `EmbeddingModel.load` gives the model's embeddings.

    The folder holds no path of the run or its data.

    Returns:
        The largest difference from the model's embeddings, and the number of places to fill in in the card.

    Raises:
        ConfigError, OutputError, DataError: as `divcon.exports.export`.
    """
    folder = None if run is None else RunFolder(run)
    exported = model if learner is None else keep_learner(model, learner)
    card = model_card(
        out.absolute().name, exported, about, folder, None if scores is None else _scores_of(scores, learner)
    )
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            new = Path(beside, target.name)
            exported.save(new)
            if (processor := _processor(about["preprocessing"])) is not None:
                (new / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
            (new / "README.md").write_text(card, encoding="utf-8")
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


def _processor(preprocessing: dict[str, Any] | None) -> dict[str, Any] | None:
    """``preprocessor_config.json``, in the format of transformers' image processors: of the one that resizes the
    shorter side and crops, or the one that resizes to a height and width. None where no processor does what the model
    needs: for vectors, a transform of one's own, a border, and a crop that is not square."""
    if preprocessing is None or "transform" in preprocessing or "channels" in preprocessing:
        return None
    square = isinstance(preprocessing["size"], int)
    height, width = (preprocessing["size"],) * 2 if square else preprocessing["size"]
    if preprocessing["fit"] == "squash":
        kind = "ViTImageProcessor"
        sizes = {"size": {"height": height, "width": width}}
    elif preprocessing["fit"] == "crop" and square:
        kind = "BitImageProcessor"
        crop_size = {"height": height, "width": width}
        sizes = {"size": {"shortest_edge": preprocessing["resize"]}, "do_center_crop": True, "crop_size": crop_size}
    else:
        return None
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        **sizes,
        "resample": Image.Resampling[preprocessing["interpolation"].upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
    }


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


def model_card(
    name: str,
    model: EmbeddingModel,
    about: dict[str, Any],
    run: RunFolder | None,
    scores: dict[str, Any] | None,
) -> str:
    """The model card: Markdown after a header in YAML, as the Hugging Face hub reads it.

    Args:
        name: of the model.
        model: the model in the folder.
        about: see `divcon.exports.program.about_model`.
        run: the folder of the model's run.
        scores: on test classes, by ``divcon evaluate --json``.
    """
    trained = None if run is None else run.origin()
    origin = backbone_origin(model, trained)
    sections = [
        _header(name, model, origin, scores),
        f"# {name}\n\n{_introduction(model, about)}",
        f"## Use\n\n{_use(model)}",
        f"## Data\n\n{_data(about, run, trained)}",
        f"## Scores\n\n{_scores(about, run, scores)}",
        f"## Training\n\n{_training(trained)}",
        f"## Licences\n\n{_licences(model, origin)}",
        f"## Uses and limits\n\n**{TO_FILL_IN}:** what it is for, what it was not tested on, and whom it could harm.",
    ]
    return "\n\n".join(sections) + "\n"


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
    config = about["model"]
    method = config["method"] if model.head.embedding == "head" else model.head.trained.name
    what = "images" if model.vector_dim is None else f"vectors of {model.vector_dim} dimensions"
    length = f"{model.embedding_dim} dimensions, of length one: the larger the inner product, the more similar"
    by = (
        f"by one metric ({method})"
        if config["num_learners"] == 1
        else (f"by divide and conquer ({config['num_learners']} learners, method {method})")
    )
    source = ""
    if model.head.embedding != "head":
        source = f"; it embeds by the {EMBEDDING_NAMES[model.head.embedding]}, not by the head that was trained"
    subspace = (
        "" if about["learner"] is None else f" Of that model this is the subspace of learner {about['learner']} alone."
    )
    pooled = "" if config.get("pooling", "auto") == "auto" else f", pooling {config['pooling']}"
    crop = ""
    if preprocessing := about["preprocessing"]:
        crop = f" {_input(preprocessing)}"
        if (channels := preprocessing.get("channels")) is not None:
            crop += f" The image has {channels} channel{'s' * (channels > 1)}."
        if (values := preprocessing.get("pixel_range")) is not None:
            ends = f"{values[0]:g} and {values[1]:g}" if isinstance(values, list) else "its lowest and highest value"
            crop += f" Of an image with more than 8 bits a channel, {ends} first become 0 and 255."
        if "transform" not in preprocessing and _processor(preprocessing) is None:
            crop += (
                " No image processor of transformers does this, so that there is no preprocessor_config.json: use "
                "divcon's `EmbeddingModel.encode`, or prepare images as said here."
            )
    return (
        f"Embeds {what} in {length}. Trained {by} with divcon {about['divcon']}{source}; backbone "
        f"`{config['backbone']}`{pooled}.{subspace}{crop}"
    )


def _input(preprocessing: dict[str, Any]) -> str:
    """How an image becomes the model's input."""
    sides = preprocessing["size"]
    size = size_in_words(sides if isinstance(sides, int) else (sides[0], sides[1]))
    if own := preprocessing.get("transform"):
        return f"Its input is {size} pixels, which `{own}` makes of an image."
    by = preprocessing["interpolation"]
    if preprocessing["fit"] == "squash":
        return f"Its input is a whole image, resized to {size} pixels whatever its shape ({by})."
    if preprocessing["fit"] == "pad":
        return (
            f"Its input is a whole image, resized in its own shape to fit within {size} pixels ({by}), in the middle "
            f"of a border of the colour {tuple(preprocessing['fill'])}."
        )
    resize = preprocessing["resize"]
    if isinstance(resize, int):
        return (
            f"Its input is the middle {size} pixels of an image whose shorter side is resized to {resize} ({by}); an "
            f"image of exactly {size} is used as it is."
        )
    return (
        f"Its input is the middle {size} pixels of an image that is resized in its own shape until it covers "
        f"{resize[0]} x {resize[1]} ({by}); an image of exactly {size} is used as it is."
    )


def _use(model: EmbeddingModel) -> str:
    what = "photos/" if model.vector_dim is None else "vectors.parquet"
    code = (
        'import divcon as dc\n\nmodel = dc.EmbeddingModel.load("PATH/TO/THIS/FOLDER")\n'
        f'embeddings = model.encode("{what}")  # (N, {model.embedding_dim}) float32'
    )
    own = ""
    if names := own_parts(model.config):
        modules = sorted({name.partition(":")[0] for name in names})
        code = code.replace('/FOLDER")', f'/FOLDER", trust={modules})')
        own = (
            f"\n\nIt needs its author's own code, {' and '.join(f'`{name}`' for name in names)}, which `trust` allows "
            f"divcon to import. **{TO_FILL_IN}:** where that code is."
        )
    return (
        f"Needs divcon, and no network: the folder holds all weights. `divcon encode PATH/TO/THIS/FOLDER {what} --out "
        f"embeddings.parquet` does the same from the command line.\n\n```python\n{code}\n```{own}"
    )


def _data(about: dict[str, Any], run: RunFolder | None, trained: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if run is None or trained is None:
        return f"**{TO_FILL_IN}:** the data it was trained on."
    classes = json.loads(run.classes.read_text()) if run.classes.exists() else {}
    counts = [f"{len(classes[name]):,} {name} classes" for name in ("train", "validation") if classes.get(name)]
    test = [("test protocol", _code(about["protocol"])), ("hash of the test split", _code(about["split_hash"]))]
    if trained[0].data.train_on == "all":
        counts, test = [f"all {len(classes.get('train', ())):,} classes, those of test too"], []
    return (
        _table([("benchmark", _code(about["benchmark"])), ("trained on", ", ".join(counts) or "unknown"), *test])
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
            f"On {_code(scores['benchmark'])}, protocol {_code(scores['protocol'])}, split "
            f"{_code(scores['split_hash'])}{of}: {queries_in_words(scores)} queries of {scores['num_classes']:,} "
            f"classes, gallery {scores['num_gallery']:,}."
        )
        rows = [(key, f"{100 * value:.1f} %") for key, value in _numbers(scores)]
        if interval := scores.get("recall_at_1_interval"):
            low, high = (f"{100 * value:.1f}" for value in interval)
            method = scores.get("recall_at_1_interval_method", Score.interval_method)
            rows.append(("recall_at_1, 95 % interval", f"{low} to {high} % ({method})"))
        rows += _baseline_rows(scores)
        texts.append(_table(rows))
    elif not for_use:
        texts.append(
            f"**{TO_FILL_IN}:** scores on test classes. `divcon evaluate RUN --json scores.json`, and `--scores "
            "scores.json` to export again."
        )
    lines = [] if run is None or about["learner"] is not None else run.lines()
    best = next((line for line in lines if line["epoch"] == kept_epoch(lines)), None)
    if best is not None and "validation" in best:
        validation = best["validation"]
        texts.append(
            f"Recall@1 on {validation['num_classes']:,} validation classes ({queries_in_words(validation)} queries), "
            f"after epoch {best['epoch']}: {100 * validation['recall_at_1']:.1f} %."
        )
        if run is not None and (beside := run.baselines_of(best["epoch"])) and (rows := _baseline_rows(beside)):
            texts.append(f"On the same validation classes, without training or without the head:\n\n{_table(rows)}")
    trained = None if run is None else run.origin()
    if run is not None and trained is not None:
        if best is not None and any("kept" in line for line in lines):
            why = reason(lines, trained[0], run.selection_over_folds()).replace("`", "")
            texts.append(f"Epoch {best['epoch']} was kept: {why}.")
        if last := trained[1].get("last_epoch"):
            texts.append(f"The model is that of the run's last epoch, {last['epoch']}.")
    return "\n\n".join(texts)


def _baseline_rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores of the pooled and of the pretrained features, where they were computed."""
    baselines = scores.get("baselines") or {}
    return [
        (f"{metric} of the {title}, {baselines[name]['of']}", f"{100 * baselines[name][metric]:.1f} %")
        for name, title in BASELINES.items()
        if name in baselines
        for metric in METRICS
    ]


def _training(trained: tuple[RunConfig, dict[str, Any]] | None) -> str:
    if trained is None:
        return f"**{TO_FILL_IN}:** how it was trained."
    config, record = trained
    tree = config.to_dict()
    if config.model.weights is not None:
        tree["model"]["weights"] = Path(config.model.weights).name  # not its place on the disk
    changed = [(f"`{name}`", _code(tree[SECTION_OF[name]][name])) for name in RunConfig().differences(config)]
    texts = (
        ["Settings that are not divcon's defaults:", _table(changed)]
        if changed
        else ["All settings at their defaults."]
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


def _licences(model: EmbeddingModel, origin: Origin) -> str:
    rows = [
        (f"backbone's weights, `{model.config['backbone']}`", origin.text),
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


@dataclass(frozen=True)
class Origin:
    """The origin of a backbone's weights."""

    text: str
    """Their licence and where they come from, in Markdown."""
    hub_id: str | None = None
    """Their name on the Hugging Face hub, where they are certainly timm's."""


def backbone_origin(model: EmbeddingModel, trained: tuple[RunConfig, dict[str, Any]] | None) -> Origin:
    """The origin of the weights that training started from, as far as it is known.

    Args:
        trained: the settings and the record of the model's run; see `divcon.runs.folder.RunFolder.origin`.
    """
    name = model.config["backbone"]
    if is_own(name):
        return Origin(f"**{TO_FILL_IN}:** the backbone is its author's own (`{name}`)")
    if model.vector_dim is not None:
        return Origin(f"no weights; **{TO_FILL_IN}:** which model computed the vectors, and its licence")
    by_timm = _by_timm(name)
    on_hub = repository_of(name)[0] if name.startswith(HUB) else None
    if trained is None:
        if not model.freeze_batch_norm:
            return Origin(f"random weights, or **{TO_FILL_IN}**")
        return Origin(f"{by_timm}, if training started from those; **{TO_FILL_IN}** otherwise")
    config, record = trained
    if record.get("init"):
        return Origin(f"**{TO_FILL_IN}:** training started from another model of divcon's; {by_timm} of this name")
    if config.model.weights is not None:
        return Origin(f"**{TO_FILL_IN}:** weights from a file, `{config.model.weights.name}`")
    if not config.model.pretrained:
        return Origin("none: training started from random weights")
    known = None if is_sourced(name) else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Origin(by_timm, known.hf_hub_id if known else on_hub)


def _by_timm(name: str) -> str:
    if is_sourced(name):
        where = f"`{repository_of(name)[0]}` of the Hugging Face hub" if name.startswith(HUB) else "a folder"
        return f"the weights of {where}; **{TO_FILL_IN}:** their licence"
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.license:
        return f"timm does not say: **{TO_FILL_IN}**"
    full = ".".join(part for part in (known.architecture, known.tag) if part)
    return f"{known.license}, as timm {timm.__version__} says of `{full}`"
