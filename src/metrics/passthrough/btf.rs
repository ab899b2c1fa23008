//! The kernel's own description of its types (BTF): which number a function has, and where a structure's members are.
//!
//! What always holds: nothing is assumed about the order or size of a kernel structure; every offset that is read
//! from is one that this kernel names. What isn't as expected is an error, never a wrong number.
//!
//! The format is Documentation/bpf/btf.rst of the kernel. Only the kinds that are needed are understood, the others are
//! stepped over.
//! Of the crates that read it, one is under the LGPL
//! (btf-rs) and one wants a newer compiler (aya-obj 0.6).

/// Where the kernel shows it.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC`, include/uapi/linux/btf.h, as are the kinds.
const MAGIC: u16 = 0xeb9f;
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const TYPE_TAG: u32 = 18;

/// Structures without a name in others, and names of names: deeper than anything in a kernel.
const DEEPEST: u32 = 16;

/// All types of the kernel.
pub(super) struct Btf {
    data: Vec<u8>,
    /// Where each type starts, by its number less 1; 0 is `void`.
    types: Vec<u32>,
    /// The names: from here to there.
    names: (usize, usize),
}

/// A function of the kernel.
pub(super) struct Function {
    /// What bpf(2) calls it by.
    pub(super) id: u32,
    /// The types of its arguments.
    pub(super) args: Vec<u32>,
}

/// Not as it was expected; says what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unexpected(pub(super) String);

struct Type {
    name: u32,
    kind: u32,
    /// Members or arguments.
    count: usize,
    /// What it points to or is another name for; the size of a structure.
    refers: u32,
    /// Where its members or arguments are.
    rest: usize,
}

impl Btf {
    pub(super) fn parse(data: Vec<u8>) -> Result<Btf, Unexpected> {
        let broken = || Unexpected("it isn't whole".into());
        let word = |at| read_u32(&data, at).ok_or_else(broken);
        if data.first_chunk().map(|magic| u16::from_ne_bytes(*magic)) != Some(MAGIC) {
            return Err(Unexpected("it doesn't begin with BTF's number".into()));
        }
        let header = word(4)? as usize;
        let (types_at, types_len, names_at, names_len) = (word(8)?, word(12)?, word(16)?, word(20)?);
        let names = header + names_at as usize;
        let mut btf = Btf { types: Vec::new(), names: (names, names + names_len as usize), data };
        let mut at = header + types_at as usize;
        let end = at + types_len as usize;
        while at < end {
            let kind = btf.at(at).ok_or_else(broken)?;
            btf.types.push(u32::try_from(at).map_err(|_| broken())?);
            at = kind.rest + kind.len()?;
        }
        Ok(btf)
    }

    /// The function with this name.
    pub(super) fn function(&self, name: &str) -> Option<Function> {
        let (id, function) = self.find(FUNC, name)?;
        let proto = self.of(function.refers).filter(|proto| proto.kind == FUNC_PROTO)?;
        let args =
            (0..proto.count).map(|n| read_u32(&self.data, proto.rest + 8 * n + 4)).collect::<Option<_>>()?;
        Some(Function { id, args })
    }

    /// The number of the structure with this name.
    pub(super) fn structure(&self, name: &str) -> Option<u32> {
        self.find(STRUCT, name).map(|(id, _)| id)
    }

    /// Which of a function's arguments is a pointer to such a structure, from 0; and the structure.
    pub(super) fn argument(&self, function: &Function, structure: &str) -> Option<(usize, u32)> {
        function.args.iter().enumerate().find_map(|(n, arg)| {
            let target = self.target(*arg)?;
            (self.name(self.of(target)?.name) == structure.as_bytes()).then_some((n, target))
        })
    }

    /// The offsets, in bytes, of members that lead from a structure by pointers from one to the next.
    pub(super) fn path(&self, from: u32, members: &[&str]) -> Result<Vec<i16>, Unexpected> {
        let mut at = Some(from);
        let mut offsets = Vec::with_capacity(members.len());
        for member in members {
            let missing = || Unexpected(format!("the kernel's {} has no {member}", self.called(at)));
            let (offset, of) = at.and_then(|at| self.member(at, member, DEEPEST)).ok_or_else(missing)?;
            offsets.push(i16::try_from(offset).map_err(|_| missing())?);
            at = self.target(of);
        }
        Ok(offsets)
    }

    /// A member's offset in bytes and its type, also in a structure without a name in this one.
    fn member(&self, structure: u32, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        let this = self.of(structure).filter(|t| matches!(t.kind, STRUCT | UNION))?;
        (0..this.count).find_map(|n| {
            let word = |m: usize| read_u32(&self.data, this.rest + 12 * n + 4 * m);
            let (name, of) = (self.name(word(0)?), word(1)?);
            // In bits; the upper byte is the width of a bit field, where there are any.
            let offset = (word(2)? & 0xff_ffff) / 8;
            if name == wanted.as_bytes() {
                return Some((offset, of));
            }
            let (inner, of) = name.is_empty().then(|| self.member(of, wanted, depth.checked_sub(1)?))??;
            Some((offset + inner, of))
        })
    }

    /// What a pointer leads to.
    fn target(&self, id: u32) -> Option<u32> {
        let pointer = self.of(self.plain(id)?).filter(|t| t.kind == PTR)?;
        self.plain(pointer.refers)
    }

    /// The type itself, without what qualifies or renames it.
    fn plain(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEEPEST {
            match self.of(id)? {
                Type { kind: TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG, refers, .. } => id = refers,
                _ => return Some(id),
            }
        }
        None
    }

    fn find(&self, kind: u32, name: &str) -> Option<(u32, Type)> {
        (1..).zip(&self.types).find_map(|(id, at)| {
            let found = self.at(*at as usize).filter(|t| t.kind == kind)?;
            (self.name(found.name) == name.as_bytes()).then_some((id, found))
        })
    }

    fn of(&self, id: u32) -> Option<Type> {
        self.at(*self.types.get((id as usize).checked_sub(1)?)? as usize)
    }

    fn at(&self, at: usize) -> Option<Type> {
        let word = |n: usize| read_u32(&self.data, at + 4 * n);
        let info = word(1)?;
        Some(Type {
            name: word(0)?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            refers: word(2)?,
            rest: at + 12,
        })
    }

    fn name(&self, at: u32) -> &[u8] {
        let names = self.data.get(self.names.0 + at as usize..self.names.1).unwrap_or_default();
        names.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn called(&self, id: Option<u32>) -> String {
        let name = id.and_then(|id| self.of(id)).map(|t| self.name(t.name)).unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

impl Type {
    /// How many bytes of its own are behind the first twelve.
    fn len(&self) -> Result<usize, Unexpected> {
        Ok(match self.kind {
            // Pointers, other names, forward declarations, functions, floating-point numbers.
            PTR | 7..=FUNC | 16 | TYPE_TAG => 0,
            // Integers, variables, tags of declarations.
            1 | 14 | 17 => 4,
            // Arrays.
            3 => 12,
            // Enumerations, arguments.
            6 | FUNC_PROTO => 8 * self.count,
            // Members, sections, enumerations of 64 bits.
            STRUCT | UNION | 15 | 19 => 12 * self.count,
            other => {
                return Err(Unexpected(format!("it has types of kind {other}, of which kvfs knows nothing")));
            }
        })
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and names as the kernel would write them.
    fn written(types: &[u32], names: &str) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), names.len()] {
            data.extend((word as u32).to_ne_bytes());
        }
        [data, types, names.into()].concat()
    }

    const NAMES: &str = "\0outer\0inner\0x\0f\0";
    const OUTER: u32 = 1;
    const INNER: u32 = 7;
    const X: u32 = 13;
    const F: u32 = 15;

    /// `struct outer { union { const struct inner *x; }; }`, `struct inner { x at 3 }`, `f(struct outer *)`.
    fn sample() -> Vec<u8> {
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types: [&[u32]; 8] = [
            &[INNER, kind(STRUCT, 1), 8, X, 0, 24],   // 1
            &[0, kind(CONST, 0), 1],                  // 2
            &[0, kind(PTR, 0), 2],                    // 3
            &[0, kind(UNION, 1), 8, X, 3, 0],         // 4
            &[OUTER, kind(STRUCT, 1), 16, 0, 4, 64],  // 5
            &[0, kind(PTR, 0), 5],                    // 6
            &[0, kind(FUNC_PROTO, 2), 0, 0, 3, 0, 6], // 7
            &[F, kind(FUNC, 1), 7],                   // 8
        ];
        written(&types.concat(), NAMES)
    }

    #[test]
    fn members_are_where_the_kernel_says() {
        let btf = Btf::parse(sample()).unwrap();
        let f = btf.function("f").unwrap();
        assert_eq!(
            (f.id, btf.argument(&f, "outer"), btf.argument(&f, "inner")),
            (8, Some((1, 5)), Some((0, 1)))
        );
        assert_eq!(btf.structure("outer"), Some(5));
        assert_eq!(btf.path(5, &["x", "x"]).unwrap(), [8, 3]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let btf = Btf::parse(sample()).unwrap();
        assert!(btf.function("inner").is_none(), "a structure is no function");
        let error = btf.path(5, &["x", "y"]).unwrap_err().to_string();
        assert_eq!(error, "the kernel's inner has no y");
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        let whole = sample();
        for len in 0..whole.len() {
            if let Ok(btf) = Btf::parse(whole[..len].to_vec()) {
                assert!(len >= whole.len() - NAMES.len(), "{len} bytes are all types");
                let _ = (btf.function("f"), btf.path(5, &["x", "x"]));
            }
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0xff;
            if let Ok(btf) = Btf::parse(other) {
                let _ = (btf.function("f"), btf.structure("outer"), btf.path(5, &["x", "x"]));
            }
        }
    }
}
