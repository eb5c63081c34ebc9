"""``divcon curves``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from divcon.cli.app import EVALUATE, Place, app, console, to_path
from divcon.errors import ConfigError
from divcon.runtime.files import check_writable


@app.command(group=EVALUATE)
def curves(
    runs: Annotated[list[Path], Parameter(consume_multiple=True, converter=to_path)],
    /,
    *,
    out: Place,
) -> None:
    """Draw how runs converge: Recall@1 after each epoch, a line a run.

    divcon curves runs/single runs/cub --out curves.svg

    The scores are those that the runs have kept: of the test classes where all runs are of divcon reproduce, which
    scores them after each epoch; else of the validation classes. No model is needed. The runs must be of the same data
    and split.

    Parameters
    ----------
    runs
        Run folders. A run that has not ended is drawn as far as it is.
    out
        The file. Its ending says what it is: .png, .svg or .pdf.
    """
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--out {out}: end it in .png, .svg or .pdf")
    check_writable(out)
    from divcon.experiments.curves import recall_curves

    split = recall_curves(runs, out)
    console.print(f"recall_at_1 on {split} classes by epoch in {out}", markup=False)
