"""How long clients wait when the daemon dies: the pause, by what they do.

    bench/run --only crash [--quick] [--reps KILLS] [--kvfs BIN]

kvfs is mounted over four drives with so many names, and its daemon is killed (SIGKILL) again and again while two threads
work in the mount: one asks for a name that isn't there, which always needs the daemon; one reads 64 KiB of a file that
it has open, which never does while the kernel passes data through. A pause is the longest call that one of them
made between the kill and the moment when it was served again. Any call that fails ends the measurement.
"""

import math
import os
import signal
import threading
import time
from pathlib import Path

from lab import output
from report import number, table
from subjects import Kvfs

PERCENTILES = (50, 99, 100)
PIECE = 64 << 10
REST = 0.2  # seconds for which each daemon serves


class Caller(threading.Thread):
    """Makes a call over and over; knows the longest since it was asked last."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.longest, self.over, self.failure = call, 0.0, False, None
        self.calls = 0

    def run(self):
        try:
            while not self.over:
                begin = time.monotonic()
                self.call(self.calls)
                self.longest = max(self.longest, time.monotonic() - begin)
                self.calls += 1
        except BaseException as failure:  # pylint: disable=broad-except
            self.failure = failure

    def take(self):
        if self.failure:
            raise RuntimeError("a client met an error") from self.failure
        longest, self.longest = self.longest, 0.0
        return longest * 1000


def _absent(point):
    def call(n):
        try:
            os.stat(point / f"absent-{n}")
        except FileNotFoundError:
            return
        raise RuntimeError("a name is there that nobody made")
    return call


def _reader(file, content):
    def call(_):
        if os.pread(file.fileno(), PIECE, 0) != content:
            raise RuntimeError("other bytes")
    return call


def _kill(mount):
    pid = mount.status()["pid"]
    os.kill(pid, signal.SIGKILL)


def _served_again(mount, before):
    """Waits until another daemon answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        asked = mount._run("status", "--json", mount.point, check=False)
        if asked.returncode == 0 and mount.status()["supervised"]["daemons"] > before:
            return
    raise RuntimeError("no other daemon answers")


def _ranks(samples):
    ordered = sorted(samples)
    return [ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] for p in PERCENTILES]


def _one(kvfs, kills):
    point, content = kvfs.point, os.urandom(PIECE)
    (point / "open").write_bytes(content)
    with open(point / "open", "rb") as file:
        pauses = _pauses(kvfs, kills, file, content)
    os.unlink(point / "open")
    return pauses


def _pauses(kvfs, kills, file, content):
    callers = {"a name is asked for": Caller(_absent(kvfs.point)),
               "an open file is read": Caller(_reader(file, content))}
    pauses = {what: [] for what in callers}
    for caller in callers.values():
        caller.start()
    for _ in range(kills):
        time.sleep(REST)
        before = kvfs.mount.status()["supervised"]["daemons"]
        for caller in callers.values():
            caller.take()
        _kill(kvfs.mount)
        _served_again(kvfs.mount, before)
        # What began before has ended when one more call has.
        counts = {what: caller.calls for what, caller in callers.items()}
        while any(callers[what].calls <= count + 1 and not callers[what].failure for what, count in counts.items()):
            time.sleep(0.005)
        for what, caller in callers.items():
            pauses[what].append(caller.take())
    kvfs.mount.daemon = kvfs.mount.status()["pid"]
    for caller in callers.values():
        caller.over = True
        caller.join()
    return pauses


def measure(drives, binary, options, metaload, say):
    kills = options.reps or (10 if options.quick else 100)
    rows, results = [], {}
    for files in (1_000, 100_000) if options.quick else (1_000, 100_000, 1_000_000):
        for passthrough in ("auto", "off"):
            kvfs = Kvfs(drives, f"crash-{files}-{passthrough}", binary, passthrough)
            say(f"crash: {files} names, passthrough {passthrough}, {kills} kills")
            output(metaload, "fill", files, 0, *kvfs.backings)
            try:
                with kvfs:
                    pauses = _one(kvfs, kills)
            finally:
                for backing in kvfs.backings:
                    output("find", backing, "-mindepth", 1, "-delete")
            for what, samples in pauses.items():
                row = f"{files:,} names, passthrough {passthrough}: {what}"
                rows.append([row, len(samples), *map(number, _ranks(samples))])
                results[row] = samples
    header = ["", "kills", *(f"p{p}" if p < 100 else "longest" for p in PERCENTILES)]
    return "The longest call of a client around each kill, in ms.\n\n" + table(header, rows), results
