"""A PostgreSQL server of the tests' own: on a socket in a temporary folder, without a port."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import psycopg


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl; None where the server is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Server:
    """PostgreSQL, from the start of the block to its end. `safe`: commits reach the disk, as they do by default."""

    def __init__(self, *, safe: bool = False, settings: tuple[str, ...] = ()) -> None:
        folder = binaries()
        assert folder is not None
        self.bin = folder
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="pg-", dir=memory if memory.is_dir() and not safe else None))
        self.data = self.root / "data"
        own = (f"unix_socket_directories='{self.root}'", "listen_addresses=''", *settings)
        self.settings = own if safe else (*own, "fsync=off")

    def __enter__(self) -> "Server":
        as_root = hasattr(os, "geteuid") and os.geteuid() == 0
        self._as = ("runuser", "-u", "postgres", "--") if as_root else ()  # the server refuses to run as root
        if as_root:
            shutil.chown(self.root, "postgres")
        self.root.chmod(0o755)
        self.run("initdb", "-D", self.data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.stop("immediate")
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, program: str, *arguments: object) -> None:
        command = [*self._as, str(self.bin / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in self.settings)
        self.run("pg_ctl", "-D", self.data, "-l", self.root / "log", "-w", "-t", 60, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def restart(self, mode: str = "fast", pause_s: float = 0) -> None:
        """`immediate` is what a crash of the server is to its clients."""
        self.stop(mode)
        time.sleep(pause_s)
        self.start()

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid4().hex[:12]}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.dsn(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        name = url.partition("@/")[2].partition("?")[0]
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def dsn(self, name: str) -> str:
        return f"postgresql://tests@/{name}?host={self.root}"
