"""What is compared: the same backings, bare and behind each filesystem.

A client's number is its rank: its files lie on drive `rank % drives`, in every subject, and in a
directory of their own: the kernel lets creates in one directory of any FUSE filesystem wait for each
other. Each subject has folders of its own on the drives, so that none sees another's files.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab import REPOSITORY, Images, output, unmount

sys.path.append(str(REPOSITORY / "tests/clients"))
from mounted import Mount, find_kvfs, mount_entry  # noqa: E402

__all__ = ["Btrfs", "Kvfs", "Mergerfs", "Mount", "Raw", "find_kvfs", "interleaved", "subjects"]


class Raw:
    """The drives themselves: what everything else is measured against."""

    name = "raw"

    def __init__(self, drives, folder):
        self.backings = drives.folders(folder)
        self.pid = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def directories(self):
        """Client i works in directory i modulo their number."""
        return self.backings

    def clear(self):
        """Removes all files, by the way that a client has."""
        for directory in self.directories():
            for entry in os.scandir(directory):
                os.unlink(entry.path)


class Behind(Raw):
    """A filesystem over the drives, with a directory per rank."""

    def __init__(self, drives, folder):
        super().__init__(drives, folder)
        self.point = drives.root / f"mnt-{folder}"
        for rank, backing in enumerate(self.backings):
            (backing / f"rank{rank}").mkdir(exist_ok=True)

    def directories(self):
        return [self.point / f"rank{rank}" for rank in range(len(self.backings))]


class Kvfs(Behind):
    """kvfs over the drives; `passthrough` as its option of that name, and others."""

    def __init__(self, drives, folder, kvfs, passthrough, *options):
        super().__init__(drives, folder)
        self.name = "kvfs" if passthrough == "auto" else f"kvfs, passthrough {passthrough}"
        for option, what in (("io-uring", ", io_uring"), ("--exclusive", " --exclusive")):
            self.name += what if option in options else ""
        root = drives.root
        self.mount = Mount(kvfs, self.point, self.backings, root / f"{folder}.log",
                           ["--passthrough", passthrough, "--min-free", "16M", *options])

    def __enter__(self):
        self.mount.up()
        self.pid = self.mount.daemon
        return self

    def __exit__(self, *_):
        self.mount.tear_down()


class Mergerfs(Behind):
    """mergerfs over the drives, with the caching that suits it.

    It has no rule by rank: each rank has a directory that exists on one drive only, and
    the policy that keeps to existing paths puts its files there.
    """

    name = "mergerfs"
    OPTIONS = ("minfreespace=0,moveonenospc=false,category.create=epff,cache.files=auto-full,"
               "dropcacheonclose=false,cache.attr=60,cache.entry=60,use_ino,async_read=true")

    def __init__(self, drives, folder):
        super().__init__(drives, folder)
        self.point.mkdir(exist_ok=True)

    @staticmethod
    def is_there():
        return shutil.which("mergerfs") is not None

    def __enter__(self):
        branches = ":".join(map(str, self.backings))
        self.process = subprocess.Popen(["mergerfs", "-f", "-o", self.OPTIONS, branches, self.point],
                                        stdin=subprocess.DEVNULL)
        self.pid = self.process.pid
        deadline = time.monotonic() + 10
        while mount_entry(self.point) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("mergerfs did not mount")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        unmount(self.point)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Btrfs:
    """btrfs RAID0 over as many devices of the same size and sort, its own: what stripes instead of placing."""

    name = "btrfs RAID0"
    pid = None

    def __init__(self, drives, folder):
        self.point = drives.root / f"mnt-{folder}"
        self.images = Images(drives.root / f"images-{folder}", drives.count, drives.gib)

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            loops = undo.enter_context(self.images).loops
            output("mkfs.btrfs", "-q", "-f", "-d", "raid0", "-m", "raid0", *loops)
            self.point.mkdir()
            # The kernel has to know of all devices before it mounts one.
            output("btrfs", "device", "scan", *loops)
            undo.callback(lambda: subprocess.run(["btrfs", "device", "scan", "--forget"], check=False, capture_output=True))
            output("mount", "-o", "noatime,nodiscard", loops[0], self.point)
            undo.callback(unmount, self.point)
            for rank in range(len(loops)):
                (self.point / f"rank{rank}").mkdir()
            self.ranks = len(loops)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    @staticmethod
    def is_there():
        return shutil.which("mkfs.btrfs") is not None and shutil.which("btrfs") is not None

    def directories(self):
        return [self.point / f"rank{rank}" for rank in range(self.ranks)]

    clear = Raw.clear


def _uring_is_enabled():
    switch = Path("/sys/module/fuse/parameters/enable_uring")
    return switch.is_file() and switch.read_text().strip() == "Y"


def subjects(drives, kvfs, prefix, publish):
    """All that can be compared on this machine; not mounted yet. Only the names' way depends on the transport."""
    always = "--publish", publish
    found = [
        Raw(drives, f"{prefix}-raw"),
        Kvfs(drives, f"{prefix}-pt", kvfs, "auto", *always),
        Kvfs(drives, f"{prefix}-np", kvfs, "off", *always),
    ]
    if prefix == "meta" and _uring_is_enabled():
        found.append(Kvfs(drives, f"{prefix}-ur", kvfs, "auto", "--transport", "io-uring",
                          "--supervise", "off", *always))
    if Mergerfs.is_there():
        found.append(Mergerfs(drives, f"{prefix}-mg"))
    if prefix == "data" and drives.loops and Btrfs.is_there():
        found.append(Btrfs(drives, f"{prefix}-bt"))
    return found


def interleaved(found, reps):
    """(repetition, subject) in an order in which nobody is always first."""
    for rep in range(reps):
        for place in range(len(found)):
            yield rep, found[(place + rep) % len(found)]
