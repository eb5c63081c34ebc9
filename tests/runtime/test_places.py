"""Addresses, and the paths that stand for them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from divcon.errors import DataError
from divcon.runtime import places
from divcon.runtime.places import is_url, joined, place, shown, text_of, url_of, without_secrets

PARTS = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), max_size=260)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(parts=st.lists(PARTS, min_size=1, max_size=4))
@example(parts=["?\r", "?\n", "?\r\n"])
def test_an_address_is_read_back_from_its_place(cache, parts):
    url = "s3://bucket/" + "/".join(parts).rstrip("/")
    url = url.rstrip("/")
    assert url_of(place(url)) == url
    assert place(url).is_relative_to(cache / "at")
    assert all(len(part.encode()) <= 255 for part in place(url).parts)


def test_places_stay_below_the_cache(cache):
    assert place("s3://../../etc/passwd").resolve().is_relative_to(cache)


def test_the_path_of_a_place_is_that_of_the_address(cache):
    run = place("s3://bucket/runs/x")
    assert text_of(run / "model" / "config.json") == "s3://bucket/runs/x/model/config.json"
    assert text_of(run.parent) == "s3://bucket/runs"
    assert (run.name, run.with_name("y")) == ("x", place("s3://bucket/runs/y"))


def test_a_signed_address_has_its_ending(cache):
    url = f"https://host/data/photos.csv?X-Amz-Signature={'a' * 300}"
    assert place(url).suffix == ".csv"
    assert url_of(place(url)) == url
    assert without_secrets(url) == "https://host/data/photos.csv?..."
    assert without_secrets("https://me:secret@host/x") == "https://host/x"


def test_paths_are_themselves(cache, tmp_path):
    for path in ("a/b", str(tmp_path), "C:/x", "module:Name", "./s3:x"):
        assert place(path) == Path(path)
        assert url_of(path) is None and text_of(path) == path and not is_url(path)
    assert place("file:///data/a%20b") == Path("/data/a b")


def test_a_path_that_has_lost_a_slash_is_understood(cache):
    assert place(Path("s3://bucket/x")) == place("s3://bucket/x")


def test_joined_starts_from_the_root_or_is_an_address():
    assert joined("s3://bucket/data", "a/b.jpg") == "s3://bucket/data/a/b.jpg"
    assert joined("/data", "https://host/b.jpg") == "https://host/b.jpg"
    assert joined("/data", "b.jpg") == Path("/data/b.jpg")
    assert joined("s3://bucket/data", "/b.jpg") == Path("/b.jpg")


def test_messages_name_the_address(cache):
    message = f"{place('s3://bucket/runs/x')}: holds a run already; see '{place('gs://b/y')}'."
    assert shown(message) == "s3://bucket/runs/x: holds a run already; see 'gs://b/y'."
    assert str(DataError(f"{place('s3://bucket/t.csv')}: is empty")) == "s3://bucket/t.csv: is empty"


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DIVCON_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.cache_folder() == tmp_path / "divcon"
