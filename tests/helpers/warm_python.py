"""New Python processes without the seconds that importing torch takes.

``start("script.py", "argument")`` runs a file as ``python -W error script.py argument`` does, in a
process forked from one that has imported torch and steppe and has done nothing else. Importing
them takes longer than most of what tests ask of a process. The process that is forked lives as long
as the tests; on Linux and macOS only.
"""

import atexit
import json
import logging
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

#: What ``steppe compare`` and ``steppe worker`` import before the first trial.
STUDIES = (
    "alembic.command",
    "optuna.storages._rdb.models",
    "plotly.offline",
    "sklearn.datasets",
    "steppe.compare.cli.run_study",
)

_START_S = 120

# Tests run side by side: threads beyond one each would wait for one another. And a process that
# has several must not be forked. Triton is imported before them, and so once for all: to compile.
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TRITON_INTERPRET": "0",
    # pandas imports pyarrow where that is installed, whose allocator starts a thread.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class WarmProcess:
    """A process that :func:`start` has started: of ``subprocess.Popen`` what tests need."""

    def __init__(self, server: Path, request: dict[str, Any], output: int | None) -> None:
        self.returncode: int | None = None
        self._printed = ""
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(_START_S)
        self._connection.connect(str(server))
        descriptor = self._output.fileno() if output is None else output
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], [descriptor])
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def wait(self, timeout: float) -> str:
        """Wait for its end; return what it has written to standard output and error."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
            with self._output as output:
                output.seek(0)
                self._printed = output.read()
        return self._printed

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait as :meth:`wait` does; nothing is left for standard error."""
        return self.wait(timeout), ""

    def poll(self) -> int | None:
        """Return how it has ended, if it has."""
        if self.returncode is None and select.select([self._connection], [], [], 0.0)[0]:
            self.wait(_START_S)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it if it has not ended."""
        self.send_signal(signal.SIGKILL)
        self.wait(_START_S)


def start(
    *command: str | Path,
    hash_seed: int = 0,
    libraries: tuple[str, ...] = (),
    output: int | None = None,
    **environment: str,
) -> WarmProcess:
    """Start a script with arguments.

    What it writes goes to the file descriptor ``output``, or is gathered.
    Sets of names are in another order in a process with another ``hash_seed``.
    Modules of other ``libraries`` are there too; theirs are warnings that are no errors.
    """
    request = {
        "command": [str(word) for word in command],
        "directory": str(Path.cwd()),
        "environment": {**os.environ, **_SETTINGS, **environment},
    }
    server = _server_with(libraries, hash_seed) if libraries else _server(hash_seed)
    return WarmProcess(server, request, output)


def run(
    *command: str | Path,
    timeout: float = 300,
    libraries: tuple[str, ...] = (),
    **environment: str,
) -> str:
    """Run a script to its end, which must be a good one; return what it has printed."""
    process = start(*command, libraries=libraries, **environment)
    try:
        printed = process.wait(timeout)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    return printed


@cache
def _server_with(libraries: tuple[str, ...], hash_seed: int) -> Path:
    """Fork a process that imports libraries, and that others are forked from."""
    # Short: a socket's path may have a hundred characters.
    path = _server(hash_seed).with_name(f"{hash(libraries):x}")
    reading, writing = os.pipe()
    process = start(__file__, path, *libraries, hash_seed=hash_seed, output=writing)
    atexit.register(process.kill)
    os.close(writing)
    with os.fdopen(reading) as told:
        printed = ""
        while not printed.endswith("ready\n"):
            line = told.readline()
            assert line, printed
            printed += line
    return path


@cache
def _server(hash_seed: int) -> Path:
    """Start the process that others are forked from; return the socket on which it is asked."""
    folder = tempfile.TemporaryDirectory(prefix="steppe-", ignore_cleanup_errors=True)
    environment = {
        **os.environ,
        **_SETTINGS,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONHASHSEED": str(hash_seed),
    }
    path = Path(folder.name) / "socket"
    server = subprocess.Popen(
        [sys.executable, "-W", "error", __file__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def end() -> None:
        server.stdin.close()
        server.wait(_START_S)
        folder.cleanup()

    atexit.register(end)
    return path


def _serve(path: str, *libraries: str) -> None:
    """Fork a process for each connection, until standard input ends."""
    import selectors

    if libraries:
        warnings.simplefilter("default")
        sys.warnoptions[:] = ["default"]
    _warm_up(libraries)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while sys.stdin not in [key.fileobj for key, _ in selector.select()]:
            connection, _ = listener.accept()
            message, (output,), _, _ = socket.recv_fds(connection, 1 << 20, 1)
            request = json.loads(message)
            if os.fork() == 0:
                listener.close()
                _attend(connection, request, output)
            os.close(output)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    # The tests are over, or have been killed: so is what they started.
    os.killpg(0, signal.SIGKILL)


# torch._dynamo is imported by the first optimizer that is made.
_PRELOADED = (
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "steppe.landscape",
)


def _warm_up(libraries: tuple[str, ...]) -> None:
    for name in (*_PRELOADED, *libraries):
        import_module(name)
    # Linux only lists them.
    threads = list(Path("/proc/self/task").glob("*"))
    assert len(threads) <= 1, f"{len(threads)} threads: a fork would have one of them only"
    # Whether a test compiles kernels depends on those that ran before; what it prints must not.
    logging.getLogger("steppe").setLevel(logging.ERROR)


def _attend(connection: socket.socket, request: dict[str, Any], output: int) -> None:
    """Start what a connection asks for, and tell it the process, and how that ended."""
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.dup2(output, 1)
        os.dup2(output, 2)
        _become(request)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Run a script as the interpreter would, and exit."""
    import numpy as np

    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # Independent of the others', as in a process of its own.
    random.seed()
    np.random.seed()  # noqa: NPY002
    script, *arguments = request["command"]
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else ended.code is not None
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
