"""A bandwidth limit for each loop device: a stand-in for NVMe drives that are slower than memory.

The limit is that of cgroup v1's blkio controller. It belongs to the cgroup of whoever submits the I/O: the
client where the kernel passes data through, the daemon otherwise. Both are children of this process and in
its cgroup, so the limit is set there.
"""

import os
import subprocess
from pathlib import Path

from lab import output, unmount

CANNOT = ("bench/run --only spread can't run here: it limits the drives with cgroup v1's blkio controller, "
          "and {why}")


def _mounted_controller():
    """Where the blkio controller is mounted, if it is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        kind, _, options = right.split()
        if kind == "cgroup" and "blkio" in options.split(","):
            return Path(left.split()[4])
    return None


def _own_group():
    """This process's cgroup in that controller, as a path below its mount."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "blkio" in controllers.split(","):
            return path.lstrip("/")
    raise SystemExit(CANNOT.format(why="this kernel has none"))


class Limits:
    """Each of these devices moves at most `rate` bytes per second, each way, while this is entered."""

    def __init__(self, devices, rate, place):
        self.devices, self.rate, self.place = devices, rate, Path(place)
        self.own_mount = None

    def __enter__(self):
        try:
            root = _mounted_controller() or self._mount()
            self.group = root / _own_group()
            self._set(self.rate)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if getattr(self, "group", None):
            self._set(0)
        if self.own_mount:
            unmount(self.own_mount)

    def _mount(self):
        """Mounts the controller where nobody else looks; not possible while cgroup v2 has it."""
        point = self.place / "blkio"
        point.mkdir()
        try:
            output("mount", "-t", "cgroup", "-o", "blkio", "kvfs-bench", point)
        except subprocess.CalledProcessError as failed:
            raise SystemExit(CANNOT.format(why=f"mounting that fails: {failed.stderr.strip()}")) from None
        self.own_mount = point
        return point

    def _set(self, rate):
        for device in self.devices:
            number = os.stat(device).st_rdev
            for way in ("read", "write"):
                file = self.group / f"blkio.throttle.{way}_bps_device"
                if not file.exists():
                    self.group = None
                    raise SystemExit(CANNOT.format(why=f"there is no {file}"))
                file.write_text(f"{os.major(number)}:{os.minor(number)} {rate}\n")


def device_of(directory):
    """The block device that a directory lies on."""
    device = os.stat(directory).st_dev
    uevent = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/uevent")
    if not uevent.is_file():
        raise SystemExit(f"bench/run --only spread can't tell what {directory} moves: it isn't on one block device of its own")
    name = dict(line.split("=", 1) for line in uevent.read_text().splitlines())["DEVNAME"]
    return f"/dev/{name}"


def moved(device):
    """Bytes that the device has read and written since it was made."""
    number = os.stat(device).st_rdev
    columns = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    return {"read": int(columns[2]) * 512, "write": int(columns[6]) * 512}
