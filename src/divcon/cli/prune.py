"""``divcon prune``: a trained model in fewer dimensions, or with another embedding."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from divcon.cli.app import (
    EVALUATE,
    READING,
    BatchSize,
    DeviceOption,
    Place,
    Reading,
    Workers,
    app,
    console,
    note,
    progress_bar,
)
from divcon.cli.evaluate import read_own_data
from divcon.errors import OutputError
from divcon.runtime.copies import here
from divcon.runtime.places import absolute


@app.command(group=EVALUATE)
def prune(
    run: Place,
    data: str | None = None,
    root: Place | None = None,
    *,
    dims: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    out: Place,
    by: Literal["pca", "subspaces", "features", "whitening", "head"] = "pca",
    reading: Reading = READING,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Reduce a trained model to fewer dimensions, or change what it embeds by, without training. The new model is used
    like any other.

    divcon prune runs/demo --dims 64 --out runs/demo-64

    divcon prune runs/demo --dims 64 --by subspaces --out runs/demo-64

    divcon prune runs/demo --by features --out runs/demo-features

    Parameters
    ----------
    run
        A run folder, or a model folder such as RUN/last.
    data
        As in train. Default: the data of the run. The test classes are not used.
    root
        As in train.
    dims
        Dimensions of the new model; with --by subspaces, the most that it may have. Required for these two; for
        whitening, the default is that of the head.
    out
        The model folder; it must be empty or not exist yet.
    by
        pca: rotate the embedding and cut it; the new model has one learner. subspaces: keep the learners that retrieve
        best together among those that fit, by the validation classes (or train classes, if there are none); stored
        embeddings can be cut in the same way. The others change what the model embeds by, as --embed of train does:
        features, the pooled features before the head, L2-normalised; whitening, their principal components, whitened
        (--embed pca); head, the embedding that was trained, for a model that embeds by one of these two.
    """
    from divcon.models.folder import check_model
    from divcon.models.names import EMBEDDING_NAMES
    from divcon.runs.folder import RunFolder, own_benchmark
    from divcon.runs.prune import EMBEDDINGS, Pruning, check_arguments, check_prunable
    from divcon.runs.prune import prune as prune_model
    from divcon.runtime.context import Context

    if here(out).exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out}: {'is not empty' if out.is_dir() else 'is a file'}; use another folder")
    check_arguments(dims, by, check_model(run).get("embedding_dim"))
    passed = None if data is None else read_own_data(run, data, root, reading)

    from divcon.models import EmbeddingModel
    from divcon.runtime.device import resolve_device

    model = EmbeddingModel.load(run, device=resolve_device(device))
    check_prunable(model, dims, by)
    reports: list[Pruning] = []
    with progress_bar() as on_progress:
        context = Context(workers, on_progress, note)
        benchmark = own_benchmark(
            run,
            passed,
            must_be_own=True,
            whole=by == "whitening",  # fitted to more images than the others choose by
            context=context,
        )
        pruned = prune_model(
            model, benchmark, dims, by=by, batch_size=batch_size, context=context, on_done=reports.append
        )
    about = reports[0]
    RunFolder(run).write_origin(
        out, pruned={"run": absolute(run), "by": by, "dims": about.dims, "learners": about.learners}
    )
    pruned.save(out)

    if by in EMBEDDINGS:
        console.print(f"embeds by the {EMBEDDING_NAMES[EMBEDDINGS[by]]}")
    elif about.learners is None:
        console.print(f"kept the first {dims} principal components of {model.embedding_dim}")
    else:
        names = f"learner{'s' * (len(about.learners) > 1)} {', '.join(map(str, sorted(about.learners)))}"
        more = f"; no other whole subspace fits into {dims} dimensions" if about.dims != dims else ""
        console.print(f"kept {names} of {model.num_learners}, chosen on {about.evaluated_on} classes{more}")
    before, after = (f"{100 * recall:.1f} %" for recall in (about.recall_before, about.recall_after))
    what = f"{about.num_images:,} {'images' if model.vector_dim is None else 'vectors'}"
    console.print(
        f"recall_at_1 on {what} of {about.num_classes:,} {about.evaluated_on} classes: {before} with "
        f"{model.embedding_dim} dimensions, {after} with {about.dims}"
    )
    console.print(f"model of {about.dims} dimensions in {out}")
