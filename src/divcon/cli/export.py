"""``divcon export``."""

from __future__ import annotations

from typing import Literal

from divcon.cli.app import EVALUATE, Place, app, console


@app.command(group=EVALUATE)
def export(
    run: Place,
    *,
    out: Place,
    format: Literal["onnx", "torch", "hf"] = "onnx",
    learner: int | None = None,
    scores: Place | None = None,
) -> None:
    """Export a run's model for other programs, and compare the exported model with the original.

    divcon export runs/products --out products.onnx

    divcon export runs/products --format torch --out products.pt2

    divcon export runs/products --format hf --scores scores.json --out products-hf

    onnx and torch take raw pixels, (N, 3, H, W) uint8 RGB at the model's size; mean and standard deviation are part of
    the exported model. A model of vectors takes vectors. Both return embeddings of length one, for any N.

    Parameters
    ----------
    run
        A run folder, or a model folder such as RUN/last.
    out
        The file (.onnx or .pt2), or the folder for hf; it must not exist yet.
    format
        onnx: one file, for ONNX Runtime and others (needs divcon[export]). torch: a torch.export program, which PyTorch
        runs without divcon. hf: a folder for the Hugging Face Hub with weights, configuration, preprocessing and a
        model card, filled in from the run; divcon loads it without network.
    learner
        Export this learner's subspace only.
    scores
        Scores for the model card of hf: a file that evaluate --json wrote.
    """
    from divcon.exports import check_export
    from divcon.exports import export as export_model
    from divcon.models.folder import check_model

    check_export(out, format, scores)
    check_model(run, learner=learner)

    from divcon.models import EmbeddingModel

    model = EmbeddingModel.load(run)
    done = export_model(model, out, format, learner=learner, run=run, scores=scores)

    def words(side: str) -> str:
        about = done.about[side]
        return f"{about['name']} ({', '.join(map(str, ['N', *about['shape'][1:]]))}) {about['dtype']}"

    console.print(f"{format} model in {out}: {words('input')} to {words('output')}")
    console.print(
        f"checked against the original with {done.checked_with}: embeddings differ by at most {done.difference:.2g}, "
        "for batches of 1 and 7"
    )
    if done.to_fill_in:
        console.print(f"{out / 'README.md'}: {done.to_fill_in} places are marked TO FILL IN")
