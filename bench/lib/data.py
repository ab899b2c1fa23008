"""Whole files written and read as LMCache does: one system call moves one file, which is opened and closed for it."""

import json
import subprocess

from lab import cpu_seconds, drop_caches, output
from report import FAILED, Samples
from subjects import interleaved

MIB = 1 << 20
FILES, JOBS = (1, 8, 32), (1, 4, 8)


class Fio:
    """fio on one subject: `jobs` clients, each with its own files of one size.

    With one file open at a time and a block as large as a file, fio opens a file, moves it by one call and closes
    it, one after the other; `runtime` has all of that, the latency the call alone.
    """

    def __init__(self, subject, file_mib, jobs, direct, total_mib):
        self.subject, self.jobs = subject, jobs
        files = max(1, total_mib // file_mib // jobs)
        self.bytes = files * jobs * file_mib * MIB
        self.arguments = [
            "fio", "--name=bench", "--output-format=json", "--group_reporting", "--ioengine=psync",
            f"--directory={':'.join(map(str, subject.directories()))}",
            # The job's number is the rank in the name, as in LMCache's own names.
            "--filename_format=meta-llama-Llama-3.1-8B-Instruct@8@$jobnum@c0ffee$filenum@bfloat16.pt",
            f"--numjobs={jobs}", f"--nrfiles={files}", "--openfiles=1",
            "--file_service_type=sequential", f"--filesize={file_mib}m", f"--bs={file_mib}m",
            f"--direct={int(direct)}", "--invalidate=0", "--fallocate=none",
        ]

    def run(self, rw):
        """{rate, p50, cpu}, or a string that says why there is none."""
        create = ["--create_on_open=1"] if rw == "write" else []
        daemon = cpu_seconds(self.subject.pid)
        done = subprocess.run([*self.arguments, f"--rw={rw}", *create], capture_output=True, text=True)
        daemon = cpu_seconds(self.subject.pid) - daemon
        if done.returncode:
            return FAILED
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        way = job[rw]
        if way["io_bytes"] != self.bytes:
            return f"{FAILED}: {way['io_bytes']} of {self.bytes} bytes"
        client = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
        return {
            "MiB/s": way["io_bytes"] / MIB / (way["runtime"] / 1000),
            "p50 ms": way["clat_ns"]["percentile"]["50.000000"] / 1e6,
            "CPU ms/GiB": (client + daemon) * 1000 / (way["io_bytes"] / 2**30),
            "daemon ms/GiB": daemon * 1000 / (way["io_bytes"] / 2**30),
        }


def _one(subject, file_mib, jobs, direct, total, keep):
    """One repetition: written, read, read again, removed."""
    fio = Fio(subject, file_mib, jobs, direct, total)
    if not direct:
        # A virtual machine hands memory that lies free back to its host, and getting
        # it again takes longer than the write: so free some just before.
        fio.run("write")
        subject.clear()
    written = fio.run("write")
    keep("write", "", written)
    if isinstance(written, str):  # it may still be able to read
        subject.clear()
        Fio(subject, file_mib, jobs, False, total).run("write")
    drop_caches()
    if direct:
        keep("read", "", fio.run("read"))
    else:
        keep("read", ", cold", fio.run("read"))
        keep("read", ", cached", fio.run("read"))
    subject.clear()


def measure(found, drives, options, say):
    """Tables of rate and of CPU time; all subjects must be mounted."""
    each_drive = 192 if options.quick else min(1536, drives.gib * 448)
    reps = options.reps or (1 if options.quick else 3)
    rate, cpu, p50 = Samples("MiB/s"), Samples("ms of client and daemon per GiB"), Samples("ms for one file, median")
    daemon = Samples("ms per GiB", ratios=False)
    for file_mib in FILES:
        for direct in (True, False):
            for jobs in JOBS[:2] if options.quick else JOBS:
                mode = "O_DIRECT" if direct else "buffered"
                label = f"{file_mib} MiB {mode}, {jobs} job{'s' * (jobs > 1)}"
                say(f"data: {label}")
                # One job has one drive; more of them have more.
                total = each_drive * (1 if jobs == 1 else 2)
                for _, subject in interleaved(found, reps):
                    def keep(way, state, result):
                        row = f"{way} {label}{state}"
                        for samples, key in ((rate, "MiB/s"), (cpu, "CPU ms/GiB"), (p50, "p50 ms"),
                                             (daemon, "daemon ms/GiB")):
                            samples.add(row, subject.name, result if isinstance(result, str) else result[key])
                    _one(subject, file_mib, jobs, direct, total, keep)
    text = "\n\n".join([
        rate.markdown("whole files", "Throughput"),
        p50.markdown("whole files", "Latency"),
        cpu.markdown("whole files", "CPU time"),
        daemon.markdown("whole files", "Of that the daemon's"),
    ])
    tables = {"throughput": rate, "latency": p50, "cpu": cpu, "daemon's cpu": daemon}
    return text, {name: samples.as_json() for name, samples in tables.items()}


def fio_is_there():
    try:
        return bool(output("fio", "--version"))
    except OSError:
        return False
