"""``divcon train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from divcon.cli.app import TRAIN, app, console, notes, read_data
from divcon.cli.messages import in_flags
from divcon.cli.settings import DEFAULTS, Gathered, Settings, as_file, gather, gathered, run_config
from divcon.config.settings import RunConfig
from divcon.errors import ConfigError, Stopped
from divcon.runtime.importing import check_trusted


@app.command(config=gather, group=TRAIN)
def train(
    data: str | None = None,
    root: Path | None = None,
    *,
    out: Path | None = None,
    preset: str | None = None,
    config: Path | None = None,
    show_config: Annotated[bool, Parameter(negative=())] = False,
    resume: Annotated[bool, Parameter(negative=())] = False,
    init: Path | None = None,
    settings: Settings = DEFAULTS,
) -> None:
    """Train an embedding by divide and conquer, into a run folder.

    divcon train products.csv --out runs/products

    divcon train cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub

    divcon train --out runs/products --resume

    divcon train --config runs/products/config.json --seed 1 --out runs/again

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
        The run folder: settings, metrics, divisions, checkpoint, model, report. Required to train.
    preset
        Take all settings that decide what is trained from a recipe: cvpr2019 (as in the paper), cvpr2019-released (as
        in its code), tpami2021-fixed, tpami2021-learned, single (one metric at the budget of cvpr2019); or ours, not
        measured yet: modern-vit, modern-dinov2, modern-convnext. They depend on the data set; --show-config prints
        them.
    config
        Read settings from this file (.yaml, .toml, .json). A run's config.json repeats that run, on the same data.
    show_config
        Print every setting and where it comes from, as YAML that --config takes, and exit.
    resume
        Resume the run in --out where it stopped, with its settings and data.
    init
        Start from the model in this run or model folder, and take its backbone, size and head where no setting says
        otherwise.
    """
    found = gathered()
    source = None if data is None else {"data": _absolute(data), "root": str(root.absolute()) if root else None}
    if out is None and (resume or not show_config):
        raise ConfigError("--out is missing: give a folder for the run, as in --out runs/first")
    chosen = run_config(settings)
    if out is not None and resume:
        chosen, source, init = _resumed(out, chosen, source, init)
    if show_config:
        console.print(as_file(chosen, source, init), end="")
        return
    if source is None:
        raise ConfigError(
            "DATA is missing: give a folder, a CSV or parquet, or a named data set, as in divcon train a.csv"
        )
    assert out is not None
    from divcon.runs.display import Bar
    from divcon.runs.folder import RunFolder
    from divcon.runs.run import run as train_run
    from divcon.runtime.launch import is_main_process

    benchmark, source = _read(source, found)
    with Bar(notes if is_main_process() else Console(quiet=True), in_flags) as bar:
        try:
            train_run(benchmark, out, chosen, resume=resume, init=init, source=source, display=bar)
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            what = str(stopped) or "stopped at once; the last checkpoint is whole"
            begun = RunFolder(out).read() is not None
            how = f"Resume with: divcon train --out {out} --resume" if begun else "Nothing was written"
            notes.print(f"{what}. {how}", markup=False)
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None


def _resumed(
    out: Path, settings: RunConfig, source: dict[str, Any] | None, init: Path | None
) -> tuple[RunConfig, dict[str, Any] | None, Path | None]:
    """Settings, source and init of the run in ``out``; as they are passed if there is no run yet, but a source."""
    from divcon.runs.folder import RunFolder

    folder = RunFolder(out)
    if source is not None and folder.read() is None:
        return settings, source, init
    settings, record = folder.resumed(settings, gathered().given)
    if source is None:
        gathered().places |= {("data",): f"run {out}", ("root",): f"run {out}"}
        check_trusted(record["source"]["data"], str(folder.config))
    return settings, source or record["source"], init or (Path(record["init"]) if record.get("init") else None)


def _read(source: dict[str, Any], found: Gathered) -> tuple[Any, dict[str, Any]]:
    """Read the data, and add its fingerprint to the source; the data of a repeated run must be unchanged."""
    benchmark = read_data(source["data"], source["root"])
    now = {"fingerprint": benchmark.train_fingerprint, "split_hash": benchmark.split_hash}
    if found.file is not None and "data" in found.in_file:
        held = found.file.values
        then = {"fingerprint": held["source"].get("fingerprint"), "split_hash": held.get("split_hash")}
        trained, split = then["fingerprint"], then["split_hash"]
        if (trained and not benchmark.has_train_fingerprint(trained)) or (split and not benchmark.has_split(split)):
            raise ConfigError(
                f"{found.file.where('source')}: the data has changed since that run (train {then['fingerprint']}, test "
                f"{then['split_hash']} then; {now['fingerprint']}, {now['split_hash']} now); to use its settings "
                f"on the data as it is now, give DATA: {source['data']}"
            )
    return benchmark, {**source, "fingerprint": now["fingerprint"]}


def _absolute(data: str) -> str:
    """The absolute path of a file or folder; names of data sets and readers as they are."""
    from divcon.data.read import NAMED

    return str(Path(data).absolute()) if data not in NAMED and Path(data).exists() else data
