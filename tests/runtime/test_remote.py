"""Files at addresses: what is wrong in words, retries with a limit, blocks in a cache."""

from __future__ import annotations

import os
import pickle
import random
import threading

import pytest

from divcon.errors import ConfigError, RemoteDeniedError, RemoteError, RemoteMissingError
from divcon.runtime import blocks, remote
from divcon.runtime.blocks import BLOCK, RemoteFile, parse_size, trim

CONTENT = random.Random(0).randbytes(3 * BLOCK + 1234)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    monkeypatch.setattr(remote, "_answered", set())
    return waited


class TestStorage:
    def test_what_is_written_is_there(self, s3, tmp_path):
        path = tmp_path / "a.bin"
        path.write_bytes(CONTENT)
        remote.put(path, f"{s3.url}/x/a.bin")
        about = remote.info(f"{s3.url}/x/a.bin")
        assert about is not None and about.size == len(CONTENT) and not about.folder
        assert remote.read(f"{s3.url}/x/a.bin") == CONTENT
        assert list(remote.listing(f"{s3.url}/x")) == ["a.bin"]
        assert remote.info(f"{s3.url}/x").folder
        remote.put(path, f"{s3.url}/x/b.bin")
        with remote.read_ahead([f"{s3.url}/x/{name}.bin" for name in "abc"]):  # the last is not there
            assert remote.read(f"{s3.url}/x/b.bin") == CONTENT
            with pytest.raises(RemoteMissingError):
                remote.read(f"{s3.url}/x/c.bin")
        remote.remove(f"{s3.url}/x/a.bin")
        assert remote.info(f"{s3.url}/x/a.bin") is None
        remote.remove(f"{s3.url}/x/a.bin")

    @pytest.mark.parametrize("kind", ["s3", "memory"])
    def test_a_new_file_does_not_replace_one(self, s3, kind):
        url = f"{s3.url}/lock" if kind == "s3" else "memory://new/lock"
        assert remote.put_bytes(b"first", url, new=True)
        assert not remote.put_bytes(b"second", url, new=True)
        assert remote.read(url) == b"first"

    def test_what_is_missing_is_named(self, s3, monkeypatch):
        with pytest.raises(RemoteMissingError, match=rf"^{s3.url}/no\.csv: there is no such file$"):
            remote.read(f"{s3.url}/no.csv")
        with pytest.raises(RemoteMissingError, match=r"^s3://no-such-bucket/a: there is no such bucket$"):
            remote.info("s3://no-such-bucket/a")
        with pytest.raises(RemoteError, match=r"pip install \"divcon\[gs\]\""):
            monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
            remote.info("gs://bucket/a")
        with pytest.raises(RemoteError, match=r"^zzz://a: fsspec knows no addresses that begin with zzz://$"):
            remote.info("zzz://a")

    def test_credentials_are_asked_for(self, s3, monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nope")
        type(s3.system).clear_instance_cache()
        with pytest.raises(RemoteDeniedError, match="there are no credentials: set AWS_ACCESS_KEY_ID"):
            remote.info(f"{s3.url}/a")
        type(s3.system).clear_instance_cache()

    def test_without_a_network_it_ends_soon(self, s3, monkeypatch, pauses):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        type(s3.system).clear_instance_cache()
        with pytest.raises(RemoteError, match=rf"^{s3.url}/a: http://127\.0\.0\.1:9 cannot be reached, in 2 tries"):
            remote.read(f"{s3.url}/a")
        assert len(pauses) == 1
        type(s3.system).clear_instance_cache()


class TestWeb:
    def test_faults_that_pass_are_tried_again(self, web, pauses):
        web.files["/a.csv"] = b"path,label\n" * 1000
        assert remote.read(f"{web.url}/a.csv") == web.files["/a.csv"]
        web.faults = ["500", "drop", "500"]
        assert remote.read(f"{web.url}/a.csv") == web.files["/a.csv"]
        assert pauses == [0.5, 1.0, 2.0]

    def test_a_fault_that_stays_is_an_error_that_names_the_address(self, web, pauses):
        web.files["/a.csv"] = b"path,label\n" * 1000
        remote.read(f"{web.url}/a.csv")
        web.faults = ["drop"] * 100
        with pytest.raises(RemoteError, match=rf"^{web.url}/a\.csv: the connection broke off, in 7 tries"):
            remote.read(f"{web.url}/a.csv")
        web.faults = ["500"] * 100
        with pytest.raises(RemoteError, match=r"the server answers with an error \(HTTP 500\), in 7 tries"):
            remote.read(f"{web.url}/a.csv")
        web.faults = ["403"]
        with pytest.raises(RemoteDeniedError, match=r"a\.csv\?\.\.\.: permission denied"):
            web.files["/a.csv?key=secret"] = b""
            remote.read(f"{web.url}/a.csv?key=secret")
        web.faults = []
        with pytest.raises(RemoteMissingError, match=r"/b\.csv: there is no such file"):
            remote.read(f"{web.url}/b.csv")
        with pytest.raises(RemoteError, match="nothing can be written to a web server"):
            remote.put(__import__("pathlib").Path(__file__), f"{web.url}/a.csv")

    @pytest.mark.parametrize("ranges", [True, False])
    def test_a_file_is_read_in_blocks(self, web, ranges):
        web.files["/a.bin"], web.ranges = CONTENT, ranges
        file = RemoteFile(f"{web.url}/a.bin")
        web.asked.clear()
        file.seek(-100, os.SEEK_END)
        assert file.read() == CONTENT[-100:]
        assert file.read_at(BLOCK - 10, BLOCK + 10) == CONTENT[BLOCK - 10 : BLOCK + 10]
        assert file.read_at(5, 5) == b"" and file.read_at(len(CONTENT), len(CONTENT) + 9) == b""
        assert len(web.asked) == (2 if ranges else 1)  # without ranges one answer has all blocks
        again = pickle.loads(pickle.dumps(file))
        web.faults = ["500"] * 100  # all that follows is in the cache
        assert again.read_at(BLOCK - 10, BLOCK + 10) == CONTENT[BLOCK - 10 : BLOCK + 10]

    def test_a_damaged_block_is_fetched_again(self, web, cache):
        web.files["/a.bin"] = CONTENT
        RemoteFile(f"{web.url}/a.bin").read()
        paths = sorted((cache / "blocks").rglob("*-[0-9]"))
        assert len(paths) == 4
        damaged = bytearray(paths[0].read_bytes())
        damaged[1000] ^= 1
        paths[0].write_bytes(damaged)
        paths[1].write_bytes(paths[1].read_bytes()[:-5])
        paths[2].write_bytes(b"")
        web.asked.clear()
        assert RemoteFile(f"{web.url}/a.bin").read() == CONTENT
        assert web.asked
        web.asked.clear()
        assert RemoteFile(f"{web.url}/a.bin").read() == CONTENT
        assert not web.asked

    def test_another_version_is_another_file(self, web):
        web.files["/a.bin"] = CONTENT
        assert RemoteFile(f"{web.url}/a.bin").read() == CONTENT
        web.files["/a.bin"] = CONTENT[::-1]
        assert RemoteFile(f"{web.url}/a.bin").read() == CONTENT[::-1]

    def test_the_cache_keeps_its_size_while_many_read(self, web, cache, monkeypatch):
        """Readers and removers at once: every byte is right, and the limit holds."""
        monkeypatch.setenv("DIVCON_CACHE_SIZE", "2MiB")
        for name in "abc":
            web.files[f"/{name}.bin"] = CONTENT if name == "a" else random.Random(name).randbytes(2 * BLOCK + 77)
        wrong: list[str] = []

        def read(seed: int) -> None:
            draws = random.Random(seed)
            files = {name: RemoteFile(f"{web.url}{name}") for name in web.files}
            for _ in range(12):
                name = draws.choice(list(files))
                start = draws.randrange(len(web.files[name]))
                part = files[name].read_at(start, start + 5000)
                files[name]._near.clear()
                if part != web.files[name][start : start + 5000]:
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        trim(2 << 20)
        assert sum(path.stat().st_size for path in (cache / "blocks").rglob("*") if path.is_file()) <= 2 << 20

    def test_what_was_used_longest_ago_goes_first(self, web, cache):
        web.files["/a.bin"] = CONTENT
        RemoteFile(f"{web.url}/a.bin").read()
        paths = sorted((cache / "blocks").rglob("*-[0-9]"))
        for age, path in enumerate(paths):
            os.utime(path, (1e9 + age, 1e9 + age))
        os.utime(paths[0], (2e9, 2e9))
        trim(2 * BLOCK)
        assert [path.exists() for path in paths] == [True, False, False, True]


def test_sizes():
    assert (parse_size("50GB"), parse_size("1.5 MiB"), parse_size("7")) == (50 * 10**9, 3 << 19, 7)
    with pytest.raises(ConfigError, match="`cache_size` 'much': is no size; write it as 50GB"):
        parse_size("much")
    assert blocks.cache_limit() > 0
