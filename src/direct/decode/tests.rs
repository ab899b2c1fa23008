//! Arbitrary bytes are answered; what is well-formed comes out as it went in.

use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

/// A command word of ours, or nearly.
fn words() -> impl Strategy<Value = u32> {
    let ours = (0u8..10, 0usize..9000).prop_map(|(nr, size)| abi::command(nr, size));
    let exact = prop_oneof![
        Just((nr::QUERY, size_of::<Query>())),
        Just((nr::REGISTER, size_of::<RegBuf>())),
        Just((nr::UNREGISTER, size_of::<UnregBuf>())),
        Just((nr::READ, size_of::<Op>())),
        Just((nr::LOCATE, size_of::<Locate>())),
    ];
    prop_oneof![ours, exact.prop_map(|(nr, size)| abi::command(nr, size)), any::<u32>()]
}

fn size_of_word(cmd: u32) -> usize {
    (cmd >> 16 & 0x3fff) as usize
}

/// What holds of every command that is let through.
fn well_formed(command: &Command<'_>, len: usize) {
    match command {
        Command::Query(query) => assert!(query.abi > 0 && query.flags == 0),
        Command::Register(reg) => {
            assert!(reg.length > 0 && reg.offset.checked_add(reg.length).is_some());
            assert!(reg.flags & (abi::BUF_RD | abi::BUF_WR) == reg.flags && reg.flags != 0);
        }
        Command::Unregister(unreg) => assert!(unreg.flags <= abi::UNREG_NOWAIT),
        Command::Transfer(op) => assert!(op.flags == 0 && (1..=2).contains(&op.opcode)),
        Command::Submit(batch, ops) => {
            assert_eq!(batch.nr_ops as usize, ops.len());
            assert!((1..=abi::BATCH_MAX).contains(&ops.len()));
            for op in ops {
                let _ = direction(op);
            }
        }
        Command::Locate => {}
        Command::LookupPrefix(prefix, names) => {
            assert_eq!(prefix.nr_names as usize, names.len());
            assert!(names.iter().all(|name| !name.is_empty() && !name.contains(&0)));
            let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
            assert_eq!(bytes + size_of::<Prefix>(), len);
        }
    }
}

/// A name without NUL.
fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(1u8..=255, 1..40)
}

fn op() -> impl Strategy<Value = Op> {
    any::<[u64; 7]>().prop_map(|[a, file, buf_id, buf_off, file_off, length, user_data]| Op {
        opcode: a as u32,
        flags: (a >> 32) as u32,
        file,
        buf_id,
        buf_off,
        file_off,
        length,
        user_data,
        result: 0,
    })
}

proptest! {
    #[test]
    fn any_bytes_are_answered(cmd in words(), data in vec(any::<u8>(), 0..600), same in any::<bool>(), fill in
                              prop_oneof![Just(0u8), any::<u8>()]) {
        let mut data = data;
        if same {
            data.resize(size_of_word(cmd), fill);
        }
        if let Ok(command) = decode(cmd, &data, data.len() as u32) {
            well_formed(&command, data.len());
        }
        let _ = decode(cmd, &data, 0);
    }

    #[test]
    fn nearly_good_ones_are_answered(at in 0usize..8192, value in any::<u64>(), nr in 0u8..8, nops in 1usize..4) {
        let op = Op { opcode: abi::OP_READ, ..Op::default() };
        let head = Batch { nr_ops: nops as u32, ..Batch::default() };
        let mut data = match nr {
            nr::QUERY => Query { abi: 1, ..Query::default() }.as_bytes().to_vec(),
            nr::REGISTER => {
                let (kind, fd_method) = (kind::MEMFD, abi::FD_OF_CALLER);
                RegBuf { kind, fd_method, flags: 1, length: 1, ..RegBuf::default() }.as_bytes().to_vec()
            }
            nr::UNREGISTER => UnregBuf::default().as_bytes().to_vec(),
            nr::SUBMIT => [head.as_bytes(), vec![op; nops].as_bytes()].concat(),
            nr::LOCATE => Locate::default().as_bytes().to_vec(),
            nr::LOOKUP_PREFIX => {
                let head = Prefix { nr_names: 2, names_len: 4, ..Prefix::default() };
                [head.as_bytes(), b"a\0b\0"].concat()
            }
            nr => Op { opcode: u32::from(nr) - 2, ..op }.as_bytes().to_vec(),
        };
        let cmd = abi::command(nr, data.len());
        prop_assert!(decode(cmd, &data, data.len() as u32).is_ok(), "call {}", nr);
        let at = at % data.len();
        let width = 8.min(data.len() - at);
        data[at..at + width].copy_from_slice(&value.to_ne_bytes()[..width]);
        if let Ok(command) = decode(cmd, &data, data.len() as u32) {
            well_formed(&command, data.len());
        }
    }

    #[test]
    fn batches_round_trip(ops in vec(op(), 1..=abi::BATCH_MAX)) {
        let head = Batch { nr_ops: ops.len() as u32, ..Batch::default() };
        let data = [head.as_bytes(), ops.as_bytes()].concat();
        match decode(abi::command(nr::SUBMIT, data.len()), &data, data.len() as u32) {
            Ok(Command::Submit(batch, decoded)) => {
                prop_assert_eq!(batch.as_bytes(), head.as_bytes());
                prop_assert_eq!(decoded.as_bytes(), ops.as_bytes());
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn names_round_trip(names in vec(name(), 0..60)) {
        let bytes: Vec<u8> = names.iter().flat_map(|name| [&name[..], b"\0"].concat()).collect();
        let (nr_names, names_len) = (names.len() as u32, bytes.len() as u32);
        let data = [Prefix { nr_names, names_len, ..Prefix::default() }.as_bytes(), &bytes].concat();
        match decode(abi::command(nr::LOOKUP_PREFIX, data.len()), &data, data.len() as u32) {
            Ok(Command::LookupPrefix(_, decoded)) => prop_assert_eq!(decoded, names),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// A later version's argument is taken if what it adds is zero, and refused otherwise.
    #[test]
    fn later_versions(extra in 1usize..200, at in 0usize..200, byte in 1u8..=255) {
        let query = Query { abi: 2, ..Query::default() };
        let mut data = [query.as_bytes(), &vec![0; extra]].concat();
        let cmd = abi::command(nr::QUERY, data.len());
        prop_assert!(matches!(decode(cmd, &data, data.len() as u32), Ok(Command::Query(_))));
        data[size_of::<Query>() + at % extra] = byte;
        prop_assert_eq!(decode(cmd, &data, data.len() as u32).unwrap_err(), Errno::TOOBIG);
    }
}
