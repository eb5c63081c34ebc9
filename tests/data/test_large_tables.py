"""Tables of many rows: how much memory reading them takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.heavy

ROWS = 1_000_000
SCRIPT = """
import re, sys
from pathlib import Path
import pyarrow as pa
from divcon.data.read import read

def peak():
    # Not resource.getrusage: its peak is that of the process which started this one, where that was larger.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

pa.set_memory_pool(pa.system_memory_pool())
small = Path(sys.argv[2])
rows = [f"{n},{n // 2},{'train' if n < 12 else 'test'}" for n in range(24)]
small.write_text("\\n".join(["path,label,split", *rows]))
read(str(small), check_files=False).with_validation().split_hash  # imports what reading needs
before = peak()
data = read(sys.argv[1], check_files=False)
data.split_hash, data.train.fingerprint, data.with_validation()
print(len(data.train), len(data.query), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("suffix", "most"), [(".csv", 350), (".parquet", 295)])
def test_memory_has_no_room_for_a_list_of_strings(tmp_path, suffix, most):
    numbers = np.arange(ROWS)
    table = pa.table(
        {
            "path": pa.array([f"images/{i % 50_000:07d}/{i:09d}.jpg" for i in range(ROWS)]),
            "label": pa.array((numbers % 50_000).astype(str)),
            "split": pa.array(np.where(numbers % 50_000 < 40_000, "train", "test")),
        }
    )
    path = tmp_path / f"t{suffix}"
    write = pyarrow.csv.write_csv if suffix == ".csv" else pq.write_table
    write(table, path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, tmp_path / "small.csv"], capture_output=True, text=True, check=True
    )
    train, query, grown = map(int, done.stdout.split())
    assert (train, query) == (800_000, 200_000)
    # Measured: 280 and 230 bytes a row. One column as Python's strings is 75 and more a row on top of the peak.
    assert grown < most * ROWS
