"""``divcon export``: a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from divcon.cli.app import app, console


@app.command
def export(
    run: Path,
    *,
    out: Path,
    format: Literal["onnx", "torch", "hf"] = "onnx",
    learner: int | None = None,
    scores: Path | None = None,
) -> None:
    """Write a run's model so that other programs can use it. What is written is compared with the model before it is
    kept.

    divcon export runs/products --out products.onnx

    divcon export runs/products --format torch --out products.pt2

    divcon export runs/products --format hf --scores scores.json --out products-hf

    onnx and torch take pixels as they are, (N, 3, H, W) uint8 RGB, cut to the model's size: mean and standard deviation
    are in the file. A model of vectors takes these as they are. Both give embeddings of length one, for any N.

    Parameters
    ----------
    run
        A run folder, or a model folder.
    out
        The file (.onnx or .pt2), or the folder of hf; it must not be there yet.
    format
        onnx: one file, for ONNX Runtime and others (needs divcon[export]). torch: a program of torch.export, which
        PyTorch runs without divcon. hf: a folder of weights, configuration, preprocessing and a model card, filled in
        from the run; divcon loads it without network.
    learner
        Only this learner's subspace.
    scores
        What evaluate --json wrote of this run, for the model card of hf.
    """
    from divcon.exports import check_export
    from divcon.exports import export as export_model
    from divcon.models import EmbeddingModel

    check_export(out, format, scores)
    model = EmbeddingModel.load(run)
    done = export_model(model, out, format, learner=learner, run=run, scores=scores)

    def words(side: str) -> str:
        about = done.about[side]
        return f"{about['name']} ({', '.join(map(str, ['N', *about['shape'][1:]]))}) {about['dtype']}"

    console.print(f"{format} model in {out}: {words('input')} to {words('output')}")
    console.print(
        f"compared with the model by {done.checked_with}: embeddings differ by at most {done.difference:.2g}, at "
        "batches of 1 and 7"
    )
    if done.to_fill_in:
        console.print(f"{out / 'README.md'}: {done.to_fill_in} places to be filled in are marked TO FILL IN")
