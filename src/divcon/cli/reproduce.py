"""``divcon reproduce``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from divcon.cli.app import app, console, notes, read_data
from divcon.cli.messages import flag
from divcon.cli.settings import DEFAULTS, Settings, gather, run_config
from divcon.errors import ConfigError, Stopped
from divcon.runtime.files import atomic_write, check_writable


@app.command(config=gather)
def reproduce(
    name: str,
    root: Path,
    *,
    out: Path,
    preset: str = "cvpr2019",
    fraction: float = 1.0,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    clustering: bool = True,
    settings: Settings = DEFAULTS,
) -> None:
    """Make a published result again: train a preset, score it, and print it beside what the papers have.

    divcon reproduce cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub --json cub.json

    divcon reproduce cub data/CUB_200_2011 --fraction 0.05 --out runs/try

    The result is the last epoch's. The papers report the best epoch on the test classes; that number is printed too,
    and is no result. A run that was stopped goes on with the same command. Other settings go over the preset's, and
    are told.

    Parameters
    ----------
    name
        The data set: cub, cars, sop, inshop, vehicleid-small, -medium, -large, market1501.
    root
        Where it lies: the folder as it is unpacked, or the archive that was downloaded.
    out
        The run folder.
    preset
        The recipe, as in train.
    fraction
        Below 1: the same walk on this share of the classes and epochs, to see in minutes that it works. What comes of
        it is no result.
    json_file
        Write scores, settings, environment and the scores of every query here.
    clustering
        NMI and AMI of the result.
    """
    from divcon.data.published import PUBLISHED_COUNTS
    from divcon.experiments.reproduce import reproduce as reproduce_preset
    from divcon.runs.display import Bar, print_scores

    if name not in (*PUBLISHED_COUNTS, "vehicleid"):
        raise ConfigError(
            f"{name}: is none of the papers' data sets ({', '.join(PUBLISHED_COUNTS)}); on other data, divcon train "
            f"DATA --preset {preset} trains the same"
        )
    if json_file is not None:
        check_writable(json_file)
    chosen = run_config(settings)
    data = read_data(name, root)
    source = {"data": name, "root": str(root.absolute())}
    with Bar(notes) as bar:
        try:
            result = reproduce_preset(
                data,
                preset,
                out,
                config=chosen,
                fraction=fraction,
                clustering=clustering,
                source=source,
                display=bar,
            )
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            notes.print(
                f"{str(stopped) or 'stopped at once'}; {out} keeps it. Go on with the same command", markup=False
            )
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None
    print_scores(result, console)
    _print(result)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")


def _print(result: dict[str, Any]) -> None:
    made = result["reproduced"]
    known, rule = made["published"], made["papers_rule"]
    console.print()
    console.print(f"{result['benchmark']}, {made['preset']}" + (f"; published: {known['source']}" if known else ""))
    table = Table("", "ours", "published", "difference", box=None, pad_edge=False)
    difference = "" if made["difference"] is None else f"{100 * made['difference']:+.1f}"
    shown = "-" if known is None else f"{100 * known['recall_at_1']:.1f}"
    table.add_row("recall_at_1", f"{100 * result['recall_at_1']:.1f}", shown, difference)
    console.print(table)
    console.print(
        f"the papers' rule, not a result: {100 * rule['recall_at_1']:.1f}, the best epoch on the test classes "
        f"({rule['epoch'] + 1} of {made['settings']['train']['epochs']})"
    )
    for name, (theirs, ours) in made["changed"].items():
        console.print(f"not the preset's: {flag(name)} is {ours}, and {theirs} in {made['preset']}")
    if made["fraction"] < 1:
        console.print(
            f"this was a walk on {100 * made['fraction']:g} % of the classes and epochs: not a result, and not to be "
            "compared with what is published"
        )
