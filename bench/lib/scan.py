"""How long a mount takes that finds files there, and how much memory they cost."""

import json
import time
from statistics import median

from lab import drop_caches, output, resident
from report import number, table
from subjects import Kvfs


def _mounted(kvfs):
    """One mount and unmount: what it took, what it held."""
    begin = time.monotonic()
    with kvfs:
        wall = (time.monotonic() - begin) * 1000
        status = kvfs.mount.status()
        rss, peak = resident(kvfs.pid)
        return {"files": status["index"]["files"], "scan_ms": status["index"]["scan_ms"], "wall_ms": wall,
                "rss": rss, "peak": peak}


def _walked(metaload, backings):
    return json.loads(output(metaload, "walk", *backings))["ms"]


def measure(drives, binary, options, metaload, say):
    """The scan against a bare getdents64 of the same directories with a thread for each."""
    reps = options.reps or (2 if options.quick else 3)
    empty = _mounted(Kvfs(drives, "scan-empty", binary, "auto"))
    rows, results = [], {"empty": empty}
    for count in (100_000,) if options.quick else (100_000, 1_000_000):
        say(f"scan: {count} files")
        kvfs = Kvfs(drives, f"scan-{count}", binary, "auto")
        output(metaload, "fill", count, 0, *kvfs.backings)
        result = {}
        for state in ("warm", "cold"):
            walks, scans = [], []
            for _ in range(reps):
                if state == "cold":
                    drop_caches()
                else:
                    _walked(metaload, kvfs.backings)
                walks.append(_walked(metaload, kvfs.backings))
                if state == "cold":
                    drop_caches()
                scans.append(_mounted(kvfs))
            wrong = [scan["files"] for scan in scans if scan["files"] != count]
            if wrong:
                raise RuntimeError(f"kvfs counts {wrong[0]} files where {count} are")
            walk, scan = median(walks), median(s["scan_ms"] for s in scans)
            rss = median(s["rss"] for s in scans)
            result[state] = {"walk_ms": walks, "scans": scans}
            rows.append([f"{count:,} {state}", number(walk), f"{number(scan)} ({scan / walk:.2f})",
                         number(median(s["wall_ms"] for s in scans)), f"{scan * 1000 / count:.2f}",
                         f"{rss / 2**20:.0f} MiB", f"{median(s['peak'] for s in scans) / 2**20:.0f} MiB",
                         f"{(rss - empty['rss']) / count:.0f}"])
        results[str(count)] = result
    header = ["files of 75-byte names", "bare walk, ms", "scan, ms (ratio)", "`kvfs mount` returns, ms",
              "scan, us per file", "resident", "peak", "bytes per file"]
    text = (f"An empty mount holds {empty['rss'] / 2**20:.1f} MiB; bytes per file are what is resident beyond that.\n\n"
            + table(header, rows))
    return text, results
