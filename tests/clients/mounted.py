"""A kvfs mount of the test's own, and a way out of it that always works."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FUSE_MAGIC = "65735546"
# A daemon that ends has all of the backings' file systems written first, whoever else keeps the disk busy.
SYNC_PATIENCE = 120
REPOSITORY = Path(__file__).resolve().parents[2]


def find_kvfs(given=None):
    """The binary to test: the one named, $KVFS, or what cargo built here last."""
    if given or os.environ.get("KVFS"):
        candidates = [Path(given or os.environ["KVFS"])]
    else:
        target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
        candidates = [target / "release/kvfs", target / "debug/kvfs"]
    built = [path.resolve() for path in candidates if path.is_file()]
    if not built:
        raise SystemExit(f"no kvfs binary at {' or '.join(map(str, candidates))}: run `cargo build --release`")
    return max(built, key=lambda path: path.stat().st_mtime)


def mount_entry(point):
    """(device number, filesystem type) of what is mounted on `point`, without touching it."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        columns = left.split()
        if columns[4] == str(point):
            found = columns[2], right.split()[0]
    return found


class Mount:
    """`backings` presented on `point`; use as a context manager."""

    def __init__(self, kvfs, point, backings, log, options=()):
        self.kvfs, self.point, self.backings = kvfs, Path(point), list(map(Path, backings))
        self.log, self.options, self.daemon = log, list(options), None

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, *_):
        self.tear_down()

    def _run(self, *args, check=True):
        return subprocess.run([self.kvfs, *map(str, args)], check=check, text=True, cwd="/", timeout=120,
                              stdin=subprocess.DEVNULL, capture_output=True)

    def up(self):
        self.point.mkdir(exist_ok=True)
        backings = ",".join(map(str, self.backings))
        try:
            self._run("mount", self.point, "--backing", backings, "--log", self.log, *self.options)
        except subprocess.CalledProcessError as failed:
            raise RuntimeError(f"kvfs mount failed: {failed.stderr or failed.stdout}") from failed
        self.daemon = self.status()["pid"]

    def down(self):
        """A plain unmount, as an operator does it; returns when the daemon has ended."""
        try:
            self._run("umount", self.point)
        except subprocess.CalledProcessError as failed:
            if mount_entry(self.point):
                raise RuntimeError(f"kvfs umount failed: {failed.stderr or failed.stdout}") from failed
        deadline = time.monotonic() + SYNC_PATIENCE
        while os.path.exists(f"/proc/{self.daemon}"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon {self.daemon} is still there {SYNC_PATIENCE} s after the unmount")
            time.sleep(0.02)
        self.daemon = None

    def status(self):
        return json.loads(self._run("status", "--json", self.point).stdout)

    def locate(self, names):
        """{file name: answer of `kvfs locate`} for files of the mount's root."""
        answers = {}
        names = list(names)
        for begin in range(0, len(names), 200):
            files = [self.point / name for name in names[begin:begin + 200]]
            for answer in json.loads(self._run("locate", "--json", *files).stdout):
                answers[os.path.basename(answer["file"])] = answer
        return answers

    def stored(self):
        """{path below the root: slots of the backings that hold it}, as seen on the backings themselves."""
        found = {}
        for slot, backing in enumerate(self.backings):
            for path in backing.rglob("*"):
                inside = path.relative_to(backing)
                if not inside.parts[0].startswith(".kvfs") and path.is_file():
                    found.setdefault(str(inside), []).append(slot)
        return found

    def magic(self):
        """The filesystem type by statfs(2), in hexadecimal."""
        return subprocess.run(["stat", "-f", "-c", "%t", str(self.point)], check=True, text=True,
                              capture_output=True, timeout=30).stdout.strip()

    def tear_down(self):
        """Leaves neither mount nor daemon behind, also when the daemon hangs or is gone."""
        entry = mount_entry(self.point)
        if entry:
            try:
                self._run("umount", self.point)
            except (subprocess.SubprocessError, OSError):
                # Abort the connection first: it frees whoever hangs in the mount.
                abort = Path(f"/sys/fs/fuse/connections/{entry[0].split(':')[1]}/abort")
                if mount_entry(self.point) == entry and entry[1].startswith("fuse") and abort.exists():
                    abort.write_text("1")
                if mount_entry(self.point):
                    subprocess.run(["umount", "-l", str(self.point)], check=False)
        if self.daemon:
            deadline = time.monotonic() + SYNC_PATIENCE
            while self._daemon_lives() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._daemon_lives():
                os.kill(self.daemon, 9)
            self.daemon = None

    def _daemon_lives(self):
        """Whether that pid is still this binary and not somebody who got the number since."""
        try:
            return os.readlink(f"/proc/{self.daemon}/exe").removesuffix(" (deleted)") == str(self.kvfs)
        except OSError:
            return False


@contextlib.contextmanager
def temporary(kvfs, backings, *options):
    """A mount of so many fresh directories, and nothing of it left afterwards, SIGTERM or not."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="kvfs-client-") as place:
        place = Path(place)
        directories = [place / f"nvme{i}" for i in range(backings)]
        for directory in directories:
            directory.mkdir()
        with Mount(kvfs, place / "kv", directories, place / "kvfs.log", options) as mount:
            yield mount
