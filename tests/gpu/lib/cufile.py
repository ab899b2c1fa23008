"""cuFile by ctypes, without its compatibility mode."""

import ctypes
import json
import os
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p


class CufileError(RuntimeError):
    def __init__(self, call, code):
        super().__init__(f"{call} failed with {code}")
        self.code = code


class Error(ctypes.Structure):
    _fields_ = [("err", c_int), ("cu_err", c_int)]


class Which(ctypes.Union):
    _fields_ = [("fd", c_int), ("handle", c_void_p)]


class Descr(ctypes.Structure):
    """CUfileDescr_t"""

    _fields_ = [("type", c_int), ("which", Which), ("ops", c_void_p)]


def load():
    for name in ("libcufile.so.0", "libcufile.so"):
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            pass
    raise CufileError("dlopen", -1)


class Cufile:
    """The opened driver."""

    def __init__(self):
        if not os.path.exists("/proc/modules") and "KVFS_FAULT_CUFILE_UNGUARDED" not in os.environ:
            raise CufileError("/proc/modules isn't there; it would hang: open", -1)
        text = read(os.environ.get("CUFILE_ENV_PATH_JSON", "/etc/cufile.json"))
        settings = json.loads(text or "{}")
        settings.setdefault("properties", {})["allow_compat_mode"] = False
        # Without spaces, as other writers of JSON do it.
        config = os.memfd_create("cufile.json")
        os.write(config, json.dumps(settings, separators=(",", ":")).encode())
        os.environ["CUFILE_ENV_PATH_JSON"] = f"/proc/self/fd/{config}"
        os.environ.setdefault("CUFILE_LOGFILE_PATH", "/dev/null")
        self.lib = load()
        for name in ("DriverOpen", "HandleRegister", "BufRegister", "BufDeregister", "SetParameterBool"):
            if hasattr(self.lib, "cuFile" + name):
                getattr(self.lib, "cuFile" + name).restype = Error
        for name in ("Read", "Write"):
            getattr(self.lib, "cuFile" + name).restype = c_int64
            getattr(self.lib, "cuFile" + name).argtypes = [c_void_p, c_void_p, c_size_t, c_int64, c_int64]
        if hasattr(self.lib, "cuFileSetParameterBool"):
            self.lib.cuFileSetParameterBool(1, ctypes.c_bool(False))
        self.check("DriverOpen")

    def check(self, name, *args):
        error = getattr(self.lib, "cuFile" + name)(*args)
        if error.err:
            raise CufileError("cuFile" + name, error.err)

    def register(self, fd):
        handle = c_void_p()
        self.check("HandleRegister", byref(handle), byref(Descr(1, Which(fd=fd), None)))
        return handle

    def register_memory(self, at, size):
        self.check("BufRegister", c_void_p(at), c_size_t(size), 0)

    def deregister_memory(self, at):
        self.check("BufDeregister", c_void_p(at))

    def move(self, name, handle, at, size, file_off, offset=0):
        moved = getattr(self.lib, "cuFile" + name)(handle, at, size, file_off, offset)
        if moved < 0:
            raise CufileError("cuFile" + name, ctypes.get_errno() if moved == -1 else -moved)
        return moved

    def read(self, handle, at, size, file_off, offset=0):
        return self.move("Read", handle, at, size, file_off, offset)


def read(path):
    try:
        with open(path) as file:
            return "".join(line for line in file if not line.lstrip().startswith("//"))
    except OSError:
        return ""
