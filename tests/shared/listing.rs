//! Listings: what is there now, and undisturbed while they last.

use std::collections::HashMap;

use crate::common::dir::Dir;
use crate::common::lab::names;
use crate::common::{Lab, ranked, sys};
use crate::{two, write};

#[test]
fn a_new_listing_shows_what_is_there_now() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(3));
    sys::mkdir(one.path("d"), 0o755).unwrap();
    for round in 0..5 {
        for i in 0..8 {
            write(&one.path("d").join(ranked(i, round * 100 + i)), "x");
            // Asked between each two changes, within one tick of the clock that stamps directories.
            assert_eq!(names(&two.path("d")), names(&one.path("d")), "round {round}, after {i}");
        }
        for i in 0..4 {
            sys::unlink(two.path("d").join(ranked(i, round * 100 + i))).unwrap();
            assert_eq!(names(&one.path("d")), names(&two.path("d")), "round {round}, without {i}");
        }
        sys::mkdir(two.path(format!("d/sub{round}")), 0o755).unwrap();
        sys::rename(one.path("d").join(ranked(5, round * 100 + 5)), one.path(format!("d/moved{round}")))
            .unwrap();
        assert_eq!(names(&one.path("d")), names(&two.path("d")));
        assert_eq!(names(&two.path("d")).len(), (round + 1) * 5);
    }
}

#[test]
fn files_are_counted_once_though_both_list_them() {
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(3));
    for i in 0..30 {
        write(&one.path(ranked(i, i)), "x");
    }
    assert_eq!(names(two.point()).len(), 30);
    let counts = |m: &crate::common::Mount| {
        let status = m.status();
        (status["index"]["files"].as_u64(), status["index"]["shadows"].as_u64())
    };
    assert_eq!(counts(&two), (Some(30), Some(0)));
    for i in 0..10 {
        sys::unlink(one.path(ranked(i, i))).unwrap();
    }
    assert_eq!(names(two.point()).len(), 20);
    assert_eq!(counts(&two), (Some(20), Some(0)));
    assert_eq!(counts(&one), (Some(20), Some(0)));
}

#[test]
fn a_listing_under_way_shows_each_lasting_entry_once() {
    const FILES: usize = 3000;
    let lab = Lab::new();
    let (one, two) = two(&lab, &lab.dirs(3));
    for i in 0..FILES {
        write(&one.path(format!("a-lasting-file-with-a-longer-name-{i:05}")), "");
    }
    let mut dir = Dir::open(two.point()).unwrap();
    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut step = 0;
    while let Some(entry) = dir.next().unwrap() {
        *seen.entry(entry.name.to_string_lossy().into_owned()).or_default() += 1;
        step += 1;
        if step % 200 == 0 {
            // The other comes and goes, replaces files, and lists; so does this one.
            for i in 0..20 {
                write(&one.path(format!("new-{step}-{i}")), "");
                let lasting = format!("a-lasting-file-with-a-longer-name-{:05}", (step * 7 + i * 13) % FILES);
                write(&one.path("tmp"), "x");
                sys::rename(one.path("tmp"), one.path(lasting)).unwrap();
            }
            assert!(names(two.point()).len() >= FILES);
            for i in 0..20 {
                sys::unlink(one.path(format!("new-{step}-{i}"))).unwrap();
            }
            assert_eq!(names(two.point()).len(), FILES);
        }
    }
    for i in 0..FILES {
        let name = format!("a-lasting-file-with-a-longer-name-{i:05}");
        assert_eq!(seen.get(&name), Some(&1), "{name}");
    }
}
