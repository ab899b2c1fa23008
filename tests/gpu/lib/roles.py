"""What `run` does in processes of their own: each prints what it found out as one line of JSON."""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cuda import Cuda
from cufile import Cufile
from fastpath import CUDA_IPC, CUDA_VMM_FD, DAEMON_ALLOC, READ, WRITE, Mount

MIB = 1 << 20
PIECE = 16 * MIB
THREADS = 4


def run(name, args):
    try:
        result = globals()["role_" + name](**args)
    except Exception as e:  # The report is to hold it, whatever it is.
        result = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(result), flush=True)
    # Without the libraries' own farewell, which may hang.
    os._exit(0)


def child(role, args, limit=300, fds=()):
    """Runs a role in a process of its own: what it returned, or {"error": ...}. One that can't even be killed is
    left behind."""
    command = [sys.executable, sys.argv[0], "--role", role, json.dumps(args)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=fds
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            return {"error": f"it took longer than {limit} s, and can't be killed"}
        return {"error": f"it took longer than {limit} s"}
    try:
        return json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"exit status {process.returncode}: {err.strip()[-2000:]}"}


def pattern(seed, size):
    block = random.Random(seed).randbytes(4 * MIB + 4096)
    return (block * (size // len(block) + 1))[:size]


def rate(size, work):
    """GB/s of moving `size` bytes by THREADS threads; each gets its own pieces."""
    offsets = list(range(0, size - PIECE + 1, PIECE)) or [0]
    errors = []

    def lane(n):
        try:
            for at in offsets[n::THREADS]:
                work(n, at, min(PIECE, size))
        except Exception as e:
            errors.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=lane, args=(n,)) for n in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors:
        raise RuntimeError(errors[0])
    return round(len(offsets) * min(PIECE, size) / took / 1e9, 3)


def role_gpu():
    cuda = Cuda()
    return {"name": cuda.name, "uuid": cuda.uuid.hex(), "driver": cuda.driver(), "free": cuda.free_bytes()}


def role_free():
    return {"free": Cuda().free_bytes()}


def role_cufile():
    cuda = Cuda()
    cufile = Cufile()
    at = cuda.alloc(2 * MIB)
    cufile.register_memory(at, 2 * MIB)
    return {"opens": True}


def file_with(directory, data):
    fd, path = tempfile.mkstemp(prefix=".kvfs-gpu-", dir=directory)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return Path(path)


def role_alone(dir, way, mib):
    """The same transfers in one process, without kvfs."""
    cuda = Cuda()
    size = mib * MIB
    path = file_with(dir, pattern(1, size))
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        lanes = cuda.alloc(THREADS * PIECE)
        if way == "cufile":
            cufile = Cufile()
            cufile.register_memory(lanes, THREADS * PIECE)
            handle = cufile.register(fd)

            def read(n, at, length):
                cuda.bind()
                cufile.read(handle, lanes, length, at, n * PIECE)

            def write(n, at, length):
                cuda.bind()
                cufile.move("Write", handle, lanes, length, at, n * PIECE)

        else:
            hosts = [cuda.pinned(PIECE) for _ in range(THREADS)]

            def read(n, at, length):
                cuda.bind()
                os.preadv(fd, [memoryview(hosts[n][0])[:length]], at)
                cuda.to_device(lanes + n * PIECE, hosts[n][1], length)

            def write(n, at, length):
                os.pwritev(fd, [memoryview(hosts[n][0])[:length]], at)

        return {"read_gbs": rate(size, read), "write_gbs": rate(size, write), "threads": THREADS, "piece": PIECE}
    finally:
        path.unlink()


class Buffer:
    """GPU memory of this process, or of the daemon in its reach, registered with a mount."""

    def __init__(self, cuda, mount, kind, size):
        self.cuda, self.mount, self.size = cuda, mount, size
        if kind == "ipc":
            self.at = cuda.alloc(size)
            wanted = (CUDA_IPC, cuda.uuid, size, 0, size, cuda.export(self.at))
            self.id, self.path, self.why, _ = mount.register(*wanted)
        elif kind == "vmm":
            fd, self.at, whole = cuda.vmm(size)
            self.id, self.path, self.why, _ = mount.register(CUDA_VMM_FD, cuda.uuid, size, 0, whole, fd=fd)
        else:
            self.id, self.path, self.why, handle = mount.register(DAEMON_ALLOC, cuda.uuid, size)
            self.at = cuda.open(handle)


def probed(mount):
    limit = time.monotonic() + 20
    while mount.query()["why"] == 2 and time.monotonic() < limit:
        time.sleep(0.1)


def moved(mount, ops):
    results, path = mount.submit(ops)
    for op, result in zip(ops, results):
        if result != op[5]:
            raise RuntimeError(f"op {op} moved {result}")
    return path


def compare(cuda, mount, point, buffer):
    """Moves bytes at odd places, both ways, and compares them with plain reads; the paths they took."""
    paths = set()
    size = 5 * MIB + 1234
    data = pattern(2, size)
    (point / "plain").write_bytes(data)
    fd = os.open(point / "plain", os.O_RDONLY)
    token = mount.query(fd)["token"]
    for buf_off, file_off, length in [(0, 0, size), (0, 4096, MIB), (3, 1, 70_000), (4096, size - 99, 99), (9, 4095, 2)]:
        cuda.clear(buffer.at, 8 * MIB, 0xA5)
        paths.add(moved(mount, [(READ, token, buffer.id, buf_off, file_off, length)]))
        got = cuda.get(buffer.at, buf_off + length + 16)
        want = bytes([0xA5]) * buf_off + data[file_off : file_off + length] + bytes([0xA5]) * 16
        if got != want:
            raise RuntimeError(f"other bytes came: {length} at {file_off} to {buf_off}, by {paths}")
    os.close(fd)
    want = bytearray(8 * MIB)
    fd = os.open(point / "made", os.O_RDWR | os.O_CREAT)
    token = mount.query(fd)["token"]
    source = pattern(3, 8 * MIB)
    cuda.put(buffer.at, source)
    for buf_off, file_off, length in [(0, 0, 8 * MIB), (5, 4099, 100_000), (4096, 8192, MIB)]:
        paths.add(moved(mount, [(WRITE, token, buffer.id, buf_off, file_off, length)]))
        want[file_off : file_off + length] = source[buf_off : buf_off + length]
        if (point / "made").read_bytes() != want:
            raise RuntimeError(f"other bytes were written: {length} at {file_off} from {buf_off}, by {paths}")
    os.close(fd)
    return sorted(paths)


def role_engine(point, kind, mib, quick=False):
    cuda, point = Cuda(), Path(point)
    mount = Mount(point)
    probed(mount)
    buffer = Buffer(cuda, mount, kind, max(THREADS * PIECE, 8 * MIB))
    result = {"path": buffer.path, "why": buffer.why, "paths_taken": compare(cuda, mount, point, buffer)}
    result["bytes_right"] = True
    if quick:
        return result
    size = mib * MIB
    (point / "big").write_bytes(pattern(1, size))
    fd = os.open(point / "big", os.O_RDWR)
    os.fsync(fd)
    token = mount.query(fd)["token"]
    for name, opcode in (("read_gbs", READ), ("write_gbs", WRITE)):

        def work(n, at, length, opcode=opcode):
            moved(mount, [(opcode, token, buffer.id, n * PIECE, at, length)])

        result[name] = rate(size, work)
    return result | {"threads": THREADS, "piece": PIECE}


def role_loop(point, mib):
    """Transfers until it's killed, or fails."""
    cuda, point = Cuda(), Path(point)
    mount = Mount(point)
    probed(mount)
    buffer = Buffer(cuda, mount, "ipc", 4 * PIECE)
    (point / "loop").write_bytes(pattern(4, 4 * PIECE))
    fd = os.open(point / "loop", os.O_RDWR)
    token = mount.query(fd)["token"]
    print("ready", flush=True)
    while True:
        moved(mount, [(READ, token, buffer.id, n * PIECE, n * PIECE, PIECE) for n in range(4)])
        moved(mount, [(WRITE, token, buffer.id, 0, 0, PIECE)])


def role_latency(point):
    """Microseconds of one READ: the median of 50, of the large ones of 10."""
    cuda, point = Cuda(), Path(point)
    mount = Mount(point)
    (point / "latency").write_bytes(pattern(5, PIECE))
    fd = os.open(point / "latency", os.O_RDONLY)
    os.fsync(fd)
    token = mount.query(fd)["token"]
    result = {}
    for kind in ("ipc", "own"):
        buffer = Buffer(cuda, mount, kind, PIECE)
        for length in (4096, 65536, MIB, PIECE):
            times = []
            for _ in range(50 if length < MIB else 10):
                began = time.perf_counter()
                moved(mount, [(READ, token, buffer.id, 0, 0, length)])
                times.append(time.perf_counter() - began)
            result[f"{buffer.path} {length}"] = round(sorted(times)[len(times) // 2] * 1e6, 1)
    return result


def role_share(dir, mib):
    """Shares memory with another process that tries cuFile on it; by handle, and by descriptor; and is killed
    in the middle of that."""
    cuda, size = Cuda(), mib * MIB
    path = file_with(dir, pattern(6, size))
    result = {}
    try:
        at = cuda.alloc(size)
        shared = {"path": str(path), "size": size, "handle": cuda.export(at).hex()}
        result["ipc"] = child("imported", shared, 120)
        if "error" not in result["ipc"]:
            result["ipc"]["seen_by_owner"] = cuda.get(at, 4096) == pattern(6, 4096)
        fd, _, whole = cuda.vmm(size)
        shared = {"path": str(path), "size": whole, "fd": fd, "length": size}
        result["vmm"] = child("imported", shared, 120, [fd])
        # What the importer says, which goes on when its parent, the owner, has died.
        result["owner_killed"] = child("owner", {"path": str(path), "size": size}, 120)
        return result
    finally:
        path.unlink()


def role_imported(path, size, handle=None, fd=-1, length=None, seconds=0):
    """What cuFile does with memory of another process: registered, unregistered, and by a ring of our own."""
    cuda = Cuda()
    length = length or size
    at = cuda.open(bytes.fromhex(handle)) if handle else cuda.import_fd(fd, size)
    cufile = Cufile()
    file = cufile.register(os.open(path, os.O_RDWR | os.O_DIRECT))
    ring = cuda.alloc(THREADS * PIECE)
    cufile.register_memory(ring, THREADS * PIECE)

    def straight(n, off, piece):
        cuda.bind()
        cufile.read(file, at, piece, off, off)

    def by_ring(n, off, piece):
        cuda.bind()
        cufile.read(file, ring, piece, off, n * PIECE)
        cuda.within(at + off, ring + n * PIECE, piece)

    def tried(work):
        try:
            cuda.clear(at, length)
            speed = rate(length, work)
            return {"gbs": speed, "bytes_right": cuda.get(at, 4096) == pattern(6, 4096)}
        except Exception as e:
            return {"error": str(e)}

    result = {"ring": tried(by_ring), "unregistered": tried(straight)}
    try:
        cufile.register_memory(at, size)
        result["registered"] = tried(straight)
        cufile.deregister_memory(at)
    except Exception as e:
        result["registered"] = {"error": str(e)}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        result["afterwards"] = tried(by_ring)
    return result


def role_owner(path, size):
    """Starts the one that imports, and dies of SIGKILL while that reads into our memory."""
    cuda = Cuda()
    args = {"path": path, "size": size, "handle": cuda.export(cuda.alloc(size)).hex(), "seconds": 3}
    subprocess.Popen([sys.executable, sys.argv[0], "--role", "imported", json.dumps(args)])
    time.sleep(2.5)
    os.kill(os.getpid(), 9)
