"""``divcon train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import READING, TRAIN, Place, Reading, TrackerOption, app, console, note, notes, read_data, trackers
from divcon.cli.messages import in_flags
from divcon.cli.ranks import of_first
from divcon.cli.settings import DEFAULTS, Settings, as_file, current_origins, gather, run_config
from divcon.config.settings import RunConfig
from divcon.errors import ConfigError, Stopped
from divcon.runtime.importing import check_trusted
from divcon.runtime.launchers import is_first, is_restarted_alone, started_group
from divcon.runtime.places import absolute, exists_here, place

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark


@app.command(config=gather, group=TRAIN)
def train(
    data: str | None = None,
    root: Place | None = None,
    *,
    out: Place | None = None,
    preset: str | None = None,
    config: Place | None = None,
    show_config: Annotated[bool, Parameter(negative=())] = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
    init: Place | None = None,
    like: Place | None = None,
    tracker: TrackerOption = None,
    reading: Reading = READING,
    settings: Settings = DEFAULTS,
) -> None:
    """Train an embedding by divide and conquer, into a run folder.

    divcon train products.csv --out runs/products

    divcon train cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub

    divcon train --out runs/products --resume

    divcon train --out runs/products --resume --epochs 120

    divcon train --config runs/products/config.json --seed 1 --out runs/again

    divcon train --like runs/products --train-on all --out runs/for-use

    A settings file (--config) is YAML, TOML or JSON, in the layout that --show-config prints and that a run's
    config.json has: the sections model, train and data with the settings' names as keys; source (data and root) says
    what to train on, init which model to start from. All of it is optional. Relative paths in the file start from its
    folder. Flags override the file, the file overrides the preset, and the preset the defaults; if a flag names another
    loss, miner or method than the file does, the file's options for it are ignored.

    Parameters
    ----------
    data
        What to train on: a folder (ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE), a CSV or
        parquet (path,label[,split]), a named data set (demo, icons, cub, cars, sop, inshop, vehicleid-small, -medium,
        -large, market1501), or a reader of your own (module:Name). Required, unless --config or --resume says it.
    root
        The folder of a named data set (cub to market1501: as unpacked, or the downloaded archive), the folder that a
        table's paths are relative to, or what a reader of your own takes as root.
    out
        The run folder: settings, metrics, divisions, checkpoint, report, and two models: model, of the epoch that is
        kept, and last, of the last epoch. Required to train.
    preset
        Take all settings that decide what is trained from a recipe: cvpr2019 (as in the paper), cvpr2019-released (as
        in its code), tpami2021-fixed, tpami2021-learned, single (one metric at the budget of cvpr2019); or ours, not
        measured yet: modern-vit, modern-dinov2, modern-convnext, people (256 x 128), vehicles (256 x 256). They depend
        on the data set; --show-config prints them.
    config
        Read settings from this file (.yaml, .toml, .json). A run's config.json repeats that run, on the same data.
    show_config
        Print every setting and where it comes from, as YAML that --config takes, and exit.
    resume
        Resume the run in --out where it stopped, with its settings and data. Processes that torchrun starts again do so
        without it. With a larger --epochs a run is made
        longer, a finished one too, if its learning rates do not depend on the number of epochs.
    init
        Start from the model in this run folder, or model folder such as RUN/last, and take its backbone, size and head
        where no setting says otherwise.
    like
        With --train-on all: the folder of a complete run. Take its settings and data where nothing else says otherwise,
        train on all of its classes with as many batches as it had trained when it kept its model, and embed as it has
        chosen: a model for use, which has no test score of its own; that of its settings is this run's.
    """
    typed = None if data is None else {"data": _absolute(data), "root": absolute(root) if root else None}
    if typed is not None and (options := reading.options()):
        typed["options"] = options
    if out is None and (resume or not show_config):
        raise ConfigError("--out is missing: give a folder for the run, as in --out runs/first")
    callbacks = trackers(tracker)
    plan = of_first(lambda: _plan(settings, out, typed, init, like, resume=resume, show_config=show_config))
    if plan is None:
        return
    from divcon.runs.display import Bar
    from divcon.runs.folder import RunFolder

    assert out is not None
    # Each rank has the data where its own command line says; how it is read is as the run has it.
    own = {} if typed is None else {"data": typed["data"], "root": typed["root"]}
    benchmark, source = _read({**plan.source, **own}, plan.settings)
    chosen, like = plan.settings, plan.like
    if like is not None:
        from divcon.runs.like import settings_like

        chosen, length = of_first(lambda: settings_like(plan.like or "", benchmark, chosen, current_origins().explicit))
        note(length)
    # All that can be wrong with the command is found by now, without PyTorch.
    from divcon.runs.run import run as train_run

    with Bar(notes, in_flags) as bar:
        try:
            options: dict[str, Any] = {"resume": plan.resume, "init": plan.init, "like": like, "source": source}
            train_run(benchmark, out, chosen, display=bar, callbacks=callbacks, **options)
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            where = str(stopped) or "stopped at once; the last checkpoint is complete"
            has_run = is_first() and RunFolder(out).read() is not None
            advice = f"Resume with: divcon train --out {out} --resume" if has_run else "Nothing was written"
            notes.print(f"{where}. {advice}", markup=False)
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None


@dataclass(frozen=True)
class _Plan:
    """What is to be trained, as rank 0 reads it from the command line and its folders."""

    settings: RunConfig
    source: dict[str, Any]
    init: Path | None
    like: Path | None
    resume: bool


def _plan(
    settings: Settings,
    out: Path | None,
    source: dict[str, Any] | None,
    init: Path | None,
    like: Path | None,
    *,
    resume: bool,
    show_config: bool,
) -> _Plan | None:
    """The plan, checked; None where the settings are shown, and nothing is trained."""
    if not resume and out is not None and _begun_before_restart(out):
        resume, like = True, None
    chosen = run_config(settings)
    if like is not None:
        source = _check_like(chosen, like, source, resume=resume)
    if out is not None and resume:
        chosen, source, init = _resumed(out, chosen, source, init)
    if show_config:
        console.print(as_file(chosen, source, init), end="")
        return None
    if source is None:
        raise ConfigError(
            "DATA is missing: give a folder, a CSV or parquet, or a named data set, as in divcon train a.csv"
        )
    assert out is not None
    from divcon.runs.folder import RunFolder, check_trained
    from divcon.training.names import check_names

    check_names(chosen.model, chosen.train)
    RunFolder(out).check_usable(resume=resume)
    if init is not None:
        check_trained(init)
    return _Plan(chosen, source, init, like, resume)


def _begun_before_restart(out: Path) -> bool:
    """Whether torchrun has started this process again, which goes on with the run that it had begun."""
    group = started_group()
    if group is None or (group.world_size == 1 and not is_restarted_alone()):
        return False
    from divcon.runtime.launch import begun_before_restart

    return begun_before_restart(out)


def _check_like(
    settings: RunConfig, like: Path, source: dict[str, Any] | None, *, resume: bool
) -> dict[str, Any] | None:
    """The data to train on: ``source``, or that of the run in ``like``."""
    from divcon.runs.folder import RunFolder
    from divcon.runs.like import check_like

    if resume:
        raise ConfigError(f"--like {like}: the run in --out is resumed with its own settings; leave it out")
    check_like(settings, like)
    saved = RunFolder(like).read()
    if source is not None or saved is None or saved[1].get("source") is None:
        return source
    check_trusted(saved[1]["source"]["data"], str(RunFolder(like).config))
    return {name: saved[1]["source"].get(name) for name in ("data", "root")}


def _resumed(
    out: Path, settings: RunConfig, source: dict[str, Any] | None, init: Path | None
) -> tuple[RunConfig, dict[str, Any] | None, Path | None]:
    """Settings, source and init of the run in ``out``; if there is none yet, those that are passed, with a source."""
    from divcon.runs.folder import RunFolder

    folder = RunFolder(out)
    if source is not None and folder.read() is None:
        return settings, source, init
    origins = current_origins()
    settings, record = folder.resumed(settings, origins.explicit)
    if source is None:
        origins.places |= {("data",): f"run {out}", ("root",): f"run {out}"}
        check_trusted(record["source"]["data"], str(folder.config))
    if source is not None and record.get("source") and source["data"] == record["source"]["data"]:
        # The columns of the run, where the command line says none.
        source = {"options": record["source"].get("options") or {}} | source
    return settings, source or record["source"], init or (place(record["init"]) if record.get("init") else None)


def _read(source: dict[str, Any], settings: RunConfig) -> tuple[Benchmark, dict[str, Any]]:
    """Read the data, and add its fingerprint to the source; the data of a repeated run must be unchanged."""
    from divcon.data.read import splitting_for

    options = {**(source.get("options") or {}), **splitting_for(source["data"], settings.data.splitting)}
    benchmark = read_data(source["data"], source["root"], **options)
    origins = current_origins()
    if origins.file is not None and "data" in origins.in_file:
        record = origins.file.values
        train, split = record["source"].get("fingerprint"), record.get("split_hash")
        if (train and not benchmark.has_train_fingerprint(train)) or (split and not benchmark.has_split(split)):
            raise ConfigError(
                f"{origins.file.where('source')}: the data has changed since that run (train {train}, test {split} "
                f"then; {benchmark.train_fingerprint}, {benchmark.split_hash} now); to use its settings on the data as "
                f"it is now, give DATA: {source['data']}"
            )
    return benchmark, {**source, "fingerprint": benchmark.train_fingerprint}


def _absolute(data: str) -> str:
    """The absolute path of a file or folder; names of data sets and readers as they are."""
    from divcon.data.read import NAMED

    return str(Path(data).absolute()) if data not in NAMED and exists_here(data) else data
