#!/usr/bin/env python3
"""One client that moves whole files, each with one O_DIRECT call, several at a time: a child of spread.py.

    wholefiles.py '{"way": "write", "directories": [...], "name": "m@4@0@%016x@half.pt",
                    "size": BYTES, "in_flight": N, "keep": N}'
    wholefiles.py '{"way": "read", "groups": [[FILE, ...], ...], "order": "random", "size": BYTES, "in_flight": N}'

Says `ready`, begins at the first line of its standard input, ends its last files at the second, and prints
{"files": N}. A short call is a failure. File i is written into directory i modulo their number, under a name that no
file had before; of all that were written the last `keep` stay. What's read is a file of the next group ("turns") or of
any group ("random"), any file of it.
"""

import collections
import itertools
import json
import mmap
import os
import random
import sys
import threading


class Client:
    """What the threads share: the next file to move, and whether to go on."""

    def __init__(self, load):
        self.load, self.lock, self.stop = load, threading.Lock(), threading.Event()
        self.size, self.files, self.failure = load["size"], 0, None
        self.turns, self.written = itertools.count(), collections.deque()
        # One buffer for all: what is in the files doesn't matter here.
        self.buffer = mmap.mmap(-1, self.size)
        self.buffer.write(random.randbytes(1 << 20) * (self.size >> 20))

    def write(self):
        load = self.load
        with self.lock:
            directory = load["directories"][next(self.turns) % len(load["directories"])]
        path = os.path.join(directory, load["name"] % random.getrandbits(64))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o644)
        self._whole(os.write(fd, self.buffer), path)
        os.close(fd)
        with self.lock:
            self.written.append(path)
            old = self.written.popleft() if len(self.written) > load["keep"] else None
        if old:
            os.unlink(old)

    def read(self):
        groups = self.load["groups"]
        with self.lock:
            turn = next(self.turns) % len(groups)
        group = random.choice(groups) if self.load["order"] == "random" else groups[turn]
        path = random.choice(group)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._whole(os.readv(fd, [self.buffer]), path)
        os.close(fd)

    def _whole(self, count, path):
        if count != self.size:
            raise OSError(f"{path}: {count} of {self.size} bytes")

    def work(self):
        move = getattr(self, self.load["way"])
        try:
            while not self.stop.is_set():
                move()
                with self.lock:
                    self.files += 1
        except OSError as failure:
            self.failure = failure
            self.stop.set()

    def run(self):
        threads = [threading.Thread(target=self.work) for _ in range(self.load["in_flight"])]
        print("ready", flush=True)
        sys.stdin.readline()
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        self.stop.set()
        for thread in threads:
            thread.join()
        if self.failure:
            sys.exit(f"wholefiles: {self.failure}")
        print(json.dumps({"files": self.files}), flush=True)


if __name__ == "__main__":
    Client(json.loads(sys.argv[1])).run()
