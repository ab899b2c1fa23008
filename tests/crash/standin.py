"""Stands in for systemd: a service of Type=notify with a store of descriptors and Restart=on-failure.

    standin.py LOG [--no-store] COMMAND...

Does what sd_notify(3), sd_pid_notify_with_fds(3) and sd_listen_fds(3) say, as far as a service can tell: keeps
what comes with FDSTORE=1 under its FDNAME, forgets what FDSTOREREMOVE=1 names, answers BARRIER=1, and hands all
of it to the next process when one has ended with another status than 0. What is in the store is told in LOG, a line
for each change. A signal to end is passed on.
"""

import array
import os
import select
import signal
import socket
import sys

log = open(sys.argv[1], "a", buffering=1)
command = sys.argv[2:]
keeps = command[0] != "--no-store"
command = command if keeps else command[1:]
inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
# An abstract name: nothing is left behind.
address = "\0kvfs-standin-%d" % os.getpid()
inbox.bind(address)
inbox.setblocking(False)
store = []  # (name, descriptor), in the order in which they came


def is_same(a, b):
    a, b = os.fstat(a), os.fstat(b)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def hear():
    """One message; False when there is none."""
    try:
        text, parts, _, _ = inbox.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
    except BlockingIOError:
        return False
    fds = array.array("i")
    for level, kind, data in parts:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    words = dict(line.split("=", 1) for line in text.decode().split("\n") if "=" in line)
    name = words.get("FDNAME", "stored")
    if words.get("FDSTORE") == "1":
        for fd in fds:
            # As systemd: the same file isn't kept twice. Another under the same name is.
            if name.startswith("kvfs-3") or not any(n == name and is_same(fd, k) for n, k in store):
                store.append((name, fd))
            else:
                os.close(fd)
    else:
        for fd in fds:
            os.close(fd)
    if words.get("FDSTOREREMOVE") == "1":
        for entry in [entry for entry in store if entry[0] == name]:
            store.remove(entry)
            os.close(entry[1])
    if "READY" in words:
        print("ready", file=log)
    print("store", *sorted(name for name, _ in store), file=log)
    return True


def start():
    child = os.fork()
    if child:
        return child
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if os.environ.get("KVFS_TEST_DIE_WITH_PARENT"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # First out of the way of the numbers that they get.
    high = [os.dup2(fd, 600 + at, inheritable=False) for at, (_, fd) in enumerate(store)]
    for at, fd in enumerate(high):
        os.dup2(fd, 3 + at, inheritable=True)
    if store:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(store))
        os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in store)
    os.environ["NOTIFY_SOCKET"] = "@" + address[1:]
    if keeps:
        os.environ["FDSTORE"] = "512"
    os.execv(command[0], command)


watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, watched)
wake, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)
for number in watched:
    signal.signal(number, lambda *_: None)
signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

child = start()
print("started", child, file=log)
while True:
    ready, _, _ = select.select([inbox, wake], [], [])
    while hear():
        pass
    if wake not in ready:
        continue
    for number in os.read(wake, 64):
        if number in (signal.SIGTERM, signal.SIGINT):
            os.kill(child, number)
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        while hear():
            pass
        code = os.waitstatus_to_exitcode(status)
        print("ended", code, file=log)
        if code == 0:
            sys.exit(0)
        child = start()
        print("started", child, file=log)
