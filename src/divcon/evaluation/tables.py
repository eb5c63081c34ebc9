"""A table of scores as papers print them: a row a model, a column a metric; as LaTeX, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from divcon.errors import ConfigError, DataError
from divcon.evaluation.baselines import BASELINES
from divcon.evaluation.bootstrap import runs_interval
from divcon.evaluation.metrics import Score, queries_in_words, score_title, scores_in
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.places import place, text_of

UNTRAINED = "pretrained features"
"""The row of the network before its training."""
_SUFFIXES = (".tex", ".csv", ".md")
_SAME_AS_RECALL = "precision_at_1"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Column:
    """A metric of the table."""

    name: str
    """Its key in results."""
    higher_is_better: bool = True
    percent: bool = True
    """0.5 is shown as 50.0, in percent; else as 0.5."""

    @property
    def title(self) -> str:
        """``Recall@1``; with an arrow where lower is better."""
        return score_title(self.name) + ("" if self.higher_is_better else " ↓")

    def text(self, value: float) -> str:
        """``65.6``, without a unit."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Cell:
    """A score of a row."""

    mean: float
    """Over the row's runs, each the mean of its queries."""
    std: float | None = None
    """Standard deviation over the runs (n - 1); None of one run."""
    interval: tuple[float, float] | None = None
    """95 %: by bootstrap over the classes, and over the runs where there are several. None of scores that no query has
    of its own, such as NMI."""


@dataclass(frozen=True)
class Row:
    """A model, or the runs of one arm."""

    name: str
    cells: Mapping[str, Cell]
    """By metric; one that was not evaluated is missing."""
    num_runs: int = 1


@dataclass(frozen=True)
class ScoreTable:
    """Scores of several models on the same queries.

    `write` writes it; `latex`, `csv` and `markdown` return the text.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    about: str = ""
    """What was evaluated: the data, the protocol, the split, the number of queries."""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def caption(self) -> str:
        """What the table shows, in sentences."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        percent = "in percent" if all(column.percent for column in self.columns) else "shares in percent"
        several = sorted({row.num_runs for row in self.rows if row.num_runs > 1})
        counts = " to ".join(dict.fromkeys(str(several[i]) for i in (0, -1))) if several else ""
        parts = [f"{self.about}, {percent}" if self.about else f"Scores {percent}"]
        if several:
            parts[0] += f", mean ± standard deviation of {counts} seeds"
        if any(cell.interval for cell in cells):
            over = "test classes and seeds" if several else "test classes"
            parts.append(f"In brackets, 95 % intervals by bootstrap over {over}")
        if len(self.rows) > 1:
            parts.append("The best of each column is bold")
        return ". ".join([*parts, *self.notes]) + "."

    def _best(self, column: Column) -> set[int]:
        """The rows whose score is the best as it is shown; none of a table of one row."""
        cells = {i: row.cells[column.name].mean for i, row in enumerate(self.rows) if column.name in row.cells}
        if len(cells) < 2:
            return set()
        best = (max if column.higher_is_better else min)(cells.values())
        return {i for i, mean in cells.items() if column.text(mean) == column.text(best)}

    def latex(self, label: str = "divcon") -> str:
        """A ``table`` environment for ``booktabs``: the means, and in a smaller line below the intervals.

        Args:
            label: the table is ``tab:LABEL``.
        """
        lines = [
            r"% \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escaped(self.caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:.-]+', '-', label)}}}",
            rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}",
            r"\toprule",
            _latex_row(["", *(escaped(column.title) for column in self.columns)]),
            r"\midrule",
        ]
        best = {column.name: self._best(column) for column in self.columns}
        for number, row in enumerate(self.rows):
            above, below = [escaped(row.name)], [""]
            for column in self.columns:
                cell = row.cells.get(column.name)
                if cell is None:
                    above.append("--")
                    below.append("")
                    continue
                mean = column.text(cell.mean)
                mean = rf"\textbf{{{mean}}}" if number in best[column.name] else mean
                spread = "" if cell.std is None else rf" {{\scriptsize$\pm${column.text(cell.std)}}}"
                above.append(mean + spread)
                below.append(_latex_interval(column, cell))
            lines.append(_latex_row(above))
            if any(below):
                lines.append(_latex_row(below))
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """A table of Markdown, with the caption below: ``**65.6** ± 0.4 [62.3, 68.9]``."""
        best = {column.name: self._best(column) for column in self.columns}
        lines = [["", *(column.title for column in self.columns)], ["---", *["---:"] * len(self.columns)]]
        for number, row in enumerate(self.rows):
            cells = [row.name.replace("|", r"\|")]
            for column in self.columns:
                cell = row.cells.get(column.name)
                if cell is None:
                    cells.append("–")
                    continue
                mean = column.text(cell.mean)
                text = f"**{mean}**" if number in best[column.name] else mean
                text += "" if cell.std is None else f" ± {column.text(cell.std)}"
                if cell.interval is not None:
                    text += f" [{column.text(cell.interval[0])}, {column.text(cell.interval[1])}]"
                cells.append(text)
            lines.append(cells)
        return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", self.caption]) + "\n"

    def csv(self) -> str:
        """A row a model: ``name``, ``runs``, and for each metric its mean, ``_std``, ``_low`` and ``_high`` (the
        interval), as they are, not in percent; empty where there is none."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        kinds = ("", "_std", "_low", "_high")
        writer.writerow(["name", "runs", *(column.name + kind for column in self.columns for kind in kinds)])
        for row in self.rows:
            values: list[Any] = [row.name, row.num_runs]
            for column in self.columns:
                cell = row.cells.get(column.name)
                low, high = (None, None) if cell is None or cell.interval is None else cell.interval
                values += [None, None, None, None] if cell is None else [cell.mean, cell.std, low, high]
            writer.writerow(["" if value is None else value for value in values])
        return file.getvalue()

    def write(self, path: str | Path) -> None:
        """Write the table as the file's name ends: ``.tex``, ``.csv`` or ``.md``.

        Raises:
            ConfigError: another ending.
            OutputError: the file cannot be written.
        """
        check_table_file(path)
        path = place(path)
        suffix = path.suffix.lower()
        text = self.latex(path.stem) if suffix == ".tex" else self.csv() if suffix == ".csv" else self.markdown()
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def check_table_file(path: str | Path) -> None:
    """
    Raises:
        ConfigError: a table is not written to a file of this ending.
        OutputError: the file cannot be written.
    """
    path = place(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"`table` {text_of(path)}: tables are written as {', '.join(_SUFFIXES)}", field="table")
    check_writable(path)


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_SPECIAL.get(character, character) for character in text).replace("↓", r"$\downarrow$")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_interval(column: Column, cell: Cell) -> str:
    if cell.interval is None:
        return ""
    low, high = map(column.text, cell.interval)
    # A row that began with a bracket would be the argument of the line break above it.
    return rf"{{\scriptsize [{low}, {high}]}}"


def score_table(
    results: Mapping[str, Mapping[str, Any]], names: Mapping[str, str] | None = None, *, baselines: bool = True
) -> ScoreTable:
    """The table of several results of `divcon.evaluate`, each with ``per_query=True``.

    Args:
        results: by name, of one data set, split and protocol, as `divcon.compare` checks them.
        names: the row of each result, by its name; results of one row are runs of several seeds, whose mean it has.
            None: a row for each.
        baselines: put the scores of pretrained features, where the results hold them, into rows of their own, first.

    Raises:
        DataError: no result, or one without the scores of its queries.
    """
    if not results:
        raise DataError("there are no results to tabulate; pass at least one")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for name, result in results.items():
        if "per_query" not in result:
            raise DataError(f"{name}: has no scores of every query, which intervals need; evaluate with per_query=True")
        grouped.setdefault((names or {}).get(name, name), []).append(result)
    columns = columns_of(score for result in results.values() for score in scores_in(result))
    rows = _baseline_rows(results) if baselines else []
    for name, of_row in grouped.items():
        cells = {}
        for column in columns:
            if all(isinstance(result.get(column.name), float) for result in of_row):
                cells[column.name] = _cell(of_row, column.name)
        rows.append(Row(name, cells, len(of_row)))
    first = next(iter(results.values()))
    about = (
        f"{first['benchmark']} ({first['protocol']}, split {first['split_hash']}, {queries_in_words(first)} queries of "
        f"{len(set(first['per_query']['label'])):,} classes)"
    )
    return ScoreTable(rows, columns, about)


def columns_of(scores: Any) -> list[Column]:
    """The columns of scores, each once, in their order; without Precision@1, which is Recall@1."""
    columns: dict[str, Column] = {}
    for score in scores:
        assert isinstance(score, Score)
        if score.name != _SAME_AS_RECALL:
            columns.setdefault(score.name, Column(score.name, score.higher_is_better, score.percent))
    return list(columns.values())


def cell_of(means: Sequence[float], sums: np.ndarray | None, counts: np.ndarray | None) -> Cell:
    """A cell of a row's runs.

    Args:
        means: of each run.
        sums: (S, C) of each run and class; None of scores that no query has.
        counts: (C,) queries of each class.
    """
    std = float(np.std(means, ddof=1)) if len(means) > 1 else None
    interval = None if sums is None or counts is None else runs_interval(sums, counts)
    if interval is not None and not np.isfinite(interval).all():  # of one class
        interval = None
    return Cell(float(np.mean(means)), std, interval)


def _cell(results: Sequence[Mapping[str, Any]], name: str) -> Cell:
    means = [float(result[name]) for result in results]
    if not all(name in result["per_query"] for result in results):
        return cell_of(means, None, None)
    values = np.array([result["per_query"][name] for result in results], np.float64)  # None is NaN
    kept = ~np.isnan(values).any(axis=0)
    code = np.unique(np.asarray(results[0]["per_query"]["label"])[kept], return_inverse=True)[1]
    sums = np.stack([np.bincount(code, weights=row[kept]) for row in values])
    return cell_of(means, sums, np.bincount(code))


def _baseline_rows(results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The pretrained features of the results, each network once: those of runs of one backbone are the same."""
    rows: dict[str, Row] = {}
    for result in results.values():
        scores = (result.get("baselines") or {}).get("pretrained_features")
        if not isinstance(scores, Mapping):
            continue
        name = f"{BASELINES['pretrained_features']} ({scores['of']})"
        interval = scores.get("recall_at_1_interval")
        cells = {
            score.name: Cell(
                score.value, interval=(interval[0], interval[1]) if interval and score.name == "recall_at_1" else None
            )
            for score in scores_in(scores)
        }
        rows.setdefault(name, Row(name, cells))
    if len(rows) == 1:
        return [Row(UNTRAINED, next(iter(rows.values())).cells)]
    return list(rows.values())
