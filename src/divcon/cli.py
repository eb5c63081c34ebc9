"""The command line: parse, call, print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from divcon import __version__
from divcon.config import Device, OnBadImage, RunConfig
from divcon.errors import ConfigError, DivconError
from divcon.files import written_whole

app = App(
    name="divcon",
    help="Deep metric learning by divide and conquer: train an embedding on labelled images, and judge it on classes "
    "it never saw.",
    version=__version__,
)
data_app = App(name="data", help="Build data sets.")
app.command(data_app)

_DEFAULTS = RunConfig()

console = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)

Workers = Annotated[int, Parameter(help="Processes that decode images; 0: none beside the main one.")]
BatchSize = Annotated[int, Parameter(help="Images a batch; lower it where memory runs out.")]
DeviceOption = Annotated[Device, Parameter(help="Where to compute: auto takes cuda, then mps, then cpu.")]


@app.command
def train(
    data: str | None = None,
    root: Path | None = None,
    *,
    out: Path,
    resume: Annotated[bool, Parameter(negative=())] = False,
    init: Path | None = None,
    config: RunConfig = _DEFAULTS,
) -> None:
    """Train an embedding by divide and conquer, into a run folder.

    divcon train demo --backbone tf_efficientnet_lite0 --size 64 --epochs 12 --out runs/demo

    divcon train products.csv --out runs/products

    divcon train --out runs/products --resume

    Parameters
    ----------
    data
        A folder (ROOT/CLASS/*, or ROOT/train/CLASS/* and ROOT/test/CLASS/*), a CSV or parquet (path,label[,split]),
        or the name of a data set: demo, icons.
    root
        Where a named data set lies, or what a table's paths are relative to.
    out
        The run folder: settings, metrics, divisions, checkpoint, model.
    resume
        Go on where the run in --out stopped; its settings and data are taken from it.
    init
        Start from the model of this run or model folder.
    """
    from divcon.data.read import read
    from divcon.display import Bar
    from divcon.run import resumed_config, run

    source: dict[str, Any] | None = None
    if resume:
        config, source = resumed_config(out, config)
    if data is not None:
        source = {"data": _absolute(data), "root": str(root.absolute()) if root else None}
    if source is None:
        raise ConfigError("DATA is missing: a folder, a CSV or parquet, or the name of a data set (see --help)")
    with Bar(notes) as bar:
        benchmark = read(source["data"], source["root"])
        try:
            run(benchmark, out, config, resume=resume, init=init, source=source, display=bar)
        except KeyboardInterrupt:
            bar.__exit__()
            notes.print(f"stopped; all epochs up to here are kept. Go on with: divcon train --out {out} --resume")
            raise SystemExit(130) from None


@app.command
def evaluate(
    run: Path,
    data: str | None = None,
    root: Path | None = None,
    *,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    clustering: bool = True,
    parts: Annotated[bool, Parameter(negative=())] = False,
    mean_average_precision: Annotated[bool, Parameter(name="--map", negative=())] = False,
    on_bad_image: OnBadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Score a run's model on the test classes of a data set.

    divcon evaluate runs/demo demo --json scores.json

    Parameters
    ----------
    run
        A run folder, or a model folder.
    data
        As in train; left out, what the run was trained on.
    root
        As in train.
    json_file
        Write the scores here too, with those of every query.
    clustering
        NMI and AMI, which cost more than the rest.
    parts
        Also each learner's subspace alone, and the pooled features before the head.
    mean_average_precision
        Also mean average precision over the full ranking.
    on_bad_image
        An image that does not decode: stop with its name, or skip it.
    """
    from divcon.data.read import read
    from divcon.display import print_scores
    from divcon.evaluate.protocol import evaluate as evaluate_model
    from divcon.models import EmbeddingModel
    from divcon.run import run_source, without_undecodable
    from divcon.train.device import resolve_device

    model = EmbeddingModel.load(run, device=resolve_device(device))
    if data is None:
        source = run_source(run)
        if source is None:
            raise ConfigError(f"{run}: does not say what it was trained on; give DATA")
        benchmark = read(source["data"], source["root"])
    else:
        benchmark = read(data, root)
    if on_bad_image == "skip":
        benchmark = without_undecodable(benchmark, workers, notes.print)
    result = evaluate_model(
        model,
        benchmark,
        clustering=clustering,
        parts=parts,
        map=mean_average_precision,
        per_query=json_file is not None,
        batch_size=batch_size,
        workers=workers,
    )
    if json_file is not None:
        with written_whole(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")
    print_scores(result, console)


@app.command
def encode(
    run: Path,
    images: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    out: Path,
    learner: int | None = None,
    on_bad_image: OnBadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Embed images with a run's model, into a parquet of path and embedding.

    divcon encode runs/products photos/ --out vectors.parquet

    Parameters
    ----------
    run
        A run folder, or a model folder.
    images
        Images, folders (with all below them), or a CSV or parquet with a column path.
    out
        The parquet: path, label where there is one, embedding (D float32, of length one).
    learner
        Embed with this learner's subspace alone.
    on_bad_image
        An image that does not decode: stop with its name, or skip it.
    """
    from divcon.data.folder import images_of
    from divcon.data.vectors import write_vectors
    from divcon.models import EmbeddingModel
    from divcon.run import decodable
    from divcon.train.device import resolve_device

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: vectors are written as parquet; give a name that ends in .parquet")
    model = EmbeddingModel.load(run, device=resolve_device(device))
    if learner is not None and not 0 <= learner < model.num_learners:
        raise ConfigError(f"--learner {learner}: the model has learners 0 to {model.num_learners - 1}")
    found = images_of(images[0] if len(images) == 1 else images)
    if on_bad_image == "skip":
        found = decodable(found, workers, notes.print)
    embeddings = model.encode(found, learner=learner, batch_size=batch_size, workers=workers)
    write_vectors(out, found, embeddings)
    console.print(f"{len(found):,} embeddings of {embeddings.shape[1]} dimensions in {out}")


@data_app.command
def icons(
    package_dir: Path,
    *,
    out: Path,
    classes: int | None = None,
    seed: int = 0,
    permissive: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build the icons benchmark: what many icon sets draw under the same name, at 64 pixels.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz

    divcon data icons package --out data/icons

    Parameters
    ----------
    package_dir
        The unpacked npm package @iconify/json.
    out
        The folder that gets icons.parquet and ATTRIBUTION.md.
    classes
        Keep this many classes, drawn by --seed; all where it is left out.
    permissive
        Only icon sets under MIT, Apache, BSD, ISC, Unlicense or CC0.
    """
    from rich.progress import Progress

    from divcon.data.icons import build_icons

    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("drawing", total=None)
        path = build_icons(
            package_dir,
            out,
            classes=classes,
            seed=seed,
            licences="permissive" if permissive else "any",
            processes=min(4, os.cpu_count() or 1),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{path}\ntrain with: divcon train icons {out} --size 64 --out runs/icons")


@app.command
def demo(*, out: Path = Path("divcon-demo"), epochs: int = 8, seed: int = 0, workers: Workers = 1) -> None:
    """Train one metric, and divide and conquer, on the bundled icons; compare them on classes never seen. Minutes on a
    laptop, no network.

    Parameters
    ----------
    out
        The folder that gets both runs and the pictures.
    epochs
        Epochs of each method.
    seed
        Decides everything random.
    """
    from divcon.demo import demo as run_demo
    from divcon.demo import print_scores

    print_scores(run_demo(out, epochs=epochs, seed=seed, workers=workers, notes=notes), out, console)


def _absolute(data: str) -> str:
    """A path as it will be found from another working directory; a data set's name as it is."""
    from divcon.data.read import NAMED

    return str(Path(data).absolute()) if data not in NAMED and Path(data).exists() else data


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors of the input are one line and exit code 2."""
    # Before PyTorch loads: its threads spin while they wait for each other, and where decoding workers or other
    # programs need the same cores, a step then takes two to three times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(arguments)
    except DivconError as error:
        notes.print("[bold red]error:[/]", str(error), markup=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
