//! The programs that count: what each looks at, and how it's put together.
//!
//! What always holds: a program reads and adds, it never changes what a call does; another mount's calls leave it after a few
//! instructions; all it knows of the kernel's structures comes from this kernel's BTF.
//!
//! There is one for each function below. They are put together here, in the kernel's own instructions
//! (Documentation/bpf/standardization/instruction-set.rst), so that no compiler for BPF is needed to build kvfs.

use super::btf::{Btf, Function, Unexpected};
use super::layout::Layout;
use super::sys::When;

/// A function of the kernel that knows what was moved (fs/backing-file.c).
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    /// Its name.
    pub(super) function: &'static str,
    /// What `bpftool prog` shows.
    pub(super) name: &'static str,
    pub(super) when: When,
    written: bool,
}

const fn hook(function: &'static str, name: &'static str, when: When, written: bool) -> Hook {
    Hook { function, name, when, written }
}

/// Calls that end at once return the bytes. An asynchronous one may return -EIOCBQUEUED instead: its bytes are handed to the
/// function that is called when it's done. Of reads that is `backing_aio_rw_complete`. Writes get there too, later and
/// perhaps inlined: theirs are taken before, in `backing_aio_queue_completion`. Both are called by pointers alone, so
/// that a compiler can't do without them.
pub(super) const HOOKS: [Hook; 6] = [
    hook("backing_file_read_iter", "kvfs_read", When::Returned, false),
    hook("backing_file_write_iter", "kvfs_write", When::Returned, true),
    hook("backing_file_splice_read", "kvfs_spl_read", When::Returned, false),
    hook("backing_file_splice_write", "kvfs_spl_write", When::Returned, true),
    hook("backing_aio_rw_complete", "kvfs_aio_read", When::Called, false),
    hook("backing_aio_queue_completion", "kvfs_aio_write", When::Called, true),
];

/// From an open file to the number of its file system, as mountinfo has it (`struct super_block`).
const TO_DEVICE: [&str; 3] = ["f_inode", "i_sb", "s_dev"];

/// What a program is made for.
pub(super) struct Plan<'a> {
    pub(super) btf: &'a Btf,
    /// `s_dev` of the mount, as the kernel packs it.
    pub(super) mount: u32,
    /// The map with the table.
    pub(super) map: i32,
    pub(super) layout: Layout,
    /// `bpf_rdonly_cast`.
    pub(super) cast: u32,
}

impl Plan<'_> {
    /// The program for a hook.
    pub(super) fn program(&self, hook: Hook, function: &Function) -> Result<Vec<u64>, Unexpected> {
        let mut code = Code::default();
        match hook.when {
            When::Returned => self.returned(&mut code, function)?,
            When::Called => self.completed(&mut code, function, hook.written)?,
        }
        self.count(&mut code, hook.written);
        Ok(code.finish())
    }

    /// A call that returns: leaves its bytes in r6 and the backing file's device in r7.
    fn returned(&self, code: &mut Code, function: &Function) -> Result<(), Unexpected> {
        // What it was called with, and behind that what it returns.
        code.load64(R6, R1, slot(function.args.len())?);
        code.leave_unless_positive(R6);
        let (arg, members, from) = match self.btf.argument(function, "kiocb") {
            Some((arg, kiocb)) => (arg, "ki_filp", kiocb),
            // Before Linux 6.13 splices had it elsewhere.
            None => {
                let (arg, context) = self.wanted(function, "backing_file_ctx")?;
                (arg, "user_file", context)
            }
        };
        let path = self.btf.path(from, &[&[members], &TO_DEVICE[..]].concat())?;
        code.load64(R2, R1, slot(arg)?);
        code.follow(R2, R2, &path);
        code.leave_unless_equal(R2, self.mount);
        let (arg, file) = self.wanted(function, "file")?;
        code.load64(R7, R1, slot(arg)?);
        code.follow(R7, R7, &self.btf.path(file, &TO_DEVICE)?);
        Ok(())
    }

    /// An asynchronous call that is done: the same. Its request is the first part of a larger structure.
    fn completed(&self, code: &mut Code, function: &Function, written: bool) -> Result<(), Unexpected> {
        let missing = || Unexpected("the kernel has no struct backing_aio".into());
        let request = self.btf.structure("backing_aio").ok_or_else(missing)?;
        if self.btf.path(request, &["iocb"])? != [0] {
            return Err(Unexpected("the kernel's backing_aio doesn't begin with iocb".into()));
        }
        let (arg, kiocb) = self.wanted(function, "kiocb")?;
        // The other argument.
        code.load64(R6, R1, slot(1 - arg.min(1))?);
        code.leave_unless_positive(R6);
        code.load64(R7, R1, slot(arg)?);
        code.move64(R1, R7);
        code.set(R2, request.cast_signed());
        code.call_kernel(self.cast);
        if !written {
            // A write has it (fuse_passthrough_end_write).
            code.load64(R1, R0, self.btf.path(request, &["end_write"])?[0]);
            code.leave_unless_zero(R1);
        }
        let path = [&["orig_iocb", "ki_filp"], &TO_DEVICE[..]].concat();
        code.follow(R2, R0, &self.btf.path(request, &path)?);
        code.leave_unless_equal(R2, self.mount);
        code.follow(R7, R7, &self.btf.path(kiocb, &[&["ki_filp"], &TO_DEVICE[..]].concat())?);
        Ok(())
    }

    /// Adds r6 to what was moved to or from the device r7, in this processor's row.
    fn count(&self, code: &mut Code, written: bool) {
        let Layout { entries, row, shards, .. } = self.layout;
        code.map_value(R8, self.map);
        code.set(R9, 0);
        // The table of devices ends with 0, or with its room.
        let again = code.here();
        code.move64(R1, R8);
        code.move64(R2, R9);
        code.alu(LEFT, R2, 2);
        code.add(R1, R2);
        code.load32(R2, R1, 0);
        let found = code.jump_equal(R2, R7);
        let end = code.jump_if_zero(R2);
        code.alu(ADD, R9, 1);
        code.jump_back_if_less(R9, entries, again);
        code.land(end);
        code.set(R9, entries);
        code.land(found);
        code.call_helper(GET_SMP_PROCESSOR_ID);
        code.alu(AND, R0, shards - 1);
        code.alu(MULTIPLY, R0, row);
        code.alu(LEFT, R9, 4);
        code.add(R0, R9);
        code.add(R8, R0);
        code.atomic_add(R8, R6, self.layout.counters(written));
    }

    fn wanted(&self, function: &Function, structure: &str) -> Result<(usize, u32), Unexpected> {
        let missing = || Unexpected(format!("a function's arguments have no {structure}"));
        self.btf.argument(function, structure).ok_or_else(missing)
    }
}

/// Where an argument is.
fn slot(n: usize) -> Result<i16, Unexpected> {
    i16::try_from(8 * n).map_err(|_| Unexpected("a function has too many arguments".into()))
}

/// Registers: r0 is what a call returns, r1 to r5 are lost in one, r6 to r9 aren't.
type Register = u8;
const R0: Register = 0;
const R1: Register = 1;
const R2: Register = 2;
const R6: Register = 6;
const R7: Register = 7;
const R8: Register = 8;
const R9: Register = 9;

/// `BPF_FUNC_get_smp_processor_id`.
const GET_SMP_PROCESSOR_ID: i32 = 8;

/// Operations on 64 bits and a number: `BPF_ALU64 | BPF_K | ...`.
const ADD: u8 = 0x07;
const MULTIPLY: u8 = 0x27;
const AND: u8 = 0x57;
const LEFT: u8 = 0x67;

/// Instructions as they grow; `leaves` are those that jump behind the last.
#[derive(Default)]
struct Code {
    code: Vec<u64>,
    leaves: Vec<usize>,
}

/// A place to jump to, or one that jumps forward.
#[derive(Clone, Copy)]
struct Place(usize);

impl Code {
    /// One instruction, as it is in memory of a little-endian processor.
    fn put(&mut self, code: u8, to: Register, from: Register, offset: i16, number: i32) {
        let word = u64::from(code)
            | u64::from(to) << 8
            | u64::from(from) << 12
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(number.cast_unsigned()) << 32;
        self.code.push(word.to_le());
    }

    fn load64(&mut self, to: Register, from: Register, offset: i16) {
        self.put(0x79, to, from, offset, 0);
    }

    fn load32(&mut self, to: Register, from: Register, offset: i16) {
        self.put(0x61, to, from, offset, 0);
    }

    /// Pointer after pointer, and at last a number of 32 bits.
    fn follow(&mut self, to: Register, from: Register, path: &[i16]) {
        let mut at = from;
        for (n, offset) in path.iter().enumerate() {
            if n + 1 == path.len() {
                self.load32(to, at, *offset)
            } else {
                self.load64(to, at, *offset)
            }
            at = to;
        }
    }

    fn move64(&mut self, to: Register, from: Register) {
        self.put(0xbf, to, from, 0, 0);
    }

    fn set(&mut self, to: Register, number: i32) {
        self.put(0xb7, to, 0, 0, number);
    }

    fn add(&mut self, to: Register, from: Register) {
        self.put(0x0f, to, from, 0, 0);
    }

    fn alu(&mut self, operation: u8, to: Register, number: i32) {
        self.put(operation, to, 0, 0, number);
    }

    /// The address of the map's only value (`BPF_PSEUDO_MAP_VALUE`).
    fn map_value(&mut self, to: Register, map: i32) {
        self.put(0x18, to, 2, 0, map);
        self.put(0, 0, 0, 0, 0);
    }

    fn call_helper(&mut self, number: i32) {
        self.put(0x85, 0, 0, 0, number);
    }

    /// A function that the kernel has for programs, by its number in BTF (`BPF_PSEUDO_KFUNC_CALL`).
    fn call_kernel(&mut self, function: u32) {
        self.put(0x85, 0, 2, 0, function.cast_signed());
    }

    fn atomic_add(&mut self, to: Register, from: Register, offset: i16) {
        self.put(0xdb, to, from, offset, 0);
    }

    /// Signed: what isn't a number of bytes is an error, or none were moved.
    fn leave_unless_positive(&mut self, register: Register) {
        self.leaves.push(self.code.len());
        self.put(0xd5, register, 0, 0, 0);
    }

    fn leave_unless_zero(&mut self, register: Register) {
        self.leaves.push(self.code.len());
        self.put(0x55, register, 0, 0, 0);
    }

    /// Compares 32 bits.
    fn leave_unless_equal(&mut self, register: Register, number: u32) {
        self.leaves.push(self.code.len());
        self.put(0x56, register, 0, 0, number.cast_signed());
    }

    /// Compares 32 bits.
    fn jump_equal(&mut self, a: Register, b: Register) -> Place {
        self.put(0x1e, a, b, 0, 0);
        Place(self.code.len() - 1)
    }

    fn jump_if_zero(&mut self, register: Register) -> Place {
        self.put(0x15, register, 0, 0, 0);
        Place(self.code.len() - 1)
    }

    fn jump_back_if_less(&mut self, register: Register, number: i32, to: Place) {
        self.put(0xa5, register, 0, 0, number);
        self.aim(self.code.len() - 1, to.0);
    }

    fn here(&self) -> Place {
        Place(self.code.len())
    }

    /// A jump from there comes here.
    fn land(&mut self, from: Place) {
        self.aim(from.0, self.code.len());
    }

    fn aim(&mut self, from: usize, to: usize) {
        // Programs have a few dozen instructions.
        let offset = (to as i64 - from as i64 - 1) as i16;
        self.code[from] |= (u64::from(offset.cast_unsigned()) << 16).to_le();
    }

    fn finish(mut self) -> Vec<u64> {
        for from in std::mem::take(&mut self.leaves) {
            self.aim(from, self.code.len());
        }
        self.set(R0, 0);
        self.put(0x95, 0, 0, 0, 0);
        self.code
    }
}
