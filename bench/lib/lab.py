"""The machine under the benchmark: drives to measure on, tools, facts."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
REPOSITORY = BENCH.parent
METALOAD = ("metaload.c", "metaload_names.c")


def say(text):
    """Progress: to standard error, so that standard output is the report alone."""
    print(text, file=sys.stderr, flush=True)


def output(*command, **options):
    try:
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options)
    except subprocess.CalledProcessError as failed:
        say(failed.stderr.strip())
        raise
    return done.stdout.strip()


def drop_caches():
    """Writes back and forgets pages, dentries and inodes of the whole machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def gib_available():
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20


def _place():
    """Where mount points, logs and images go."""
    return tempfile.TemporaryDirectory(prefix="kvfs-bench-", dir=os.environ.get("TMPDIR", "/var/tmp"))


class Places:
    """Directories to measure on, one for each drive: `mounts`. `root` has everything else."""

    # Loop devices below them, where they are ours.
    loops = ()

    def __exit__(self, *_):
        self._undo.close()

    @property
    def count(self):
        return len(self.mounts)

    def folders(self, name):
        """One folder of that name on each drive."""
        folders = [point / name for point in self.mounts]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return folders

    def empty(self, name):
        """Removes those folders."""
        output("rm", "-rf", "--one-file-system", *self.folders(name))


class Images:
    """`count` loop devices with direct I/O, their images in a tmpfs below `root`: `loops`.

    RAM takes the device out of the comparison: what is left is what each way costs.
    """

    def __init__(self, root, count, gib):
        self.place, self.count, self.gib = root, count, gib

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self.place.mkdir()
            output("mount", "-t", "tmpfs", "-o", f"size={self.count * self.gib + 1}G", "kvfs-bench", self.place)
            undo.callback(unmount, self.place)
            self.loops = []
            for number in range(self.count):
                image = self.place / f"{number}.img"
                with open(image, "wb") as file:  # all of it now: nobody is to pay for a first touch
                    os.posix_fallocate(file.fileno(), 0, self.gib << 30)
                loop = output("losetup", "--find", "--show", "--direct-io=on", image)
                undo.callback(subprocess.run, ["losetup", "-d", loop], check=False)
                self.loops.append(loop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()


class Drives(Places):
    """XFS filesystems on such devices."""

    def __init__(self, count, gib):
        self.wanted, self.gib = count, gib

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self.root = Path(undo.enter_context(_place()))
            self.loops = undo.enter_context(Images(self.root / "images", self.wanted, self.gib)).loops
            self.mounts = []
            for number, loop in enumerate(self.loops):
                point = self.root / f"nvme{number}"
                # Not a quarter of it for inodes, as by default: parts of the benchmark make nothing else.
                output("mkfs.xfs", "-q", "-f", "-i", "maxpct=100", loop)
                point.mkdir()
                output("mount", "-o", "noatime,nodiscard", loop, point)
                undo.callback(unmount, point)
                self.mounts.append(point)
            self._undo = undo.pop_all()
        return self


class Given(Places):
    """Directories of the user's own: everything is in a new folder in each, which goes again."""

    def __init__(self, directories, gib):
        self.directories, self.gib = directories, gib
        free = {}
        for directory in directories:
            if not directory.is_dir():
                raise SystemExit(f"--backing {directory}: that is not a directory")
            facts = os.statvfs(directory)
            has = free.setdefault(directory.stat().st_dev, [facts.f_bavail * facts.f_frsize >> 30, []])
            has[1].append(str(directory))
        if len({directory.resolve() for directory in directories}) < len(directories):
            raise SystemExit("--backing names a directory twice")
        for gib_free, names in free.values():
            if gib_free < gib * len(names):
                raise SystemExit(f"--backing {','.join(names)}: {gib_free} GiB are free there, and up to "
                                 f"{gib * len(names)} are needed; free some, or say less with --drive-gib")

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self.root = Path(undo.enter_context(_place()))
            self.mounts = [Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="kvfs-bench-", dir=directory)))
                           for directory in self.directories]
            self._undo = undo.pop_all()
        return self


def unmount(point):
    """Also when something below still hangs: a benchmark leaves no mount behind."""
    if subprocess.run(["umount", point], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def build_metaload(into):
    """Compiles the load generator; needs a C compiler and nothing else."""
    program = Path(into, "metaload")
    output("cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", program, *(BENCH / source for source in METALOAD))
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
        "btrfs": _version("mkfs.btrfs", "--version"),
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
