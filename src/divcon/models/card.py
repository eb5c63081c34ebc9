"""The card of a model, as the Hugging Face Hub reads it: Markdown after a header in YAML. The sections here are what a
model says of itself; those on its data, scores and training are of its run (`divcon.exports.hugging_face`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import divcon
from divcon.config.backbone_names import HUB
from divcon.config.files import as_yaml
from divcon.config.image_size import size_in_words
from divcon.config.settings import RunConfig
from divcon.models.backbone import is_own
from divcon.models.names import EMBEDDING_NAMES, own_parts
from divcon.models.preprocessing import about_preprocessing, processor_of
from divcon.models.sources import is_sourced, repository_of

if TYPE_CHECKING:
    from divcon.models.embedding_model import EmbeddingModel

TO_FILL_IN = "TO FILL IN"
"""What stands in a card where only its author knows what to write."""

METRICS = {
    **{f"recall_at_{k}": f"Recall@{k}" for k in (1, 2, 4, 8, 5, 10, 20, 30, 50, 100, 1000)},
    "precision_at_1": "Precision@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "nmi": "NMI",
    "ami": "AMI",
}
"""The names of metrics in words."""


def model_card(name: str, model: EmbeddingModel, learner: int | None = None, *, repo_id: str | None = None) -> str:
    """The card of a model of which no run is known.

    Args:
        name: of the model.
        learner: whose subspace it is alone.
        repo_id: the name of its repository; None: it is a folder.
    """
    origin = backbone_origin(model, None)
    sections = [
        header(name, model, origin, None),
        f"# {name}\n\n{introduction(model, learner)}",
        f"## Use\n\n{use(model, repo_id)}",
        f"## Data\n\n**{TO_FILL_IN}:** the data it was trained on.",
        f"## Scores\n\n**{TO_FILL_IN}:** scores on test classes.",
        f"## Training\n\n**{TO_FILL_IN}:** how it was trained.",
        *closing(model, origin),
    ]
    return "\n\n".join(sections) + "\n"


def closing(model: EmbeddingModel, origin: Origin) -> list[str]:
    """The last sections of a card."""
    return [
        f"## Licences\n\n{licences(model, origin)}",
        f"## Uses and limits\n\n**{TO_FILL_IN}:** what it is for, what it was not tested on, and whom it could harm.",
    ]


def header(name: str, model: EmbeddingModel, origin: Origin, scores: dict[str, Any] | None) -> str:
    """The lines above the title, which the Hub reads.

    Args:
        scores: on test classes; see `divcon.evaluate`.
    """
    images = model.vector_dim is None
    others = ["sentence-transformers", "transformers"] if images and model.channels == 3 else []
    tree: dict[str, Any] = {
        "library_name": "divcon",
        "pipeline_tag": "image-feature-extraction" if images else "feature-extraction",
        "tags": [
            "metric-learning",
            "embeddings",
            *(["image-retrieval"] if images else []),
            *others,
        ],
        "license": "other",
        "license_name": "to-fill-in",
    }
    if origin.hub_id:
        tree["base_model"] = origin.hub_id
    if scores is not None:
        metrics = [{"type": key, "name": METRICS.get(key, key), "value": value} for key, value in numbers(scores)]
        result = {
            "task": {"type": tree["pipeline_tag"]},
            "dataset": {
                "name": scores["benchmark"],
                "type": scores["benchmark"],
                "config": scores["protocol"],
                "split": "test",
                "revision": scores["split_hash"],
            },
            "metrics": metrics,
        }
        tree["model-index"] = [{"name": name, "results": [result]}]
    comments = {("license",): f"{TO_FILL_IN}: the licence of this model, by its name on the hub"}
    return f"---\n{as_yaml(tree, comments)}---"


def introduction(model: EmbeddingModel, learner: int | None) -> str:
    """What the model is.

    Args:
        learner: whose subspace it is alone.
    """
    config = model.config
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
    subspace = "" if learner is None else f" Of that model this is the subspace of learner {learner} alone."
    pooled = "" if config.get("pooling", "auto") == "auto" else f", pooling {config['pooling']}"
    crop = ""
    if preprocessing := about_preprocessing(model):
        crop = f" {_input(preprocessing)}"
        if (channels := preprocessing.get("channels")) is not None:
            crop += f" The image has {channels} channel{'s' * (channels > 1)}."
        if (values := preprocessing.get("pixel_range")) is not None:
            ends = f"{values[0]:g} and {values[1]:g}" if isinstance(values, list) else "its lowest and highest value"
            crop += f" Of an image with more than 8 bits a channel, {ends} first become 0 and 255."
        if "transform" not in preprocessing and processor_of(preprocessing) is None:
            crop += (
                " No image processor of transformers does this, so that there is no preprocessor_config.json: use "
                "divcon's `EmbeddingModel.encode`, or prepare images as said here."
            )
    return (
        f"Embeds {what} in {length}. Trained {by} with divcon {divcon.__version__}{source}; backbone "
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


def use(model: EmbeddingModel, repo_id: str | None = None) -> str:
    """How to load the model.

    Args:
        repo_id: the name of its repository; None: it is a folder.
    """
    name = repo_id or "PATH/TO/THIS/FOLDER"
    what = "photos/" if model.vector_dim is None else "vectors.parquet"
    trust = own = ""
    if names := own_parts(model.config):
        trust = f", trust={sorted({part.partition(':')[0] for part in names})}"
        own = (
            f"\n\nIt needs its author's own code, {' and '.join(f'`{part}`' for part in names)}, which `trust` allows "
            f"divcon to import. **{TO_FILL_IN}:** where that code is."
        )
    code = (
        f'import divcon as dc\n\nmodel = dc.EmbeddingModel.from_pretrained("{name}"{trust})\n'
        f'embeddings = model.encode("{what}")  # (N, {model.embedding_dim}) float32'
    )
    address = name if repo_id is None else f"hf://{repo_id}"
    texts = [
        f"With divcon (`pip install divcon`); `divcon encode {address} {what} --out embeddings.parquet` does the same "
        f"from the command line.\n\n```python\n{code}\n```{own}"
    ]
    if model.vector_dim is None and model.channels == 3:
        first = 'from PIL import Image\n\nimages = [Image.open("a.jpg"), Image.open("b.jpg")]\n'
        texts.append(
            "With sentence-transformers, which gives the same embeddings. Both packages have to be installed; "
            "`trust_remote_code` allows it to import divcon.\n\n```python\n"
            f"from sentence_transformers import SentenceTransformer\n{first}"
            f'model = SentenceTransformer("{name}", trust_remote_code=True)\nembeddings = model.encode(images)\n```'
        )
        processor = processor_of(about_preprocessing(model))
        if processor is not None:
            texts.append(
                "With transformers, whose image processor may cut an image a pixel from where divcon does:"
                f"\n\n```python\nfrom transformers import AutoImageProcessor, AutoModel\n{first}"
                f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
                f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)\n'
                'embeddings = model(**processor(images, return_tensors="pt")).pooler_output\n```'
            )
    return "\n\n".join(texts)


def licences(model: EmbeddingModel, origin: Origin) -> str:
    """Whose licences hold."""
    rows = [
        (f"backbone's weights, `{model.config['backbone']}`", origin.text),
        ("data", f"**{TO_FILL_IN}**"),
        ("this model", f"**{TO_FILL_IN}**, here and in the lines above the title"),
    ]
    return table(rows, ("of", "licence"))


def numbers(scores: dict[str, Any]) -> list[tuple[str, float]]:
    """The metrics in scores, without their standard deviations."""
    return [(key, value) for key, value in scores.items() if isinstance(value, float) and not key.endswith("_std")]


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    """A table in Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def code(value: Any) -> str:
    """A value of the user's, which may hold anything, within a line of Markdown."""
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "/").split()) + "`"


@dataclass(frozen=True)
class Origin:
    """The origin of a backbone's weights."""

    text: str
    """Their licence and where they come from, in Markdown."""
    hub_id: str | None = None
    """Their name on the Hugging Face Hub, where they are certainly timm's."""


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
    import timm  # takes seconds, and models of vectors need none of it

    known = None if is_sourced(name) else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Origin(by_timm, known.hf_hub_id if known else on_hub)


def _by_timm(name: str) -> str:
    if is_sourced(name):
        where = f"`{repository_of(name)[0]}` of the Hugging Face Hub" if name.startswith(HUB) else "a folder"
        return f"the weights of {where}; **{TO_FILL_IN}:** their licence"
    import timm

    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.license:
        return f"timm does not say: **{TO_FILL_IN}**"
    full = ".".join(part for part in (known.architecture, known.tag) if part)
    return f"{known.license}, as timm {timm.__version__} says of `{full}`"
