"""What an eviction of 100,000 files costs the creates beside it: their latency, alone and meanwhile.

    bench/run --only evict [--quick] [--reps N] [--kvfs BIN]

Each repetition fills four drives with 125,000 small files, directly and a day old, and mounts kvfs over them. One or four
clients then create files of 64 KiB in the same directory, each removing its own oldest: first alone, then while
four fifths of the old files go. Three ways to let them go take turns:

- *raw*: no kvfs; this script unlinks them one by one on the drives. What the filesystem below costs.
- *kvfs, removed by hand*: the same script, through the mount: what an evictor outside of kvfs does.
- *kvfs, evicted*: `kvfs evict --bytes`, as much on each drive as four fifths of its files take.

A percentile is of all creates of all repetitions together; how many there were is in the table. The last ones of a run
whose eviction takes a tenth of a second are few. The names of options are at the top of this file.
"""

import contextlib
import json
import math
import os
import subprocess
import time
from pathlib import Path

from lab import drop_caches, output
from report import number, table
from subjects import Mount, interleaved

# What belongs to the engine's command line; what it does is measured, not how it's called.
POLICY, NEVER = ["--evict", "lru"], ["--evict", "never"]
COMMAND = "evict"
MIN_FREE = 16 << 20

FILES, STAY = 125_000, 0.2
FILE_SIZE, CREATE_SIZE = 16 << 10, 64 << 10
KEEP = 500  # files that each client leaves
PERCENTILES = (50, 99, 99.9)


def has_eviction(binary):
    return any(line.split()[:1] == [COMMAND] for line in output(binary, "--help").splitlines())


class Raw:
    """The old files on bare drives; client i creates on drive i."""

    name = "raw"

    def __init__(self, drives, folder, metaload):
        self.drives, self.metaload, self.folder = drives, metaload, folder

    def fill(self, files):
        self.backings = self.drives.folders(self.folder)
        output(self.metaload, "fill", files, FILE_SIZE, *self.backings)
        os.sync()
        self.old = [entry.path for backing in self.backings for entry in os.scandir(backing)]

    def clear(self):
        for backing in self.backings:
            for entry in os.scandir(backing):
                os.unlink(entry.path)
        drop_caches()

    def mounted(self):
        return contextlib.nullcontext()

    def directory(self, client):
        return self.backings[client % len(self.backings)]

    def let_go(self):
        """All but a share of the old files; returns when they are gone."""
        for path in self.old[int(len(self.old) * STAY):]:
            os.unlink(path)

    def gone(self):
        return sum(not os.path.exists(path) for path in self.old)


class ByHand(Raw):
    """kvfs over them, which is told to evict nothing."""

    name = "kvfs, removed by hand"

    def __init__(self, drives, folder, metaload, binary, evicts):
        super().__init__(drives, folder, metaload)
        self.binary, self.evicts, self.point = binary, evicts, drives.root / f"mnt-{folder}"

    def options(self):
        return NEVER if self.evicts else []

    def mounted(self):
        self.mount = Mount(self.binary, self.point, self.backings, self.drives.root / f"{self.folder}.log",
                           ["--min-free", MIN_FREE, *self.options()])
        return self.mount

    def directory(self, client):
        return self.point

    def let_go(self):
        for path in self.old[int(len(self.old) * STAY):]:
            os.unlink(self.point / Path(path).name)


class Evicted(ByHand):
    """kvfs over them, which evicts when it's told to."""

    name = "kvfs, evicted"

    def options(self):
        return POLICY

    def let_go(self):
        bytes_of_each = math.ceil(len(self.old) * (1 - STAY) / len(self.backings)) * FILE_SIZE
        output(self.binary, COMMAND, self.point, "--bytes", bytes_of_each)


@contextlib.contextmanager
def clients(subject, count):
    """Clients at work; what they yield is filled with their answers when the block ends."""
    answers, found = [], []
    try:
        for client in range(count):
            found.append(subprocess.Popen(
                [subject.metaload, "creates", str(client), str(CREATE_SIZE), str(KEEP), subject.directory(client)],
                cwd="/", text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for client in found:
            if client.stdout.readline() != "ready\n":
                raise RuntimeError("a client did not start")
        yield answers
        for client in found:
            client.stdin.close()
        for client in found:
            answers.append(json.loads(client.stdout.read()))
    finally:
        for client in found:
            client.kill()
        for client in found:
            client.wait(30)


class Found:
    """All creates of one subject, with so many clients, in one phase."""

    def __init__(self):
        self.create, self.whole, self.runs = [], [], []

    def add(self, answers, seconds, gone):
        self.create += [us for answer in answers for us in answer["create_us"]]
        self.whole += [us for answer in answers for us in answer["whole_us"]]
        self.runs.append({"creates": sum(len(answer["whole_us"]) for answer in answers), "seconds": seconds,
                          "files gone": gone})

    def rank(self, samples):
        ordered = sorted(samples)
        return [ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in PERCENTILES]

    def cells(self):
        runs = self.runs
        gone = ", ".join(f"{run['files gone']:,} in {run['seconds']:.2f} s" for run in runs if run["files gone"])
        return [f"{len(self.whole):,}", f"{len(self.whole) / sum(run['seconds'] for run in runs):,.0f}",
                *map(number, self.rank(self.whole)), *map(number, self.rank(self.create)), gone]

    def as_json(self):
        return {"runs": self.runs, "whole_us": self.whole, "create_us": self.create}


def one(subject, count, files, seconds, keep):
    """One filling of the drives: creates alone, then beside."""
    subject.fill(files)
    try:
        with subject.mounted():
            begin = time.monotonic()
            with clients(subject, count) as alone:
                time.sleep(seconds)
                took = time.monotonic() - begin
            keep("alone", alone, took, 0)
            with clients(subject, count) as beside:
                begin = time.monotonic()
                subject.let_go()
                took = time.monotonic() - begin
            gone = subject.gone()
            if gone < int(files * (1 - STAY)):
                raise RuntimeError(f"{subject.name}: {gone} of {files} files are gone, {1 - STAY:.0%} should be")
            keep("beside", beside, took, gone)
    finally:
        subject.clear()


def subjects(drives, binary, metaload):
    evicts = has_eviction(binary)
    yield Raw(drives, "evict-raw", metaload)
    yield ByHand(drives, "evict-hand", metaload, binary, evicts)
    if evicts:
        yield Evicted(drives, "evict-own", metaload, binary, evicts)


def measure(drives, binary, options, metaload, say):
    """One table: each subject and number of clients, alone and beside."""
    files, seconds, reps = (25_000, 1, options.reps or 1) if options.quick else (FILES, 4, options.reps or 3)
    compared, results = list(subjects(drives, binary, metaload)), {}
    for count in (1, 4):
        say(f"evict: {count} client{'s' * (count > 1)}")
        for _, subject in interleaved(compared, reps):
            def keep(phase, answers, took, gone):
                row = f"{subject.name}; {count} client{'s' * (count > 1)}; {phase}"
                results.setdefault(row, Found()).add(answers, took, gone)
            one(subject, count, files, seconds, keep)
    header = ["", "creates", "per second",
              *(f"create to close: p{p}" for p in PERCENTILES), *(f"the create call: p{p}" for p in PERCENTILES),
              "files gone"]
    text = "Latencies in us.\n\n" + table(header, [[row, *found.cells()] for row, found in results.items()])
    if not has_eviction(binary):
        text += f"\n\nThis kvfs has no `{COMMAND}` command: its own eviction was NOT measured."
    return text, {row: found.as_json() for row, found in results.items()}
