"""``divcon export``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Group, Parameter

from divcon.cli.app import EVALUATE, Place, app, console
from divcon.errors import ConfigError

_HUB = Group("Hugging Face Hub", sort_key=50)


@app.command(group=EVALUATE)
def export(
    run: Place,
    *,
    out: Place | None = None,
    format: Literal["onnx", "torch", "hf"] | None = None,
    learner: int | None = None,
    scores: Place | None = None,
    push: Annotated[str | None, Parameter(group=_HUB)] = None,
    private: Annotated[bool | None, Parameter(group=_HUB, negative="--public")] = None,
    revision: Annotated[str | None, Parameter(group=_HUB)] = None,
    message: Annotated[str | None, Parameter(group=_HUB)] = None,
    keep_card: Annotated[bool, Parameter(group=_HUB, negative=())] = False,
) -> None:
    """Export a run's model for other programs, and compare the exported model with the original.

    divcon export runs/products --out products.onnx

    divcon export runs/products --format torch --out products.pt2

    divcon export runs/products --format hf --scores scores.json --out products-hf

    divcon export runs/products --push you/products --private

    onnx and torch take raw pixels, (N, 3, H, W) uint8 RGB at the model's size; mean and standard deviation are part of
    the exported model. A model of vectors takes vectors. Both return embeddings of length one, for any N.

    Parameters
    ----------
    run
        A run folder, a model folder such as RUN/last, or a model on the Hub, hf://USER/MODEL.
    out
        The file (.onnx or .pt2), or the folder for hf; it must not exist yet. With --push it may be left out.
    format
        onnx: one file, for ONNX Runtime and others (needs divcon[export]). torch: a torch.export program, which PyTorch
        runs without divcon. hf: a folder for the Hugging Face Hub with weights, configuration, preprocessing and a
        model card, filled in from the run; divcon, sentence-transformers and transformers load it without network.
        Default: onnx, or hf with --push.
    learner
        Export this learner's subspace only.
    scores
        Scores for the model card of hf: a file that evaluate --json wrote. Default: those of the run's own test
        classes, once divcon evaluate RUN has computed them.
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
    from divcon.models.folder import check_model
    from divcon.runtime.hub import check_push

    target = None if push is None else Push(push, private, revision, message, keep_card=keep_card)
    format = format or ("onnx" if push is None else "hf")
    check_export(out, format, scores, target)
    check_model(run, learner=learner)
    if push is not None:
        check_push(push, private=private, field="push")

    from divcon.models import EmbeddingModel

    model = EmbeddingModel.load(run)
    done = export_model(model, out, format, learner=learner, run=run, scores=scores, push=target)

    def words(side: str) -> str:
        about = done.about[side]
        return f"{about['name']} ({', '.join(map(str, ['N', *about['shape'][1:]]))}) {about['dtype']}"

    where = out if out is not None else f"hf://{push}"
    console.print(f"{format} model in {where}: {words('input')} to {words('output')}")
    console.print(
        f"checked against the original with {done.checked_with}: embeddings differ by at most {done.difference:.2g}, "
        "for batches of 1 and 7"
    )
    if done.pushed is not None:
        console.print(f"pushed to {done.pushed}")
    if done.to_fill_in and not keep_card:
        console.print(f"{where}/README.md: {done.to_fill_in} places are marked TO FILL IN")
