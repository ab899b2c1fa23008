//! The index against a plain map, and the properties that other rooms lean on.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn file(index: &mut Index, slot: u8, ino: u64) -> FileRef {
    FileRef { slot: Slot(slot), ino: index.pack_ino(ino), kind: Kind::File, reason: 3 }
}

#[test]
fn a_name_is_taken_once() {
    let mut index = Index::new(2);
    let one = file(&mut index, 1, 77);
    let entry = index.add_file(DirId::ROOT, b"a", one).unwrap().unwrap();
    assert_eq!(index.find(DirId::ROOT, b"a"), Some((entry, What::File(one))));
    assert_eq!(index.add_file(DirId::ROOT, b"a", one), Ok(Err(entry)));
    assert_eq!(index.add_dir(DirId::ROOT, b"a", SlotSet::first(2)), Ok(Err(entry)));
    assert_eq!(index.files_on(Slot(1)), 1);
    index.remove(entry);
    assert_eq!(index.find(DirId::ROOT, b"a"), None);
    assert_eq!(index.files(), 0);
}

#[test]
fn directories_nest_and_move() {
    let mut index = Index::new(2);
    let a = index.add_dir(DirId::ROOT, b"a", SlotSet::one(Slot(0))).unwrap().unwrap();
    let b = index.add_dir(a, b"b", SlotSet::one(Slot(1))).unwrap().unwrap();
    assert_eq!(index.path(b), b"a/b");
    assert_eq!(index.subdirs(a), 1);
    assert!(index.is_within(b, a) && !index.is_within(a, b) && index.is_within(b, DirId::ROOT));
    let (entry, _) = index.find(a, b"b").unwrap();
    index.rename(entry, DirId::ROOT, b"c").unwrap();
    assert_eq!(index.path(b), b"c");
    assert_eq!((index.subdirs(a), index.subdirs(DirId::ROOT)), (0, 2));
    index.remove(entry);
    assert_eq!(index.slots(b), None);
    let d = index.add_dir(a, b"d", SlotSet::one(Slot(0))).unwrap().unwrap();
    assert_ne!(d, b, "a directory's number is not used twice");
}

#[test]
fn wide_inode_numbers_have_ids_too() {
    let mut index = Index::new(1);
    let wide = file(&mut index, 0, u64::MAX - 5);
    let again = file(&mut index, 0, u64::MAX - 5);
    assert_eq!(wide, again);
    assert_eq!(index.ino(wide.ino), u64::MAX - 5);
    assert_eq!(wide.node().node(), Some(Node::File(Slot(0), wide.ino)));
}

#[test]
fn hard_links_share_a_node() {
    let mut index = Index::new(1);
    let inode = file(&mut index, 0, 5);
    let one = index.add_file(DirId::ROOT, b"one", inode).unwrap().unwrap();
    let two = index.add_file(DirId::ROOT, b"two", inode).unwrap().unwrap();
    index.remember(one);
    index.remove(one);
    assert_eq!(
        index.find_node(Slot(0), inode.ino),
        Some(two),
        "found though the kernel was told of the other"
    );
    index.remove(two);
    assert_eq!(index.find_node(Slot(0), inode.ino), None);
}

#[test]
fn a_node_is_known_until_it_is_forgotten_as_often_as_it_was_told() {
    let mut index = Index::new(1);
    let (slot, ino) = (Slot(0), file(&mut index, 0, 5).ino);
    let inode = file(&mut index, 0, 5);
    let one = index.add_file(DirId::ROOT, b"one", inode).unwrap().unwrap();
    assert!(!index.remember_again(one), "the kernel doesn't know it");
    index.remember(one);
    assert!(index.remember_again(one));
    let two = index.add_file(DirId::ROOT, b"two", inode).unwrap().unwrap();
    index.remember(two);
    // A LOOKUP was answered before the FORGET of the two that were before it was read.
    index.forget(slot, ino, 2);
    assert!(index.find_known(slot, ino) && index.is_remembered(one));
    index.forget(slot, ino, 1);
    assert!(!index.find_known(slot, ino));
    index.remember(one);
    index.forget(slot, ino, 1);
    assert!(!index.find_known(slot, ino), "told once, forgotten once");
}

#[test]
fn a_reader_sees_each_lasting_entry_once() {
    let mut index = Index::new(1);
    for i in 0..3000u64 {
        let inode = file(&mut index, 0, i);
        index.add_file(DirId::ROOT, format!("f{i}").as_bytes(), inode).unwrap().unwrap();
    }
    let mut seen = Vec::new();
    let mut from = 0;
    loop {
        let batch: Vec<EntryId> = index.children(DirId::ROOT, from).take(70).collect();
        let Some(last) = batch.last() else { break };
        from = last.number() + 1;
        seen.extend(batch.iter().map(|e| index.place(*e).1.to_vec()));
        // Remove what was read, as `rm -r` does, and put something else in its room.
        for entry in &batch {
            index.remove(*entry);
        }
        let inode = file(&mut index, 0, u64::from(from));
        index.add_file(DirId::ROOT, format!("new{from}").as_bytes(), inode).unwrap().unwrap();
    }
    seen.retain(|name| name[0] == b'f');
    assert_eq!(seen.len(), 3000);
}

#[test]
fn shadows_go_with_their_entry() {
    let mut index = Index::new(3);
    let inode = file(&mut index, 0, 9);
    let entry = index.add_file(DirId::ROOT, b"x", inode).unwrap().unwrap();
    index.set_shadows(entry, SlotSet::one(Slot(2)));
    assert_eq!((index.shadows(entry), index.shadow_count()), (SlotSet::one(Slot(2)), 1));
    let moved = file(&mut index, 1, 10);
    index.retarget(entry, moved);
    assert_eq!(index.what(entry), What::File(moved));
    assert_eq!(index.shadows(entry), SlotSet::one(Slot(2)));
    assert_eq!((index.files_on(Slot(0)), index.files_on(Slot(1))), (0, 1));
    index.remove(entry);
    assert_eq!(index.shadow_count(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u64),
    Remove(u8),
    Rename(u8, u8),
    Exchange(u8, u8),
    Remember(u8),
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<u8>(), 0..40u64).prop_map(|(n, i)| Step::Add(n, i)),
        any::<u8>().prop_map(Step::Remove),
        (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Rename(a, b)),
        (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Exchange(a, b)),
        any::<u8>().prop_map(Step::Remember),
        any::<u8>().prop_map(Step::Forget),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_map(steps in proptest::collection::vec(step(), 1..400)) {
        let mut index = Index::new(4);
        let mut model: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let name = |n: u8| format!("name-{}", n % 32).into_bytes();
        for step in steps {
            match step {
                Step::Add(n, ino) => {
                    let inode = file(&mut index, (ino % 4) as u8, ino);
                    let added = index.add_file(DirId::ROOT, &name(n), inode).unwrap();
                    prop_assert_eq!(added.is_ok(), !model.contains_key(&name(n)));
                    model.entry(name(n)).or_insert(ino);
                }
                Step::Remove(n) => {
                    if let Some((entry, _)) = index.find(DirId::ROOT, &name(n)) {
                        index.remove(entry);
                    }
                    model.remove(&name(n));
                }
                Step::Rename(a, b) => {
                    if name(a) != name(b) && !model.contains_key(&name(b))
                        && let Some((entry, _)) = index.find(DirId::ROOT, &name(a)) {
                        index.rename(entry, DirId::ROOT, &name(b)).unwrap();
                        let ino = model.remove(&name(a)).unwrap();
                        model.insert(name(b), ino);
                    }
                }
                Step::Exchange(a, b) => {
                    if let (Some((one, _)), Some((other, _))) =
                        (index.find(DirId::ROOT, &name(a)), index.find(DirId::ROOT, &name(b)))
                        && one != other {
                        index.exchange(one, other);
                        let (x, y) = (model[&name(a)], model[&name(b)]);
                        model.insert(name(a), y);
                        model.insert(name(b), x);
                    }
                }
                Step::Remember(n) => {
                    if let Some((entry, _)) = index.find(DirId::ROOT, &name(n)) {
                        index.remember(entry);
                    }
                }
                Step::Forget(n) => {
                    if let Some((_, What::File(f))) = index.find(DirId::ROOT, &name(n)) {
                        index.forget(f.slot, f.ino, u64::MAX);
                    }
                }
            }
            prop_assert_eq!(index.files(), model.len() as u64);
            let listed: Vec<_> = index.children(DirId::ROOT, 0).collect();
            prop_assert_eq!(listed.len(), model.len());
        }
        for (name, ino) in &model {
            let (entry, what) = index.find(DirId::ROOT, name).unwrap();
            let What::File(found) = what else { panic!("{what:?}") };
            prop_assert_eq!(index.ino(found.ino), *ino);
            prop_assert!(index.find_node(found.slot, found.ino).is_some());
            prop_assert_eq!(index.place(entry).1, &name[..]);
        }
    }
}
