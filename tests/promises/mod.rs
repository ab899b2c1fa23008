//! One file for each group of promises.

mod capacity;
mod directories;
mod duplicates;
mod faults;
mod pages;
mod placement;
mod restart;
mod visible;

use std::path::Path;

/// Writes a file below a backing, with the directories it needs.
fn put(backing: &Path, name: &str, data: impl AsRef<[u8]>) {
    let path = backing.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

fn text(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}
