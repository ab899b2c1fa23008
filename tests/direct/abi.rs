//! packaging/kvfs_ioctl.h and `kvfs::direct::abi` say the same: sizes, offsets, constants.

use std::fmt::Write;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use kvfs::direct::abi::{self, Path, Why, feature, kind, nr};

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/kvfs_ioctl.h");

struct Layout {
    c: &'static str,
    size: usize,
    /// Name, offset, size.
    fields: Vec<(&'static str, usize, usize)>,
}

/// Every field, or it doesn't compile: a pattern without `..`.
macro_rules! layouts {
    ($($c:literal $name:ident { $($field:ident),* })*) => {
        vec![$({
            let abi::$name { $($field),* } = abi::$name::default();
            let fields = vec![$((stringify!($field), offset_of!(abi::$name, $field), size_of_val(&$field))),*];
            Layout { c: $c, size: size_of::<abi::$name>(), fields }
        }),*]
    };
}

fn layouts() -> Vec<Layout> {
    layouts! {
        "kvfs_query" Query {
            abi, flags, features, max_batch_ops, max_buffers, max_io_bytes, max_buffer_bytes, dio_off_align,
            dio_mem_align, optimal_io, backing_id, path_gpu, path_host, numa_node, seen_tgid, file_token,
            session, gpu_reason, host_reason, rsvd
        }
        "kvfs_reg_buf" RegBuf {
            kind, flags, length, offset, alloc_size, fd, fd_method, fd_token, gpu_uuid, handle, parent_id,
            parent_off, buf_id, path, reason, rsvd
        }
        "kvfs_unreg_buf" UnregBuf { buf_id, flags, rsvd0, rsvd }
        "kvfs_op" Op { opcode, flags, file, buf_id, buf_off, file_off, length, user_data, result }
        "kvfs_batch" Batch { nr_ops, flags, completed, path, rsvd }
        "kvfs_locate" Locate {
            flags, backing_id, dev_major, dev_minor, ino, size, dio_off_align, fs_magic, path_len, rsvd0, rsvd,
            path
        }
        "kvfs_prefix" Prefix { nr_names, flags, names_len, found, queued, rsvd0, rsvd }
        "kvfs_fd_hello" FdHello { magic, version }
        "kvfs_fd_answer" FdAnswer { error, rsvd0, token }
    }
}

/// Every constant of the header, and what it has to be.
fn constants() -> Vec<(&'static str, u64)> {
    let path = |p: Path| p as u64;
    let why = |w: Why| u64::from(w.code());
    let word = |n: u32| u64::from(n);
    vec![
        ("KVFS_IOC_MAGIC", abi::MAGIC.into()),
        ("KVFS_IOC_MAX_SIZE", abi::MAX_SIZE as u64),
        ("KVFS_ABI_VERSION", word(abi::VERSION)),
        ("KVFS_PATH_NONE", path(Path::None)),
        ("KVFS_PATH_URING_HOST", path(Path::UringHost)),
        ("KVFS_PATH_BOUNCE", path(Path::Bounce)),
        ("KVFS_PATH_CUFILE_COMPAT", 3),
        ("KVFS_PATH_CUFILE_STAGED", path(Path::CufileStaged)),
        ("KVFS_PATH_CUFILE_DIRECT", path(Path::CufileDirect)),
        ("KVFS_PATH_HIPFILE", path(Path::Hipfile)),
        ("KVFS_WHY_BEST", why(Why::Best)),
        ("KVFS_WHY_SWITCHED_OFF", why(Why::SwitchedOff)),
        ("KVFS_WHY_NOT_PROBED", why(Why::NotProbed)),
        ("KVFS_WHY_NO_GPU", why(Why::NoGpu)),
        ("KVFS_WHY_NO_CUFILE", why(Why::NoCufile)),
        ("KVFS_WHY_WOULD_HANG", why(Why::WouldHang)),
        ("KVFS_WHY_PROBE_DEADLINE", why(Why::ProbeDeadline)),
        ("KVFS_WHY_NO_DIRECT_IO", why(Why::NoDirectIo)),
        ("KVFS_WHY_WORKER", why(Why::Worker)),
        ("KVFS_WHY_UNREADABLE", why(Why::Unreadable)),
        ("KVFS_WHY_NO_IO_URING", why(Why::NoIoUring)),
        ("KVFS_WHY_CUFILE", why(Why::Cufile(5000))),
        ("KVFS_F_MEMFD", feature::MEMFD),
        ("KVFS_F_CUDA_IPC", feature::CUDA_IPC),
        ("KVFS_F_CUDA_VMM_FD", feature::CUDA_VMM_FD),
        ("KVFS_F_CUDA_FABRIC", 8),
        ("KVFS_F_HIP_IPC", feature::HIP_IPC),
        ("KVFS_F_BATCH", feature::BATCH),
        ("KVFS_F_LOCATE", feature::LOCATE),
        ("KVFS_F_FD_SOCKET", feature::FD_SOCKET),
        ("KVFS_F_DAEMON_ALLOC", feature::DAEMON_ALLOC),
        ("KVFS_F_LOOKUP_PREFIX", feature::LOOKUP_PREFIX),
        ("KVFS_BUF_MEMFD", word(kind::MEMFD)),
        ("KVFS_BUF_CUDA_IPC", word(kind::CUDA_IPC)),
        ("KVFS_BUF_CUDA_VMM_FD", word(kind::CUDA_VMM_FD)),
        ("KVFS_BUF_CUDA_FABRIC", word(kind::CUDA_FABRIC)),
        ("KVFS_BUF_HIP_IPC", word(kind::HIP_IPC)),
        ("KVFS_BUF_DAEMON_ALLOC", word(kind::DAEMON_ALLOC)),
        ("KVFS_BUF_RD", word(abi::BUF_RD)),
        ("KVFS_BUF_WR", word(abi::BUF_WR)),
        ("KVFS_FD_NONE", word(abi::FD_NONE)),
        ("KVFS_FD_OF_CALLER", word(abi::FD_OF_CALLER)),
        ("KVFS_FD_SENT", word(abi::FD_SENT)),
        ("KVFS_UNREG_NOWAIT", word(abi::UNREG_NOWAIT)),
        ("KVFS_OP_READ", word(abi::OP_READ)),
        ("KVFS_OP_WRITE", word(abi::OP_WRITE)),
        ("KVFS_BATCH_MAX", abi::BATCH_MAX as u64),
        ("KVFS_PREFIX_READAHEAD", word(abi::PREFIX_READAHEAD)),
        ("KVFS_PREFIX_NAMES_MAX", (abi::MAX_SIZE - size_of::<abi::Prefix>()) as u64),
        ("KVFS_FD_SOCKET_MAGIC", word(abi::FD_SOCKET_MAGIC)),
        ("KVFS_IOC_QUERY", word(abi::command(nr::QUERY, size_of::<abi::Query>()))),
        ("KVFS_IOC_REGISTER", word(abi::command(nr::REGISTER, size_of::<abi::RegBuf>()))),
        ("KVFS_IOC_UNREGISTER", word(abi::command(nr::UNREGISTER, size_of::<abi::UnregBuf>()))),
        ("KVFS_IOC_READ", word(abi::command(nr::READ, size_of::<abi::Op>()))),
        ("KVFS_IOC_WRITE", word(abi::command(nr::WRITE, size_of::<abi::Op>()))),
        ("KVFS_IOC_LOCATE", word(abi::command(nr::LOCATE, size_of::<abi::Locate>()))),
    ]
}

/// What takes arguments.
fn functions() -> Vec<(String, u32)> {
    let batch = |n| abi::command(nr::SUBMIT, size_of::<abi::Batch>() + n * size_of::<abi::Op>());
    let names = |n| abi::command(nr::LOOKUP_PREFIX, size_of::<abi::Prefix>() + n);
    vec![
        ("KVFS_IOC(7, 8191)".into(), abi::command(7, 8191)),
        ("KVFS_IOC_NR(KVFS_IOC_LOCATE)".into(), nr::LOCATE.into()),
        ("KVFS_IOC_SUBMIT(1)".into(), batch(1)),
        (format!("KVFS_IOC_SUBMIT({})", abi::BATCH_MAX), batch(abi::BATCH_MAX)),
        ("KVFS_IOC_LOOKUP_PREFIX(1)".into(), names(1)),
        ("KVFS_IOC_LOOKUP_PREFIX(KVFS_PREFIX_NAMES_MAX)".into(), names(8151)),
    ]
}

fn asserts() -> String {
    let mut c = format!("#include \"{HEADER}\"\n");
    let mut hold = |what: String| writeln!(c, "_Static_assert({what}, \"\");").unwrap();
    for layout in layouts() {
        let s = format!("struct {}", layout.c);
        hold(format!("sizeof({s}) == {}", layout.size));
        let whole: usize = layout.fields.iter().map(|(.., size)| size).sum();
        assert_eq!(whole, layout.size, "{s} has padding");
        for (field, offset, size) in layout.fields {
            hold(format!("__builtin_offsetof({s}, {field}) == {offset}"));
            hold(format!("sizeof((({s} *)0)->{field}) == {size}"));
        }
    }
    for (name, value) in constants() {
        hold(format!("{name} == {value}ull"));
    }
    for (name, value) in functions() {
        hold(format!("{name} == {value}u"));
    }
    hold(format!("sizeof(KVFS_FD_SOCKET_NAME) == {}", abi::FD_SOCKET_NAME.len() + 1));
    c
}

fn compiles(c: &str, flags: &[&str]) {
    let mut gcc = Command::new("gcc");
    gcc.args([
        "-x",
        "c",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wpadded",
        "-Wpedantic",
        "-Werror",
        "-fsyntax-only",
    ]);
    gcc.args(flags).arg("-").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut gcc = gcc.spawn().expect("run gcc");
    std::io::Write::write_all(&mut gcc.stdin.take().unwrap(), c.as_bytes()).unwrap();
    let out = gcc.wait_with_output().unwrap();
    assert!(out.status.success(), "gcc {flags:?}:\n{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_header_has_rusts_layout() {
    let c = asserts();
    compiles(&c, &["-m64"]);
    compiles(&c, &["-m32", "-ffreestanding"]);
}

#[test]
fn commands_are_the_kernels() {
    let mut c = format!("#include <linux/ioctl.h>\n#include \"{HEADER}\"\n");
    for layout in layouts() {
        let s = layout.c;
        writeln!(c, "_Static_assert(KVFS_IOC(5, sizeof(struct {s})) == _IOWR(0xBB, 5, struct {s}), \"\");")
            .unwrap();
    }
    compiles(&c, &["-m64"]);
    assert_eq!(abi::FD_SOCKET_NAME, ".kvfs-socket");
    assert!(
        std::fs::read_to_string(HEADER).unwrap().contains("#define KVFS_FD_SOCKET_NAME \".kvfs-socket\"\n")
    );
}

/// A constant that is new in the header is missed here.
#[test]
fn no_constant_is_forgotten() {
    let header = std::fs::read_to_string(HEADER).unwrap();
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let named = header.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("#define ").unwrap_or(line);
        let name: String = line.chars().take_while(|c| is_name(*c)).collect();
        let rest = &line[name.len()..];
        // Not the guard, not what takes arguments, not a string.
        let plain = rest.starts_with(' ') && !rest.starts_with(" \"");
        (name.starts_with("KVFS_") && plain).then_some(name)
    });
    let known: Vec<_> = constants().into_iter().map(|(name, _)| name).collect();
    let mut count = 0;
    for name in named {
        assert!(known.contains(&name.as_str()), "{name} is in the header alone");
        count += 1;
    }
    assert_eq!(count, known.len());
}
