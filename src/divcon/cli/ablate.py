"""``divcon ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import (
    READING,
    TRAIN,
    Place,
    Reading,
    TableFiles,
    TrackerOption,
    app,
    check_tables,
    console,
    note,
    notes,
    read_data,
    trackers,
)
from divcon.cli.messages import flag, in_flags
from divcon.cli.settings import COMMAND_LINE, DEFAULTS, Settings, current_origins, gather, run_config
from divcon.config.settings import SECTION_OF
from divcon.errors import ConfigError, Stopped
from divcon.runtime.files import check_folder

_NOT_OF_THE_BASE = {
    "method": "use --methods",
    "seed": "use --seeds",
    "validation": "trials are evaluated on --folds of the train classes, and the final runs train on all of them",
    "validation_fraction": "use --folds",
    "validation_folds": "use --folds",
    "patience": "all runs have the same epochs",
    "end_epoch": "all runs have the same epochs",
    "train_on": "all arms are compared on the test classes",
}


@app.command(config=gather, group=TRAIN)
def ablate(
    data: str | None = None,
    root: Place | None = None,
    *,
    out: Place | None = None,
    methods: str | None = None,
    seeds: str | None = None,
    vary: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    space: Place | None = None,
    trials: int = 8,
    folds: int = 3,
    reference: str | None = None,
    table_files: TableFiles = (),
    clustering: bool = True,
    keep_models: Annotated[bool, Parameter(negative=())] = False,
    preset: str | None = None,
    config: Place | None = None,
    tracker: TrackerOption = None,
    reading: Reading = READING,
    settings: Settings = DEFAULTS,
) -> None:
    """Compare methods at the same budget: the same images, the same number of trials, several seeds.

    divcon ablate vectors.parquet --methods single,slices,masks --epochs 30 --out ablation

    divcon ablate products.csv --methods single,slices,random-images --space space.yaml --trials 8 --out ablation

    divcon ablate products.csv --vary learners=1,2,4,8 --out ablation

    divcon ablate cub data/CUB_200_2011 --preset cvpr2019 --methods single,slices --out ablation --table cub.tex

    divcon ablate --out ablation --table table.tex --table table.csv

    All arms share the base settings, given by flags and --config; each arm changes only its own. If --space lists
    values to search, each arm gets the same number of trials, evaluated on folds of the train classes; when every arm
    has its choice (choices.json), each trains on all train classes, once per seed, and is evaluated on the test
    classes.

    The arms: single, slices, masks; hierarchy (masks, whose learners double at each division); masks-alone (masks,
    without the loss on the full embedding beside the learner's); masks-memory (masks, divided on features from a
    feature bank); normalised-slices (the head of slices, one loss, all data); clustered and clustered-slices (masks and
    slices, one loss on the full embedding, batches of one cluster); random-images and random-classes (slices, images or
    classes divided at random); masks-all-data and slices-all-data (each learner trained on all images); any other
    method; and the arms that --space defines.

    The folder gets results.json, table.md, recall.svg and recall.png. Run the same command again to resume a stopped
    ablation; more --methods and --seeds may be added. Without DATA, only the table of finished runs is printed.

    Parameters
    ----------
    data
        As in train.
    root
        As in train.
    out
        The folder for the results. Required.
    methods
        The arms, in the order of the table. Default: single,slices,masks.
    seeds
        Seeds of the runs to compare. Default: 0,1,2. Trials use the first.
    vary
        An arm for each value of a setting, as in --vary learners=1,2,4,8 or --vary loss=MarginLoss,TripletMarginLoss,
        over the base settings, or over each of --methods. Repeat it for all combinations of several settings.
    space
        A file (.yaml, .toml, .json) with arms of your own (arms) and values to search (space).
    trials
        Trials of each arm: random combinations of its values, the defaults first.
    folds
        Number of folds of the train classes: each trial trains on all but one and is evaluated on that one, in turn.
    reference
        The arm to compare the others with. Default: single, or else the first.
    clustering
        Score each run at its chosen epoch by NMI and AMI too, for --table.
    keep_models
        Keep the models and checkpoints of finished runs, which are deleted otherwise.
    preset
        Base settings of a paper, as in train. Arms of the preset's own method have its masks and hierarchy. The paper
        has more batches in an epoch the more learners there are (--rounds longest); add --rounds epoch, so that all
        arms train on as many images.
    config
        Read the base settings from this file, as in train.
    """
    if out is None:
        raise ConfigError("--out is missing: give a folder for the results, as in --out ablation")
    for name, why in _NOT_OF_THE_BASE.items():
        if current_origins().places.get((name,)) == COMMAND_LINE:
            raise ConfigError(f"{flag(name)} is not a setting of the base: {why}")
    base, callbacks = run_config(settings), trackers(tracker)
    names = None if methods is None else _listed(methods)
    numbers = None if seeds is None else _numbers(seeds)
    check_tables(table_files)
    if data is None:
        _tabulate_again(out, names, numbers, reference, table_files)
        return

    from divcon.experiments.arms import BASE, DEFAULT_ARMS, DEFAULT_SEEDS, arms_of, check_numbers, read_space, varied
    from divcon.experiments.results import score_table, table
    from divcon.runs.display import Bar
    from divcon.training.names import check_names

    own, searched = read_space(space) if space is not None else ({}, {})
    arms = [BASE] if vary and names is None else arms_of(DEFAULT_ARMS if names is None else names, own)
    for words in vary:
        arms = varied(arms, *_setting_and_values(words))
    arms = arms_of(arms)
    numbers = DEFAULT_SEEDS if numbers is None else numbers
    check_numbers(numbers, trials, folds, reference, arms)
    check_names(base.model, base.train)
    check_folder(out)
    benchmark = read_data(data, root, **reading.options(), **base.data.splitting)

    from divcon.experiments import ablate as run_ablation

    with Bar(notes, in_flags) as bar:
        try:
            results = run_ablation(
                benchmark,
                out,
                arms=arms,
                base=base,
                seeds=numbers,
                space=searched,
                trials=trials,
                folds=folds,
                reference=reference,
                keep_models=keep_models,
                clustering=clustering,
                display=bar,
                callbacks=callbacks,
                tell=lambda line: notes.print(line, markup=False),
            )
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            notes.print(f"stopped; finished runs are kept in {out}. Run the same command again to resume", markup=False)
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None
    shown = table(results, arms=[arm.name for arm in arms], seeds=numbers, reference=reference)
    _print(shown)
    for path in table_files:
        score_table(results, arms=[arm.name for arm in arms], seeds=numbers).write(path)


def _print(markdown: str) -> None:
    """Print the table as it is, or laid out for the terminal."""
    from divcon.runs.display import print_table

    if not console.is_terminal:
        console.print(markdown, end="")
        return
    lines = markdown.splitlines()
    head, _, *rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines if line.startswith("|")]
    print_table(console, head, rows)
    console.print("\n".join(line for line in lines if not line.startswith("|")))


def _tabulate_again(
    out: Path, names: list[str] | None, seeds: list[int] | None, reference: str | None, table_files: tuple[Path, ...]
) -> None:
    """Print and write the tables and draw the pictures of finished runs, without the data."""
    from divcon.experiments.arms import Arm, arms_of
    from divcon.experiments.results import ResultsFile, draw, read_results, score_table, tabulate
    from divcon.runtime.context import Context

    results = read_results(out / ResultsFile.NAME)
    settings = results["settings"]
    names = list(settings["arms"]) if names is None else names
    arms_of(names, {name: Arm(name) for name in settings["arms"]})
    if reference is not None and reference not in names:
        raise ConfigError(f"--reference {reference}: is not one of the arms ({', '.join(names)}); add it to --methods")
    runs = [(name, seed) for name in names for seed in (settings["seeds"] if seeds is None else seeds)]
    done = {(run["method"], run["seed"]) for run in results["runs"]}
    left = [run for run in runs if run not in done]
    if left:
        raise ConfigError(
            f"DATA is missing: {len(left)} of {len(runs)} runs are not done ({left[0][0]} with seed {left[0][1]}, for "
            "one); give DATA and the whole command again"
        )
    _print(tabulate(out, results, names, seeds, reference))
    draw(out, results, names, seeds, Context(on_warning=note))
    for path in table_files:
        score_table(results, arms=names, seeds=seeds).write(path)


def _setting_and_values(words: str) -> tuple[str, list[Any]]:
    """``num_learners`` and its values, of ``learners=1,4``; by the name of the setting or of its flag."""
    name, _, values = words.partition("=")
    name = name.strip().removeprefix("--")
    flags = {flag(setting).removeprefix("--"): setting for setting in SECTION_OF}
    if not (listed := _listed(values)):
        raise ConfigError(f"--vary {words}: expected a setting and its values, as in learners=1,2,4")
    return flags.get(name, name.replace("-", "_")), [_value(word) for word in listed]


def _value(word: str) -> Any:
    for read in (int, float):
        try:
            return read(word)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(word, word)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in _listed(words)]
    except ValueError:
        raise ConfigError(f"--seeds {words}: expected whole numbers separated by commas, as in 0,1,2") from None
