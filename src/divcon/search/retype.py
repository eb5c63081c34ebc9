"""Change the types of an index's columns: every value is converted, or none."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from divcon.errors import ConfigError, DataError, unknown
from divcon.search.about import About
from divcon.search.columns import TYPES, Unfit, check_column_types, convert
from divcon.search.items import details_of
from divcon.search.stores.base import Store

_SHOWN = 5


def change_types(store: Store, types: Mapping[str, str]) -> int:
    """Give columns of an index other types, and convert all their values.

    Args:
        types: the new type of each column, by the user's name.

    Returns:
        The number of rows that were rewritten; 0 if the columns have these types.

    Raises:
        ConfigError: there is no such column or type.
        DataError: a value would be lost or changed; the message names the rows, and nothing is changed.
        StoreError: another process is writing.
    """
    types = check_column_types(types)
    with store.writing():
        about = store.about()
        for name in types:
            if about.column(name) is None:
                known = [column.name for column in about.user_columns]
                raise ConfigError(f"`column_types`: {unknown('column', name, known)}", field="column_types")
        types = {name: type_ for name, type_ in types.items() if about.types[name] != (type_, False)}
        if not types:
            return 0
        values = _converted(store, about, types)
        store.retype(types, values)
        store.optimize(False)
    return len(values)


def _converted(store: Store, about: About, types: Mapping[str, str]) -> pa.Table:
    """The ids and details of all rows, and the new values of the columns."""
    names = ["id", "path", "label", *(column.stored for column in about.user_columns)]
    rows = pa.concat_tables([store.schema().empty_table().select(names), *store.read_columns(names)])
    unfit: list[str] = []
    number = 0
    for name, type_ in types.items():
        column = about.column(name)
        assert column is not None, "the caller has checked it"
        new = rows[column.stored].to_pylist()
        for i, value in enumerate(new):
            if value is None:
                continue
            try:
                new[i] = convert(value, column.type, type_, exact=True)
            except Unfit as error:
                number += 1
                if len(unfit) < _SHOWN:
                    unfit.append(f"{rows['path'][i].as_py()} (id {rows['id'][i].as_py()}): {error}")
        if number:
            more = f", and {number - len(unfit):,} more" if number > len(unfit) else ""
            raise DataError(
                f"{store.uri}: the column {name!r} cannot become {type_} without losing values of {number:,} of "
                f"{len(rows):,} rows: {'; '.join(unfit)}{more}; correct them and index again, or take another type"
            )
        place = rows.column_names.index(column.stored)
        rows = rows.set_column(place, pa.field(column.stored, TYPES[type_]), pa.array(new, TYPES[type_]))
    own = rows.select([column.stored for column in about.user_columns])
    own = own.rename_columns([column.name for column in about.user_columns])
    details = details_of(rows["label"], own)
    stored = [column.stored for column in about.user_columns if column.name in types]
    return rows.select(["id", *stored]).append_column("details", details)
