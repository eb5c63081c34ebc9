"""What a file of a table really is: its name may say one thing and its content another. What can be read is read; what
cannot is named."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from divcon.errors import DataError
from divcon.runtime.copies import open_binary, size_of

Format = Literal["csv", "json", "parquet", "arrow"]

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
ARROW_SUFFIXES = (".arrow", ".feather")
TABLE_SUFFIXES = CSV_SUFFIXES + PARQUET_SUFFIXES + JSON_SUFFIXES + ARROW_SUFFIXES

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def table_suffix(path: str | os.PathLike[str]) -> str:
    """The ending of a table's name in small letters, without that of its compression: ``.csv`` of ``a.CSV.gz``."""
    name = Path(path)
    suffix = name.suffix.lower()
    return Path(name.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def stem_of(path: str | os.PathLike[str]) -> str:
    """The name of a table without its endings: ``a`` of ``a.csv.gz``."""
    name = Path(path)
    return Path(name.stem).stem if name.suffix.lower() in _COMPRESSED else name.stem


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name is read as a table."""
    return table_suffix(path) in TABLE_SUFFIXES


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    format: Format
    compression: str = ""
    """gzip, bz2, xz, zstd or zip; empty: none."""
    encoding: str = "utf-8"
    """Of text: utf-8, utf-8-sig, utf-16, utf-32 and their byte orders."""
    member: str = ""
    """The name of the table in a ZIP archive."""


def content_of(path: Path) -> Content:
    """What a file of a table holds, by its first bytes.

    Raises:
        DataError: it is no table; the message says what it is.
    """
    try:
        about, size = path.stat(), size_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _content(str(path), about.st_mtime_ns, size)


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format of a file by its content; by its name where there is no such file, or it is no table."""
    try:
        return content_of(Path(path)).format
    except DataError:
        suffix = table_suffix(path)
        formats: dict[Format, tuple[str, ...]] = {"csv": CSV_SUFFIXES, "json": JSON_SUFFIXES, "arrow": ARROW_SUFFIXES}
        known: list[Format] = [name for name, suffixes in formats.items() if suffix in suffixes]
        return known[0] if known else "parquet"


def is_plain(path: Path) -> bool:
    """Whether the file's own bytes are those of its format: not compressed, and text in UTF-8."""
    content = content_of(path)
    return not content.compression and content.encoding == "utf-8"


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of the table, unpacked, and text in UTF-8 without a byte order mark.

    Raises:
        DataError: the file is damaged, or cannot be read.
    """
    content = content_of(path)
    if is_plain(path):
        return path.open("rb")
    try:
        data = _unpacked(path, content)
        if content.encoding != "utf-8":
            data = data.decode(content.encoding).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is not {content.encoding.upper()} throughout ({error.reason})") from None
    except (OSError, EOFError, ValueError, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(
            f"{path}: the {content.compression} file is damaged or cut off ({error}); download or write it again"
        ) from None
    return io.BytesIO(data)


def open_text(path: Path, errors: str = "strict") -> io.TextIOWrapper:
    """As `open_bytes`, as text with line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), "utf-8-sig", errors, newline="")


def source_for_arrow(path: Path) -> Any:
    """What Arrow's readers take: the path, or the unpacked bytes."""
    return str(path) if is_plain(path) else pa.BufferReader(cast(io.BytesIO, open_bytes(path)).getvalue())


def _unpacked(path: Path, content: Content) -> bytes:
    match content.compression:
        case "gzip":
            return gzip.decompress(path.read_bytes())
        case "bz2":
            return bz2.decompress(path.read_bytes())
        case "xz":
            return lzma.decompress(path.read_bytes())
        case "zstd":
            with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
                return stream.read()
        case "zip":
            with zipfile.ZipFile(path) as archive:
                return archive.read(content.member)
    return path.read_bytes()


_START = 1 << 16
_PACKED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an Excel file of the old kind (.xls)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "an array of NumPy (.npy)"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
)
_ADVICE = {
    "an Excel file": "save it as CSV UTF-8 in the spreadsheet program",
    "an Excel file of the old kind (.xls)": "save it as CSV UTF-8 in the spreadsheet program",
    "an OpenDocument spreadsheet": "save it as CSV UTF-8 in the spreadsheet program",
    "an array of NumPy (.npy)": "give it the ending .npy",
    "an Avro file": "write it as parquet",
    "an ORC file": "write it as parquet",
    "a Python pickle": "write it as CSV or parquet: a pickle may run any code when it is read",
}
_TABLES = "a table is a CSV in UTF-8, a parquet or Arrow file, or JSON Lines"


@lru_cache(maxsize=256)
def _content(name: str, changed: int, size: int) -> Content:
    path = Path(name)
    try:
        with open_binary(path) as file:
            start = file.read(_START)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None
    if not start.strip():
        raise DataError(f"{name}: the file is empty")
    for magic, compression in _PACKED:
        if start.startswith(magic):
            packed = Content("csv", compression)
            return _of_packed(path, packed)
    if start.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    return _of_start(name, start, path)


def _of_packed(path: Path, packed: Content) -> Content:
    try:
        start = _unpacked(path, packed)[:_START]
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(
            f"{path}: the {packed.compression} file is damaged or cut off ({error}); download or write it again"
        ) from None
    if not start.strip():
        raise DataError(f"{path}: the {packed.compression} file is empty")
    inner = _of_start(f"{path} (unpacked from {packed.compression})", start, path)
    return Content(inner.format, packed.compression, inner.encoding)


def _of_zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            tables = [name for name in names if is_table(name) and not Path(name).name.startswith(".")]
            if len(tables) == 1 and len(names) == 1:
                start = archive.open(tables[0]).read(_START)
                inner = _of_start(f"{path} ({tables[0]} in it)", start, Path(tables[0]))
                return Content(inner.format, "zip", inner.encoding, tables[0])
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path}: this is a ZIP archive that cannot be read ({error}); unpack it") from None
    if any(name.startswith("xl/") for name in names):
        raise _wrong(str(path), "an Excel file")
    if "content.xml" in names and "mimetype" in names:
        raise _wrong(str(path), "an OpenDocument spreadsheet")
    if any(name.endswith("/data.pkl") for name in names):
        raise DataError(f"{path}: this is a file of PyTorch, not a table; give it the ending .pt")
    if names and all(name.endswith(".npy") for name in names):
        raise DataError(f"{path}: this is an archive of NumPy arrays, not a table; give it the ending .npz")
    raise DataError(f"{path}: this is a ZIP archive of {len(names):,} files, not a table; unpack it")


def _wrong(name: str, what: str) -> DataError:
    return DataError(f"{name}: this is {what}, not a table; {_ADVICE.get(what, _TABLES)}")


def _of_start(name: str, start: bytes, path: Path) -> Content:
    if start.startswith(b"PAR1"):
        return Content("parquet")
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Content("arrow")
    for magic, what in _KINDS:
        if start.startswith(magic):
            raise _wrong(name, what)
    if start[257:262] == b"ustar":
        raise _wrong(name, "a tar archive")
    if start[8:12] == b"WEBP":
        raise _wrong(name, "a WebP image")
    encoding = _encoding(start)
    # A multi-byte character may be cut at the end.
    text = start.decode(encoding, "ignore")
    if "\0" in text:
        what = "no parquet file" if table_suffix(path) in PARQUET_SUFFIXES else "not text in UTF-8"
        if start[:64].isascii() and start[:64].count(0) == 0:
            what = f"text with a character NUL in line {text[: text.index(chr(0))].count(chr(10)) + 1}"
        raise DataError(f"{name}: this is {what}; {_TABLES}")
    return Content(_of_text(name, text.lstrip("\ufeff"), path), encoding=encoding)


def _encoding(start: bytes) -> str:
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if start.startswith(mark):
            return encoding
    sample = start[: 512 & ~1]
    if len(sample) >= 8:
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if odd > len(sample) // 4 and not even:
            return "utf-16-le"
        if even > len(sample) // 4 and not odd:
            return "utf-16-be"
    return "utf-8"


_MARKUP = re.compile(r"<(!doctype|html|head|body|\?xml|!--|[a-z]+[\s>])", re.IGNORECASE)


def _of_text(name: str, text: str, path: Path) -> Format:
    """The format of a text by its first characters.

    Raises:
        DataError: it is no table.
    """
    text = text.lstrip()
    if not text:
        raise DataError(f"{name}: this is not text in UTF-8; {_TABLES}")
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)", text, re.MULTILINE)
        of = f" of a file of {int(size[1]):,} bytes" if size else ""
        raise DataError(f"{name}: this is a Git LFS pointer{of}, not the file itself; fetch it with `git lfs pull`")
    if "annex/objects/" in text[:200] and "\n" not in text[:200].strip():
        raise DataError(f"{name}: this is a git-annex pointer, not the file itself; fetch it with `git annex get`")
    if markup := _MARKUP.match(text):
        what = "an XML document" if markup[1].lower() in ("?xml", "!--") else "an HTML page"
        titles = re.search(r"<title[^>]*>\s*(.*?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
        if re.search(r"<html", text[:2000], re.IGNORECASE):
            what = "an HTML page"
        title = f" ({' '.join(titles[1].split())[:80]!r})" if titles and titles[1] else ""
        raise DataError(
            f"{name}: this is {what}{title}, not a table: a download that was refused or redirected, perhaps; "
            "download the file itself"
        )
    suffix = table_suffix(path)
    if re.match(r"[{\[]" if suffix in JSON_SUFFIXES else r"[{\[]\s*([\"{}\[\]]|$)", text):
        return "json"
    line = text.splitlines()[0]
    if suffix not in CSV_SUFFIXES and not any(sign in line for sign in ",;\t|"):
        shown = f"{line[:60]!r}{', ...' if len(line) > 60 else ''}"
        if suffix in JSON_SUFFIXES:
            raise DataError(f"{name}: this is not JSON Lines, one object a line: it starts with {shown}")
        raise DataError(f"{name}: this is not a parquet file, but text: {shown}; {_TABLES}")
    is_sentence = not any(sign in line for sign in ",;\t|") and re.search(r"\w\W+\w", line)
    if is_sentence and not text.partition("\n")[2].strip():
        raise DataError(f"{name}: holds one line, {line[:80]!r}, and no table: a download that was refused, perhaps")
    return "csv"
