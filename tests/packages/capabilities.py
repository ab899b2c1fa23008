#!/usr/bin/env python3
"""What each capability of kvfs@.service is for, tried on a mount that runs under it.

    capabilities.py MOUNT BACKING...

Runs as root. Prints the capabilities of which something is missing, each with what failed; nothing where all is there.
"""

import ctypes
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, "/opt")
import kvfs  # noqa: E402

mount, *backings = sys.argv[1:]
USER, GROUP = 1000, 2000
place = tempfile.mkdtemp(dir=mount)
os.chmod(place, 0o777)
status = json.loads(subprocess.check_output(["kvfs", "status", "--json", mount]))
daemon = f"/proc/{status['pid']}"


def at(name):
    return os.path.join(place, name)


def on_backing(name):
    relative = os.path.relpath(at(name), mount)
    return next(path for path in (os.path.join(b, relative) for b in backings) if os.path.lexists(path))


def write(path, data=b"data"):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def as_user(act, groups=()):
    """Has an ordinary user do something; whether it could."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(USER)
            os.setuid(USER)
            os.umask(0)
            act()
            os._exit(0)
        except OSError as e:
            print(f"    as a user: {e}", file=sys.stderr)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def status_line(name):
    with open(f"{daemon}/status") as lines:
        return next((line.split()[1] for line in lines if line.startswith(name + ":")), "0")


def chown():
    """root gives a file away"""
    write(at("given"))
    os.chown(at("given"), USER, GROUP)
    there = os.stat(on_backing("given"))
    return (there.st_uid, there.st_gid) == (USER, GROUP)


def dac_override():
    """a user's private directory and files, and root reads a file that nobody may"""

    def private():
        os.mkdir(at("private"), 0o700)
        write(at("private/file"))
        os.chmod(at("private/file"), 0o000)
        os.chmod(at("private/file"), 0o600)
        assert read(at("private/file")) == b"data"
        os.chmod(at("private/file"), 0o000)

    return as_user(private) and read(at("private/file")) == b"data"


def fowner():
    """a user changes the mode and times of an own file"""

    def change():
        write(at("own"))
        os.chmod(at("own"), 0o640)
        os.utime(at("own"), (1, 1))

    return as_user(change) and os.stat(on_backing("own")).st_mode & 0o777 == 0o640


def fsetid():
    """a user sets a set-group-id bit for a group that isn't the daemon's"""

    def shared():
        os.mkdir(at("shared"), 0o770)
        os.chown(at("shared"), -1, GROUP)
        os.chmod(at("shared"), 0o2770)

    return as_user(shared, [GROUP]) and os.stat(on_backing("shared")).st_mode & 0o7777 == 0o2770


def setuid():
    """what a user makes is the user's"""
    return as_user(lambda: write(at("made"))) and os.stat(on_backing("made")).st_uid == USER


def setgid():
    """what a user makes is the group's"""
    return as_user(lambda: write(at("made too"))) and os.stat(on_backing("made too")).st_gid == USER


def setpcap():
    """a user makes a file by the rights of a further group; the daemon gives up what it doesn't need"""
    os.mkdir(at("for a group"), 0o700)
    os.chown(at("for a group"), 0, GROUP)
    os.chmod(at("for a group"), 0o770)
    made = as_user(lambda: write(at("for a group/file")), [GROUP])
    # CAP_SYS_RESOURCE, 24: nothing needs it once it serves.
    return made and not int(status_line("CapBnd"), 16) & 1 << 24


def setfcap():
    """root sets a file capability"""
    write(at("program"))
    # VFS_CAP_REVISION_2 with CAP_NET_RAW (include/uapi/linux/capability.h).
    value = bytes.fromhex("0000000200200000000000000000000000000000")
    os.setxattr(at("program"), "security.capability", value)
    return os.getxattr(on_backing("program"), "security.capability") == value


def mknod():
    """root makes a device node"""
    os.mknod(at("null"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return stat.S_ISCHR(os.lstat(on_backing("null")).st_mode)


def sys_admin():
    """the kernel passes data through, and root sets a trusted attribute"""
    write(at("trusted"))
    os.setxattr(at("trusted"), "trusted.kv", b"1")
    return status["passthrough"]["on"] and os.getxattr(on_backing("trusted"), "trusted.kv") == b"1"


def sys_ptrace():
    """a user's buffer is registered by its descriptor's number"""

    def refused(*_):
        raise OSError(errno.EPERM, "it had to be sent")

    def transfer():
        write(at("to read"))
        kvfs._buffers._send_fd = refused
        with kvfs.Mount(place, require=True) as direct:
            buffer = kvfs.HostBuffer(1 << 20)
            direct.register(buffer)
            with direct.open("to read") as file:
                assert file.read(buffer) == 4

    return as_user(transfer)


def lease():
    """a user's file that's mapped, and not open any more, isn't moved"""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    # The kernel keeps the order of neither: what isn't mapped is many.
    names = [f"moved {i}" for i in range(8)]
    for name in names + ["mapped"]:
        write(at(name), b"before")
        os.chown(at(name), USER, USER)
    before = on_backing("mapped")
    slot = next(b for b in backings if before.startswith(b + "/"))
    there = [name for name in names if on_backing(name).startswith(slot + "/")]
    with open(at("mapped"), "r+b") as file:
        address = libc.mmap(None, ctypes.c_size_t(6), 3, 1, file.fileno(), ctypes.c_long(0))
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    drain = ["kvfs", "backing", "drain", mount, slot]
    subprocess.run([*drain, "--detach"], check=True, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while any(on_backing(name).startswith(slot + "/") for name in there) and time.monotonic() < until:
        time.sleep(0.1)
    # A last round of it has come past the mapped one.
    time.sleep(0.5)
    stays = on_backing("mapped") == before
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(6))
    subprocess.run([*drain, "--cancel"], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() < until, "nothing is moved"
    return stays


def ipc_lock():
    """buffers are pinned, beyond what a process may lock"""
    with kvfs.Mount(place, require=True) as direct:
        buffer = kvfs.HostBuffer(64 << 20)
        direct.register(buffer)
        with direct.open("large", os.O_RDWR | os.O_CREAT) as file:
            assert file.write(buffer) == len(buffer)
        return int(status_line("VmPin")) >= 64 << 10


missing = False
for check in [chown, dac_override, fowner, fsetid, setuid, setgid, setpcap, setfcap, mknod, sys_admin, sys_ptrace, lease, ipc_lock]:
    try:
        why = "it isn't so" if not check() else None
    except (OSError, AssertionError, StopIteration, kvfs.Error, subprocess.CalledProcessError) as e:
        why = repr(e)
    if why:
        missing = True
        print(f"CAP_{check.__name__.upper()}: {check.__doc__}: {why}")
subprocess.run(["rm", "-rf", place], check=False)
sys.exit(missing)
