"""``divcon train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from divcon.cli.app import app, notes, words
from divcon.config import RunConfig, flag
from divcon.errors import ConfigError

_DEFAULTS = RunConfig()


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
    from divcon.run import config_from_init
    from divcon.run import run as train_run
    from divcon.run_folder import RunFolder

    given = _given_settings()
    source = None if data is None else {"data": _absolute(data), "root": str(root.absolute()) if root else None}
    folder = RunFolder(out)
    if resume and (source is None or folder.read() is not None):
        config, record = folder.resumed(config, given)
        source = source or record["source"]
    elif init is not None:
        config = config_from_init(init, config, given)
    if source is None:
        raise ConfigError("DATA is missing: a folder, a CSV or parquet, or the name of a data set (see --help)")
    with Bar(notes) as bar:
        benchmark = read(source["data"], source["root"])
        try:
            train_run(benchmark, out, config, resume=resume, init=init, source=source, display=bar)
        except KeyboardInterrupt:
            bar.__exit__()
            done = folder.epochs_done()
            kept = f"{done} epochs are kept" if done else "no epoch was done yet"
            notes.print(f"stopped; {kept}. Go on with: divcon train --out {out} --resume", markup=False)
            raise SystemExit(130) from None


def _given_settings() -> set[str]:
    """The settings that are on the command line, at their defaults or not."""
    spoken = [word.partition("=")[0] for word in words]
    names = {
        f.name for part in dataclasses.fields(_DEFAULTS) for f in dataclasses.fields(getattr(_DEFAULTS, part.name))
    }

    def stands_there(name: str) -> bool:
        long = name.replace("_", "-")
        spelled = (flag(name), f"--{long}", f"--no-{long}")
        return any(word in spelled or word.startswith(f"--{long}.") for word in spoken)

    return {name for name in names if stands_there(name)}


def _absolute(data: str) -> str:
    """A path as it will be found from another working directory; a data set's name as it is."""
    from divcon.data.read import NAMED

    return str(Path(data).absolute()) if data not in NAMED and Path(data).exists() else data
