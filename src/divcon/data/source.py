"""Where rows come from, and how messages name them."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from divcon.data.table_file import CSV_SUFFIXES, JSON_SUFFIXES, PARQUET_SUFFIXES, csv_line, json_line


class Source(str):
    """The name of what was read: a table, or a folder. Where it is a folder of tables, it also knows these: their
    rows are counted on from one to the next."""

    tables: tuple[tuple[str, int], ...]
    """Each table, and the number of its first row."""

    def __new__(cls, name: str, tables: tuple[tuple[str, int], ...] = ()) -> Source:
        source = super().__new__(cls, name)
        source.tables = tables
        return source


def where_in(source: str, row: int) -> str:
    """``products.csv line 17: `` for a row of a CSV, ``products.parquet row 15: `` of a parquet, nothing of a
    folder."""
    tables = source.tables if isinstance(source, Source) else ()
    if tables:
        source, start = tables[bisect_right(tables, row, key=lambda table: table[1]) - 1]
        row -= start
    suffix = Path(source).suffix.lower()
    if suffix in CSV_SUFFIXES:
        return f"{source} line {csv_line(source, row)}: "
    if suffix in JSON_SUFFIXES:
        return f"{source} line {json_line(source, row)}: "
    if suffix in PARQUET_SUFFIXES:
        return f"{source} row {row}: "
    return ""
