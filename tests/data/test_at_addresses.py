"""Data at addresses is the same as on this machine: tables, folders, packs and shards on S3, by HTTP and in memory."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.check import check
from divcon.data.loading import evaluation_batches
from divcon.data.pack import Packing, pack
from divcon.data.readers.shards import expanded, is_shards
from divcon.data.tar_members import TarMembers
from divcon.data.transforms import EvalTransform
from divcon.errors import ConfigError, DataError, ImageError, RemoteError
from divcon.runtime.context import Context


@pytest.fixture(scope="session")
def photos(tmp_path_factory, demo):
    """Real images of eight classes, five each: ``photos/CLASS/*.png``, and ``t.csv`` beside the folder."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    for label in demo.train.classes[:8]:
        name = demo.train.label_names[label]
        for number, i in enumerate(np.flatnonzero(demo.train.labels == label)[:5]):
            path = root / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(demo.train.content(int(i)))
            rows.append((path.relative_to(root).as_posix(), name))
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return root


@pytest.fixture
def bucket(s3, photos):
    s3.upload(photos)
    return s3


def pixels(images, workers=0):
    batches = evaluation_batches(images, EvalTransform(32), batch_size=7, context=Context(workers))
    return torch.cat([batch for batch, _ in batches])


def same(here, there, *, split=True):
    """The same classes, split and pixels."""
    assert len(there.train) and there.train.label_names == here.train.label_names
    if split:
        assert there.split_hash == here.split_hash and there.train.fingerprint == here.train.fingerprint
    for part, images in there.parts.items():
        assert (images.labels == here.parts[part].labels).all()
        assert torch.equal(pixels(images), pixels(here.parts[part]))


class TestOnS3:
    def test_a_table_with_paths_beside_it(self, bucket, photos):
        here, there = dc.read(photos / "t.csv"), dc.read(f"{bucket.url}/t.csv")
        same(here, there)
        assert there.train.where(0).startswith(f"{bucket.url}/t.csv line ")
        assert str(bucket.url) in repr(there.train)

    def test_what_has_changed_is_read_anew_by_the_same_process(self, s3, photos, tmp_path):
        s3.upload(photos)
        lines = (photos / "t.csv").read_text().splitlines()
        assert len(dc.read(f"{s3.url}/t.csv").train) + len(dc.read(f"{s3.url}/t.csv").query) == len(lines) - 1
        folder = dc.read(f"{s3.url}/photos")
        s3.write({"t.csv": "\n".join(lines[:-2]).encode()})
        image = next((photos / "photos").rglob("*.png"))
        s3.write({f"photos/{image.parent.name}/new.png": image.read_bytes()})
        table, more = dc.read(f"{s3.url}/t.csv"), dc.read(f"{s3.url}/photos")
        assert len(table.train) + len(table.query) == len(lines) - 3
        assert len(more.train) + len(more.query) == len(folder.train) + len(folder.query) + 1

        first, second = (dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, image_size=32) for _ in range(2))
        for model in (first, second):
            model.save(f"{s3.url}/model")
            loaded = dc.EmbeddingModel.load(f"{s3.url}/model")
            assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
            model.save(tmp_path / "elsewhere")
            for path in (tmp_path / "elsewhere").iterdir():  # as another machine does
                s3.write({f"other/{path.name}": path.read_bytes()})
            other = dc.EmbeddingModel.load(f"{s3.url}/other")
            assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())

    def test_workers_open_connections_of_their_own(self, bucket, photos):
        there = dc.read(f"{bucket.url}/t.csv").train
        assert torch.equal(pixels(there, workers=2), pixels(dc.read(photos / "t.csv").train))

    def test_a_table_of_addresses_is_of_the_same_split(self, bucket, photos, tmp_path):
        rows = (photos / "t.csv").read_text().replace("photos/", f"{bucket.url}/photos/").encode()
        (tmp_path / "t.csv").write_bytes(rows)
        bucket.write({"a.csv": rows})
        same(dc.read(photos / "t.csv"), dc.read(f"{bucket.url}/a.csv"))
        same(dc.read(photos / "t.csv"), dc.read(tmp_path / "t.csv"), split=False)
        same(dc.read(photos / "t.csv"), dc.read(photos / "t.csv", bucket.url))

    def test_a_parquet_is_read_column_by_column(self, bucket, photos, tmp_path):
        import pyarrow.csv
        import pyarrow.parquet as pq

        table = pyarrow.csv.read_csv(photos / "t.csv")
        pq.write_table(table.append_column("more", [["x" * 1000] * len(table)]), tmp_path / "t.parquet")
        bucket.write({"t.parquet": (tmp_path / "t.parquet").read_bytes()})
        same(dc.read(photos / "t.csv"), dc.read(f"{bucket.url}/t.parquet"))

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_folder_of_classes(self, bucket, photos, slash):
        bucket.write({"photos/Thumbs.db": b"x", "photos/notes.txt": b"x", "photos/clip.mp4": b"x"})
        there = dc.read(f"{bucket.url}/photos{slash}")
        same(dc.read(photos / "photos"), there)
        assert {skipped.kind for skipped in there.skipped} >= {"videos", "files that are no images"}

    def test_a_folder_with_a_split(self, bucket, photos, tmp_path):
        for split, classes in (("train", slice(0, 5)), ("test", slice(5, 8))):
            for folder in sorted((photos / "photos").iterdir())[classes]:
                shutil.copytree(folder, tmp_path / "d" / split / folder.name)
        bucket.upload(tmp_path / "d", "d/")
        same(dc.read(tmp_path / "d"), dc.read(f"{bucket.url}/d"))

    def test_a_folder_with_a_table_of_metadata(self, bucket, photos, tmp_path):
        shutil.copytree(photos / "photos", tmp_path / "m" / "photos")
        (tmp_path / "m" / "metadata.csv").write_text((photos / "t.csv").read_text().replace("path", "file_name"))
        bucket.upload(tmp_path / "m", "m/")
        same(dc.read(tmp_path / "m"), dc.read(f"{bucket.url}/m"))

    def test_a_pack_is_written_there_and_streamed(self, bucket, photos, tmp_path, cache, monkeypatch):
        from divcon.data import encoded

        monkeypatch.setattr(encoded, "IN_MEMORY", 0)
        here = dc.read(photos / "t.csv")
        pack(here, tmp_path / "p", Packing(short_side=40))
        pack(dc.read(f"{bucket.url}/t.csv"), f"{bucket.url}/p", Packing(short_side=40))
        assert bucket.names()[0] == "p/pack.json" and not any("lock" in name for name in bucket.names())
        there = dc.read(f"{bucket.url}/p")
        assert isinstance(there.train.encoded, encoded.RowGroups)
        same(dc.read(tmp_path / "p"), there)
        assert there.split_hash == here.split_hash
        assert not any(path.stat().st_size for path in (cache / "at").rglob("*.parquet"))
        assert torch.equal(pixels(there.train, workers=2), pixels(dc.read(tmp_path / "p").train))
        # Again: what is done stays, and other data is refused.
        pack(dc.read(f"{bucket.url}/t.csv"), f"{bucket.url}/p", Packing(short_side=40))
        with pytest.raises(dc.errors.RunError, match=rf"^{bucket.url}/p/.*is of other data or other settings"):
            pack(dc.read(f"{bucket.url}/t.csv"), f"{bucket.url}/p", Packing(short_side=41))

    def test_one_image_and_lists(self, bucket, photos):
        from divcon.data.readers.folder import images_of

        name = sorted((photos / "photos").iterdir())[0].name
        images = images_of([f"{bucket.url}/photos/{name}/0.png", photos / "photos" / name / "1.png"])
        assert [images.content(i) for i in range(2)] == [
            (photos / "photos" / name / f"{i}.png").read_bytes() for i in range(2)
        ]
        assert len(images_of(f"{bucket.url}/photos")) == len(list((photos / "photos").rglob("*.png")))

    def test_vectors(self, bucket, tmp_path):
        vectors, labels = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), np.arange(30) // 3
        for name, array in (("v", vectors), ("l", labels)):
            np.save(tmp_path / f"{name}.npy", array)
        bucket.write({f"{name}.npy": (tmp_path / f"{name}.npy").read_bytes() for name in "vl"})
        here = dc.read(tmp_path / "v.npy", labels_file=str(tmp_path / "l.npy"))
        there = dc.read(f"{bucket.url}/v.npy", labels_file=f"{bucket.url}/l.npy")
        assert there.split_hash == here.split_hash and np.array_equal(there.train.vectors, here.train.vectors)

    def test_what_is_wrong_is_named(self, bucket, photos):
        for url in (f"{bucket.url}/no.csv", f"{bucket.url}/no", f"{bucket.url}/no.npy", f"{bucket.url}/no.tar"):
            with pytest.raises(DataError, match=rf"^{url}: there is no such"):
                dc.read(url)
        with pytest.raises(RemoteError, match=r"^s3://no-such-bucket/t\.csv: there is no such bucket$"):
            dc.read("s3://no-such-bucket/t.csv")
        with pytest.raises(ConfigError, match="takes no `root`"):
            dc.read(f"{bucket.url}/photos", "/data")
        bucket.write({"empty.csv": b"", "bad.csv": b"path,label\nphotos/no.png,a\nphotos/no2.png,b\n"})
        with pytest.raises(DataError, match=rf"^{bucket.url}/empty\.csv: the file is empty"):
            dc.read(f"{bucket.url}/empty.csv")
        with pytest.raises(DataError, match=rf"^{bucket.url}/bad\.csv line 2: .*there is no such file .*`root` sets"):
            dc.read(f"{bucket.url}/bad.csv")
        images = dc.read(f"{bucket.url}/t.csv").train
        bucket.system.rm_file(images.file(3).removeprefix("s3://"))
        with pytest.raises(ImageError, match=rf"^{bucket.url}/t\.csv line \d+: .*: there is no such file$"):
            pixels(images)

    def test_check_reads_every_image(self, bucket):
        images = dc.read(f"{bucket.url}/t.csv").train
        bucket.system.pipe_file(images.file(3).removeprefix("s3://"), b"no image")
        result = check(dc.read(f"{bucket.url}/t.csv"))
        assert [problem.where for problem in result.unreadable] == [images.where(3)]


class TestByHttp:
    def test_a_table_and_its_images(self, web, photos):
        for path in photos.rglob("*"):
            if path.is_file():
                web.files[f"/{path.relative_to(photos).as_posix()}"] = path.read_bytes()
        same(dc.read(photos / "t.csv"), dc.read(f"{web.url}/t.csv"))
        web.faults = ["drop", "500"]
        same(dc.read(photos / "t.csv"), dc.read(f"{web.url}/t.csv"))

    def test_a_signed_address(self, web, photos):
        web.files["/t.csv?key=abc"] = (photos / "t.csv").read_bytes()
        same(dc.read(photos / "t.csv"), dc.read(f"{web.url}/t.csv?key=abc", photos))


def test_in_memory(cache, photos):
    import fsspec

    fsspec.filesystem("memory").put(str(photos), "/data", recursive=True)
    same(dc.read(photos / "t.csv"), dc.read("memory://data/t.csv"))
    same(dc.read(photos / "photos"), dc.read("memory://data/photos"))


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(folder, photos, *, label="cls", shards=3, names="photos-{:03d}.tar"):
    """The images in shards as the package webdataset writes them."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((photos / "photos").rglob("*.png"))
    for number in range(shards):
        with webdataset.TarWriter(str(folder / names.format(number))) as writer:
            for i, path in list(enumerate(files))[number::shards]:
                name = path.parent.name
                held = {"cls": name.encode(), "json": {"label": name}, "txt": name}[label]
                writer.write({"__key__": f"{i:05d}", "png": path.read_bytes(), label: held})


class TestShards:
    def same_images(self, here, there):
        """The same images of each class, in another order."""
        assert here.label_names == there.label_names and len(here) == len(there)
        for label in here.classes:
            pictures = [
                sorted(images.content(int(i)) for i in np.flatnonzero(images.labels == label))
                for images in (here, there)
            ]
            assert pictures[0] == pictures[1]

    @pytest.mark.parametrize("label", ["cls", "json", "txt"])
    def test_of_webdataset(self, tmp_path, cache, photos, label):
        folder = tmp_path / "w"
        write_shards(folder, photos, label=label)
        data = dc.read(f"{folder}/photos-{{000..002}}.tar")
        assert data.name == "photos" and isinstance(data.train.encoded, TarMembers)
        here = dc.read(photos / "photos")
        self.same_images(here.train, data.train)
        self.same_images(here.query, data.query)
        assert data.query is data.gallery
        assert torch.equal(pixels(data.train, workers=2), pixels(data.train))
        assert dc.read(folder).split_hash == data.split_hash  # a folder of them
        one = data.train.path(0)
        assert one.startswith("photos-00") and one.endswith(".png")

    def test_on_s3_they_are_indexed_once(self, s3, tmp_path, cache, photos):
        write_shards(tmp_path / "w", photos)
        s3.upload(tmp_path / "w", "w/")
        url = f"{s3.url}/w/photos-{{000..002}}.tar"
        seen = []
        here = dc.read(f"{tmp_path}/w/photos-{{000..002}}.tar")
        there = dc.read(url, context=Context(on_progress=seen.append))
        assert [(step.stage, step.done, step.total) for step in seen] == [("fetch", n, 3) for n in (1, 2, 3)]
        same(here, there)
        assert torch.equal(pixels(there.train, workers=2), pixels(here.train))
        assert len(list((cache / "shards").glob("*.parquet"))) == 6
        shutil.rmtree(cache / "blocks")
        same(here, dc.read(f"{s3.url}/w"))
        assert len(list((cache / "shards").glob("*.parquet"))) == 6
        s3.write({"w/photos-001.tar": b"\0" * 10240})
        assert len(dc.read(url).train) < len(here.train)  # another version is indexed anew

    def test_the_split_of_shards(self, tmp_path, cache, photos):
        write_shards(tmp_path, photos, shards=1)
        tar = next(tmp_path.glob("*.tar"))
        with tarfile.open(tar) as whole:
            members = [(member.name, whole.extractfile(member).read()) for member in whole]
        labels = {name.split(".")[0]: content.decode() for name, content in members if name.endswith("cls")}
        test = set(sorted(set(labels.values()))[:3])
        with tarfile.open(tmp_path / "train-000.tar", "w") as a, tarfile.open(tmp_path / "test-000.tar", "w") as b:
            for name, content in members:
                add(b if labels[name.split(".")[0]] in test else a, name, content)
        tar.unlink()
        data = dc.read(f"{tmp_path}/{{train,test}}-000.tar")
        assert {data.query.label_names[c] for c in data.query.classes} == test
        with tarfile.open(tmp_path / "all.tar", "w") as whole:
            for name, content in members:
                add(whole, name, content)
                if name.endswith("cls"):
                    split = "test" if content.decode() in test else "train"
                    add(whole, name.replace("cls", "json"), json.dumps({"split": split, "kind": "k"}).encode())
        again = dc.read(f"{tmp_path}/all.tar")
        assert {again.query.label_names[c] for c in again.query.classes} == test
        with pytest.raises(DataError, match="class"):
            dc.read(f"{tmp_path}/all.tar", label_column="kind")
        with pytest.raises(DataError, match="no sample has 'nope'"):
            dc.read(f"{tmp_path}/all.tar", label_column="nope")

    def test_without_labels_they_are_encoded(self, tmp_path, cache, photos):
        from divcon.data.readers.folder import images_of

        files = sorted((photos / "photos").rglob("*.png"))[:6]
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for i, path in enumerate(files):
                add(tar, f"x/{i}.png", path.read_bytes())
                add(tar, f"x/{i}.caption", b"none")
        images = images_of(tmp_path / "a.tar")
        assert [images.content(i) for i in range(6)] == [path.read_bytes() for path in files]
        assert images.paths.to_pylist() == [f"a.tar/x/{i}.png" for i in range(6)] and images.label_names == ("",)
        with pytest.raises(DataError, match="label"):
            dc.read(tmp_path / "a.tar")

    def test_what_is_wrong_is_named(self, tmp_path, cache, photos):
        write_shards(tmp_path, photos, shards=2)
        whole = (tmp_path / "photos-000.tar").read_bytes()
        cases = {
            "cut.tar": (whole[: len(whole) // 2], "this is no tar archive that can be read"),
            "cut2.tar": (whole[:-10240], "this is no tar archive that can be read"),
            "no.tar": (b"no archive" * 100, "this is no tar archive"),
            "none.tar": (b"\0" * 10240, "there are no images in it"),
        }
        for name, (content, message) in cases.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=rf"{name}: .*{message}"):
                dc.read(tmp_path / name)
        with pytest.raises(DataError, match=r"photos-002\.tar: there is no such shard"):
            dc.read(f"{tmp_path}/photos-{{000..002}}.tar")
        with pytest.raises(DataError, match="unpack them to"):
            dc.read(f"{tmp_path}/photos-{{000..002}}.tar.gz")
        data = dc.read(f"{tmp_path}/photos-{{000..001}}.tar").train
        (tmp_path / "photos-001.tar").write_bytes(whole)
        with pytest.raises(ImageError, match=r"photos-001\.tar: .*it has changed since it was indexed"):
            pixels(data)

    def test_names(self):
        assert list(expanded("a-{08..11}.{x,y}")) == [f"a-{n}.{e}" for n in ("08", "09", "10", "11") for e in "xy"]
        assert list(expanded("a-{8..10}")) == ["a-8", "a-9", "a-10"]
        assert list(expanded("plain.tar")) == ["plain.tar"]
        assert is_shards("s3://b/a-{0..9}.tar?key=1") and not is_shards("a.csv")
        with pytest.raises(DataError, match="counts down"):
            list(expanded("a-{3..1}"))
