"""Operations on names per second, by a load generator in C (metaload.c)."""

import json
import os

from lab import output
from report import Samples
from subjects import interleaved

WHAT = {
    "create": "create, write 64 KiB, close",
    "first_stat": "stat, the first after making",
    "cold_stat": "stat, of names that the kernel has forgotten",
    "stat": "statx with FORCE_SYNC",
    "open_read": "open, read 64 KiB, close",
    "open_close": "open, close",
    "miss": "look for a name that is not there",
    "readdir": "readdir, names",
    "unlink": "unlink",
}
MIXED = ("create", "stat", "open_read", "miss", "unlink")
THREADS = 64


def _load(metaload, clients, files, directories):
    result = json.loads(output(metaload, "meta", clients, files, 65536, *directories))
    os.sync()
    return result


def _one_directory(found, files, reps, metaload, say):
    """What four clients lose that share a directory: the kernel lets creates in one wait for each other."""
    share = Samples("rate in one directory over rate in four")
    say("meta: four clients in one directory, and in four")
    for _, subject in interleaved(found, reps):
        one = _load(metaload, 4, files, subject.directories()[:1])
        four = _load(metaload, 4, files, subject.directories())
        for key in ("create", "unlink", "open_read"):
            share.add(f"{WHAT[key]}; 4 clients", subject.name, one[key]["per_s"] / four[key]["per_s"])
    return share


def _mixed(found, options, reps, metaload, say):
    """Many threads at once, each with files of its own."""
    rate, p99 = Samples("per second"), Samples("us, the 99th percentile")
    say(f"meta: {THREADS} threads")
    for _, subject in interleaved(found, reps):
        seconds = 1 if options.quick else 5
        result = json.loads(output(metaload, "mixed", THREADS, seconds, 65536, *subject.directories()))
        os.sync()
        rate.add(f"all operations; {THREADS} threads", subject.name, result["all"]["per_s"])
        for key in MIXED:
            p99.add(f"{WHAT[key]}; {THREADS} threads", subject.name, result[key]["p99_us"])
    return rate, p99


def measure(found, options, metaload, say):
    """Tables of rates and of latencies; all subjects must be mounted."""
    files = 1000 if options.quick else 6000
    reps = options.reps or (3 if options.quick else 5)
    rate, p50 = Samples("per second"), Samples("us, median")
    for clients in (1, 4):
        say(f"meta: {clients} client{'s' * (clients > 1)}")
        for _, subject in interleaved(found, reps):
            result = _load(metaload, clients, files, subject.directories())
            for key, what in WHAT.items():
                row = f"{what}; {clients} client{'s' * (clients > 1)}"
                rate.add(row, subject.name, result[key]["per_s"])
                if key != "readdir":
                    p50.add(row, subject.name, result[key]["p50_us"])
    share = _one_directory(found, files, reps, metaload, say)
    mixed, p99 = _mixed(found, options, reps, metaload, say)
    text = "\n\n".join([
        rate.markdown("operation", "Rates"), p50.markdown("operation", "Latency"),
        share.markdown("operation", "One directory for all"), mixed.markdown("operation", "Mixed"),
        p99.markdown("operation", "Mixed, latency"),
    ])
    return text, {"rates": rate.as_json(), "latency": p50.as_json(), "one directory": share.as_json(),
                  "mixed": mixed.as_json(), "mixed latency": p99.as_json()}
