"""A PostgreSQL server of the tests' own."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from helpers.optional import postgresql_programs

# Where a study may be kept, as parameters of a test.
KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql")))

_USER = "postgres"
_PATIENCE_S = 60

# Its directory is its user's alone, and nobody else gets at its socket.
_CLUSTER = f"--username={_USER} --auth=trust --encoding=UTF8 --locale=C --no-sync".split()

# Nothing here outlives the tests, so nothing needs to be on the disk.
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=")

# Its standard input ends with the process that holds the other end, however that ends.
_UNTIL_ALONE = '"$@" & server=$!; cat > /dev/null; kill -INT $server; wait $server'


class Server:
    """A server that listens on a socket in its own directory, and nowhere else.

    Parameters
    ----------
    programs : str
        The search path on which PostgreSQL's are.
    """

    def __init__(self, programs: str) -> None:
        self._programs = programs
        self._numbers = count()
        self.directory = Path(tempfile.mkdtemp(prefix="steppe-"))
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            shutil.chown(self.directory, _USER, pwd.getpwnam(_USER).pw_gid)
        made = subprocess.run(
            [self._program("initdb"), "--pgdata", str(self._data), *_CLUSTER],
            capture_output=True,
            text=True,
            **self._as(),
        )
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        places = ["-D", str(self._data), "-k", str(self.directory)]
        settings = [word for setting in _FAST for word in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _UNTIL_ALONE, "sh", self._program("postgres"), *places, *settings],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as(),
            )
        asked = [self._program("pg_isready"), "--host", str(self.directory), "--quiet"]
        until = time.monotonic() + _PATIENCE_S
        while subprocess.run(asked).returncode != 0:
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once; its clients lose their connections, its databases stay."""
        self._process.communicate(timeout=_PATIENCE_S)

    def remove(self) -> None:
        """Stop it and forget everything."""
        self.stop()
        shutil.rmtree(self.directory)

    def database(self) -> str:
        """Make a database; return its URL."""
        name = f"test{next(self._numbers)}"
        order = [self._program("createdb"), "--host", str(self.directory), "--username", _USER]
        subprocess.run([*order, name], check=True, timeout=_PATIENCE_S)
        return f"postgresql://{_USER}@/{name}?host={self.directory}"

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have it down for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _as(self) -> dict[str, Any]:
        """Say as whom, and where, its processes run."""
        user = {"user": _USER, "group": _USER, "extra_groups": []} if os.getuid() == 0 else {}
        return {"cwd": self.directory, **user}

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self._programs)
        assert found is not None, f"PostgreSQL's {name} is missing"
        return found


_KEY = pytest.StashKey[Server]()


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Server:
    """Give the server, the same for all tests of this process."""
    stash = request.config.stash
    if _KEY not in stash:
        stash[_KEY] = Server(postgresql_programs())
        request.config.add_cleanup(stash[_KEY].remove)
    return stash[_KEY]
