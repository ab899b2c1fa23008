"""How long a mount takes that finds files there, and how much memory they cost.

`bench/run --only scale` is the same with millions of files, in two shapes, and goes on to ask the mount for names.
"""

import json
import os
import time

from lab import drop_caches, output, resident
from report import Samples
from subjects import Kvfs

NAME = 75  # bytes of each name
WALK, SCAN, WHOLE = "bare walk", "scan", "`kvfs mount` returns"


def walked(metaload, *directories):
    return json.loads(output(metaload, "walk", *directories))


class Shape:
    """So many files on the backings, in one directory on each (`each` is 0) or in directories of `each` files."""

    def __init__(self, files, each=0):
        self.files, self.each = files, each
        self.text = f"{files:,} files" + (f", {each:,} in a directory" if each else "")

    def fill(self, kvfs, metaload):
        if self.each:
            output(metaload, "tree", self.files, self.each, *kvfs.backings)
        else:
            output(metaload, "fill", self.files, 0, *kvfs.backings)


class Scans:
    """What is measured of all shapes."""

    def __init__(self):
        self.times = Samples("ms")
        self.memory = Samples("of the daemon, with the mount idle", ratios=False)
        # Of `scale` alone:
        self.names, self.first = Samples("ms"), Samples("ms", ratios=False)
        self.empty = None

    def _mounted(self, kvfs, row, inside):
        """One mount and unmount: what it took, what it holds."""
        begin = time.monotonic()
        with kvfs:
            whole = (time.monotonic() - begin) * 1000
            status = kvfs.mount.status()
            held, peak = resident(kvfs.pid)
            if self.empty is None:
                self.empty = held
                return
            self.times.add(row, SCAN, status["index"]["scan_ms"])
            self.times.add(row, WHOLE, whole)
            files = status["index"]["files"]
            each = (held - self.empty) / files
            for what, value in (("resident, MiB", held / 2**20), ("peak, MiB", peak / 2**20), ("bytes per file", each),
                                (f"beyond its name of {NAME}", each - NAME)):
                self.memory.add(row, what, value)
            self.found = files
            if inside:
                inside(kvfs, row)

    def measure(self, kvfs, shape, reps, metaload, inside=None):
        """Warm and cold, the bare walk and the mount in turns. `inside` is called in each cold mount."""
        if self.empty is None:
            self._mounted(kvfs, "", None)
        shape.fill(kvfs, metaload)
        os.sync()
        for state in ("warm", "cold"):
            row = f"{shape.text}, {state}"
            if state == "warm":
                walked(metaload, *kvfs.backings)
            for _ in range(reps):
                if state == "cold":
                    drop_caches()
                self.times.add(row, WALK, walked(metaload, *kvfs.backings)["ms"])
                if state == "cold":
                    drop_caches()
                self._mounted(kvfs, row, inside if state == "cold" else None)
                if self.found != shape.files:
                    raise RuntimeError(f"kvfs counts {self.found} files where {shape.files} are")

    def report(self):
        text = [self.times.markdown("files of 75-byte names", "Time"),
                self.memory.markdown("files of 75-byte names", f"Memory; an empty mount holds {self.empty / 2**20:.1f} MiB")]
        found = {"empty": self.empty, "times": self.times.as_json(), "memory": self.memory.as_json()}
        if self.names.rows:
            text += [self.names.markdown("names", "All names, right after a cold mount; the bare walk has a thread for each drive"),
                     self.first.markdown("names", "The first stat of the mount's life")]
            found.update({"names": self.names.as_json(), "first stat": self.first.as_json()})
        return "\n\n".join(text), found


def measure(drives, binary, options, metaload, say):
    """The scan against a bare getdents64 of the same directories with a thread for each."""
    reps = options.reps or (2 if options.quick else 3)
    scans = Scans()
    for count in (100_000,) if options.quick else (100_000, 1_000_000):
        say(f"scan: {count:,} files")
        kvfs = Kvfs(drives, f"scan-{count}", binary, "auto")
        scans.measure(kvfs, Shape(count), reps, metaload)
        drives.empty(f"scan-{count}")
    return scans.report()
