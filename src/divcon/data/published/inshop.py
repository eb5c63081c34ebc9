"""In-shop Clothes Retrieval of DeepFashion (Liu et al. 2016): photos of 7,982 pieces of clothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from divcon.data.benchmark import Benchmark, labelled
from divcon.data.published.build import build
from divcon.data.published.tree import find_tree, read_list, wrong_level
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_FIELDS = ("image_name", "item_id", "evaluation_status")
_PARTS = ("train", "query", "gallery")
_FOLDERS = ("img", "img_highres")

Images = Literal["img", "img_highres"]


def read_inshop(
    root: str | os.PathLike[str] | None = None,
    *,
    images: Images | None = None,
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """In-shop Clothes, split into train, query and gallery by its own list.

    Args:
        root: the folder with Eval/list_eval_partition.txt (or the list itself) and Img/img or Img/img_highres (or these
            themselves); or an archive of all that, which is unpacked beside itself.
        images: which of the two sizes to read; img, or else img_highres, where it is left out. The list names img
            alone.
        check_files: look for every image now, not when it is first used.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, the list or an image is missing, a line that is not as published.
        OutputError: the archive cannot be unpacked where it is.
    """
    root = find_tree("inshop", root, _LISTS, context).root
    listed = read_list(
        next(root / name for name in _LISTS if (root / name).is_file()), _FIELDS, header=_FIELDS, counted=True
    )
    above, folder = _image_folder(root, images)
    paths = []
    for i, path in enumerate(listed.texts("image_name")):
        start, _, rest = path.partition("/")
        if start not in _FOLDERS or not rest:
            raise listed.error(i, f"the image {path!r} is not in img/")
        paths.append(f"{folder}/{rest}")
    for i, part in enumerate(listed.texts("evaluation_status")):
        if part not in _PARTS:
            raise listed.error(i, f"the evaluation_status {part!r} is none of {', '.join(_PARTS)}")
    items = listed.texts("item_id")
    label_names, labels = labelled(items)
    status = np.array(listed.texts("evaluation_status"))
    benchmark = build(
        "inshop",
        above,
        paths=paths,
        labels=labels,
        label_names=label_names,
        parts={part: status == part for part in _PARTS},
        folders=[folder],
        check_files=check_files,
    )
    if images is None and folder == "img" and any((at / "img_highres").is_dir() for at in (above, root)):
        note = "both sizes are there: img is read, not img_highres"
        benchmark = replace(benchmark, notes=(*benchmark.notes, note))
    return benchmark


def _image_folder(root: Path, images: Images | None) -> tuple[Path, str]:
    """The folder that paths start from, and the name of the one in it that holds the images."""
    names = _FOLDERS if images is None else (images,)
    for name in names:
        for above in (root / "Img", root):
            if (above / name).is_dir():
                return above, name
    if hint := wrong_level(root, _LISTS[:1]):
        raise DataError(f"{root}: {hint}")
    places = [f"{above}{name}" for name in names for above in ("Img/", "")]
    packed = [f"{place}.zip" for place in places if (root / f"{place}.zip").is_file()]
    advice = f"{packed[0]} is still packed: unpack it there" if packed else "unpack the original archive there"
    raise DataError(f"{root}: inshop lacks its images: there is no folder {' or '.join(places)}; {advice}")
