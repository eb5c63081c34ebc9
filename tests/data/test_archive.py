"""Archives: unpacked beside themselves, once, whole or not at all, and nothing outside."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divcon.data.published import archive as module
from divcon.data.published.archive import unpacked
from divcon.data.read import read
from divcon.errors import DataError, OutputError
from divcon.runtime.context import Context, Progress

FILES = {"data/one.txt": b"one", "data/deep/two.txt": b"two" * 1000, "readme": b""}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for name, content in files.items():
            held.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as held:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            held.addfile(member, io.BytesIO(content))
    return path


MAKE: dict[str, Callable[..., Path]] = {
    "a.zip": make_zip,
    "a.tgz": make_tar,
    "a.tar.gz": make_tar,
    "a.tar": lambda path, files=FILES: make_tar(path, files, "w"),
    "A.ZIP": make_zip,
}


@pytest.fixture(params=MAKE)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".divcon-unpacked"
    }


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(path: Path) -> str:
    """That it is not unpacked, and that nothing of it is left."""
    before = set(path.parent.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpacked(path)
    assert set(path.parent.parent.rglob("*")) == before
    return str(caught.value)


def test_all_of_it_lies_beside_it(tmp_path: Path, kind: str) -> None:
    reports: list[tuple[int, int | None]] = []
    folder = unpacked(MAKE[kind](tmp_path / kind), Context(on_progress=lambda p: reports.append((p.done, p.total))))
    assert folder == tmp_path / f"{kind[0]}.unpacked"
    assert contents(folder) == FILES
    assert names_in(tmp_path) == {kind, folder.name}
    assert reports and all(0 <= done <= total for done, total in reports) and reports == sorted(reports)


def test_once(tmp_path: Path, kind: str) -> None:
    path = MAKE[kind](tmp_path / kind)
    folder = unpacked(path)
    (folder / "readme").write_text("mine")
    assert (unpacked(path) / "readme").read_text() == "mine"


def test_another_archive_of_the_same_name_is_not_taken_for_it(tmp_path: Path, kind: str) -> None:
    path = MAKE[kind](tmp_path / kind)
    unpacked(path)
    MAKE[kind](path, {"other": np.random.default_rng(0).bytes(100_000)})
    with pytest.raises(DataError, match=r"was unpacked from an archive of [\d,]+ bytes, and \S+ has 10\d,"):
        unpacked(path)


def test_a_folder_of_that_name_that_is_the_user_s_stays(tmp_path: Path) -> None:
    (tmp_path / "a.unpacked").mkdir()
    with pytest.raises(DataError, match=r"a\.unpacked: was not unpacked by divcon, and a\.zip has"):
        unpacked(make_zip(tmp_path / "a.zip"))


class TestInterrupted:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_nothing_is_left_and_the_next_starts_anew(self, tmp_path: Path, kind: str, error: type) -> None:
        path = MAKE[kind](tmp_path / kind)

        def stop(progress: Progress) -> None:
            raise error

        with pytest.raises(error):
            unpacked(path, Context(on_progress=stop))
        assert names_in(tmp_path) == {kind}
        assert contents(unpacked(path)) == FILES

    @pytest.mark.heavy
    def test_what_a_kill_leaves_is_not_taken_for_the_whole(self, tmp_path: Path, kind: str) -> None:
        path = MAKE[kind](tmp_path / kind)
        process = multiprocessing.get_context("spawn").Process(target=_killed, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == 9
        left = tmp_path / f"{kind[0]}.unpacking"
        assert left.is_dir() and not (tmp_path / f"{kind[0]}.unpacked").exists()
        (left / "old").write_text("")
        assert contents(unpacked(path)) == FILES
        assert not left.exists()

    def test_two_at_a_time(self, tmp_path: Path) -> None:
        path = make_tar(tmp_path / "a.tgz", {f"data/{i}": b"x" * i for i in range(300)})
        processes = [multiprocessing.get_context("spawn").Process(target=unpacked, args=(path,)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len(contents(tmp_path / "a.unpacked")) == 300 and names_in(tmp_path) == {"a.tgz", "a.unpacked"}


def _killed(path: Path) -> None:
    import os

    unpacked(path, Context(on_progress=lambda progress: os._exit(9)))


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "here").mkdir()
        return tmp_path / "here"

    @pytest.mark.parametrize(
        "name",
        [
            "../out",
            "data/../../out",
            "/out",
            "data/..",
            "\\out",
            "..\\out",
            "data\\..\\..\\out",
            "C:/out",
            "C:\\out",
            "//x",
        ],
    )
    def test_paths_that_lead_outside(self, folder: Path, kind: str, name: str) -> None:
        reports = refused(MAKE[kind](folder / kind, {"data/one": b"1", name: b"2"}))
        assert "holds a path that leads outside" in reports

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.text("./\\:aC~ ", min_size=1, max_size=9), min_size=1, max_size=4, unique=True))
    @pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
    def test_nothing_ever_lies_outside(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, names: list[str]
    ) -> None:
        top = tmp_path_factory.mktemp("top")
        folder = top / "between" / "here"
        folder.mkdir(parents=True)
        path = MAKE[kind](folder / kind, dict.fromkeys(names, b"x"))
        try:
            inside = {folder / "a.unpacked"} if unpacked(path) else set()
        except (DataError, OutputError):
            inside = set()
        there = {item for item in top.rglob("*") if folder / "a.unpacked" not in item.parents}
        assert there == {top / "between", folder, path} | inside

    @pytest.mark.parametrize("kind", ["a.tgz", "a.tar"])
    @pytest.mark.parametrize(
        "type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    )
    def test_links_and_devices_in_a_tar(self, folder: Path, kind: str, type_: bytes) -> None:
        path = folder / kind
        with tarfile.open(path, "w:gz" if kind == "a.tgz" else "w") as held:
            held.addfile(tarfile.TarInfo("first"))
            member = tarfile.TarInfo("data/link")
            member.type, member.linkname = type_, "first"
            held.addfile(member)
        assert "holds a link or device (data/link), which is not unpacked" in refused(path)

    @pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666])
    def test_links_and_devices_in_a_zip(self, folder: Path, mode: int) -> None:
        with zipfile.ZipFile(folder / "a.zip", "w") as held:
            member = zipfile.ZipInfo("data/link")
            member.external_attr = mode << 16
            held.writestr(member, "/etc/passwd")
        assert "holds a link or device (data/link), which is not unpacked" in refused(folder / "a.zip")

    def test_too_many_files(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_FILES", 2)
        assert "holds more than 2 files" in refused(MAKE[kind](folder / kind))

    def test_too_large(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MOST_BYTES", 2000)
        assert "or 0 GiB; this is none of the data sets" in refused(MAKE[kind](folder / kind))

    def test_a_zip_that_lies_about_its_size(self, folder: Path) -> None:
        path = make_zip(folder / "a.zip", {"bomb": b"\0" * 1_000_000})
        content = path.read_bytes()
        path.write_bytes(content.replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
        assert "cannot be unpacked" in refused(path)

    def test_a_zip_with_a_name_that_is_no_utf8(self, folder: Path) -> None:
        path = make_zip(folder / "a.zip", {"dataé/one": b"1"})
        path.write_bytes(path.read_bytes().replace("é".encode(), b"\xad\xad", 1))  # not in its list
        assert "cannot be unpacked ('utf-8' codec can't decode byte 0xad" in refused(path)

    def test_one_that_is_encrypted(self, folder: Path) -> None:
        path = make_zip(folder / "a.zip", {"one": b"1"})
        content = bytearray(path.read_bytes())
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
        path.write_bytes(content)
        assert "is encrypted; unpack it with the password" in refused(path)

    def test_one_that_was_cut_short(self, folder: Path, kind: str) -> None:
        files = {f"data/{i}": np.random.default_rng(i).bytes(700) for i in range(8)}
        path = MAKE[kind](folder / kind, files)
        content = path.read_bytes()
        # A tar ends in zeros: up to its last member.
        end = content.rstrip(b"\0")
        for share in np.linspace(0, 0.99, 20):
            path.write_bytes(content[: int(share * len(end))])
            assert "cannot be unpacked" in refused(path)

    @pytest.mark.parametrize("kind", ["a.tar"])
    def test_a_tar_that_was_cut_short_between_two_members(self, folder: Path, kind: str) -> None:
        path = MAKE[kind](folder / kind, {f"data/{i}": b"x" * 512 for i in range(4)})
        path.write_bytes(path.read_bytes()[: 3 * 1024])
        assert "it ends before its end mark" in refused(path)

    def test_something_else(self, folder: Path, kind: str) -> None:
        (folder / kind).write_text("<!doctype html>")
        assert "cannot be unpacked" in refused(folder / kind)

    def test_no_room(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("Usage", (), {"free": 1})
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OutputError, match=r"needs 0\.0 GB beside it, and 0\.0 GB are free; unpack it where"):
            unpacked(MAKE[kind](folder / kind))
        assert names_in(folder) == {kind}

    def test_where_nothing_may_be_written(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = MAKE[kind](folder / kind)

        def refuse(self: Path, *arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(OutputError, match=r"cannot be unpacked beside itself \(Permission denied\)"):
            unpacked(path)


class TestReading:
    """The archives that are handed out, which hold the folder of the data set."""

    def pack(self, root: Path, out: Path, name: str) -> Path:
        files = {
            f"{name}/{path.relative_to(root).as_posix()}": path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        return (make_zip if out.suffix == ".zip" else make_tar)(out, files)

    @pytest.mark.parametrize(
        ("name", "archive", "inside"),
        [
            ("cub", "CUB_200_2011.tgz", "CUB_200_2011"),
            ("cars", "cars.tar.gz", "."),
            ("sop", "Stanford_Online_Products.zip", "Stanford_Online_Products"),
            ("inshop", "inshop.zip", "In-shop Clothes Retrieval Benchmark"),
            ("vehicleid", "VehicleID_V1.0.zip", "VehicleID_V1.0"),
            ("market1501", "Market-1501-v15.09.15.zip", "Market-1501-v15.09.15"),
        ],
    )
    def test_each(self, trees: ModuleType, tmp_path: Path, name: str, archive: str, inside: str) -> None:
        root = getattr(trees, f"write_{name}")(tmp_path / "tree", **trees.SMALL[name], put=trees.draw)
        path = self.pack(root, tmp_path / archive, inside)
        reports: list[tuple[int, int | None]] = []
        data = read(name, path, context=Context(on_progress=lambda p: reports.append((p.done, p.total))))
        assert reports
        assert data.split_hash == read(name, root).split_hash
        assert data.query.open(0).size == (32, 32)
        assert Path(data.query.where(0)).is_relative_to(tmp_path)
        reports.clear()
        assert (
            read(name, path, context=Context(on_progress=lambda p: reports.append((p.done, p.total)))).split_hash
            == data.split_hash
        )
        assert not reports

    def test_car_ims_with_its_annotations_beside_it(self, trees: ModuleType, tmp_path: Path) -> None:
        root = trees.write_cars(tmp_path / "tree", **trees.SMALL["cars"], put=trees.draw)
        path = self.pack(root / "car_ims", tmp_path / "car_ims.tgz", "car_ims")
        with pytest.raises(DataError, match=r"cars lacks cars_annos\.mat, which is handed out beside car_ims\.tgz"):
            read("cars", path)
        (root / "cars_annos.mat").rename(tmp_path / "cars_annos.mat")
        assert read("cars", path).query.num_classes == 4

    def test_an_archive_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.zip: cub is not in this archive: it holds none of images\.txt"):
            read("cub", make_zip(tmp_path / "a.zip"))
