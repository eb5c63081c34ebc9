"""Ray: connect to a cluster or start one on this machine, and what of it can be checked before any work."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from divcon.errors import ConfigError, OutputError, WorkerError, first_line

INSTALL = 'install it with: pip install "divcon[ray]"'
_SECONDS = 10
"""How long a cluster has to answer."""
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[^\]]+\]|[^:/\s]+):(?P<port>\d{1,5})")


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray for the block; yields the module ``ray``. A program that has connected already stays so.

    Args:
        address: ``auto`` (the cluster that this machine is in), ``HOST:6379``, ``ray://HOST:10001``; None: what
            RAY_ADDRESS names, or a Ray of this machine alone, which is ended after the block.

    Raises:
        ConfigError: Ray is not installed; there is no cluster; it has another version of Ray or Python.
    """
    # Ray's messages are about Ray; what concerns the user's data is said by us.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send figures about its use to its authors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"`engine=ray`: Ray cannot be imported ({error}); {INSTALL}", field="engine") from None
    if ray.is_initialized():
        if address is not None:
            raise ConfigError(f"`address` {address}: this program is connected to Ray already; leave it out")
        with _silent():
            yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    options: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    if address == "local":
        options["include_dashboard"] = False
    with _silent():
        try:
            with _without_log_line():
                ray.init(address, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ConfigError(_what_is_wrong(address, error), field="address") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something listens there: Ray itself would try for two minutes."""
    if address in ("auto", "local"):
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65_535:
        raise ConfigError(
            f"`address` {address}: write auto, HOST:6379 or ray://HOST:10001 (a cluster's head prints its address)",
            field="address",
        )
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), _SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"`address` {address}: no Ray cluster answers there ({error.strerror or error}); `ray status` on its head "
            "shows whether it runs",
            field="address",
        ) from None


def _what_is_wrong(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ConnectionError) and address == "auto":
        return "`address` auto: no Ray cluster runs on this machine; start one with: ray start --head"
    if "ersion mismatch" in text or "versions of Ray and Python" in text:
        here = f"Ray {_version()}, Python {sys.version.split()[0]}"
        return (
            f"`address` {address}: the cluster has another version of Ray or Python than this program ({here}): {text}"
        )
    if address == "local":
        return f"`engine=ray`: Ray does not start on this machine ({text})"
    return f"`address` {address}: cannot connect ({text})"


def _version() -> str:
    from importlib.metadata import version

    return version("ray")


@contextmanager
def _silent() -> Iterator[None]:
    """Ray says nothing in the block: neither do its loggers, nor does the thread that prints, on standard output, which
    workers were lost (`divcon.search.on_ray` says so)."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    printing: Any = sys.modules.get("ray._private.worker")
    prints = getattr(printing, "print_to_stdstream", None)
    if prints is not None:
        printing.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        if prints is not None:
            printing.print_to_stdstream = prints
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_log_line() -> Iterator[None]:
    """Leave out the lines of Ray's logger that go past Python: such as that it will log nothing."""
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            aside.seek(0)
            for line in aside:
                if not _LOG_LINE.match(line):
                    os.write(before, line)
            os.close(before)


_LOG_LINE = re.compile(rb"\[[-0-9:, ]+ [A-Z] \d+ \d+\] \w+\.(cc|h):")


def is_client(ray: Any) -> bool:
    """Whether this program is connected through ``ray://``, and so is none of the cluster's nodes."""
    with suppress(ImportError, AttributeError):
        return bool(ray.util.client.ray.is_connected())
    return False


def check_nodes(ray: Any, paths: Sequence[str], folder: str | None) -> None:
    """Check on each node of the cluster, before any work, that divcon is there in this version and that files are.

    Args:
        paths: files that each node has to read.
        folder: a folder on a disk that each node has to write to, and this program to read; None: it is an address.

    Raises:
        ConfigError: a node lacks something; the message says which and what to do.
        OutputError: the folder cannot be written.
    """
    import divcon

    token = None
    if folder is not None:
        token = Path(folder, f".node-{uuid.uuid4().hex}")
        try:
            token.parent.mkdir(parents=True, exist_ok=True)
            token.touch()
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    paths, token_path = [os.path.abspath(path) for path in paths], None if token is None else str(token.absolute())  # noqa: PTH100

    def look() -> tuple[str | None, list[str], bool]:
        """What a node has; pickled with its code, as divcon may not be there."""
        import os

        try:
            import divcon

            version = divcon.__version__
        except ImportError:
            return None, [], True
        missing = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110
        return version, missing, token_path is None or os.access(token_path, os.W_OK)

    try:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        task = ray.remote(num_cpus=0, max_retries=1)(look)
        asked = {
            name: task.options(scheduling_strategy=strategy(node, soft=False)).remote() for node, name in nodes.items()
        }
        for name, answer in asked.items():
            try:
                version, missing, writable = ray.get(answer, timeout=120)
            except ray.exceptions.RayError as error:
                if isinstance(error, (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)):
                    continue  # it has left the cluster, which goes on without it
                raise WorkerError(f"node {name} of the Ray cluster does not answer ({first_line(error)})") from None
            if version != divcon.__version__:
                has = "no divcon" if version is None else f"divcon {version}"
                raise ConfigError(
                    f"node {name} of the Ray cluster has {has}, and this program divcon {divcon.__version__}: install "
                    f"the same on every node (pip install divcon=={divcon.__version__})"
                )
            if missing:
                raise ConfigError(
                    f"{missing[0]}: is not there on node {name} of the Ray cluster; put the data where every node "
                    "reads it under the same path (a shared folder), or name it by an address such as s3://"
                )
            if not writable:
                raise ConfigError(
                    f"{folder}: node {name} of the Ray cluster does not see this folder; choose one that all nodes "
                    "share, or an address such as s3://bucket/parts"
                )
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
