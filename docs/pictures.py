"""Draw the pictures of docs/method.md, from the bundled icons, real divisions and real training, into docs/pictures/:

    python docs/pictures.py

It needs `pip install "divcon[demo]"`, no network and a few minutes on 2 cores. Everything random is seeded; with other
versions of the libraries a picture may still differ in a few icons.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.division.kmeans import kmeans
from divcon.training.schedule import Phase, phase_at

COLORS = ("#1f6fb4", "#d9541e", "#2a9d5c", "#8e44ad")
"""Of the learners."""
PHASE_COLORS = {Phase.SUBSPACE: "#9cc4e4", Phase.JOINT: "#f2c14e", Phase.FINETUNE: "#8fce9f"}
GREY, INK = "#8a8a8a", "#222222"
WIDTH, TEXT = 1000, 25
LEARNERS = 4


class Sheet:
    """A white sheet of icons and words."""

    def __init__(self, images: LabeledSet, height: int) -> None:
        self.images = images
        self.picture = Image.new("RGB", (WIDTH, height), "white")
        self.draw = ImageDraw.Draw(self.picture)

    def text(self, x: float, y: float, words: str, color: str = INK, size: int = TEXT, anchor: str = "la") -> None:
        self.draw.text((x, y), words, color, ImageFont.load_default(size), anchor=anchor)

    def icon(self, x: int, y: int, index: int, size: int, frame: str | None = None, faint: bool = False) -> None:
        icon = self.images.open(int(index)).convert("RGB").resize((size - 8, size - 8), Image.Resampling.LANCZOS)
        if faint:
            icon = Image.blend(icon, Image.new("RGB", icon.size, "white"), 0.6)
        if frame:
            self.draw.rectangle((x + 1, y + 1, x + size - 2, y + size - 2), outline=frame, width=3)
        self.picture.paste(icon, (x + 4, y + 4))

    def icons(
        self, x: int, y: int, indices: Sequence[int], columns: int, size: int, color: Callable[[int], str | None]
    ) -> None:
        for place, index in enumerate(indices):
            self.icon(x + place % columns * size, y + place // columns * size, index, size, color(index))

    def save(self, path: Path) -> None:
        self.picture.save(path, optimize=True)


def some(division: dc.Division, learner: int, count: int) -> np.ndarray:
    """Members of a cluster, drawn at random, in the data's order."""
    members = division.indices(learner)
    return np.sort(np.random.default_rng(learner).choice(members, min(count, len(members)), replace=False))


def draw_division(path: Path, images: LabeledSet, division: dc.Division) -> None:
    columns, size = 20, 49
    block = 2 * size + 52
    sheet = Sheet(images, LEARNERS * block)
    classes = division.classes_per_learner(images.labels)
    for learner, color in enumerate(COLORS):
        top = learner * block
        sheet.text(10, top + 10, f"learner {learner}", color)
        sheet.text(140, top + 10, f"{division.sizes[learner]:,} images of {classes[learner]:,} classes")
        sheet.icons(10, top + 46, some(division, learner, 2 * columns), columns, size, lambda _: None)
    sheet.save(path)


def draw_matching(path: Path, images: LabeledSet, before: dc.Division, after: dc.Division) -> None:
    """Three columns: the division before; the clusters after, as k-means numbers them; the same, matched. An icon's
    frame has the colour of the learner that it was with before."""
    columns, size, gap = 6, 50, 36
    block = 2 * size + 50
    shown = (("before", before, "learner"), ("k-means again", after, "cluster"))
    shown += (("matched", after.matched_to(before), "learner"),)
    sheet = Sheet(images, 48 + LEARNERS * block)

    def color(index: int) -> str:
        learner = before.learner[index]
        return COLORS[learner] if learner >= 0 else "#cccccc"

    for place, (title, division, what) in enumerate(shown):
        left = 10 + place * (columns * size + gap)
        sheet.text(left, 8, title, size=TEXT + 3)
        for row in range(LEARNERS):
            top = 48 + row * block
            sheet.text(left, top + 10, f"{what} {row}", COLORS[row] if what == "learner" else GREY)
            sheet.icons(left, top + 42, some(division, row, 2 * columns), columns, size, color)
    sheet.save(path)


def draw_left_out(path: Path, images: LabeledSet, clusters: dc.Division, division: dc.Division) -> None:
    """A row a class, a column a learner; an image that is its class's only one with a learner sits out."""
    out = (clusters.learner >= 0) & (division.learner < 0)
    size, rows = 52, []
    for label in images.classes:
        members = np.flatnonzero(images.labels == label)
        counts = np.bincount(clusters.learner[members], minlength=LEARNERS)
        short = len(images.label_names[label]) <= 10
        if (
            short
            and 6 <= len(members) <= 9
            and counts.max() <= 4
            and (counts > 0).sum() >= 3
            and 1 <= out[members].sum() <= 2
        ):
            rows.append((label, members))
    rows = [rows[i] for i in np.random.default_rng(5).choice(len(rows), 5, replace=False)]
    sheet = Sheet(images, 50 + len(rows) * 66 + 48)
    left, width = 150, 212
    for learner, color in enumerate(COLORS):
        sheet.text(left + learner * width, 10, f"learner {learner}", color)
    for row, (label, members) in enumerate(rows):
        top = 50 + row * 66
        sheet.draw.line((10, top - 4, WIDTH - 10, top - 4), "#dddddd")
        sheet.text(10, top + 13, images.label_names[label])
        for learner, color in enumerate(COLORS):
            here = members[clusters.learner[members] == learner]
            for place, index in enumerate(here):
                frame = GREY if out[index] else color
                sheet.icon(left + learner * width + place * size, top, int(index), size, frame, faint=bool(out[index]))
    foot = 50 + len(rows) * 66 + 8
    sheet.draw.line((10, foot - 6, WIDTH - 10, foot - 6), "#dddddd")
    sheet.text(10, foot + 4, f"grey: sits out, {out.sum():,} of {len(images):,} images in this division", GREY)
    sheet.save(path)


def draw_hierarchy(path: Path, images: LabeledSet, features: np.ndarray) -> None:
    levels = [dc.divide(features, images.labels, 1)]
    for learners in (1, 2):
        levels.append(
            dc.divide(features, images.labels, learners, previous=levels[-1], double=True, seed=(0, learners))
        )
    size, heights = 48, (2, 2, 3)
    tops = np.cumsum([0, *(46 + rows * size + 44 for rows in heights)])
    sheet = Sheet(images, int(tops[-1]) - 30)
    for level, division in enumerate(levels):
        count, top = 2**level, int(tops[level])
        slot = WIDTH / count
        columns = int((slot - 16) // size)
        for learner in range(count):
            middle = slot * (learner + 0.5)
            left = int(middle - columns * size / 2)
            if level:
                parent = slot * 2 * (learner // 2 + 0.5)
                sheet.draw.line((parent, top - 40, middle, top + 4), GREY, 3)
            color = COLORS[learner] if level == 2 else INK
            words = f"learner {learner}: {division.sizes[learner]:,} images"
            sheet.text(middle, top + 20, words if level < 2 else words.replace("learner ", ""), color, anchor="mm")
            sheet.icons(
                left, top + 40, some(division, learner, heights[level] * columns), columns, size, lambda _: None
            )
    sheet.save(path)


def draw_subspaces(path: Path, slices: np.ndarray, learned: np.ndarray) -> None:
    """Two (K, D) images: what of the embedding each learner sees."""
    figure = Figure(figsize=(6.4, 3.5), layout="constrained", facecolor="white")
    names = (
        "slices: a learner has some of the dimensions",
        "learned masks, after 12 epochs: a learner weighs all of them",
    )
    axes = figure.subplots(2, 1, sharex=True)
    for axis, name, values in zip(axes, names, (slices, learned), strict=True):
        shown = axis.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=max(1.0, float(values.max())))
        axis.set_title(name, fontsize=12, loc="left")
        axis.set_yticks(range(len(values)), [f"learner {k}" for k in range(len(values))], fontsize=11)
        axis.tick_params(axis="x", labelsize=11)
        figure.colorbar(shown, ax=axis, pad=0.02, aspect=8).ax.tick_params(labelsize=10)
    axes[-1].set_xlabel("dimension of the embedding", fontsize=12)
    figure.savefig(path, dpi=150)


def draw_schedule(path: Path) -> None:
    """The phase of each epoch, as `phase_at` has it, and the divisions, for three settings of 24 epochs."""
    epochs = 24
    config = dc.TrainConfig(epochs=epochs)
    shown = (
        ("single", 1, config),
        ("masks, as it is without options", LEARNERS, config),
        (
            "masks, --joint-epoch 10 --finetune-epoch 20",
            LEARNERS,
            dataclasses.replace(config, joint_epoch=10, finetune_epoch=20),
        ),
        (
            "masks, --hierarchy --redivide-every 4",
            LEARNERS,
            dataclasses.replace(config, hierarchy=True, redivide_every=4),
        ),
    )
    figure = Figure(figsize=(6.6, 4.3), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for row, (name, learners, settings) in enumerate(shown):
        axes.text(0, row - 0.42, name, fontsize=11.5, va="bottom", color=INK)
        for epoch in range(epochs):
            phase = phase_at(epoch, settings, learners)
            axes.add_patch(
                Rectangle((epoch, row - 0.36), 1, 0.46, facecolor=PHASE_COLORS[phase], edgecolor="white", linewidth=0.8)
            )
            if phase is not Phase.FINETUNE and epoch % settings.redivide_every == 0:
                axes.plot(epoch + 0.5, row - 0.13, "o", color=INK, markersize=4.5)
                if settings.hierarchy:
                    now = min(2 ** (epoch // settings.redivide_every), learners)
                    axes.text(epoch + 1, row - 0.12, str(now), fontsize=10.5, va="center", color=INK)
    axes.set_xlim(0, epochs)
    axes.set_ylim(len(shown) - 0.8, -0.72)
    axes.set_yticks([])
    axes.set_xticks(range(0, epochs + 1, 4))
    axes.tick_params(axis="x", labelsize=11)
    axes.set_xlabel("epoch", fontsize=12)
    axes.spines[["left", "top", "right"]].set_visible(False)
    patches = [Rectangle((0, 0), 1, 1, facecolor=color) for color in PHASE_COLORS.values()]
    dot = axes.plot([], [], "o", color=INK, markersize=4.5)[0]
    labels = [*(phase.value for phase in PHASE_COLORS), "division"]
    figure.legend([*patches, dot], labels, loc="outside upper left", ncols=4, frameon=False, fontsize=11.5)
    rcParams["svg.hashsalt"] = "divcon"  # the same names in the file each time
    figure.savefig(path, metadata={"Date": None})


def learned_masks(images: LabeledSet, features: np.ndarray) -> np.ndarray:
    """The relu'd masks, (K, D), after a training on the features."""
    vectors = dataclasses.replace(images, vectors=features.astype(np.float32), encoded=None)
    torch.manual_seed(0)
    model = dc.EmbeddingModel("none", 64, LEARNERS, method="masks", vector_dim=features.shape[1])
    for epoch in dc.train(model, vectors, dc.TrainConfig(epochs=12, finetune_epoch=12, workers=0)):
        print(epoch.number, epoch.phase, f"{epoch.loss:.3f}", epoch.division.sizes)
    return model.head.masks.detach().clamp(min=0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/method.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    images = dc.read("demo").train
    labels = images.labels
    draw_schedule(out / "schedule.svg")

    torch.manual_seed(0)
    model = dc.EmbeddingModel("tf_efficientnet_lite0", 128, LEARNERS, method="slices", image_size=64)
    features = model.features(images)
    draw_hierarchy(out / "hierarchy.png", images, features)
    slices = np.kron(np.eye(LEARNERS), np.ones((1, 16)))
    draw_subspaces(out / "subspaces.png", slices, learned_masks(images, features))

    before = dc.divide(features, labels, LEARNERS)
    draw_division(out / "division.png", images, before)
    found = kmeans(features / np.linalg.norm(features, axis=1, keepdims=True), LEARNERS, seed=(0,))
    draw_left_out(out / "left_out.png", images, dc.Division(found.assignment, found.centroids), before)

    for epoch in dc.train(model, images, dc.TrainConfig(epochs=2, finetune_epoch=2)):
        print(epoch.number, epoch.phase, f"{epoch.loss:.3f}", epoch.division.sizes)
    after = dc.divide(model.features(images), labels, LEARNERS, seed=(0, 2))
    draw_matching(out / "matching.png", images, before, after)
    for path in sorted(out.iterdir()):
        print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
