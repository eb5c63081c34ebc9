"""Texts: ``divcon features --text``, alone and beside images, on through training, index and search."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import divcon as dc
from divcon.errors import WeightsError
from divcon.models.text import TextModel

Command = Callable[..., tuple[int, str, str]]

KINDS = ("shoe", "hat", "coat", "lamp", "chair", "cup", "bag", "clock")
COLOURS = ("red", "blue", "green", "black", "white")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of a sentence-transformers model: a BERT of one layer with random weights, and a vocabulary of these
    tests' words."""
    import sentence_transformers
    from sentence_transformers import models
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as of_tokens
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("text-model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KINDS, *COLOURS, "a", "fine", "for", "you"]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(of_tokens.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    of_bert = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **of_bert).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=1.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    bert = models.Transformer(str(folder / "bert"), max_seq_length=16)
    sentence_transformers.SentenceTransformer(modules=[bert, models.Pooling(16)], device="cpu").save(str(folder / "st"))
    yield folder / "st"


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """A CSV without images: a product's kind is its label; the last row has no title."""
    with (tmp_path / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "note", "label"])
        for kind in KINDS:
            writer.writerows(
                [f"a {colour} {kind}", "fine, for you" if colour == "red" else "", kind] for colour in COLOURS
            )
        writer.writerow(["", "", KINDS[0]])
    return tmp_path / "products.csv"


def test_texts_become_vectors_and_are_trained_indexed_and_searched(
    products: Path, text_model: Path, command: Command, tmp_path: Path
) -> None:
    vectors, run = tmp_path / "vectors.parquet", tmp_path / "run"
    flags = ["--text-model", text_model]
    code, out, err = command("features", products, "--text", "title", *flags, "--out", vectors)
    assert code == 0, err
    assert f"41 vectors of 16 dimensions in {vectors}, of the texts in title" in out
    assert "1 of 41 rows have no text; their text features are zero" in err
    table = pq.read_table(vectors)
    rows = {row["title"]: row for row in table.to_pylist()}
    expected = TextModel(text_model).encode(["a red shoe", None])
    np.testing.assert_allclose(rows["a red shoe"]["embedding"], expected[0], atol=1e-6)
    assert (rows["a red shoe"]["label"], rows[None]["embedding"]) == ("shoe", [0.0] * 16)
    assert not expected[1].any() and np.linalg.norm(expected[0]) == pytest.approx(1, abs=1e-5)

    settings = ["--learners", 1, "--dim", 8, "--epochs", 1, "--batch-size", 8, "--images-per-class", 4, "--workers", 0]
    code, _, err = command("train", vectors, *settings, "--no-validation", "--out", run)
    assert code == 0, err
    code, _, err = command("index", run, vectors)
    assert code == 0, err
    code, out, err = command("search", run, "a red shoe", "blue hat", *flags, "-k", 1, "--json")
    assert code == 0, err
    first, second = out.splitlines()
    assert '"title": "a red shoe"' in first and '"query": "blue hat"' in second
    code, _, err = command("search", run, " ", *flags)
    assert (code, "a query is empty" in err) == (2, True)


def test_texts_beside_images(text_model: Path, image_folder: Path, command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32)
    model.save(tmp_path / "model")
    files = sorted(image_folder.glob("*/*.png"))
    rows = [f"{file},{file.parent.name},{COLOURS[i % 5]},fine" for i, file in enumerate(files)]
    (tmp_path / "products.csv").write_text("\n".join(["path,label,title,more", *rows]))
    out = tmp_path / "both.parquet"
    texts = ["--text", "title", "--text", "more", "--text-model", text_model]
    code, printed, err = command(
        "features", tmp_path / "products.csv", *texts, "--run", tmp_path / "model", "--workers", 0, "--out", out
    )
    assert code == 0, err
    assert "40 vectors of 112 dimensions" in printed
    assert "96 of the image and 16 of the text, each of length one" in printed
    both, images = dc.read(out), dc.read(tmp_path / "products.csv")
    assert both.split_hash == images.split_hash
    vectors = both.train.vectors
    assert vectors is not None
    of_images = model.features(images.train)
    of_images /= np.linalg.norm(of_images, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[:, :96], of_images, atol=1e-5)
    wanted = [f"{COLOURS[row % 5]}\nfine" for row in images.train.rows]
    np.testing.assert_allclose(vectors[:, 96:], TextModel(text_model).encode(wanted), atol=1e-5)


def test_what_cannot_be_a_text_says_why(products: Path, text_model: Path, command: Command, tmp_path: Path) -> None:
    for arguments, message in (
        (["--text", "titel"], "there is no column 'titel' of texts; the columns are title, note, label"),
        (["--text-model", text_model], "needs --text COLUMN"),
        (["--text", "title", "--size", 32], "--size 32 is of images"),
        (["--text", "title", "--text-model", tmp_path / "nothing"], "there is no such folder"),
    ):
        code, _, err = command("features", products, *arguments, "--out", tmp_path / "v.parquet")
        assert (code, message in err) == (2, True), err
    code, _, err = command("features", tmp_path, "--text", "title", "--out", tmp_path / "v.parquet")
    assert (code, "is no table in one file" in err) == (2, True), err
    assert not list(tmp_path.glob("v.parquet*"))


def test_a_model_of_texts_that_is_not_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"text model 'all-MiniLM-L6-v2': .*HF_HUB_OFFLINE is set"):
        TextModel("all-MiniLM-L6-v2")
