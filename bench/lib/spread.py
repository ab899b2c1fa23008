"""How much of the drives' bandwidth arrives together, over 1, 2 and 4 drives of 200 MB/s each; or over the user's own
drives (`--backing`), as fast as they are, where the bare ones are what it's compared with.

Whole files of 32 MiB, each moved by one O_DIRECT call:

- *four clients, a file each*: four processes; the names of process i say rank i of 4, so `by_gpu` gives it drive
  i modulo the number of drives.
- *one client*: one process with 8 files, or 8 for each drive, in flight. On the bare drives the files take turns,
  which is the perfect spread. In kvfs `--placement hash` decides by each file's name, which knows nothing of what is
  in flight: by chance a drive is idle while others have several files waiting. A simulation of just that (K files in
  flight, drives that serve theirs in order, each next file on a drive drawn at random) gives

      K                      4     8     16    32    64
      share of 2 drives     0.87  0.94  0.97  0.99  1.00
      share of 4 drives     0.66  0.82  0.91  0.96  0.97

  and where files on one drive share it instead, it's K/(K+n-1). That is what a hash can give, in a run of any length:
  the number to compare with is this one, not 1. (A limited drive that was idle may move up to 20 MB at once
  afterwards, for the limit counts in slices of 100 ms. It helps with few files in flight, a little.)
- *one file at a time*, to compare: one drive's speed, since files are not striped. With files of 256 MiB, for with
  smaller ones those 20 MB would show.

The rate is what the devices moved between two moments while all clients are at work (their counters in /sys/block), so
neither the first files nor the last, when drives run dry one by one, count. That these bytes are the clients' own and
no others is checked: over the whole run, from the first file to the last, both must be the same within 2 %.

Writes make new files all the time, under names that no file had before, and remove old ones. Reads take files that the
writes have left; as these are too few to spread evenly, the reader of hashed files first draws a drive, then
one of its files, as if there were files without end.
"""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

from lab import say as tell
from report import Samples
from subjects import Mount, interleaved
from throttle import Limits, device_of, moved

CLIENT = Path(__file__).resolve().parent / "wholefiles.py"
LIMIT = 200_000_000
KEEP = 512 << 20  # bytes for each drive that stay for the reads
WARM_UP = 1.5
SLACK = 0.02


class Load:
    """So many processes with so many files in flight each, and the placement that they want."""

    def __init__(self, text, processes, in_flight, placement, mib=32, curve=None):
        self.text, self.processes, self.in_flight, self.placement = text, processes, in_flight, placement
        self.size, self.curve = mib << 20, curve or text


def loads(drives):
    yield Load("four clients, a file each, by_gpu", 4, 1, "by_gpu")
    yield Load("one client, 8 files in flight, hash", 1, 8, "hash")
    if drives > 1:
        yield Load(f"one client, {8 * drives} files in flight, hash", 1, 8 * drives, "hash",
                   curve="one client, 8 files in flight for each drive, hash")
    yield Load("one client, one file of 256 MiB at a time, hash", 1, 1, "hash", 256)


class Raw:
    """The first `count` drives, used by hand: client i's files on drive i, one client's on all in turns."""

    name = "raw"

    def __init__(self, drives, folder, count):
        self.backings = drives.folders(folder)[:count]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def seen(self, backing):
        """Where a client finds what is on that backing."""
        return backing

    def targets(self, load, process):
        """The directories that a client writes to."""
        backings = self.backings
        return [backings[process % len(backings)]] if load.placement == "by_gpu" else backings

    order = "turns"


class Kvfs(Raw):
    """kvfs over them, once for each placement."""

    order = "random"

    def __init__(self, drives, folder, count, binary, passthrough):
        super().__init__(drives, folder, count)
        self.name = "kvfs" if passthrough == "auto" else f"kvfs, passthrough {passthrough}"
        self.mounts, self.undo = {}, contextlib.ExitStack()
        for placement in ("by_gpu", "hash"):
            backings = [backing / placement for backing in self.backings]
            self.mounts[placement] = Mount(
                binary, drives.root / f"mnt-{folder}-{placement}", backings, drives.root / f"{folder}-{placement}.log",
                ["--passthrough", passthrough, "--placement", placement, "--min-free", "16M"])

    def __enter__(self):
        with self.undo:
            for mount in self.mounts.values():
                self.undo.enter_context(mount)
            self.undo = self.undo.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()

    def use(self, load):
        self.mount = self.mounts[load.placement]

    def seen(self, backing):
        return self.mount.point

    def targets(self, load, process):
        return [self.mount.point]


def _backings(subject, load):
    """The directories on the drives that this load's files lie in."""
    return [backing / load.placement for backing in subject.backings] if isinstance(subject, Kvfs) else subject.backings


def _files(subject, load):
    """The files of each drive, by the paths that a client has for them."""
    return [[str(subject.seen(backing) / path.name) for path in sorted(backing.iterdir())
             if not path.name.startswith(".kvfs-")] for backing in _backings(subject, load)]


def _description(subject, load, way, process):
    """What one client is to do."""
    common = {"way": way, "size": load.size, "in_flight": load.in_flight}
    ranks = load.processes if load.placement == "by_gpu" else 1
    if way == "write":
        keep = KEEP * len(subject.backings) // load.size // load.processes
        return {**common, "name": f"m@{ranks}@{process}@%016x@half.pt", "keep": keep,
                "directories": [str(target) for target in subject.targets(load, process)]}
    groups = [group for group in _files(subject, load) if group]
    if ranks > 1:
        own = [file for group in groups for file in group if f"/m@{ranks}@{process}@" in file]
        return {**common, "groups": [own], "order": "turns"}
    return {**common, "groups": groups, "order": subject.order}


def _in_its_place(subject, load):
    """by_gpu puts rank i's files on drive i modulo the number of drives; anything else isn't what is measured."""
    for slot, files in enumerate(_files(subject, load)):
        for file in files:
            rank = int(Path(file).name.split("@")[2])
            if rank % len(subject.backings) != slot:
                raise RuntimeError(f"{file} of rank {rank} lies on drive {slot} of {len(subject.backings)}")


def _total(devices, way):
    return sum(moved(device)[way] for device in devices)


@contextlib.contextmanager
def _clients(descriptions):
    """The processes, ready to begin; none is left behind."""
    found = []
    try:
        for description in descriptions:
            found.append(subprocess.Popen([sys.executable, CLIENT, json.dumps(description)], text=True, cwd="/",
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for client in found:
            if client.stdout.readline() != "ready\n":
                raise RuntimeError("a client did not start")
        yield found
    finally:
        for client in found:
            client.kill()
        for client in found:
            client.wait(30)


def run(devices, subject, load, way, seconds, strict):
    """Bytes per second of all devices together, while all clients are at work; `strict` where nobody else may use them."""
    descriptions = [_description(subject, load, way, process) for process in range(load.processes)]
    with _clients(descriptions) as clients:
        first = _total(devices, way)
        for client in clients:
            print("begin", file=client.stdin, flush=True)
        time.sleep(WARM_UP)
        before, begin = _total(devices, way), time.monotonic()
        time.sleep(seconds)
        after, end = _total(devices, way), time.monotonic()
        answers = [client.communicate("end\n")[0] for client in clients]
    if any(client.returncode for client in clients):
        raise RuntimeError(f"a client failed: {subject.name}, {load.text}, {way}")
    asked = sum(json.loads(answer)["files"] for answer in answers) * load.size
    did = _total(devices, way) - first
    if abs(did - asked) > SLACK * asked:
        wrong = f"the clients' {way}s were {asked} bytes, the devices' {did}: {subject.name}, {load.text}"
        if strict:
            raise RuntimeError(wrong)
        tell(f"spread: somebody else uses these drives: {wrong}")
    return (after - before) / (end - begin)


def _one(devices, subject, load, seconds, strict, keep):
    if isinstance(subject, Kvfs):
        subject.use(load)
    for way in ("write", "read"):
        keep(way, run(devices, subject, load, way, seconds, strict))
        if load.placement == "by_gpu":
            _in_its_place(subject, load)
    for file in sum(_files(subject, load), []):
        Path(file).unlink()


def _counts(drives):
    """1, 2, 4 and so on of them."""
    count = 1
    while count <= drives.count:
        yield count
        count *= 2


def measure(drives, binary, options, say):
    """A table of rates; in brackets the share of what the limits allow, or of the bare drives."""
    seconds, reps = (2, options.reps or 1) if options.quick else (5, options.reps or 5)
    rates, curves, limited = Samples("MB/s"), {}, bool(drives.loops)
    devices = drives.loops or [device_of(mount) for mount in drives.mounts]
    with Limits(devices, LIMIT, drives.root) if limited else contextlib.nullcontext():
        for count in _counts(drives):
            with contextlib.ExitStack() as mounts:
                found = [mounts.enter_context(subject) for subject in (
                    Raw(drives, f"spread-raw-{count}", count),
                    Kvfs(drives, f"spread-pt-{count}", count, binary, "auto"),
                    Kvfs(drives, f"spread-np-{count}", count, binary, "off"))]
                for load in loads(count):
                    say(f"spread: {count} drive{'s' * (count > 1)}, {load.text}")
                    for _, subject in interleaved(found, reps):
                        def keep(way, rate):
                            row = f"{count} drive{'s' * (count > 1)}; {load.text}; {way}"
                            if limited:
                                rates.add(row, "drives", count * LIMIT / 1e6)
                            rates.add(row, subject.name, rate / 1e6)
                            curve = curves.setdefault(f"{way}, {load.curve}", {}).setdefault(subject.name, {})
                            curve.setdefault(count, []).append(rate / 1e6)
                        _one(devices[:count], subject, load, seconds, limited, keep)
    return (rates.markdown("whole files, O_DIRECT", "Bandwidth of all drives together"),
            {"rates": rates.as_json(), "curves": {"unit": "MB/s", "over": "drives", "lines": curves}})
