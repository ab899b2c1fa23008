"""The formats of kvfs._abi against the header, compiled."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from kvfs import _abi

HEADER = pathlib.Path(__file__).resolve().parents[2] / "kvfs_ioctl.h"
STRUCTS = {
    "kvfs_query": _abi.QUERY,
    "kvfs_reg_buf": _abi.REG_BUF,
    "kvfs_unreg_buf": _abi.UNREG_BUF,
    "kvfs_op": _abi.OP,
    "kvfs_batch": _abi.BATCH,
    "kvfs_locate": _abi.LOCATE,
    "kvfs_prefix": _abi.PREFIX,
    "kvfs_fd_hello": _abi.FD_HELLO,
    "kvfs_fd_answer": _abi.FD_ANSWER,
}
COMPILER = shutil.which("cc") or shutil.which("gcc")


def fields_of(struct: str) -> "list[str]":
    """The names of a structure's fields in the header, without the reserved ones at its end."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(rf"struct {struct} {{(.*?)}};", text, re.S).group(1)
    names = []
    for line in body.split(";"):
        names += [re.sub(r"\[.*|.* ", "", name.strip()) for name in line.strip().split(",") if name.strip()]
    return names


@unittest.skipUnless(HEADER.is_file() and COMPILER, "there is no header beside the package, or no C compiler")
class TheHeader(unittest.TestCase):
    def test_layout_and_numbers(self) -> None:
        """Sizes, every field's offset, and the command words."""
        prints, expected = [], []
        for name, packed in STRUCTS.items():
            prints.append(f'printf("%zu\\n", sizeof(struct {name}));')
            expected.append(packed.size)
            # Packing a 1 into one field at a time shows where the format puts it.
            named = [field for field in fields_of(name) if not field.startswith("rsvd") or field == "rsvd0"]
            count = len(packed.unpack(bytes(packed.size)))
            self.assertEqual(len(named), count, name)
            for at, field in enumerate(named):
                zero = packed.unpack(bytes(packed.size))
                values = list(zero)
                values[at] = b"\1" if isinstance(zero[at], bytes) else 1
                prints.append(f'printf("%zu\\n", offsetof(struct {name}, {field}));')
                expected.append(packed.pack(*values).index(1))
        for number, (call, size) in enumerate(
            [
                ("QUERY", _abi.QUERY.size),
                ("REGISTER", _abi.REG_BUF.size),
                ("UNREGISTER", _abi.UNREG_BUF.size),
                ("READ", _abi.OP.size),
                ("WRITE", _abi.OP.size),
                ("SUBMIT(3)", _abi.BATCH.size + 3 * _abi.OP.size),
                ("LOCATE", _abi.LOCATE.size),
                ("LOOKUP_PREFIX(77)", _abi.PREFIX.size + 77),
            ]
        ):
            prints.append(f'printf("%u\\n", (unsigned)KVFS_IOC_{call});')
            expected.append(_abi.command(number, size))
        for constant, value in [
            ("KVFS_BATCH_MAX", _abi.BATCH_MAX),
            ("KVFS_PREFIX_NAMES_MAX", _abi.PREFIX_NAMES_MAX),
            ("KVFS_FD_SOCKET_MAGIC", _abi.FD_SOCKET_MAGIC),
            ("KVFS_BUF_DAEMON_ALLOC", _abi.BUF_DAEMON_ALLOC),
            *((f"KVFS_F_{feature.upper()}", bit) for feature, bit in _abi.FEATURES.items()),
        ]:
            prints.append(f'printf("%llu\\n", (unsigned long long){constant});')
            expected.append(value)
        self.assertEqual(self.compiled("\n".join(prints)), expected)

    def compiled(self, statements: str) -> "list[int]":
        """What a C program with these statements prints."""
        with tempfile.TemporaryDirectory() as work:
            source, program = pathlib.Path(work, "layout.c"), pathlib.Path(work, "layout")
            lines = ["#include <stddef.h>", "#include <stdio.h>", f'#include "{HEADER}"']
            source.write_text("\n".join([*lines, "int main(void) {", statements, "return 0; }"]))
            subprocess.run([COMPILER, "-o", program, source], check=True)
            return [int(line) for line in subprocess.check_output([program], text=True).split()]


class Errors(unittest.TestCase):
    def test_results_become_errors(self) -> None:
        self.assertEqual(_abi.error_of(-28, "WRITE").errno, 28)
        error = _abi.error_of(-5030, "READ")
        self.assertEqual((error.errno, error.code), (5, -5030))
        self.assertIn("cuFile", str(error))
        self.assertIsInstance(error, OSError)
        self.assertIn("--allow-locate", str(_abi.Error(1, "LOCATE")))


if __name__ == "__main__":
    unittest.main()
