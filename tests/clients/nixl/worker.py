"""One process that moves chunks between its memory and files by NIXL's POSIX backend.

    worker.py store|load DIRECTORY WAY QUEUE RANK WORLD CHUNKS BYTES

WAY is the prefix of NIXL's path mode (`rw,create,direct`), or `descriptor` for files that this process opens itself.
QUEUE is a parameter of the backend (`use_uring`), or `default`. Prints one JSON object.
"""

import contextlib
import ctypes
import json
import mmap
import os
import random
import subprocess
import sys

import setproctitle
from nixl._api import nixl_agent, nixl_agent_config

POISON = b"\xa5"


def content(rank, chunk, nbytes):
    """Bytes that no other rank and chunk has."""
    return random.Random(f"{rank}/{chunk}").randbytes(nbytes)


class Agent:
    """A NIXL agent with one registered piece of memory, a slot of `nbytes` for each chunk."""

    def __init__(self, queue, chunks, nbytes):
        self.agent = nixl_agent(f"worker-{os.getpid()}", nixl_agent_config(backends=[]))
        self.agent.create_backend("POSIX", {} if queue == "default" else {queue: "true"})
        self.nbytes = nbytes
        self.memory = mmap.mmap(-1, chunks * nbytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.agent.register_memory([(self.address, chunks * nbytes, 0, "")], "DRAM")

    @contextlib.contextmanager
    def registered(self, paths, way, create):
        """Descriptors of all of a file, for each; NIXL or this process has them open meanwhile."""
        descriptors = []
        if way == "descriptor":
            flags = os.O_DIRECT | (os.O_WRONLY | os.O_CREAT if create else os.O_RDONLY)
            descriptors = [os.open(path, flags, 0o644) for path in paths]
            items = [(0, self.nbytes, fd, "") for fd in descriptors]
        else:
            if not create:
                way = ",".join(["ro", *(word for word in way.split(",") if word == "direct")])
            items = [(0, self.nbytes, 1 + i, f"{way}:{path}") for i, path in enumerate(paths)]
        files = self.agent.register_memory(items, "FILE")
        yield files.trim()
        self.agent.deregister_memory(files)
        for fd in descriptors:
            os.close(fd)

    def transfer(self, operation, files):
        slots = [(self.address + i * self.nbytes, self.nbytes, 0) for i in range(files.descCount())]
        handle = self.agent.initialize_xfer(operation, self.agent.get_xfer_descs(slots, "DRAM"), files, self.agent.name)
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        self.agent.release_xfer_handle(handle)
        return state

    def there(self, paths):
        """How many of them NIXL's queryMem finds, with the size they must have."""
        answers = self.agent.query_memory([(0, 0, 0, path) for path in paths], "POSIX", mem_type="FILE")
        return sum(answer is not None and int(answer["size"]) == self.nbytes for answer in answers)


def seen_by_others(paths):
    return sum(subprocess.run(["test", "-s", path]).returncode == 0 for path in paths)


def main():
    what, directory, way, queue = sys.argv[1:5]
    rank, world, chunks, nbytes = map(int, sys.argv[5:])
    setproctitle.setproctitle(f"VLLM::Worker_TP{rank}")
    paths = [f"{directory}/chunk-{chunk}_{rank}_{world}" for chunk in range(chunks)]
    agent = Agent(queue, chunks, nbytes)
    answer = {"before": agent.there(paths)}
    if what == "store":
        for chunk in range(chunks):
            agent.memory[chunk * nbytes:(chunk + 1) * nbytes] = content(rank, chunk, nbytes)
        with agent.registered(paths, way, create=True) as files:
            answer["state"] = agent.transfer("WRITE", files)
            answer["seen while open"] = seen_by_others(paths)
            answer["seen by its writer"] = agent.there(paths)
        answer["seen when closed"] = seen_by_others(paths)
    else:
        agent.memory[:] = POISON * len(agent.memory)
        with agent.registered(paths, way, create=False) as files:
            answer["state"] = agent.transfer("READ", files)
        answer["equal"] = sum(agent.memory[chunk * nbytes:(chunk + 1) * nbytes] == content(rank, chunk, nbytes)
                              for chunk in range(chunks))
    print(json.dumps(answer), flush=True)


main()
