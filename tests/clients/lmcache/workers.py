"""The worker processes of serving engines, as the test's runner sees them."""

import contextlib
import json
import selectors
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).resolve().parent / "worker.py"
START_PATIENCE = 180  # importing torch and LMCache takes seconds, many on a busy machine
PATIENCE = 240


class WorkerFailed(Exception):
    """A worker answered with an error, ended, or did not answer in time."""


@dataclass
class Seat:
    """Who a worker is: its rank in an engine of `world` ranks, its process title, its GPU."""

    rank: int
    world: int
    title: str
    gpu: int


class Workers:
    """One process for each seat, all given each command at the same moment."""

    def __init__(self, environment, seats, log):
        self.seats, self.processes = seats, []
        for number, seat in enumerate(seats):
            self.processes.append(subprocess.Popen(
                [environment.python, WORKER, str(seat.rank), str(seat.world), str(number), seat.title],
                cwd="/", env=environment.variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log))
        try:
            self._answers(START_PATIENCE)
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def __call__(self, what, **arguments):
        """Every worker's answer to one command, in the order of the seats."""
        line = json.dumps({"do": what, **arguments}).encode() + b"\n"
        for seat, process in enumerate(self.processes):
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                raise WorkerFailed(f"worker {seat} has ended with status {process.wait()}") from None
        return self._answers(PATIENCE)

    def _answers(self, patience):
        deadline = time.monotonic() + patience
        answers = {}
        with selectors.DefaultSelector() as selector:
            for seat, process in enumerate(self.processes):
                selector.register(process.stdout, selectors.EVENT_READ, seat)
            while len(answers) < len(self.processes):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    late = sorted(set(range(len(self.processes))) - set(answers))
                    raise WorkerFailed(f"no answer within {patience} s from workers {late}")
                for key, _ in ready:
                    line = key.fileobj.readline()
                    if not line:
                        raise WorkerFailed(f"worker {key.data} ended without an answer")
                    answers[key.data] = json.loads(line)
                    selector.unregister(key.fileobj)
        for seat, answer in answers.items():
            if "error" in answer:
                raise WorkerFailed(f"worker {seat}: {answer['error']}")
        return [answers[seat] for seat in range(len(self.processes))]

    def stop(self):
        """Ends the processes, whatever state they are in."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            # A process that hangs in a dead mount ends when the mount is torn down.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
