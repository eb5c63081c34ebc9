"""``divcon train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from divcon.cli.app import app, console, notes, read_data
from divcon.cli.settings import DEFAULTS, Gathered, Settings, as_file, gather, gathered, run_config
from divcon.config.settings import RunConfig
from divcon.errors import ConfigError, Stopped
from divcon.runtime.importing import check_trusted


@app.command(config=gather)
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

    divcon train demo --backbone tf_efficientnet_lite0 --size 64 --epochs 12 --out runs/demo

    divcon train products.csv --out runs/products

    divcon train cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub

    divcon train --out runs/products --resume

    divcon train --config runs/products/config.json --seed 1 --out runs/again

    A file of settings (--config) is YAML, TOML or JSON, laid out as --show-config prints it and as a run's config.json
    is: the parts model, train and data, with the settings' names as keys; source (data and root) says what to train
    on, init what to start from. All may be left out. Relative paths in it start from its folder. Flags go over the
    file, the file over the preset, the preset over the defaults; where a flag names another loss, miner or method than
    the file, the file's options of that are left out.

    Parameters
    ----------
    data
        A folder (ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE), a CSV or parquet
        (path,label[,split]), or the name of a data set: demo, icons, cub, cars, sop, inshop, vehicleid-small, -medium,
        -large, market1501; or a reader of your own, my_module:my_reader. Needed, unless
        --config or --resume says what to train on.
    root
        Where a named data set lies (cub to market1501: the folder as it is unpacked, or the archive that was
        downloaded), what a table's paths are relative to, or what a reader of your own takes as root.
    out
        The run folder: settings, metrics, divisions, checkpoint, model. Needed to train.
    preset
        Take all settings that decide what is trained from a recipe: cvpr2019 (as the paper has it), cvpr2019-released
        (as its code trains), tpami2021-fixed, tpami2021-learned, single (one metric at the budget of cvpr2019); or
        today's, ours and unmeasured: modern-vit, modern-dinov2, modern-convnext. What they hold depends on the data
        set; --show-config prints it.
    config
        Take settings from this file (.yaml, .toml, .json). A run's config.json repeats the run, on the data it had.
    show_config
        Print every setting as it would be used, and where it comes from, as YAML that --config takes; train nothing.
    resume
        Go on where the run in --out stopped; its settings and data are taken from it.
    init
        Start from the model of this run or model folder; its backbone, size and head too, unless they are given.
    """
    found = gathered()
    source = None if data is None else {"data": _absolute(data), "root": str(root.absolute()) if root else None}
    if out is None and (resume or not show_config):
        raise ConfigError("--out is missing: the folder that gets the run")
    chosen = run_config(settings)
    if out is not None and resume:
        chosen, source, init = _resumed(out, chosen, source, init)
    if show_config:
        console.print(as_file(chosen, source, init), end="")
        return
    if source is None:
        raise ConfigError("DATA is missing: a folder, a CSV or parquet, or the name of a data set (see --help)")
    assert out is not None
    from divcon.runs.display import Bar
    from divcon.runs.folder import RunFolder
    from divcon.runs.run import run as train_run
    from divcon.runtime.launch import is_main_process

    benchmark, source = _read(source, found)
    with Bar(notes if is_main_process() else Console(quiet=True)) as bar:
        try:
            train_run(benchmark, out, chosen, resume=resume, init=init, source=source, display=bar)
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            what = str(stopped) or "stopped at once; what was kept last is whole"
            begun = RunFolder(out).read() is not None
            how = f"Go on with: divcon train --out {out} --resume" if begun else "Nothing was begun"
            notes.print(f"{what}. {how}", markup=False)
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None


def _resumed(
    out: Path, settings: RunConfig, source: dict[str, Any] | None, init: Path | None
) -> tuple[RunConfig, dict[str, Any] | None, Path | None]:
    """Settings, source and init of the run in ``out``; as they are where it is still to begin and is told on what."""
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
    """The data, and the source with its fingerprint; that of a run which is repeated must be as it was."""
    benchmark = read_data(source["data"], source["root"])
    now = {"fingerprint": benchmark.train_fingerprint, "split_hash": benchmark.split_hash}
    if found.file is not None and "data" in found.in_file:
        held = found.file.values
        then = {"fingerprint": held["source"].get("fingerprint"), "split_hash": held.get("split_hash")}
        trained, split = then["fingerprint"], then["split_hash"]
        if (trained and not benchmark.has_train_fingerprint(trained)) or (split and not benchmark.has_split(split)):
            raise ConfigError(
                f"{found.file.where('source')}: the data has changed since that run (train {then['fingerprint']}, test "
                f"{then['split_hash']} then; {now['fingerprint']}, {now['split_hash']} now); to take its settings for "
                f"the data as it is now, give DATA: {source['data']}"
            )
    return benchmark, {**source, "fingerprint": now["fingerprint"]}


def _absolute(data: str) -> str:
    """A path as it will be found from another working directory; a data set's name as it is."""
    from divcon.data.read import NAMED

    return str(Path(data).absolute()) if data not in NAMED and Path(data).exists() else data
