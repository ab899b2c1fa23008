"""The published vLLM, SGLang and NIXL, beside LMCache: they use the Python and the torch of its environment.

Each is a folder in the cache, named by a hash of its requirements, that goes on PYTHONPATH. Nothing in it is changed.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "lmcache"))

import environment  # noqa: E402


def _install(base, name, say):
    """The folder with `name` and what its requirements.txt lists beside it."""
    requirements = HERE / name / "requirements.txt"
    recipe = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()[:16]
    cache = environment.cache_dir()
    folder = cache / f"client-{name}-{recipe}"
    with open(cache / f"client-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            say(f"{name}: {folder} (reused)")
            return folder
        for old in cache.glob(f"client-{name}-*"):
            shutil.rmtree(old)
        say(f"{name}: {folder} (being made)")
        subprocess.run(
            [base.python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-compile",
             "--no-cache-dir", "--disable-pip-version-check", "--target", folder, "-r", requirements],
            check=True)
        (folder / "complete").touch()
    return folder


class Engines:
    """LMCache's environment with the clients `names` added."""

    def __init__(self, *names, say=print):
        self.base = environment.prepare(say)
        self.folders = [_install(self.base, name, say) for name in names]

    def variables(self, **more):
        env = self.base.variables()
        env["PYTHONPATH"] = ":".join(map(str, self.folders))
        return {**env, **more}

    def start(self, script, *args, **more):
        """A process of `script` in this environment; `more` are variables for it."""
        return subprocess.Popen([self.base.python, script, *map(str, args)], env=self.variables(**more), cwd="/", text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process, patience=240):
    """The JSON object that is the last line of what the process prints; it must end by itself, and well."""
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise RuntimeError(f"{process.args[1:]}: no end within {patience} s\n{out}{err}") from None
    if process.returncode:
        raise RuntimeError(f"{process.args[1:]}: status {process.returncode}\n{out}{err}")
    return json.loads(out.splitlines()[-1])


def answers(processes):
    """`answer` of each, in order; when one fails, none of the others is left behind."""
    processes = list(processes)
    try:
        return [answer(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
