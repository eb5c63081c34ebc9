"""Labels that are given on the page: the file that keeps them, the CSV to train on, and several people at once."""

from __future__ import annotations

import csv
import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import divcon as dc
from divcon.errors import DataError
from divcon.search import Index
from divcon.serve import create_app
from divcon.serve.labels import LABELS_FILE, Mark, read_marks, write_marks

LOCAL = "http://127.0.0.1"


def client_of(index: Index, file: Path | None, **options: Any) -> TestClient:
    return TestClient(create_app(index, labels=file, **options), base_url=LOCAL, raise_server_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels" / "mine.csv"


@pytest.fixture
def client(index: Index, file: Path) -> Iterator[TestClient]:
    with client_of(index, file) as client:
        yield client


def give(client: TestClient, ids: list[int], **change: Any) -> dict[str, Any]:
    answer = client.post("/labels", json={"ids": ids, **change})
    assert answer.status_code == 200, answer.text
    return answer.json()


def exported(client: TestClient, **query: Any) -> list[dict[str, str]]:
    answer = client.get("/labels.csv", params=query)
    assert answer.status_code == 200 and "labels.csv" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.content.decode())))


def test_labels_are_given_counted_exported_and_taken_back(client: TestClient, index: Index) -> None:
    assert client.get("/labels").json()["counts"]["all"] == {"images": 40, "classes": 8, "with_pairs": 8}
    answer = give(client, [3, 7, 8], label="  cup\u0301 ")
    assert answer["changed"] == 3 and answer["counts"]["given"] == {"images": 3, "classes": 1, "with_pairs": 1}
    assert answer["items"]["7"] == {"label": "cuṕ", "hidden": False}  # cleaned by the rule of all labels
    give(client, [8, 9], hidden=True)
    junk = give(client, [8], label="jar")
    assert junk["items"] == {"8": {"label": "jar", "hidden": True}}
    assert junk["counts"] == {
        "given": {"images": 2, "classes": 1, "with_pairs": 1},
        "all": {"images": 38, "classes": 9, "with_pairs": 9},
        "hidden": 2,
        "gone": 0,
        "files": True,
    }
    assert {row["path"] for row in exported(client)} == {index.item(i).path for i in (3, 7)}
    every = {row["path"]: row["label"] for row in exported(client, own=True)}
    expected = {index.item(i).path: index.item(i).label for i in range(40) if i not in (8, 9)}
    assert every == expected | {index.item(i).path: "cuṕ" for i in (3, 7)}
    back = client.post("/labels/undo", json={"change": answer["change"]}).json()
    # 8 was labelled again since: it stays.
    assert (back["changed"], back["kept"]) == (2, 1) and back["items"] == {"8": {"label": "jar", "hidden": True}}
    assert client.post("/labels/undo", json={"change": answer["change"]}).status_code == 404
    give(client, [8, 9], label=None, hidden=False)
    assert exported(client) == [] and client.get("/labels?ids=8,9").json()["items"] == {}


def test_training_reads_the_export_and_starts_on_it(
    client: TestClient, index: Index, tmp_path: Path, command: Any
) -> None:
    for number in range(6):
        give(client, list(range(5 * number, 5 * number + 5)), label=f'kind "{number}", new')
    give(client, [29], hidden=True)
    path = tmp_path / "labels.csv"
    path.write_bytes(client.get("/labels.csv").content)
    read = dc.read(str(path))
    sets = [read.train, read.gallery]
    labels = {
        Path(s.root, s.path(i)).as_posix(): s.label_names[int(c)] for s in sets for i, c in enumerate(s.labels)
    }  # fmt: skip
    assert labels == {index.item(i).path: f'kind "{i // 5}", new' for i in range(29)}
    options = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--dim", 8, "--learners", 1, "--epochs", 1)
    code, _, err = command(
        "train", path, "--out", tmp_path / "run", "--method", "single", "--batch-size", 8, "--workers", 0, *options
    )
    assert code == 0, err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_restart_and_other_servers_keep_them(client: TestClient, index: Index, file: Path) -> None:
    give(client, [1], label="a")
    with client_of(index, file) as other:
        assert other.get("/labels?ids=1").json()["items"]["1"]["label"] == "a"
        give(other, [2], label="b")
        give(client, [3], label="c")
        for each in (client, other):
            items = each.get("/labels?ids=1,2,3,4").json()["items"]
            assert {i: mark["label"] for i, mark in items.items()} == {"1": "a", "2": "b", "3": "c"}
    assert {mark.label for mark in read_marks(file).values()} == {"a", "b", "c"}


def test_many_at_once_lose_nothing(index: Index, file: Path) -> None:
    with client_of(index, file) as one, client_of(index, file) as two:
        acts = [
            threading.Thread(target=give, args=(client, [2 * i + place]), kwargs={"label": f"{place}"})
            for i in range(12)
            for place, client in enumerate((one, two))
        ]
        for act in acts:
            act.start()
        for act in acts:
            act.join()
    assert sorted(mark.label or "" for mark in read_marks(file).values()) == ["0"] * 12 + ["1"] * 12


def test_beside_the_store_by_default_and_off_without_a_folder(index: Index, tmp_path: Path, monkeypatch: Any) -> None:
    own = Index.open(shutil.copytree(index.store.folder, tmp_path / "store"), index.model)  # type: ignore[arg-type]
    with client_of(own, None) as client:
        give(client, [1], label="a")
    assert (tmp_path / "store" / LABELS_FILE).is_file()
    with ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr(own.store, "folder", None)  # as of PostgreSQL
            client = stack.enter_context(client_of(own, None))
        assert "--labels FILE" in client.get("/labels").json()["problem"]
        answer = client.post("/labels", json={"ids": [1], "label": "b"})
        assert answer.status_code == 409 and "--labels FILE" in answer.json()["error"]
        assert exported(client) == [] and len(exported(client, own=True)) == 40


def test_a_place_that_cannot_be_written_is_said_before_and_after(index: Index, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a folder")
    with client_of(index, tmp_path / "text" / "labels.csv") as client:
        assert "cannot be written" in client.get("/labels").json()["problem"]
        answer = client.post("/labels", json={"ids": [1], "label": "b"})
        assert answer.status_code == 409 and "cannot be written" in answer.json()["error"]


def test_an_item_that_left_the_index_is_kept_and_not_exported(index: Index, tmp_path: Path, photos: Path) -> None:
    own = Index.open(shutil.copytree(index.store.folder, tmp_path / "store"), index.model)  # type: ignore[arg-type]
    with client_of(own, None) as client:
        give(client, [1, 2], label="a")
        own.store.delete(own.store.ids()[1:2])
        counts = client.get("/labels").json()["counts"]
        assert counts["gone"] == 1 and counts["given"] == {"images": 1, "classes": 1, "with_pairs": 0}
        assert [row["path"] for row in exported(client)] == [str(photos / "0-2.png")]
        answer = client.post("/labels", json={"ids": [1], "label": "b"})
        assert answer.status_code == 404 and "not in the index" in answer.json()["error"]
        assert give(client, [1, 2], label="b")["missing"] == 1
        own.update(photos / "items.csv")
        assert client.get("/labels").json()["counts"]["gone"] == 0  # it is back under another id


GOOD = "path,box,label,hidden,key\r\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"path,label\n", "line 1: the header"),
        (b"\n\n", "line 1: the header"),
        (f"{GOOD}/a.png,,mug,maybe,{'0' * 32}\n".encode(), "line 2: hidden is 'maybe', not true or false"),
        (f"{GOOD}/a.png,,mug,true,{'0' * 32}\n/b.png,,mug\n".encode(), "line 3: 3 values, not 5"),
        (f"{GOOD}/a.png,,mug,true,{'0' * 31}\n".encode(), "line 2: key"),
        (f'{GOOD}/a.png,,"a\nb",true,{"0" * 32}\n'.encode(), "line 2: the label holds a line break"),
        (f'{GOOD}/a.png,,"mug,true'.encode(), "line 2: "),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(index: Index, file: Path, content: bytes, says: str) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.csv") as error:
        create_app(index, labels=file)
    assert says in str(error.value)


def test_a_file_that_is_damaged_while_the_server_runs(client: TestClient, file: Path) -> None:
    give(client, [1], label="a")
    whole = file.read_bytes()
    file.write_bytes(whole + b"half a li")
    for answer in (client.get("/labels"), client.post("/labels", json={"ids": [2], "label": "b"})):
        assert answer.status_code == 400 and "line 3" in answer.json()["error"]
    assert file.read_bytes() == whole + b"half a li"  # nothing that a person wrote is lost
    file.write_bytes(whole.replace(b",a,", b",by hand,"))
    assert client.get("/labels?ids=1").json()["items"]["1"]["label"] == "by hand"


def test_marks_come_back_as_they_were_written(tmp_path: Path) -> None:
    marks = {
        "0" * 32: Mark("/a/ü, \"x\".png", None, "a,b", True),
        "1" * 32: Mark("/a/new\nline.png", "1,2,3,4", None, True),
        "2" * 32: Mark("/a/a.png", None, "'", False),
    }  # fmt: skip
    write_marks(tmp_path / "marks.csv", marks)
    assert read_marks(tmp_path / "marks.csv") == marks


BAD = [
    ({"ids": [1]}, 422, "label"),
    ({"ids": [], "label": "a"}, 422, "ids"),
    ({"ids": list(range(5001)), "label": "a"}, 422, "ids"),
    ({"ids": [2**70, -1], "label": "a"}, 404, "not in the index"),
    ({"ids": [1], "label": " \u200b "}, 422, "empty"),
    ({"ids": [1], "label": "a\nb"}, 422, "line break"),
    ({"ids": [1], "label": "a\x00b"}, 422, "control"),
    ({"ids": [1], "label": "a" * 201}, 422, "201 characters"),
    ({"ids": [1], "label": 3}, 422, "label"),
    ({"ids": [1], "hidden": "perhaps"}, 422, "hidden"),
    ({"ids": [1], "label": "a", "more": 1}, 422, "more"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_change_is_refused_and_changes_nothing(
    client: TestClient, file: Path, body: Any, status: int, says: str
) -> None:
    answer = client.post("/labels", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert not file.exists()


def test_lone_surrogates_are_refused(client: TestClient, file: Path) -> None:
    content = b'{"ids": [1], "label": "\\ud800"}'
    answer = client.post("/labels", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["error"] and not file.exists()


def test_the_guard_holds_for_labels_too(index: Index, file: Path) -> None:
    with client_of(index, file, token="a-token-for-the-tests") as client:
        change = {"ids": [1], "label": "a"}
        own = {"Authorization": "Bearer a-token-for-the-tests"}
        for path in ("/labels", "/labels/undo"):
            assert client.post(path, json=change).status_code == 401
            evil = own | {"Origin": "http://evil.example"}
            assert client.post(path, json=change, headers=evil).status_code == 403
        for path in ("/labels", "/labels/names", "/labels.csv"):
            assert client.get(path).status_code == 401
        assert not file.exists()
        assert client.post("/labels", json=change, headers=own).status_code == 200
    with client_of(index, file) as client:
        assert client.post("/labels", json=change, headers={"Host": "evil.example"}).status_code == 403


def test_names_to_complete_and_names_that_look_alike(client: TestClient) -> None:
    def names(text: str) -> list[str]:
        return client.get("/labels/names", params={"text": text}).json()["names"]

    assert names("MUG") == [*(f"mug {i}" for i in range(1, 8)), "<b>mug</b> & 0"]
    assert names("") and names("nothing like it") == []
    assert "looks like the label 'mug 3'" in give(client, [1], label="Mug-3")["note"]
    assert give(client, [2], label="mug 3")["note"] is None
    assert "missing label" in give(client, [2], label="n/a")["note"]
    assert names("mug")[0] == "Mug-3"


def test_crops_are_exported_with_their_boxes(index: Index, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "crops.csv"
    rows = [f"{photos / f'{i}-0.png'},k{i},{x},4,{x + 30},40" for i in range(4) for x in (0, 10)]
    table.write_text("path,label,x_1,y_1,x_2,y_2\n" + "\n".join([*rows, f"{photos / '5-0.png'},k5,,,,"]) + "\n")
    own = Index.build(index.model, table, tmp_path / "store")
    with client_of(own, None) as client:
        give(client, [0, 8], label="new")
        path = tmp_path / "labels.csv"
        path.write_bytes(client.get("/labels.csv?own=true").content)
        given = [(row["path"], row["x_1"], row["label"]) for row in exported(client)]
    assert given == [(str(photos / "0-0.png"), "0", "new"), (str(photos / "5-0.png"), "", "new")]
    assert sorted(path.read_text().splitlines()[1:]) == sorted(
        [rows[0].replace(",k0,", ",new,"), *rows[1:], f"{photos / '5-0.png'},new,,,,"]
    )
    assert len(dc.read(str(path), test_fraction=None).train) + len(dc.read(str(path), test_fraction=None).gallery) == 9
