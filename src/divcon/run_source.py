"""What a run was trained on, read again: the classes by which something may be chosen that test classes may not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from divcon.data.dataset import only_decodable
from divcon.data.image_set import Benchmark
from divcon.data.read import read
from divcon.errors import DataError, RunError
from divcon.evaluate.subspaces import sample_of
from divcon.run_folder import RunFolder


def own_benchmark(
    run: str | Path,
    given: Benchmark | None = None,
    *,
    must_be_own: bool = False,
    whole: bool = False,
    workers: int = 0,
    warn: Callable[[str], None] = lambda message: None,
) -> Benchmark:
    """The benchmark that a run's model was trained on, with its validation classes where it had any; of train and
    validation classes only a sample (see `divcon.evaluate.subspaces.sample_of`), unless asked for ``whole``.

    Args:
        run: a run's folder, or that of a model that was made of a run's.
        given: data that was read already; taken where it is the run's own, or the model knows of no run.
        must_be_own: data that is given and not the run's own is an error; else the run's own is read.
        whole: all train and validation images, in the order in which the run's divisions number them.
        workers, warn: as `divcon.data.dataset.only_decodable` takes them; a run that left out images that do not decode
            leaves them out here too.

    Raises:
        RunError: the folder does not say what its model was trained on, that is not there any more, or it has changed.
        DataError: none of its images decodes.
    """
    found = RunFolder(run).origin()
    if found is None:
        if given is None:
            raise RunError(f"{run}: does not say what it was trained on; give DATA")
        return given if whole else _sampled(given)
    config, record = found
    if given is not None and must_be_own and (changed := _changed(record, given)):
        raise RunError(
            f"{given.name}: is not what {run} was trained on ({changed}), so that classes it is judged on may be among "
            "those to choose by; give its own data"
        )
    if given is None or _changed(record, given):
        source = record.get("source")
        if source is None:
            raise RunError(f"{run}: does not say what it was trained on; give DATA")
        try:
            given = read(source["data"], source["root"])
        except DataError as error:
            raise RunError(
                f"{run}: what it was trained on cannot be read ({error}); give DATA where it is now"
            ) from None
        if changed := _changed(record, given):
            raise RunError(
                f"{run}: its data has changed since it was trained ({changed}), so that classes it is judged on may be "
                "among those to choose by; give DATA as it was"
            )
    data = _shared_out(given, RunFolder(run).validation_classes())
    if not whole:
        data = _sampled(data)
    if config.data.on_bad_image == "skip":
        data = only_decodable(data, [name for name in ("train", "validation") if data.parts.get(name)], workers, warn)
    return data


def _changed(record: dict[str, Any], data: Benchmark) -> str:
    """How the data differs from what the run was trained and is judged on; empty where it does not."""
    trained = (record.get("source") or {}).get("fingerprint")
    parts = [part.fingerprint for part in (data.train, data.validation) if part is not None] if trained else []
    pairs = {"test": (record.get("split_hash"), data.split_hash), "train": (trained, "-".join(parts) or None)}
    return ", ".join(f"{name} {then} then, {now} now" for name, (then, now) in pairs.items() if then != now)


def _shared_out(data: Benchmark, validation_classes: set[str]) -> Benchmark:
    """Train and validation classes as the run had them."""
    data = data.without_validation()
    held_out = np.array([name in validation_classes for name in data.train.label_names])[data.train.labels]
    if not held_out.any():
        return data
    return dataclasses.replace(data, train=data.train.subset(~held_out), validation=data.train.subset(held_out))


def _sampled(data: Benchmark) -> Benchmark:
    validation = None if data.validation is None else sample_of(data.validation)
    return dataclasses.replace(data, train=sample_of(data.train), validation=validation)
