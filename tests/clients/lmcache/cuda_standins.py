"""Stand-ins for the CUDA libraries that the torch wheel is linked against.

torch as published needs about 2 GB of CUDA libraries before `import torch` succeeds,
GPU or not. LMCache's disk tier with CPU buffers calls none of them, so each is
replaced here by a small library with the same name that defines the same symbols.
Every one of them aborts: a test that reached CUDA after all dies instead of passing.

The symbols come from the wheel itself: whatever its libraries import and no library
that is really there provides.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

# Small enough to install for real (requirements.txt does).
GENUINE = {"libcudart.so.13", "libcupti.so.13"}
# The driver's own library is opened at run time, never linked.
STANDS_FOR = re.compile(r"lib(cu|nccl|nv)\w*\.so\.\d+$")

# Most of these libraries version their symbols with their own file name, so that an
# undefined symbol says where it belongs. Those that don't are told by the prefix.
BY_PREFIX = {
    "cuFile": "libcufile.so.0",
    "curand": "libcurand.so.10",
    "cusparseLt": "libcusparseLt.so.0",
    "nccl": "libnccl.so.2",
    "pnccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3",
}
VERSION_OF = {"libnvshmem_host.so.3": "NVSHMEM"}


def _readelf(*args):
    return subprocess.run(["readelf", "-W", *args], check=True, capture_output=True, text=True).stdout


def _needed(library):
    return set(re.findall(r"\(NEEDED\).*\[(.+?)\]", _readelf("-d", library)))


def _undefined(library):
    """(symbol, version or '') for each symbol that `library` imports."""
    for line in _readelf("--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[6] == "UND":
            symbol, _, version = columns[7].partition("@")
            yield symbol, version.lstrip("@")


def _owner(symbol, version, wanted):
    if version in wanted:
        return version
    for soname, name in VERSION_OF.items():
        if version == name:
            return soname
    if not version:
        for prefix, soname in BY_PREFIX.items():
            if symbol.startswith(prefix):
                return soname
    return None


def _compile(soname, symbols, out):
    with tempfile.TemporaryDirectory() as work:
        source, versions = Path(work, "standin.c"), Path(work, "versions.map")
        lines = ["extern void abort(void);"]
        lines += [f"void {symbol}(void) {{ abort(); }}" for symbol in sorted(symbols)]
        source.write_text("\n".join(lines) + "\n")
        versions.write_text(f"{VERSION_OF.get(soname, soname)} {{ global: *; }};\n")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{soname}",
             f"-Wl,--version-script={versions}", str(source), "-o", str(Path(out, soname))],
            check=True)


def make(site_packages, out):
    """Writes a stand-in into `out` for each CUDA library that torch wants and is not there."""
    libraries = sorted(Path(site_packages, "torch/lib").glob("*.so"))
    wanted = set().union(*(_needed(library) for library in libraries))
    wanted = {name for name in wanted if STANDS_FOR.match(name)} - GENUINE - {"libcuda.so.1"}

    symbols = defaultdict(set)
    for library in libraries:
        for symbol, version in _undefined(library):
            soname = _owner(symbol, version, wanted)
            if soname:
                symbols[soname].add(symbol)

    Path(out).mkdir(parents=True, exist_ok=True)
    for soname in sorted(wanted):
        _compile(soname, symbols[soname], out)
    return sorted(wanted)
