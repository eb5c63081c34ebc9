"""The ablation itself: trials on folds of the train classes, a choice for every arm, and only then the test classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from divcon.ablation.arms import Arm, Tree, arms_of, config_of, plain
from divcon.ablation.judge import Observer, Once, run_record, tidied, trial_record
from divcon.ablation.prepare import check_numbers, check_settings, prepared, recorded
from divcon.ablation.results import Results, ResultsFile
from divcon.ablation.table import draw, tabulate
from divcon.ablation.trials import Settings, chosen, draw_trials, folds_of, shown
from divcon.config import RunConfig
from divcon.data.image_set import Benchmark
from divcon.display import Display, Quiet
from divcon.environment import machine
from divcon.errors import NonFiniteError, RunError
from divcon.run import run

DEFAULT_ARMS = ("single", "slices", "masks")
DEFAULT_SEEDS = (0, 1, 2)


def ablate(
    data: Benchmark,
    out: str | Path,
    *,
    arms: Sequence[str | Arm] = DEFAULT_ARMS,
    base: RunConfig | None = None,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    space: Tree | None = None,
    trials: int = 8,
    folds: int = 3,
    reference: str | None = None,
    keep_models: bool = False,
    display: Display | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train several arms at the same budget and compare them on the test classes.

    Where there are values to search, each arm has the same number of trials, judged on folds of the train classes.
    After all arms' choices are written to ``choices.json``, each trains on all train classes once a seed; the test
    classes are looked at for the curve, and nothing is chosen by it.

    Args:
        data: what `divcon.read` gave; its validation classes are train classes here.
        out: the folder: ``results.json`` (all that is needed to go on), ``choices.json``, ``table.md``,
            ``recall.svg``, ``recall.png``, and the folders of the runs. What it holds already is not done again.
        arms: names of `divcon.ablation.ARMS` or of methods, or arms of your own, in the order of the table.
        base: what all arms have but for their own settings. Its method, seed and validation are not used; an
            arm that names no method trains slices.
        seeds: of the runs that are compared; the trials have the first.
        space: what is searched for every arm: ``{"train": {"lr": [1e-4, 1e-3]}}``. No trial is made where neither this
            nor any arm has something to search.
        trials: for each arm, the default settings first, if they are in its space.
        folds: parts of the train classes; each trial trains on all but one and is judged on that, once a part.
        reference: the arm that the others are compared with; None: single, or else the first.
        keep_models: keep the models and checkpoints of the runs.
        tell: called with a line for people before and after each run.

    Returns:
        What ``results.json`` holds: ``settings``, ``environment``, ``trials``, ``choices`` and ``runs``.

    Raises:
        ConfigError: an arm, setting, seed or number that cannot be, or settings that do not go together; before
            anything is trained.
        DataError: too few train classes for the folds, or no test images.
        RunError: ``out`` holds something else, or an ablation of other data, settings or lists; or every trial of an
            arm went wrong.
        OutputError, ImageError, NonFiniteError: as in `divcon.run`.
    """
    display = display or Quiet()
    listed = [arm.searching(space or {}) for arm in arms_of(arms)]
    check_numbers(seeds, trials, folds, reference, listed)
    file = ResultsFile(out)
    base = base or RunConfig()
    base, data = prepared(base, data, display)
    held = file.results["settings"]
    seed = held.get("trial_seed", seeds[0])
    # Once arms have had trials, an arm that is added has them too, if only to choose the number of epochs.
    searched = any(arm.space for arm in listed) or held.get("trials", 0) > 0
    planned = {arm.name: draw_trials(arm, base, trials, seed) if searched else [] for arm in listed}
    parts = folds_of(data, folds, seed) if searched else []
    check_settings(listed, planned, base, data)
    file.go_on_with(
        {
            "data": {
                "name": data.name,
                "train": data.train.fingerprint,
                "split_hash": data.split_hash,
                "protocol": data.protocol,
            },
            "base": recorded(base),
            "arms": {arm.name: arm.to_dict() for arm in listed},
            "seeds": list(seeds),
            "trials": trials if searched else 0,
            "folds": folds if searched else 0,
            "trial_seed": seed,
        }
    )
    study = _Study(data, base, file, keep_models, display, tell)
    study.total = sum(map(len, planned.values())) * len(parts) + len(seeds) * len(listed)
    for arm in listed:
        if searched and len(planned[arm.name]) < trials:
            tell(f"note: {arm.name} has {len(planned[arm.name])} combinations to try, fewer than --trials {trials}")
        study.choose(arm, planned[arm.name], parts, seed)
    file.write()
    file.write_choices()
    for number in seeds:
        for arm in listed:
            study.compare(arm, number)
            tabulate(file.out, file.results, [a.name for a in listed], seeds, reference)
    draw(file.out, file.results, [arm.name for arm in listed], seeds, display.warn)
    return file.results


class _Study:
    """One ablation under way."""

    def __init__(
        self,
        data: Benchmark,
        base: RunConfig,
        file: ResultsFile,
        keep_models: bool,
        display: Display,
        tell: Callable[[str], None],
    ) -> None:
        self.data = data
        self.base = base
        self.file = file
        self.keep_models = keep_models
        self.display = Once(display)
        self.tell = tell
        self.total = 0
        self._number = 0

    def choose(self, arm: Arm, trials: list[Settings], folds: list[Benchmark], seed: int) -> None:
        """Make the trials that are still to be made, and write down the arm's choice."""
        records, choices = self.file.results["trials"], self.file.results["choices"]
        if arm.name in choices:
            self._number += len(trials) * len(folds)
            return
        curves: list[list[list[dict[str, Any]]]] = []
        for number, settings in enumerate(trials):
            curves.append([])
            for place, fold in enumerate(folds):
                self._number += 1
                key = {"method": arm.name, "trial": number, "fold": place}
                folder = self.file.out / "trials" / arm.name / f"t{number}" / f"fold-{place}"
                found = [record for record in records if all(record[name] == key[name] for name in key)]
                if not found:
                    what = f"trial {number} of {arm.name}" + (f" ({shown(settings)})" if settings else "")
                    self.tell(f"run {self._number} of {self.total}: {what}, fold {place}")
                    judged = {"train": {"seed": seed}, "data": {"validation": True}}
                    config = config_of(self.base, arm.settings, settings, judged)
                    found = [{**key, "settings": plain(settings), "seed": seed, **self._trial(fold, folder, config)}]
                    self.file.add("trials", found[0])
                tidied(folder, self.keep_models)
                curves[-1].append(found[0]["curve"])
        if not trials:
            choices[arm.name] = {"trial": None, "settings": {}, "epochs": self.base.train.epochs, "recall_at_1": None}
            return
        trial, epochs, score = chosen(curves)
        if score < 0:
            failed = [record["failed"] for record in records if record["method"] == arm.name and "failed" in record]
            raise RunError(f"{arm.name}: every trial went wrong; give other values to search (the first: {failed[0]})")
        choices[arm.name] = {
            "trial": trial,
            "settings": plain(trials[trial]),
            "epochs": epochs,
            "recall_at_1": score,
        }
        self.file.write()

    def _trial(self, fold: Benchmark, folder: Path, config: RunConfig) -> dict[str, Any]:
        try:
            run(fold, folder, config, resume=True, display=self.display, report=False)
        except NonFiniteError as error:  # a learning rate that is too high is a bad choice, not the end of the study
            self.tell(f"  went wrong: {error}")
            return {"curve": [], "failed": str(error)}
        record = trial_record(folder)
        self.tell(f"  Recall@1 {100 * max(point['recall_at_1'] for point in record['curve']):.1f} at best")
        return record

    def compare(self, arm: Arm, seed: int) -> None:
        """Train the arm's choice on all train classes with one seed, unless that is done."""
        self._number += 1
        runs, choice = self.file.results["runs"], self.file.results["choices"][arm.name]
        folder = self.file.out / "runs" / arm.name / f"seed-{seed}"
        if not any(record["method"] == arm.name and record["seed"] == seed for record in runs):
            self.tell(f"run {self._number} of {self.total}: {arm.name}, seed {seed}")
            settings = {"train": {"seed": seed}, "data": {"validation": False}}
            config = config_of(self.base, arm.settings, choice["settings"], settings)
            observer = Observer(self.data, folder, config, choice["epochs"] - 1, self.display)
            run(self.data, folder, config, resume=True, display=self.display, observe=observer.observe)
            record = {
                "method": arm.name,
                "settings": _changes(self.base, config),
                "seed": seed,
                "data": self.data.name,
                "split_hash": self.data.split_hash,
                "protocol": self.data.protocol,
                "machine": machine(),
                **run_record(folder, observer),
            }
            self.file.add("runs", record)
            self.tell(f"  Recall@1 {100 * record['recall_at_1']:.1f} on the test classes, {record['seconds']:.0f} s")
        tidied(folder, self.keep_models)


def _changes(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """What a run has over the base, by part."""
    before, after = base.to_dict(), config.to_dict()
    changes = {part: {k: v for k, v in after[part].items() if v != before[part][k]} for part in ("model", "train")}
    changes["model"]["method"] = config.model.method
    changes["train"].pop("seed", None)
    return {part: values for part, values in changes.items() if values}
