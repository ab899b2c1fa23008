"""The ioctl fast path beside plain reads and writes of the same files, and fio's io_uring without kvfs."""

import json
import os
import subprocess

from lab import output
from report import Samples
from subjects import Kvfs, Raw

DEPTH = 256


def _fio(directory):
    """Random direct reads of 4 KiB by io_uring, `DEPTH` at a time: bytes per second."""
    file = directory / "fio"
    text = output("fio", "--name=depth", f"--filename={file}", "--rw=randread", "--bs=4k", f"--iodepth={DEPTH}",
                  "--ioengine=io_uring", "--direct=1", "--size=256m", "--runtime=3", "--time_based", "--norandommap",
                  "--output-format=json")
    os.unlink(file)
    return json.loads(text)["jobs"][0]["read"]["bw_bytes"]


def _row(found):
    """What one line of `kvfs bench direct --json` is about."""
    if not found["size"]:
        return found["what"]
    size = found["size"] >> 10
    unit = f"{size >> 10} MiB" if size >= 1024 else f"{size} KiB"
    return f"{found['what']} {unit}" if found["ops"] == 1 else f"{found['what']} {found['ops']} x {unit}"


def measure(drives, binary, options, say):
    """Each repetition measures all ways in turns, inside `kvfs bench direct`."""
    reps = options.reps or (1 if options.quick else 5)
    calls, rates = Samples("us, median of a call"), Samples("MiB/s")
    raw = Raw(drives, "direct-raw").backings[0]
    with Kvfs(drives, "direct-pt", binary, "auto") as through, Kvfs(drives, "direct-np", binary, "off") as daemon:
        ways = [f"--compare=raw={raw}", f"--compare=passthrough off={daemon.directories()[0]}"]
        if options.quick:
            ways += ["--rounds=20", "--file-size=64M"]
        for rep in range(reps):
            say(f"direct: repetition {rep + 1} of {reps}")
            command = [binary, "bench", "direct", through.directories()[0], "--json", *ways]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            for found in map(json.loads, lines):
                row, way = _row(found), found["way"]
                if not found["size"]:
                    calls.add(found["what"], way, found["p50_us"])
                    continue
                rates.add(row, way.removeprefix("io_uring, "), found["rate"] / 2**20)
            rates.add(f"batch read {DEPTH} x 4 KiB", "fio, io_uring, raw", _fio(raw) / 2**20)
    text = "\n\n".join([
        calls.markdown("call", "What a call costs that moves nothing"),
        rates.markdown("what", "Transfers; plain ones are pread, pwrite and, for batches, io_uring, all with O_DIRECT"),
    ])
    return text, {"calls": calls.as_json(), "rates": rates.as_json()}
