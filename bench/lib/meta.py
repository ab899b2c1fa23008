"""Operations on names per second, by a load generator in C (metaload.c)."""

import json
import os

from lab import output
from report import Samples
from subjects import interleaved

WHAT = {
    "create": "create, write 64 KiB, close",
    "stat": "stat, asking the filesystem",
    "open_read": "open, read 64 KiB, close",
    "open_close": "open, close",
    "miss": "look for a name that is not there",
    "readdir": "readdir, names",
    "unlink": "unlink",
}


def measure(found, options, metaload, say):
    """Tables of rates and of median latencies; all subjects must be mounted."""
    files = 1000 if options.quick else 6000
    reps = options.reps or (3 if options.quick else 5)
    rate, p50 = Samples("per second"), Samples("us, median")
    for clients in (1, 4):
        say(f"meta: {clients} client{'s' * (clients > 1)}")
        for _, subject in interleaved(found, reps):
            result = json.loads(output(metaload, "meta", clients, files, 65536, *subject.directories()))
            os.sync()
            for key, what in WHAT.items():
                row = f"{what}; {clients} client{'s' * (clients > 1)}"
                rate.add(row, subject.name, result[key]["per_s"])
                if key != "readdir":
                    p50.add(row, subject.name, result[key]["p50_us"])
    text = "\n\n".join([rate.markdown("operation", "Rates"), p50.markdown("operation", "Latency")])
    return text, {"rates": rate.as_json(), "latency": p50.as_json()}
