"""What the package promises, on an ordinary directory and, where KVFS_TEST_MOUNT names one, on a kvfs mount.

KVFS_TEST_KVFS is the program of a mount whose daemon may be killed, again and again.
KVFS_TEST_LOCATE says that the mount was made with --allow-locate; KVFS_TEST_PLAIN names a directory to be
used as the ordinary one.
"""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from typing import Optional

import kvfs
from kvfs import _cuda

MOUNT = os.environ.get("KVFS_TEST_MOUNT")
KVFS = os.environ.get("KVFS_TEST_KVFS")
MIB = 1 << 20


def content(seed: int, size: int) -> bytes:
    """Bytes that differ at every offset."""
    return random.Random(seed).randbytes(size)


class Anywhere:
    """The tests that hold with and without the fast path."""

    base: Optional[str] = None
    direct = False

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="python-", dir=self.base)
        self.addCleanup(shutil.rmtree, self.directory)
        self.mount = kvfs.Mount(self.directory)
        self.addCleanup(self.mount.close)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def put(self, name: str, data: bytes) -> None:
        with open(self.path(name), "wb") as file:
            file.write(data)

    def get(self, name: str) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def create(self, name: str) -> kvfs.File:
        file = self.mount.open(name, os.O_RDWR | os.O_CREAT)
        self.addCleanup(file.close)
        return file

    def buffer(self, size: int) -> kvfs.HostBuffer:
        buffer = kvfs.HostBuffer(size)
        self.mount.register(buffer)
        return buffer

    def test_it_knows_what_it_is(self) -> None:
        self.assertEqual(self.mount.direct, self.direct)
        self.assertEqual(self.mount.why_not is None, self.direct)
        if self.direct:
            self.assertEqual(self.mount.facts.seen_tgid, os.getpid())
            self.assertTrue(self.mount.has("batch"))
        else:
            with self.assertRaises(OSError):
                kvfs.Mount(self.directory, require=True)
            self.assertFalse(self.mount.has("batch"))

    def test_host_buffer(self) -> None:
        buffer = kvfs.HostBuffer(5000)
        self.assertEqual(len(buffer), 8192)
        memoryview(buffer)[8190:] = b"ab"
        self.assertEqual(buffer[8190:], b"ab")
        with self.assertRaises(OSError):
            os.ftruncate(buffer.memfd, 0)
        buffer.close()
        buffer.close()
        with self.assertRaises(ValueError):
            kvfs.HostBuffer(0)

    def test_registered_memory(self) -> None:
        data, buffer = content(1, 2 * MIB + 1236), self.buffer(4 * MIB)
        view = memoryview(buffer)
        view[4096 : 4096 + len(data)] = data
        file = self.create("f")
        self.assertEqual(file.write(buffer, buffer_offset=4096, length=len(data)), len(data))
        self.assertEqual(self.get("f"), data)
        for offset, length in [(0, len(data)), (777, 12345), (len(data) - 5, 100), (len(data), 9), (0, 0)]:
            view[:] = b"\xa5" * len(buffer)
            want = data[offset : offset + length]
            # A slice of registered memory is registered memory.
            self.assertEqual(file.read(view[100 : 100 + length], file_offset=offset), len(want))
            self.assertEqual(view[100 : 100 + len(want)], want)
            self.assertEqual(view[100 + len(want) : 108 + len(want)], b"\xa5" * 8)
            self.assertEqual(view[92:100], b"\xa5" * 8)

    def test_any_other_memory(self) -> None:
        data = content(2, MIB + 3)
        file = self.create("f")
        self.assertEqual(file.write(data), len(data))
        into = bytearray(len(data) + 10)
        self.assertEqual(file.read(into), len(data))
        self.assertEqual(into[:-10], data)
        self.assertEqual(file.read(memoryview(into)[5:15], file_offset=1), 10)
        self.assertEqual(into[5:15], data[1:11])
        with self.assertRaises(TypeError):
            file.read(b"constant")
        with self.assertRaises(TypeError):
            file.read(object())
        with self.assertRaises(TypeError):
            self.mount.register(into)
        with self.assertRaises(ValueError):
            file.read(into, buffer_offset=1, length=len(into))

    def test_a_batch(self) -> None:
        count, size = 300, 8192
        data, buffer = content(3, count * size), self.buffer(count * size)
        memoryview(buffer)[:] = data
        files = [self.create(f"f{i}") for i in range(count)]
        batch = kvfs.Batch(self.mount)
        for i, file in enumerate(files):
            batch.write(file, buffer, buffer_offset=i * size, length=size)
        self.assertEqual(len(batch), count)
        self.assertEqual([done.check() for done in batch.submit()], [size] * count)
        self.assertEqual(len(batch), 0)
        self.assertEqual(batch.submit(), [])
        self.assertEqual(b"".join(self.get(f"f{i}") for i in range(count)), data)

        memoryview(buffer)[:] = bytes(count * size)
        other = bytearray(size)
        with self.mount.open("f7", os.O_WRONLY) as write_only:
            for i, file in enumerate(files):
                into = memoryview(buffer)[i * size : (i + 1) * size] if i != 8 else other
                batch.read(write_only if i == 7 else file, into)
            done = batch.submit()
        self.assertEqual(done[7].error.errno, errno.EBADF)
        with self.assertRaises(OSError):
            done[7].check()
        self.assertEqual([d.nbytes for d in done], [0 if i == 7 else size for i in range(count)])
        for i in range(count):
            got = other if i == 8 else buffer[i * size : (i + 1) * size]
            self.assertEqual(got, bytes(size) if i == 7 else data[i * size : (i + 1) * size], i)

    def test_longer_than_a_call(self) -> None:
        """With small limits, so that no gigabytes have to be moved."""
        if self.mount.facts is not None:
            self.mount.facts = self.mount.facts._replace(max_io_bytes=3 * MIB // 2, max_batch_ops=2)
        data, buffer = content(4, 5 * MIB + 17), self.buffer(6 * MIB)
        memoryview(buffer)[: len(data)] = data
        file = self.create("f")
        self.assertEqual(file.write(buffer, length=len(data)), len(data))
        self.assertEqual(self.get("f"), data)
        memoryview(buffer)[:] = bytes(6 * MIB)
        self.assertEqual(file.read(buffer), len(data))
        self.assertEqual(buffer[:], data + bytes(6 * MIB - len(data)))

    def test_prefix(self) -> None:
        os.mkdir(self.path("dir"))
        names = [f"{i:0100}" for i in range(200)]
        for name in names:
            self.put(f"dir/{name}", b"")
        found = self.mount.lookup_prefix
        self.assertEqual(found(names, directory="dir"), 200)
        self.assertEqual(found((f"dir/{name}" for name in names), readahead=True), 200)
        os.unlink(self.path(f"dir/{names[150]}"))
        self.assertEqual(found(names, directory="dir"), 150)
        self.assertEqual(found(["absent", *names], directory="dir"), 0)
        self.assertEqual(found([]), 0)

    def test_errors(self) -> None:
        with self.assertRaises(FileNotFoundError):
            self.mount.open("absent")
        with self.assertRaises(FileNotFoundError):
            kvfs.Mount(self.path("absent"))
        file = self.create("f")
        file.close()
        with self.assertRaises(OSError):
            file.read(bytearray(1))

    def test_a_forked_child(self) -> None:
        """A child has its parent's memory but not its registrations: it makes its own."""
        buffer = self.buffer(4096)
        self.put("f", b"x" * 4096)
        with self.mount.open("f") as file:
            self.assertEqual(file.read(buffer), 4096)
        child = os.fork()
        if child == 0:
            try:
                memoryview(buffer)[:] = bytes(4096)
                with self.mount.open("f") as file:
                    os._exit(0 if file.read(buffer) == 4096 and buffer[:] == b"x" * 4096 else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        with self.mount.open("f") as file:
            self.assertEqual(file.read(buffer), 4096)


class OnAnOrdinaryDirectory(Anywhere, unittest.TestCase):
    base = os.environ.get("KVFS_TEST_PLAIN")

    def test_locate(self) -> None:
        self.put("f", b"123")
        located = self.mount.locate("f")
        self.assertEqual((os.path.realpath(self.path("f")), 3), (located.path, located.size))

    def test_no_driver_is_loaded(self) -> None:
        """Importing the package and using host memory must not touch a GPU."""
        self.test_registered_memory()
        self.assertIsNone(_cuda._driver)


@unittest.skipUnless(MOUNT, "KVFS_TEST_MOUNT isn't set")
class OnAMount(Anywhere, unittest.TestCase):
    base, direct = MOUNT, True

    def test_locate(self) -> None:
        self.put("f", b"123")
        if "KVFS_TEST_LOCATE" not in os.environ:
            with self.assertRaises(PermissionError):
                self.mount.locate("f")
            return
        located = self.mount.locate("f")
        stat = os.stat(located.path)
        device = (os.major(stat.st_dev), os.minor(stat.st_dev))
        self.assertEqual((located.device, located.inode, located.size), (device, stat.st_ino, 3))

    def test_directions(self) -> None:
        buffer, file = kvfs.HostBuffer(4096), self.create("f")
        with self.mount.register(buffer, access=kvfs.READ):
            with self.assertRaises(kvfs.Error) as caught:
                file.write(buffer)
            self.assertEqual(caught.exception.errno, errno.EACCES)
            self.assertEqual(file.read(buffer), 0)
        # Released, it's memory like any other.
        self.assertEqual(file.write(buffer), 4096)

    def test_a_buffer_of_another_session_is_registered_anew(self) -> None:
        buffer = kvfs.HostBuffer(4096)
        registered = self.mount.register(buffer)
        first = registered.id()
        registered._made_for = (registered._made_for[0] ^ 1, registered._made_for[1])
        self.put("f", b"y" * 4096)
        with self.mount.open("f") as file:
            self.assertEqual(file.read(buffer), 4096)
        self.assertNotEqual(registered.id(), first)

    def test_a_closed_buffer_is_forgotten(self) -> None:
        """Other memory may have its address, and must not be taken for it."""
        buffer = kvfs.HostBuffer(MIB)
        registered = self.mount.register(buffer)
        address = registered.address
        self.assertIsNotNone(self.mount._regions.find(address, MIB))
        buffer.close()
        self.assertIsNone(self.mount._regions.find(address, MIB))

    def test_what_can_not_be_registered_anew_is_still_memory(self) -> None:
        buffer = kvfs.HostBuffer(MIB)
        registered = self.mount.register(buffer)
        registered._made_for = (0, 0)
        # As long as that is so no registration succeeds.
        memfd, buffer.memfd = buffer.memfd, -1
        self.put("f", b"z" * MIB)
        with self.mount.open("f") as file:
            self.assertEqual(file.read(buffer), MIB)
        buffer.memfd = memfd
        self.assertEqual(buffer[:], b"z" * MIB)

    def test_the_root_is_found(self) -> None:
        self.assertEqual(self.mount.root(), os.path.realpath(MOUNT))

    def test_gpu_memory_that_is_none(self) -> None:
        class Fake:
            __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (4096, False), "version": 3}

        try:
            _cuda.driver()
        except kvfs.CudaError as error:
            self.assertEqual(error.code, 0)
            with self.assertRaises(kvfs.CudaError):
                self.mount.register(Fake())
        else:
            self.skipTest("there is a GPU driver here")


@unittest.skipUnless(MOUNT and KVFS, "KVFS_TEST_MOUNT and KVFS_TEST_KVFS aren't set")
class OverACrash(OnAMount):
    """The same on a mount whose daemon is started again when it dies, and it dies often."""

    def setUp(self) -> None:
        super().setUp()
        self.ends = threading.Event()
        self.kills = 0
        killer = threading.Thread(target=self._kill)
        killer.start()
        self.addCleanup(killer.join)
        self.addCleanup(self.ends.set)

    def _status(self) -> dict:
        asked = subprocess.run([str(KVFS), "status", "--json", str(MOUNT)], capture_output=True, check=False)
        return json.loads(asked.stdout) if asked.returncode == 0 else {}

    def _kill(self) -> None:
        # One in ten lives long enough for a long call: else the same one is begun by each of them.
        lives = itertools.cycle(9 * [0.05] + [1.0])
        while not self.ends.wait(next(lives)):
            status = self._status()
            if status:
                os.kill(status["pid"], signal.SIGKILL)
                self.kills += 1

    def test_for_a_while(self) -> None:
        """Buffers and files that were there before any crash."""
        buffer, data = self.buffer(2 * MIB), content(7, MIB)
        view = memoryview(buffer)
        file = self.create("f")
        while self.kills < 10:
            view[:MIB] = data
            self.assertEqual(file.write(view[:MIB]), MIB)
            view[MIB:] = bytes(MIB)
            self.assertEqual(file.read(view[MIB:]), MIB)
            self.assertTrue(view[MIB:] == data)
            self.mount.register(other := kvfs.HostBuffer(4096)).release()
            other.close()


class GpuRegions(unittest.TestCase):
    """What counts as memory of a GPU: told by its interface alone."""

    def interface(self, **fields: object) -> object:
        given = {"shape": (3, 4), "typestr": "<f2", "data": (0x7000, False), "version": 3, **fields}
        return type("Array", (), {"__cuda_array_interface__": given})()

    def test_arrays(self) -> None:
        self.assertEqual(_cuda.region_of(self.interface()), (0x7000, 24))
        self.assertEqual(_cuda.region_of(self.interface(strides=(8, 2))), (0x7000, 24))
        self.assertEqual(_cuda.region_of(self.interface(shape=())), (0x7000, 2))
        with self.assertRaises(ValueError):
            _cuda.region_of(self.interface(strides=(16, 2)))
        self.assertIsNone(_cuda.region_of(bytearray(4)))


class TheWheel(unittest.TestCase):
    def test_the_package_imports_nothing_else(self) -> None:
        """No dependency: only the standard library is loaded."""
        program = (
            "import sys, kvfs; names = {name.partition('.')[0] for name in sys.modules};"
            "print(names - sys.stdlib_module_names - {'kvfs', '__main__'})"
        )
        if sys.version_info < (3, 10):
            self.skipTest("needs the list of standard modules")
        out = subprocess.run(
            [sys.executable, "-S", "-c", program], check=True, capture_output=True, text=True
        )
        self.assertEqual(out.stdout.strip(), "set()")


if __name__ == "__main__":
    unittest.main()
