"""Names by the hundred thousand: `ls -l` and readdir of one large directory; and names that aren't there.

The directories lie on the first drive and are filled once, on the drive itself. All subjects read the same ones, mounted
over them one after the other, each time after all caches are dropped.
"""

import json
import subprocess
import time

from lab import drop_caches, output
from report import Samples, table
from subjects import Kvfs, Mergerfs, Raw, interleaved

FOLDER = "names"


def _subjects(drives, binary, publish):
    found = [Raw(drives, FOLDER), Kvfs(drives, FOLDER, binary, "auto", "--publish", publish)]
    return found + ([Mergerfs(drives, FOLDER)] if Mergerfs.is_there() else [])


def _seconds(*command):
    begin = time.monotonic()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def _large_directories(drives, binary, options, metaload, say):
    listed, read = (10_000, 50_000) if options.quick else (100_000, 1_000_000)
    reps = options.reps or (1 if options.quick else 3)
    seconds = Samples("seconds")
    compared = _subjects(drives, binary, options.publish)
    home = drives.folders(FOLDER)[0] / "rank0"
    try:
        for name, files in (("ls", listed), ("readdir", read)):
            say(f"names: a directory of {files:,}")
            (home / name).mkdir(parents=True)
            output(metaload, "fill", files, 0, home / name)
        for _, subject in interleaved(compared, reps):
            with subject:
                place = home if type(subject) is Raw else subject.directories()[0]
                for state in ("first", "again"):
                    if state == "first":
                        drop_caches()
                    seconds.add(f"ls -l of {listed:,} files, {state}", subject.name, _seconds("ls", "-l", place / "ls"))
                    found = json.loads(output(metaload, "walk", place / "readdir"))
                    if found["files"] != read:
                        raise RuntimeError(f"{subject.name} lists {found['files']} of {read} names")
                    seconds.add(f"readdir of {read:,} names, {state}", subject.name, found["ms"] / 1000)
    finally:
        drives.empty(FOLDER)
    return seconds


def _absent(drives, binary, options, metaload, say):
    names, rounds = (2_000, 2) if options.quick else (20_000, 2)
    reps = options.reps or (2 if options.quick else 5)
    rate, asked = Samples("questions per second"), {}
    always = "--publish", options.publish
    compared = [Raw(drives, "absent-raw"), Kvfs(drives, "absent-probed", binary, "auto", *always),
                Kvfs(drives, "absent-exclusive", binary, "auto", "--exclusive", *always)]
    compared += [Mergerfs(drives, "absent-mg")] if Mergerfs.is_there() else []
    say("names: absent ones")
    for _, subject in interleaved(compared, reps):
        with subject:
            lookups = (lambda: subject.mount.status()["ops"]["lookup"]) if isinstance(subject, Kvfs) else None
            before = lookups() if lookups else 0
            found = json.loads(output(metaload, "absent", names, rounds, subject.directories()[0]))
            if lookups:
                asked.setdefault(subject.name, []).append((lookups() - before) / (names * rounds))
            for when, one in zip(("first", "again"), found):
                rate.add(f"an absent name, {when}", subject.name, one["absent"]["per_s"])
    return rate, asked


def measure(drives, binary, options, metaload, say):
    """Tables of seconds, and of questions per second with the requests that they cost the daemon."""
    seconds = _large_directories(drives, binary, options, metaload, say)
    rate, asked = _absent(drives, binary, options, metaload, say)
    text = "\n\n".join([
        seconds.markdown("what", "Large directories"),
        rate.markdown("what", "Names that are not there, each asked for twice"),
        table(["LOOKUP requests for each question", *asked], [["", *(f"{sum(v) / len(v):.2f}" for v in asked.values())]]),
    ])
    return text, {"directories": seconds.as_json(), "absent": rate.as_json(), "lookups for each question": asked}
