"""Adapt the vectors of a public embedding model to labels of your own, and see what that gains on labels never seen.

    python examples/adapt_vectors.py --out adapted

Here the vectors are EfficientNet-Lite0's features of the bundled icons, since both come with divcon[demo] and need no
network. Yours may come from anywhere: CLIP or DINO for images, a sentence model for texts. Write them as a parquet with
the columns label and embedding (and path, and split, where you have them), and begin at `dc.read`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import divcon as dc
from divcon.data.readers.vectors import write_benchmark_vectors


def vectors_of_icons(path: Path, classes: int | None) -> None:
    """The part that is yours: one vector and one label a row."""
    images = dc.read("demo")
    if classes is not None:
        test = images.query.of_classes(images.query.classes[:classes])
        images = dc.Benchmark("demo", images.train.of_classes(images.train.classes[:classes]), test, test)
    public = dc.EmbeddingModel("tf_efficientnet_lite0", image_size=64)
    # In place of `public.features`, a function of your own that gives the (n, F) vectors of n images; or your tool
    # writes the parquet, from a data frame say, and this function is not needed.
    write_benchmark_vectors(path, images, public.features)


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Recall@1 on the test classes before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("adapted"), help="folder of the vectors and the model")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--classes", type=int, help="take only so many classes to train and to test on")
    options = parser.parse_args(arguments)

    path = options.out / "vectors.parquet"
    if not path.exists():
        vectors_of_icons(path, options.classes)
    data = dc.read(path)  # the split is the table's, or a fifth of the classes is drawn for the test
    assert data.train.vectors is not None

    torch.manual_seed(0)
    model = dc.EmbeddingModel(embedding_dim=128, num_learners=4, vector_dim=data.train.vectors.shape[1], dropout=0.3)
    before = dc.evaluate(model, data, clustering=False, parts=True)["features"]["recall_at_1"]
    for epoch in dc.train(model, data.train, dc.TrainConfig(epochs=options.epochs)):
        print(f"epoch {epoch.number} {epoch.phase}: loss {epoch.loss:.3f}")
    after = dc.evaluate(model, data, clustering=False)["recall_at_1"]
    model.save(options.out / "model")  # for `divcon encode`, or `dc.EmbeddingModel.load(...).encode(vectors)`

    print(f"Recall@1 on {data.query.num_classes} classes never seen: {100 * before:.1f} % before, ", end="")
    print(f"{100 * after:.1f} % after")
    return before, after


if __name__ == "__main__":
    main()
