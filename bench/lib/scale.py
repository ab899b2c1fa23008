"""Millions of files: how a mount starts, what it holds in memory, and how it answers for names then.

    bench/run --only scale [--files N] [--quick] [--reps N] [--kvfs BIN]

Empty files with names of 75 bytes, on all drives equally, in two shapes: directories of 1,000 files, as clients with
directories by hash make them, and one flat directory. The mount's root merges the drives' directories; a flat one is
then a single directory of all files.
"""

import os
import time

from scan import WALK, Scans, Shape, walked
from subjects import Kvfs

EACH = 1000
# What XFS takes for an inode and a name of 75 bytes, with room to spare.
BYTES = 1000


def files_of(options):
    return options.files or (200_000 if options.quick else 5_000_000)


def gib_of(options, drives):
    """What each drive must have at least."""
    return 1 + files_of(options) * BYTES // drives // 2**30


def _files_below(directory):
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_below(entry.path)
            else:
                yield entry.path


def measure(places, binary, options, metaload, say):
    """As the scan's tables, and what the first question and a whole walk of the mount take.

    `places` makes drives, new ones for each shape: it takes less time than to remove all those files.
    """
    reps = options.reps or (1 if options.quick else 3)
    files, scans = files_of(options), Scans()
    for folder, shape in (("scale-tree", Shape(files, EACH)), ("scale-flat", Shape(files))):
        say(f"scale: {shape.text}")
        with places() as drives:
            scans.measure(Kvfs(drives, folder, binary, "auto"), shape, reps, metaload, _asking(scans, shape, metaload))
            if not drives.loops:
                drives.empty(folder)
    return scans.report()


def _asking(scans, shape, metaload):
    """What a mount is asked when it has just begun."""
    def ask(mounted, row):
        if row in scans.first.rows:
            return  # Once: it may take a minute.
        # The name as a backing has it, so that the mount hasn't been asked for it before.
        backing = mounted.backings[-1]
        name = mounted.point / os.path.relpath(next(_files_below(backing)), backing)
        begin = time.monotonic()
        os.stat(name)
        first = (time.monotonic() - begin) * 1000
        raw = walked(metaload, *mounted.backings)
        through = walked(metaload, mounted.point)
        if through["files"] != shape.files:
            raise RuntimeError(f"the mount lists {through['files']} of {shape.files} files")
        for what, value in ((WALK, raw["ms"]), ("walk of the mount", through["ms"])):
            scans.names.add(row, what, value)
        scans.first.add(row, "ms", first)
    return ask
