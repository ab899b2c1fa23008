//! mmap: shared and private, and coherent with read and write on other descriptors.

use libc::*;

use super::{Side, parity};
use crate::common::sys::{self, Map};
use crate::common::{pattern, tree};

parity!(
    shared_read,
    shared_write,
    private,
    coherent,
    two_maps,
    outlives_close,
    after_unlink,
    errors,
    lmcache_gds
);

const LEN: usize = 64 << 10;
const RW: i32 = PROT_READ | PROT_WRITE;

fn shared_read(s: &mut Side) {
    let f = s.file("f", &pattern(1, LEN));
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    let map = Map::new(&fd, LEN, PROT_READ, MAP_SHARED);
    s.note("content", map.map(|m| m.get(0, LEN) == pattern(1, LEN)));
    let populated = Map::new(&fd, LEN, PROT_READ, MAP_PRIVATE | MAP_POPULATE);
    s.note("populated", populated.map(|m| m.get(100, 1000) == pattern(1, LEN)[100..1100]));
}

fn shared_write(s: &mut Side) {
    let f = s.file("f", &vec![0; LEN]);
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    match Map::new(&fd, LEN, RW, MAP_SHARED) {
        Ok(mut map) => {
            map.put(5000, b"through the map");
            s.note("read sees it", sys::pread(&fd, 15, 5000));
            s.note("another open sees it", sys::open(&f, O_RDONLY, 0).and_then(|o| sys::pread(&o, 15, 5000)));
            s.note("msync", map.sync());
        }
        Err(e) => s.note("map", e),
    }
    s.look("after", "f");
}

fn private(s: &mut Side) {
    let f = s.file("f", &vec![7; LEN]);
    let fd = sys::open(&f, O_RDONLY, 0).unwrap();
    let mut map = Map::new(&fd, LEN, RW, MAP_PRIVATE).unwrap();
    map.put(100, b"mine");
    s.note("own view", map.get(98, 8));
    s.note("the file", sys::pread(&fd, 8, 98));
}

fn coherent(s: &mut Side) {
    let f = s.file("f", &vec![0; LEN]);
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    let mut map = Map::new(&fd, LEN, RW, MAP_SHARED).unwrap();
    for i in 0..16usize {
        let at = i * 4001;
        sys::pwrite(&fd, &[i as u8 + 1; 100], at as i64).unwrap();
        s.note(format!("map after write {i}"), map.get(at, 100) == [i as u8 + 1; 100]);
        map.put(at + 50, &[0xee; 10]);
        s.note(format!("read after map {i}"), sys::pread(&fd, 12, at as i64 + 49));
    }
    sys::ftruncate(&fd, 10_000).unwrap();
    sys::ftruncate(&fd, LEN as i64).unwrap();
    s.note("zeroes after truncate", map.get(12_288, 4096).iter().all(|b| *b == 0));
    s.note("tail of the kept page", map.get(10_000, 2288).iter().all(|b| *b == 0));
}

fn two_maps(s: &mut Side) {
    let f = s.file("f", &vec![0; LEN]);
    let (a, b) = (sys::open(&f, O_RDWR, 0).unwrap(), sys::open(&f, O_RDWR, 0).unwrap());
    let mut ma = Map::new(&a, LEN, RW, MAP_SHARED).unwrap();
    let mb = Map::new(&b, LEN, RW, MAP_SHARED).unwrap();
    ma.put(4096, b"shared");
    s.note("the other map", mb.get(4096, 6));
    let child = crate::common::user::in_child(|| {
        let fd = sys::open(&f, O_RDWR, 0).unwrap();
        let mut m = Map::new(&fd, LEN, RW, MAP_SHARED).unwrap();
        let seen = m.get(4096, 6);
        m.put(8192, b"from the child");
        format!("{seen:?}")
    });
    s.note("another process sees", child);
    s.note("and is seen", ma.get(8192, 14));
}

fn outlives_close(s: &mut Side) {
    let f = s.file("f", &vec![0; LEN]);
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    let mut map = Map::new(&fd, LEN, RW, MAP_SHARED).unwrap();
    drop(fd);
    map.put(0, b"after close");
    s.note("seen by a new open", sys::open(&f, O_RDONLY, 0).and_then(|o| sys::pread(&o, 11, 0)));
    drop(map);
    s.look("after", "f");
}

fn after_unlink(s: &mut Side) {
    let f = s.file("f", &pattern(2, LEN));
    let fd = sys::open(&f, O_RDWR, 0).unwrap();
    let mut map = Map::new(&fd, LEN, RW, MAP_SHARED).unwrap();
    sys::unlink(&f).unwrap();
    map.put(9, b"gone");
    s.note("map", tree::digest(&map.get(0, LEN)));
    s.note("descriptor", sys::pread(&fd, 4, 9));
}

fn errors(s: &mut Side) {
    let f = s.file("f", &vec![0; LEN]);
    let (r, w) = (sys::open(&f, O_RDONLY, 0).unwrap(), sys::open(&f, O_WRONLY, 0).unwrap());
    s.note("shared write on a reader", Map::new(&r, LEN, RW, MAP_SHARED).map(drop));
    s.note("read on a writer", Map::new(&w, LEN, PROT_READ, MAP_SHARED).map(drop));
    let d = sys::open(s.dir("d"), O_RDONLY, 0).unwrap();
    s.note("directory", Map::new(&d, 4096, PROT_READ, MAP_SHARED).map(drop));
    s.note("nothing", Map::new(&r, 0, PROT_READ, MAP_SHARED).map(drop));
}

fn lmcache_gds(s: &mut Side) {
    // The way LMCache's GDS backend writes without cuFile: grow, map, copy, rename.
    let tmp = s.p("chunk.tmp1234abcd");
    let fd = sys::open(&tmp, O_RDWR | O_CREAT | O_TRUNC, 0o644).unwrap();
    s.note("grow", sys::ftruncate(&fd, 1 << 20));
    let mut map = Map::new(&fd, 1 << 20, RW, MAP_SHARED).unwrap();
    map.put(4096, &pattern(9, (1 << 20) - 4096));
    drop(map);
    drop(fd);
    s.note("publish", sys::rename(&tmp, s.p("chunk")));
    let fd = sys::open(s.p("chunk"), O_RDONLY, 0).unwrap();
    let map = Map::new(&fd, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_POPULATE).unwrap();
    s.note("read back", tree::digest(&map.get(0, 1 << 20)));
}
