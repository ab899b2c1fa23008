"""The Python environment in which the real LMCache runs: made once, outside the clone.

It lives under ${XDG_CACHE_HOME:-~/.cache}/kvfs-tests/ and is named by a hash of all
that went into it, so that a change of a pin makes a new one and nothing else does.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cuda_standins

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"


@dataclass
class Environment:
    """A virtual environment with LMCache in it, and what a process needs to use it."""

    root: Path

    @property
    def python(self):
        return self.root / "bin/python"

    @property
    def site_packages(self):
        return next(self.root.glob("lib/python3*/site-packages"))

    @property
    def standins(self):
        return self.root / "cuda-standins"

    def variables(self):
        """os.environ with the libraries found, and no request sent to anybody."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "LMCACHE_", "PYTHON"))}
        env["LD_LIBRARY_PATH"] = f"{self.standins}:{self.site_packages / 'nvidia/cu13/lib'}"
        env["LMCACHE_TRACK_USAGE"] = "false"
        env["LMCACHE_LOG_LEVEL"] = "ERROR"
        env["HF_HUB_OFFLINE"] = "1"
        return env


def cache_dir():
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KVFS_TEST_CACHE") or Path(home, "kvfs-tests"))


def _recipe():
    what = hashlib.sha256(sys.version.encode())
    for source in (REQUIREMENTS, HERE / "cuda_standins.py"):
        what.update(source.read_bytes())
    return what.hexdigest()[:16]


def prepare(say):
    """The environment, from the cache if a complete one of this recipe is there."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    environment = Environment(cache / f"lmcache-{_recipe()}")
    complete = environment.root / "complete"
    with open(cache / "lmcache.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.exists():
            say(f"environment: {environment.root} (reused)")
            return environment
        for old in cache.glob("lmcache-*"):
            shutil.rmtree(old)
        say(f"environment: {environment.root} (being made: some 700 MB to fetch)")
        subprocess.run([sys.executable, "-m", "venv", environment.root], check=True)
        subprocess.run(
            [environment.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
             "--no-cache-dir", "--disable-pip-version-check", "-r", REQUIREMENTS],
            check=True)
        made = cuda_standins.make(environment.site_packages, environment.standins)
        say(f"environment: {len(made)} CUDA libraries replaced by stand-ins")
        subprocess.run(
            [environment.python, "-c", "import lmcache.v1.storage_backend.local_disk_backend"],
            check=True, env=environment.variables(), stdout=subprocess.DEVNULL)
        complete.touch()
    return environment
