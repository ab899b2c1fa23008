"""GPU memory with a stand-in for the driver (fake_cuda.c): what it's asked, and transfers without the fast path.

The tests need the stand-in from the start of their process, so one test runs the others in a process with it.
"""

import ctypes
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import kvfs
from kvfs import _cuda

FAKE = "KVFS_TEST_FAKE_CUDA"
HERE = pathlib.Path(__file__).resolve().parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
MOUNT = os.environ.get("KVFS_TEST_MOUNT")


@unittest.skipIf(FAKE in os.environ, "this is the process with the stand-in")
@unittest.skipUnless(COMPILER, "there is no C compiler")
class InAProcessOfItsOwn(unittest.TestCase):
    def test_with_the_stand_in(self) -> None:
        with tempfile.TemporaryDirectory() as work:
            library = os.path.join(work, "libcuda.so.1")
            source = str(HERE / "fake_cuda.c")
            subprocess.run(
                [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True
            )
            package = str(pathlib.Path(kvfs.__file__).resolve().parents[1])
            env = {**os.environ, FAKE: library, "LD_LIBRARY_PATH": work, "PYTHONPATH": package}
            program = [sys.executable, "-B", "-m", "unittest", "test_cuda"]
            out = subprocess.run(program, cwd=HERE, env=env, capture_output=True, text=True)
            self.assertEqual(out.returncode, 0, out.stderr)


@unittest.skipUnless(FAKE in os.environ, "runs in a process of its own")
class TheDriver(unittest.TestCase):
    def setUp(self) -> None:
        self.fake = ctypes.CDLL(os.environ[FAKE])
        self.fake.fake_block.restype = ctypes.c_void_p
        self.block = self.fake.fake_block()
        self.legacy(1)
        self.directory = tempfile.mkdtemp(prefix="python-", dir=MOUNT)
        self.addCleanup(shutil.rmtree, self.directory)
        self.mount = kvfs.Mount(self.directory)
        self.addCleanup(self.mount.close)
        # Whatever was pushed was popped, on every path.
        self.addCleanup(lambda: self.assertEqual(self.fake.fake_depth(), 0))

    def legacy(self, value: int) -> None:
        ctypes.c_int.in_dll(self.fake, "fake_legacy").value = value

    def synchronized(self) -> int:
        return ctypes.c_int.in_dll(self.fake, "fake_synchronized").value

    def array(self, offset: int, size: int) -> object:
        interface = {"shape": (size,), "typestr": "|u1", "data": (self.block + offset, False), "version": 3}
        return type("Array", (), {"__cuda_array_interface__": interface})()

    def test_what_is_exported(self) -> None:
        export = _cuda.driver().export(self.block + 4096, 8192)
        self.assertEqual(export.uuid, bytes(15) + b"\x0b")
        self.assertEqual((export.offset, export.alloc_size, export.fd), (4096, 4 << 20, -1))
        self.assertEqual(export.handle, b"\7" + bytes(62) + b"\t")
        with self.assertRaises(ValueError):
            _cuda.driver().export(self.block + (4 << 20) - 10, 11)
        with self.assertRaises(kvfs.CudaError) as caught:
            _cuda.driver().export(4096, 1)
        self.assertEqual((caught.exception.function, caught.exception.code), ("cuPointerGetAttribute", 1))

    def test_memory_without_a_legacy_handle(self) -> None:
        self.legacy(0)
        export = _cuda.driver().export(self.block + 1, 1)
        self.addCleanup(os.close, export.fd)
        self.assertEqual((export.handle, export.offset), (None, 1))
        self.assertFalse(os.get_inheritable(export.fd))

    def test_opened_handles(self) -> None:
        cuda = _cuda.driver()
        self.assertEqual(cuda.ordinal_of(bytes(15) + b"\x0b"), 1)
        with self.assertRaises(LookupError):
            cuda.ordinal_of(bytes(16))
        self.assertEqual(cuda.open_handle(b"\7" + bytes(62) + b"\t", 1), self.block)
        cuda.close_handle(self.block, 1)
        with self.assertRaises(kvfs.CudaError):
            cuda.open_handle(bytes(64), 1)

    def test_transfers_through_host_memory(self) -> None:
        """Of memory that isn't registered: the same on a mount and elsewhere."""
        data = os.urandom(3 << 20)
        ctypes.memmove(self.block + 512, data, len(data))
        with self.mount.open("f", os.O_RDWR | os.O_CREAT) as file:
            self.assertEqual(file.write(self.array(512, len(data))), len(data))
            self.assertEqual(self.synchronized(), 1)
            file.write(self.array(512, 4), stream=77)
            self.assertEqual(self.synchronized(), 77)
            ctypes.memset(self.block, 0xA5, 4 << 20)
            self.assertEqual(file.read(self.array(0, len(data) + 100), file_offset=1), len(data) - 1)
        self.assertEqual(ctypes.string_at(self.block, len(data) - 1), data[1:])
        self.assertEqual(ctypes.string_at(self.block + len(data) - 1, 8), b"\xa5" * 8)

    def test_registering(self) -> None:
        """Without the fast path nothing is done; the mount refuses what no GPU of the daemon's is behind."""
        if not self.mount.direct:
            self.mount.register(self.array(0, 4096)).release()
            with self.assertRaises(kvfs.Error):
                self.mount.daemon_alloc(bytes(16), 4096)
            return
        for legacy in (1, 0):
            self.legacy(legacy)
            before = len(os.listdir("/proc/self/fd"))
            with self.assertRaises(kvfs.Error) as caught:
                self.mount.register(self.array(0, 4096))
            self.assertNotIn(caught.exception.errno, (errno.EINVAL, errno.ENOTTY, errno.EFAULT))
            self.assertEqual(len(os.listdir("/proc/self/fd")), before)


if __name__ == "__main__":
    unittest.main()
