"""The machine under the benchmark: XFS "drives" in RAM, tools, facts."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
REPOSITORY = BENCH.parent


def say(text):
    """Progress: to standard error, so that standard output is the report alone."""
    print(text, file=sys.stderr, flush=True)


def output(*command, **options):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options).stdout.strip()


def drop_caches():
    """Writes back and forgets pages, dentries and inodes of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Drives:
    """`count` XFS filesystems on loop devices with direct I/O, their images in a tmpfs.

    RAM takes the device out of the comparison: what is left is what each way costs.
    """

    def __init__(self, count, gib):
        self.count, self.gib = count, gib

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            place = os.environ.get("TMPDIR", "/var/tmp")
            self.root = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="kvfs-bench-", dir=place)))
            images = self.root / "images"
            images.mkdir()
            output("mount", "-t", "tmpfs", "-o", f"size={self.count * self.gib + 1}G", "kvfs-bench", images)
            undo.callback(unmount, images)
            self.mounts, self.loops = [], []
            for number in range(self.count):
                image, point = images / f"{number}.img", self.root / f"nvme{number}"
                with open(image, "wb") as file:  # all of it now: nobody is to pay for a first touch
                    os.posix_fallocate(file.fileno(), 0, self.gib << 30)
                loop = output("losetup", "--find", "--show", "--direct-io=on", image)
                undo.callback(subprocess.run, ["losetup", "-d", loop], check=False)
                output("mkfs.xfs", "-q", "-f", loop)
                point.mkdir()
                output("mount", "-o", "noatime,nodiscard", loop, point)
                undo.callback(unmount, point)
                self.mounts.append(point)
                self.loops.append(loop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def folders(self, name):
        """One folder of that name on each drive."""
        folders = [point / name for point in self.mounts]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return folders


def unmount(point):
    """Also when something below still hangs: a benchmark leaves no mount behind."""
    if subprocess.run(["umount", point], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def build_metaload(into):
    """Compiles the load generator; needs a C compiler and nothing else."""
    program = Path(into, "metaload")
    output("cc", "-O2", "-Wall", "-pthread", "-o", program, BENCH / "metaload.c")
    return program


def cpu_seconds(pid):
    """User and system time that a process has used so far; 0 for no process."""
    if not pid:
        return 0.0
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    """(resident bytes, the most there ever were) of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))


def _version(*command):
    try:
        return output(*command).splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return "not installed"


def facts(kvfs):
    """What somebody needs to know to compare these numbers with others."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        commit = output("git", "-C", REPOSITORY, "rev-parse", "--short=12", "HEAD")
        if output("git", "-C", REPOSITORY, "status", "--porcelain", "--untracked-files=no"):
            commit += " with changes"
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "kvfs": _version(kvfs, "--version"),
        "kernel": os.uname().release,
        "cores": os.cpu_count(),
        "cpu": cpu,
        "memory": f"{memory:.0f} GiB",
        "fio": _version("fio", "--version"),
        "mergerfs": _version("mergerfs", "--version"),
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
