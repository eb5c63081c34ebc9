"""Run Python programs by forking a process that has imported PyTorch and divcon already, which takes seconds each time.

The pages of the documentation run a hundred commands. The server is started once; `client` writes a program that has it
run ``divcon`` with the arguments, folder, environment and standard streams that the program itself has.

    python tests/fork_server.py SOCKET
"""

from __future__ import annotations

import array
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

VARIABLE = "DIVCON_TESTS_FORK_SERVER"
"""The variable of the environment that has the address of a server."""
IMPORTED = """
divcon.cli divcon.runs.run divcon.runs.report divcon.training.loop divcon.evaluation.protocol divcon.search.index
divcon.experiments.ablation pytorch_metric_learning.losses pytorch_metric_learning.miners timm torchvision.transforms.v2
sklearn.cluster scipy.optimize faiss matplotlib pyarrow.parquet
"""
_CLIENT = """#!{python} -SE
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["{variable}"])
    content = json.dumps([{words} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([len(content).to_bytes(8, "big")], [streams])
    server.sendall(content)
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""


@contextmanager
def fork_server(folder: Path) -> Iterator[str]:
    """Start a server, whose address is a socket in the folder, and end it."""
    address = folder / "socket"
    server = subprocess.Popen([sys.executable, __file__, address])
    try:
        while not address.exists():
            if server.poll() is not None:
                raise RuntimeError(f"the fork server ended with exit code {server.returncode}")
            time.sleep(0.05)
        yield str(address)
    finally:
        server.kill()
        server.wait()


def client(path: Path, *words: str) -> None:
    """Write a program that runs these words by the server: ``divcon``, or a script; its own arguments follow them."""
    path.write_text(_CLIENT.format(python=sys.executable, variable=VARIABLE, words=list(words)))
    path.chmod(0o755)


def serve(address: str) -> NoReturn:
    """Fork a process for each connection, until killed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `divcon.cli.main` does, before PyTorch is imported
    for name in IMPORTED.split():
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        Path(f"{address}.new").rename(address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = array.array("i")
    head, ancillary, *_ = connection.recvmsg(8, socket.CMSG_LEN(3 * size.itemsize))
    streams = array.array("i", ancillary[0][2])
    with connection.makefile("rb") as sent:
        words, folder, environment = json.loads(sent.read(int.from_bytes(head, "big")))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(words)
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def _run(words: list[str]) -> NoReturn:
    sys.argv = list(words)
    # The buffers of the server's own streams, which have other files below them now.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code = 0
    try:
        if words[0] == "divcon":
            from divcon.cli import main

            main()
        else:
            sys.path[0] = str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    serve(sys.argv[1])
