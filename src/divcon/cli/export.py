"""``divcon export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from divcon.cli.app import EVALUATE, Place, app, console
from divcon.errors import ConfigError

_HUB = Group("Hugging Face Hub", sort_key=50)


@app.command(group=EVALUATE)
def export(
    run: Place,
    *,
    out: Place | None = None,
    format: Literal["onnx", "torch", "hf", "openvino", "faiss", "fiftyone", "atlas"] | None = None,
    learner: int | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    scores: Place | None = None,
    faiss_index: str | None = None,
    map_by: Annotated[Literal["auto", "tsne", "umap", "pca", "none"] | None, Parameter(name="--map")] = None,
    push: Annotated[str | None, Parameter(group=_HUB)] = None,
    private: Annotated[bool | None, Parameter(group=_HUB, negative="--public")] = None,
    revision: Annotated[str | None, Parameter(group=_HUB)] = None,
    message: Annotated[str | None, Parameter(group=_HUB)] = None,
    keep_card: Annotated[bool, Parameter(group=_HUB, negative=())] = False,
) -> None:
    """Export a run's model for other programs, and compare the exported model with the original; or the embeddings of
    an index, for FAISS, FiftyOne and embedding-atlas.

    divcon export runs/products --out products.onnx

    divcon export runs/products --format torch --out products.pt2

    divcon export runs/products --format hf --scores scores.json --out products-hf

    divcon export runs/products --push you/products --private

    divcon export runs/products --precision int8 --out products.onnx

    divcon export runs/products --format faiss --out products.faiss

    divcon export vectors.parquet --format atlas --out atlas.parquet

    onnx, openvino and torch take raw pixels, (N, 3, H, W) uint8 RGB at the model's size; mean and standard deviation
    are part of the exported model. A model of vectors takes vectors. They return embeddings of length one, for any N.

    Parameters
    ----------
    run
        A run folder, a model folder such as RUN/last, or a model on the Hub, hf://USER/MODEL. For faiss, fiftyone and
        atlas: a run that is indexed, a store's folder or address, or a parquet that encode wrote.
    out
        The file (.onnx, .pt2, .xml, .faiss or .parquet), or the folder for hf and fiftyone; it must not exist yet.
        With --push it may be left out.
    format
        onnx: one file, for ONNX Runtime and others (needs divcon[export]). torch: a torch.export program, which PyTorch
        runs without divcon. hf: a folder for the Hugging Face Hub with weights, configuration, preprocessing and a
        model card, filled in from the run; divcon, sentence-transformers and transformers load it without network.
        openvino: .xml and .bin (needs divcon[openvino]). faiss: an index file of FAISS, with paths and labels in
        OUT.parquet. fiftyone: a data set folder, and atlas: a parquet for embedding-atlas, with embeddings, labels,
        mistakes and the map. Default: onnx, or hf with --push.
    learner
        Export this learner's subspace only.
    precision
        Of onnx and openvino: fp16 halves the file; int8 (scales from 256 of the run's training images) is a third or
        less. Similarity to the original, and Recall@1 beside the original's, are printed, and written into the file.
    scores
        Scores for the model card of hf: a file that evaluate --json wrote. Default: those of the run's own test
        classes, once divcon evaluate RUN has computed them.
    faiss_index
        The kind of the FAISS index, as its factory writes it: Flat, HNSW32 or "IVF1024,Flat", for example. Default:
        Flat, which is exact, for fewer than 100,000 items, else HNSW32.
    map_by
        Of fiftyone and atlas: the map's layout. Default (auto): UMAP where divcon[map] is installed, else t-SNE.
    push
        Push the folder of --format hf to this repository on the Hugging Face Hub, USER/MODEL, which is created if it is
        not there. All files go in one commit. Needs HF_TOKEN, or hf auth login.
    private
        Whether a repository that is created is private or public. Default: as the account creates them.
    revision
        The branch to push to, created if it is not there. Default: main.
    message
        The message of the commit.
    keep_card
        Leave the model card that the repository has, because you have filled it in.
    """
    for name, value in (("private", private), ("revision", revision), ("message", message)):
        if push is None and value is not None:
            raise ConfigError(f"`{name}` is of a repository on the Hub: add --push USER/MODEL", field=name)
    if push is None and keep_card:
        raise ConfigError("`keep_card` is of a repository on the Hub: add --push USER/MODEL", field="keep_card")
    if push is None and out is None:
        raise ConfigError("--out is missing: the file or folder to write", field="out")
    from divcon.exports import Push, check_export
    from divcon.exports import export as export_model
    from divcon.models.folder import WEIGHTS, check_model, model_folder
    from divcon.runtime.hub import check_push

    target = None if push is None else Push(push, private, revision, message, keep_card=keep_card)
    format = format or ("onnx" if push is None else "hf")
    if format in ("faiss", "fiftyone", "atlas"):
        given = {"--learner": learner, "--scores": scores, "--precision": None if precision == "fp32" else precision}
        for name, value in {**given, "--push": push}.items():
            if value is not None:
                raise ConfigError(f"{name} {value} is of models, and {format} takes embeddings; leave it out")
        assert out is not None
        _items(run, out, format, faiss_index, map_by)
        return
    for name, value in (("--faiss-index", faiss_index), ("--map", map_by)):
        if value is not None:
            raise ConfigError(f"{name} {value} does not go with --format {format}")
    check_export(out, format, scores, precision, target)
    check_model(run, learner=learner)
    if push is not None:
        check_push(push, private=private, field="push")

    from divcon.models import EmbeddingModel

    model = EmbeddingModel.load(run)
    how: dict[str, Any] = {"precision": precision, "push": target}
    done = export_model(model, out, format, learner=learner, run=run, scores=scores, **how)

    def words(side: str) -> str:
        about = done.about[side]
        return f"{about['name']} ({', '.join(map(str, ['N', *about['shape'][1:]]))}) {about['dtype']}"

    where = out if out is not None else f"hf://{push}"
    console.print(f"{format} model in {where}: {words('input')} to {words('output')}")
    console.print(
        f"checked against the original with {done.checked_with}: embeddings differ by at most {done.difference:.2g}, "
        "for batches of 1 and 7"
    )
    if done.scores is not None and out is not None:
        from divcon.exports.precision import in_words

        size, then = (path.stat().st_size for path in (weights_of(out), model_folder(run) / WEIGHTS))
        console.print(f"{precision}: {in_words(done.scores)}")
        console.print(f"{weights_of(out)}: {size / 1e6:.1f} MB; the model's weights take {then / 1e6:.1f} MB")
    if done.pushed is not None:
        console.print(f"pushed to {done.pushed}")
    if done.to_fill_in and not keep_card:
        console.print(f"{where}/README.md: {done.to_fill_in} places are marked TO FILL IN")


def weights_of(out: Path) -> Path:
    """The file that has the weights of an exported model."""
    return out.with_suffix(".bin") if out.suffix == ".xml" else out


def _items(
    source: Path, out: Path, format: Literal["faiss", "fiftyone", "atlas"], faiss_index: str | None, by: Any
) -> None:
    from divcon.exports.items import check_items, export_items
    from divcon.runtime.places import text_of

    if faiss_index is not None and format != "faiss":
        raise ConfigError(f"--faiss-index {faiss_index} is for --format faiss")
    if by is not None and format == "faiss":
        raise ConfigError(f"--map {by} is for --format fiftyone and atlas")
    check_items(out, format)
    done = export_items(text_of(source), out, format, faiss_index=faiss_index or "auto", by=by or "auto")
    console.print(f"{done.items:,} embeddings of {done.dims} dimensions in {out}")
    if done.index is not None and done.recall is not None:
        console.print(
            f"FAISS index {done.index}, of inner products (cosines); read back, it finds {100 * done.recall:.1f} % of "
            f"the exact nearest items. Row i of {done.beside[0]} is its item i"
        )
    if done.mistakes is not None:
        console.print(f"{done.mistakes:,} of {done.judged:,} items have a nearest neighbour of another label")
    if format == "atlas":
        of_map = "" if by == "none" else " --x x --y y --neighbors neighbors"
        console.print(f"look at it with: embedding-atlas {out} --vector embedding --image path{of_map}")
    if format == "fiftyone":
        console.print(
            "load it in Python with: fiftyone.Dataset.from_dir("
            f"{str(out)!r}, dataset_type=fiftyone.types.LegacyFiftyOneDataset)"
        )
