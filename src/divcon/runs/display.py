"""Runs and scores on a terminal: a bar with rate and time left, a line an epoch, tables of scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Task
from rich.table import Table
from rich.text import Text

from divcon.config.image_size import saved_size
from divcon.config.settings import RunConfig
from divcon.data.benchmark import CLOSED_SET, Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.evaluation.baselines import BASELINES, METRICS
from divcon.evaluation.metrics import MARP, Score, clustered_in_words, queries_in_words, scores_in
from divcon.evaluation.subspaces import mean_over_pairs
from divcon.evaluation.threshold import in_words
from divcon.runs.notes import EpochNotes
from divcon.runs.progress_bar import STAGES, OneLine, bar_on
from divcon.runtime.context import Progress as RunProgress

MOST_SIZES = 48
"""Characters of a line that the sizes of clusters may take."""


class Display(ABC):
    """Where a run reports to; a subclass shows it."""

    @abstractmethod
    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        """The run starts, or resumes at epoch ``epochs_done``."""

    def chosen(self, settings: Mapping[str, tuple[object, str]]) -> None:  # noqa: B027 — nothing to show by default
        """Settings were chosen from the data: by name, the value and the reason. Comes before `begin`."""

    @abstractmethod
    def progress(self, progress: RunProgress) -> None:
        """A batch of any stage is done."""

    @abstractmethod
    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch is done; ``line`` is its line of ``metrics.jsonl``."""

    def embedding(self, line: str) -> None:  # noqa: B027 (a display of one's own need not show it)
        """The run has chosen what the finished model embeds by; ``line`` says so."""

    @abstractmethod
    def warn(self, message: str) -> None:
        """The run warns the user."""

    def baselines(self, scores: dict[str, Any]) -> None:  # noqa: B027
        """The kept model is compared with untrained features on the validation classes; ``scores`` is what
        `divcon.evaluate` returned with ``baselines=True``. Shows nothing unless a subclass does."""

    def threshold(self, line: str) -> None:  # noqa: B027
        """The run has chosen the similarity from which on a neighbour counts; ``line`` says so."""

    @abstractmethod
    def end(self, out: Path, kept_epoch: int | None) -> None:
        """The run is done, and the model of ``kept_epoch`` is saved."""


class NullDisplay(Display):
    """Show nothing."""

    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        pass

    def progress(self, progress: RunProgress) -> None:
        pass

    def epoch(self, line: dict[str, Any]) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    def end(self, out: Path, kept_epoch: int | None) -> None:
        pass


def _of_the_whole_run(task: Task) -> float | None:
    """Seconds left of the whole run, from its epochs so far, with dividing and evaluating."""
    done = task.completed - task.fields["before"]
    if not done or task.elapsed is None or task.total is None:
        return None
    return task.elapsed / done * (task.total - task.completed)


class Bar(Display):
    """A bar on a terminal, and a line an epoch. A context manager that removes the bar on exit.

    Epochs are numbered from 0, as in ``metrics.jsonl``.

    Args:
        console: where to print; None: standard error.
        reword: applied to each warning before it is printed.
    """

    def __init__(self, console: Console | None = None, reword: Callable[[str], str] = str) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._reword = reword
        self._bar = bar_on(self.console, OneLine(_of_the_whole_run))
        self._task = self._bar.add_task("reading", total=None, details=[], before=0)
        self._epochs = 0
        self._head_printed = False
        self._validation: LabeledSet | None = None
        self._notes = EpochNotes()
        self._warned: set[str] = set()
        self._similarities: dict[int, float] = {}

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def chosen(self, settings: Mapping[str, tuple[object, str]]) -> None:
        words = "; ".join(f"`{name}` {value} ({reason})" for name, (value, reason) in settings.items())
        self.console.print(Text.assemble(("from the data: ", "dim"), self._reword(words)))

    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        self._epochs = config.train.epochs
        self._bar.reset(self._task, total=self._epochs, completed=epochs_done, before=epochs_done, details=[])
        self._validation = data.validation
        model, vectors = config.model, data.train.vectors
        what = "images" if vectors is None else f"vectors ({vectors.shape[1]:,} dimensions)"
        self.console.print(
            f"[bold]{escape(data.name)}[/]: {len(data.train):,} {what} of {data.train.num_classes:,} classes to train "
            "on" + _held_out(data) + f"; {model.method}, {model.num_learners} learner{'s' * (model.num_learners > 1)}, "
            f"D {model.embedding_dim}, "
            + (
                f"{escape(model.backbone)} at {saved_size(model.image_size)} px{_fit_in_words(model.fit)}"
                if vectors is None
                else f"backbone {model.backbone}"
            )
            + (f"; {config.train.devices} devices across {config.train.across}" if config.train.num_devices > 1 else "")
        )
        for note in data.notes:
            self.warn(note)
        joint, finetune = config.train.phase_starts
        if model.num_learners > 1 and not config.train.full_weight and min(joint, finetune) >= self._epochs:
            self.warn(
                f"no loss ever trains the full embedding: `finetune_epoch` {finetune} is not below `epochs` "
                f"{self._epochs}, and `full_weight` is 0"
            )
        if epochs_done:
            at = f"resuming at epoch {epochs_done} of" if epochs_done < self._epochs else "already done: epochs"
            self.console.print(f"{at} {self._span}")

    @property
    def _span(self) -> str:
        """The numbers of the epochs: ``0-59``."""
        return f"0-{self._epochs - 1}"

    def progress(self, progress: RunProgress) -> None:
        share = progress.done / max(1, progress.total or 1)
        count = f"{progress.done:,}/{progress.total:,} images" if progress.total else ""
        if progress.epoch is None:
            what = {"decode": "decoding each image once"}.get(progress.stage, progress.stage)
            self._bar.update(self._task, description=what, total=1, completed=share, details=[count])
            return
        completed = progress.epoch + {"divide": 0.0, "train": share}.get(progress.stage, 1.0)
        what, details = f"epoch {progress.epoch} of {self._span} ", [count]
        if progress.stage == "train":
            what += progress.phase or ""
            details = [f"loss {progress.loss:.3f}", f"{progress.images_per_second:,.0f} images/s", count]
            if len(progress.sizes) > 1:
                details.append(f"learners {_sizes(progress.sizes, MOST_SIZES)}")
        else:
            what += STAGES.get(progress.stage, progress.stage)
        self._bar.update(self._task, description=what, completed=completed, details=details)

    def epoch(self, line: dict[str, Any]) -> None:
        scores = line.get("validation", {})
        if not self._head_printed:
            self._head_printed = True
            self._print_head(scores)
        recall, precision = (
            f"{100 * scores[name]:8.1f}" if name in scores else "       -" for name in ("recall_at_1", "map_at_r")
        )
        seconds = sum(line[f"seconds_{what}"] for what in ("dividing", "training", "evaluating"))
        begin = f"{line['epoch']:5d}  {line['phase']:9s} {line['loss']:6.3f}  {recall} {precision} {seconds:8.1f}  "
        left_out = f" ({line['left_out']:,})" if line["left_out"] else ""
        sizes = _sizes(line["sizes"], max(0, min(MOST_SIZES, self.console.width - 1 - len(begin) - len(left_out))))
        self.console.print(begin + sizes + left_out, markup=False, soft_wrap=True)
        for warning in line["warnings"]:
            if self._notes.add(warning, line["epoch"]):
                self.warn(warning)
        if line.get("learner_similarity") is not None:
            self._similarities[line["epoch"]] = line["learner_similarity"]

    def _print_head(self, scores: Mapping[str, Any]) -> None:
        if self._validation is not None:
            of = queries_in_words(scores) if "num_queries" in scores else f"{len(self._validation):,}"
            self.console.print(
                f"recall@1 and map@r: % of {of} queries of the validation classes", style="dim", soft_wrap=True
            )
        head = "epoch  phase       loss  recall@1    map@r  seconds  learner sizes (left out)"
        self.console.print(head, style="dim", soft_wrap=True)

    def embedding(self, line: str) -> None:
        self.console.print(self._reword(line), markup=False)

    def warn(self, message: str) -> None:
        """Print a note, once."""
        if message in self._warned:
            return
        self._warned.add(message)
        self.console.print(Text.assemble(("note: ", "yellow"), self._reword(message)))

    def baselines(self, scores: dict[str, Any]) -> None:
        number = f"{scores['num_classes']:,} validation classes"
        if scores["protocol"] == CLOSED_SET:
            number = f"{queries_in_words(scores)} validation images"
        where = f"epoch {scores['epoch']} beside what needs no training, on {number}:"
        print_baselines(scores, self.console, where)

    def threshold(self, line: str) -> None:
        self.console.print(line, markup=False)

    def end(self, out: Path, kept_epoch: int | None) -> None:
        for note in self._notes.repeated:
            self.console.print(Text.assemble(("note, repeated: ", "yellow"), self._reword(str(note))))
        if kept_epoch in self._similarities:
            self.console.print(
                f"similarity of learners in epoch {kept_epoch}: {self._similarities[kept_epoch]:.2f} (1: the same "
                "neighbours; 0: unrelated)"
            )
        written = f"; report in {report}" if (report := out / "report.html").exists() else ""
        last = f", the last epoch's model in {out / 'last'}" if (out / "last").exists() else ""
        self.console.print(f"kept epoch {kept_epoch} in {out / 'model'}{last}{written}", markup=False, soft_wrap=True)


def _sizes(sizes: Sequence[int], room: int) -> str:
    """The learners' numbers of images, or the least and the most where the room, in characters, is too small."""
    text = " ".join(map(str, sizes))
    return text if len(text) <= room else f"{len(sizes)} of {min(sizes):,} to {max(sizes):,}"


def _held_out(data: Benchmark) -> str:
    if data.validation is None:
        return ""
    number = f"{len(data.validation):,} more" if data.closed else f"{data.validation.num_classes:,} classes"
    return f", {number} held out for validation"


def print_scores(result: dict[str, Any], console: Console, reword: Callable[[str], str] = str) -> None:
    """Print what `divcon.evaluate` returned, as tables.

    Args:
        reword: applied to each line that names a setting, such as advice, before it is printed.
    """
    unmatched = result["num_queries_without_match"]
    console.print(
        f"{result['benchmark']}, {result['protocol']}, split {result['split_hash']}: "
        f"{queries_in_words(result)} queries of {result['num_classes']:,} classes, gallery {result['num_gallery']:,}"
        + (f"; {unmatched:,} queries without a match are left out" if unmatched else "")
    )
    console.print(_scores_table(result))
    _print_characteristic(result, console)
    if "marp" in result:
        console.print(MARP, markup=False)
    if (clustered := clustered_in_words(result)) is not None:
        console.print(reword(f"{clustered} (`max_clustered` sets how many)"), markup=False)
    if "threshold" in result:
        console.print(
            f"{in_words(result['threshold'])}, where half of the classes are not in the gallery", markup=False
        )
    if "baselines" in result:
        print_baselines(result, console)
        for advice in result.get("advice", []):
            console.print(Text.assemble(("note: ", "yellow"), reword(advice)))
    if "reranked" in result:
        reranked = result["reranked"]
        console.print(f"re-ranked, k1 {reranked['k1']}, k2 {reranked['k2']}, weight {reranked['weight']:g}:")
        console.print(_scores_table(reranked))
        _print_characteristic(reranked, console)
    if "random_gallery" in result:
        drawn = result["random_gallery"]
        means = [name for name in drawn if f"{name}_std" in drawn]
        scores = [f"{name} {100 * drawn[name]:.1f} ± {100 * drawn[f'{name}_std']:.1f}" for name in means]
        console.print(
            f"one random gallery image a class, {drawn['draws']} draws of {queries_in_words(drawn)} queries: "
            + ", ".join(scores)
        )
        _print_characteristic(drawn, console)
    if "learners" in result:
        rows = [(f"learner {k}", scores) for k, scores in enumerate(result["learners"])]
        _print_table("alone", [*rows, ("pooled features", result["features"])], console)
    if "without" in result:
        _print_table("without", [(f"learner {k}", scores) for k, scores in enumerate(result["without"])], console)
    if "by_size" in result:
        first = result["by_size"][0]["learners"]
        rows = [(f"learner {first[0]}, {result['by_size'][0]['dims']} dimensions", result["by_size"][0])]
        for scores in result["by_size"][1:]:
            rows.append((f"and learner {scores['learners'][-1]}, {scores['dims']} dimensions", scores))
        _print_table(f"best few, chosen on {result['ordered_on']} classes", rows, console)
    elif "without" in result:
        console.print("best few: left out, as no validation or train class has two images to choose them on")
    if "similarity_correlations" in result:
        _print_correlations(result["similarity_correlations"], console)
    low, high = result["recall_at_1_interval"]
    method = result.get("recall_at_1_interval_method", Score.interval_method)
    console.print(f"recall_at_1: 95 % interval {100 * low:.1f} to {100 * high:.1f} ({method})")


def print_baselines(result: dict[str, Any], console: Console, title: str = "") -> None:
    """The embedding beside what needs no training, from what `divcon.evaluate` returned with ``baselines=True``."""
    baselines = result["baselines"]
    if title:
        console.print(title, markup=False)
    rows = [["embedding", *(f"{100 * result[name]:.1f} %" for name in METRICS), ""]]
    for name, of in BASELINES.items():
        if name not in baselines:
            continue
        scores = baselines[name]
        difference = scores["difference"]["map_at_r"]
        low, high = difference["interval"]
        texts = (f"{100 * scores[metric]:.1f} %" for metric in METRICS)
        rows.append([of, *texts, f"{100 * difference['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"])
    print_table(console, ["", *METRICS, "embedding less it"], rows)
    of = baselines.get("pretrained_features", {}).get("of")
    known = "" if of is None else f"pretrained features: {of}; "
    console.print(f"{known}the last column is of map_at_r, with its 95 % interval", markup=False)
    if "note" in baselines:
        console.print(baselines["note"], markup=False)


def print_table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on a terminal that is too narrow for it, each row as a block of lines, a column a line.

    Args:
        heads: the names of the columns; the first column names the rows.
        rows: the cells, as texts.
    """
    table = Table(box=None, pad_edge=False)
    for place, head in enumerate(heads):
        numbers = place and all(not row[place] or row[place][0] in "0123456789+-–" for row in rows)
        table.add_column(escape(head), justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    table.width = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
    if not console.is_terminal or table.width <= console.width:
        console.print(table, soft_wrap=True)  # a table in a file is never cut
        return
    for row in rows:
        console.print(row[0], markup=False, style="bold")
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if cell not in ("", "–"):
                console.print(f"  {head}: {cell}", markup=False)


def _scores_table(scores: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for score in scores_in(scores):
        spread = "" if score.std is None else f"± {score.text(score.std).removesuffix(' %')}"
        table.add_row(score.title, score.text().rjust(7), spread)
    return table


def _print_characteristic(scores: dict[str, Any], console: Console) -> None:
    """The cumulative match characteristic, ten ranks a line."""
    curve = scores.get("cmc", [])
    for first in range(0, len(curve), 10):
        ranks = curve[first : first + 10]
        shares = " ".join(f"{100 * share:5.1f}" for share in ranks)
        console.print(f"cmc, %, ranks {first + 1} to {first + len(ranks)}: {shares}")


def _print_table(title: str, rows: list[tuple[str, dict[str, Any]]], console: Console) -> None:
    names = ("recall_at_1", "r_precision", "map_at_r", *rows[0][1].get("metrics", ()))
    texts = [(label, {score.name: score.text() for score in scores_in(scores)}) for label, scores in rows]
    print_table(console, [title, *names], [[label, *(of.get(name, "-") for name in names)] for label, of in texts])


def _print_correlations(correlations: list[list[float | None]], console: Console) -> None:
    """The mean over pairs of learners, and each pair where they fit on a screen."""
    count = len(correlations)
    value = mean_over_pairs(correlations)
    mean = f"{value:.2f}" if value is not None else "unknown: all their embeddings are equal"
    console.print(f"similarity of learners (1: the same neighbours; 0: unrelated), mean over pairs: {mean}")
    if 2 < count <= 12:
        print_table(
            console,
            ["similarity", *map(str, range(count))],
            [[f"learner {k}", *("-" if c is None else f"{c:.2f}" for c in row)] for k, row in enumerate(correlations)],
        )


def _fit_in_words(fit: str) -> str:
    """Where it is not the usual crop."""
    return "" if fit in ("auto", "crop") else f", {fit}"
