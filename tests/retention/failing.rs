//! A backing dies while files are evicted from it.

use super::run::{MIB, evict, evict_bytes, mount, names, number, old, put};
use crate::common::{FsKind, Lab, ranked, sys};

#[test]
fn the_others_are_evicted_from_and_it_is_left_alone() {
    for kind in [FsKind::Xfs, FsKind::Ext4] {
        let lab = Lab::new();
        let size = if kind == FsKind::Xfs { 320 } else { 96 };
        let volumes = [lab.volume(kind, size), lab.volume(kind, size)];
        let backings = volumes.clone().map(|v| v.join("kv"));
        for (b, backing) in backings.iter().enumerate() {
            (0..30).for_each(|i| old(backing, &format!("b{b}-{i:02}"), MIB, 90_000 - 1000 * i));
        }
        let mount = mount(&lab, &backings, "lru", &[]).start();
        evict_bytes(&mount, 2 * MIB);
        assert_eq!(names(mount.point()).len(), 56);
        sys::kill_device(&volumes[0]);
        for _ in 0..10 {
            evict_bytes(&mount, 2 * MIB);
        }
        assert_eq!(names(&backings[1]).len(), 8, "{kind:?}: the other one goes on");
        for i in 0..3 {
            put(&mount.path(ranked(1, i)), 1, MIB);
        }
        let story = mount.story();
        let complaints = story.lines().filter(|line| line.contains("evicted from it")).count();
        assert_eq!(complaints, 1, "{kind:?}: it's said once\n{story}");
        assert!(number(&mount, "failed") <= 17, "{kind:?}: and not tried again and again");
        // Nor does anybody wait for it.
        evict(&mount, &["--bytes", "1G"]).code(0);
    }
}
