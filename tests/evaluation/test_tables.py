"""The tables for papers: LaTeX, CSV and Markdown of the same scores."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divcon.errors import ConfigError, DataError
from divcon.evaluation import bootstrap_interval, bootstrap_runs_difference, score_table
from divcon.evaluation.bootstrap import runs_interval, wilson_interval
from divcon.evaluation.tables import Cell, Column, Row, ScoreTable, escaped

Command = Callable[..., tuple[int, str, str]]


def result(seed: int, good: float, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    hits = (rng.random(60) < good).astype(float).tolist()
    precision = rng.random(60).tolist()
    return {
        "recall_at_1": float(np.mean(hits)),
        "precision_at_1": float(np.mean(hits)),
        "map_at_r": float(np.mean(precision)),
        "nmi": 0.5 + good / 10,
        "num_queries": 60,
        "benchmark": "birds_&_50%",
        "protocol": "leave-one-out",
        "split_hash": "0123",
        "per_query": {
            "path": [f"a/{i}.png" for i in range(60)],
            "label": [f"c{i // 5}" for i in range(60)],
            "recall_at_1": hits,
            "precision_at_1": hits,
            "map_at_r": precision,
        },
        **more,
    }


@pytest.fixture
def table() -> ScoreTable:
    before = {"recall_at_1": 0.25, "map_at_r": 0.125, "of": "timm's x", "recall_at_1_interval": [0.2, 0.3]}
    baselines = {"pretrained_features": before, "pooled_features": before}
    runs = {
        "a0": result(0, 0.4, baselines=baselines),
        "a1": result(1, 0.4, baselines=baselines),
        "ours": result(2, 0.9, baselines=baselines),
    }
    return score_table(runs, {"a0": "base_line #1", "a1": "base_line #1"})


def test_a_row_has_the_mean_the_spread_and_the_interval_of_its_seeds(table: ScoreTable) -> None:
    first, second, ours = (result(0, 0.4), result(1, 0.4), result(2, 0.9))
    assert [row.name for row in table.rows] == ["pretrained features", "base_line #1", "ours"]
    assert [column.title for column in table.columns] == ["Recall@1", "MAP@R", "NMI"]  # Precision@1 is Recall@1
    untrained, line, own = table.rows
    assert untrained.cells["recall_at_1"] == Cell(0.25, None, (0.2, 0.3))
    assert "nmi" not in untrained.cells
    for name in ("recall_at_1", "map_at_r"):
        means = [first[name], second[name]]
        cell = line.cells[name]
        assert cell.mean == pytest.approx(np.mean(means))
        assert cell.std == pytest.approx(np.std(means, ddof=1))
        values = [each["per_query"][name] for each in (first, second)]
        nothing = np.zeros((2, 60))
        expected = bootstrap_runs_difference(values, nothing, first["per_query"]["label"])
        assert cell.interval == pytest.approx(expected)
        alone = bootstrap_interval(ours["per_query"][name], ours["per_query"]["label"])
        assert own.cells[name].interval == pytest.approx(alone)
    assert line.cells["nmi"].interval is None
    assert own.cells["recall_at_1"].std is None


def test_markdown_latex_and_csv_hold_the_same_numbers(table: ScoreTable) -> None:
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["name"] for row in rows] == [row.name for row in table.rows]
    assert [row["runs"] for row in rows] == ["1", "2", "1"]
    for row, of in zip(rows, table.rows, strict=True):
        for column in table.columns:
            cell = of.cells.get(column.name)
            if cell is None:
                assert row[column.name] == ""
                continue
            assert float(row[column.name]) == cell.mean
            assert (row[f"{column.name}_std"] == "") == (cell.std is None)
            shown = column.text(cell.mean)
            assert shown in table.markdown() and shown in table.latex()
            if cell.interval:
                assert float(row[f"{column.name}_low"]) == cell.interval[0]
                brackets = f"[{column.text(cell.interval[0])}, {column.text(cell.interval[1])}]"
                assert brackets in table.markdown() and brackets in table.latex()


def test_the_best_is_bold_also_where_it_is_not_ours_and_where_lower_is_better() -> None:
    columns = [Column("recall_at_1"), Column("rank", higher_is_better=False, percent=False)]
    rows = [
        Row("untrained", {"recall_at_1": Cell(0.5), "rank": Cell(3.0)}),
        Row("a", {"recall_at_1": Cell(0.49999), "rank": Cell(2.5)}),
        Row("b", {"recall_at_1": Cell(0.4)}),
    ]
    table = ScoreTable(rows, columns)
    lines = table.markdown().splitlines()
    assert lines[0] == "|  | Recall@1 | rank ↓ |"
    assert lines[2:5] == ["| untrained | **50.0** | 3 |", "| a | **50.0** | **2.5** |", "| b | 40.0 | – |"]
    assert r"untrained & \textbf{50.0} & 3 \\" in table.latex()
    assert "**" not in ScoreTable(rows[:1], columns).markdown()


def test_the_latex_is_a_booktabs_table_whose_special_characters_are_escaped(table: ScoreTable) -> None:
    text = table.latex("my table")
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert r"\label{tab:my-table}" in text
    assert r"base\_line \#1 &" in text
    assert r"birds\_\&\_50\%" in text
    assert r"\begin{tabular}{lccc}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    of_cells = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(of_cells) == 1 + 2 * 3  # a line of intervals below each
    for line in of_cells:
        assert len(re.findall(r"(?<!\\)&", line)) == 3
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert not re.search(r"\\\\\s*\n?\s*\[", text)  # that would be the argument of the line break
    assert escaped("a_b\\c~^{") == r"a\_b\textbackslash{}c\textasciitilde{}\textasciicircum{}\{"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX is installed; the test above checks the structure")
def test_the_latex_compiles(table: ScoreTable, tmp_path: Path) -> None:
    text = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + table.latex() + r"\end{document}"
    (tmp_path / "t.tex").write_text(text)
    done = subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_caption_says_what_was_evaluated(table: ScoreTable) -> None:
    assert table.caption == (
        "birds_&_50% (leave-one-out, split 0123, 60 queries of 12 classes), in percent, mean ± standard deviation of 2 "
        "seeds. In brackets, 95 % intervals by bootstrap over test classes and seeds. The best of each column is bold."
    )


def test_all_hits_are_no_certainty() -> None:
    sums, counts = np.array([[5.0, 5.0], [5.0, 5.0]]), np.array([5, 5])
    assert runs_interval(sums, counts) == pytest.approx(wilson_interval(1.0, 2))
    assert np.isnan(runs_interval(10 * sums[:1, :1], counts[:1])).all()  # one class, and no share


def test_what_is_no_table_is_refused(table: ScoreTable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x.pdf: tables are written as .tex, .csv, .md"):
        table.write(tmp_path / "x.pdf")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no scores of every query"):
        score_table({"a": {"recall_at_1": 1.0}})
    with pytest.raises(DataError, match="no results"):
        score_table({})


def test_compare_writes_tables_of_named_seeds(command: Command, tmp_path: Path) -> None:
    import json

    for number, good in enumerate((0.4, 0.4, 0.9)):
        (tmp_path / f"{number}.json").write_text(json.dumps(result(number, good)))
    runs = [f"base={tmp_path}/0.json", f"base={tmp_path}/1.json", f"{tmp_path}/2.json"]
    files = [tmp_path / f"table.{kind}" for kind in ("tex", "csv", "md")]
    code, out, err = command("compare", *runs, *(word for file in files for word in ("--table", file)))
    assert code == 0, err
    assert f"base ({tmp_path}/1.json)" in out  # the runs themselves are compared one by one
    expected = score_table(
        {"base": result(0, 0.4), "1": result(1, 0.4), f"{tmp_path}/2.json": result(2, 0.9)}, {"1": "base"}
    )
    assert files[0].read_text() == expected.latex("table")
    assert files[1].read_text() == expected.csv()
    assert files[2].read_text() == expected.markdown()
    code, _, err = command("compare", *runs, "--table", tmp_path / "table.pdf")
    assert code == 2 and "--table" in err and "tables are written as" in err
    code, _, err = command("compare", f"a={tmp_path}/0.json", f"b={tmp_path}/0.json")
    assert code == 2 and "is given twice" in err
