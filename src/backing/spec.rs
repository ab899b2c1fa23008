//! What an operator says of one backing: `/nvme0/kv`, `/mnt/cephfs/kv:shared`, `/nvme1/kv:min-free=10G`.
//!
//! What always holds: a flag that isn't known is an error that lists those there are, never part of a path
//! by accident; a path whose last component has a colon can be written with a slash at its end.

use std::path::PathBuf;
use std::str::FromStr;

use super::{Limit, MinFree, State};

/// A backing as the operator named it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Its path.
    pub path: PathBuf,
    /// Other nodes change it too.
    pub shared: bool,
    /// kvfs may evict from it though it's shared.
    pub evict: bool,
    /// What it takes.
    pub state: State,
    /// It may be a new drive, though another was at its path before.
    pub new: bool,
    /// What must stay free on it, if that was said for it alone.
    pub min_free: Option<MinFree>,
    /// How much kvfs may put there, if that was said for it alone.
    pub capacity: Option<Limit>,
}

const FLAGS: &str = "shared, evict, ro, no-create, new, min-free=SIZE and capacity=SIZE";

impl From<PathBuf> for Spec {
    fn from(path: PathBuf) -> Spec {
        let state = State::default();
        Spec { path, shared: false, evict: false, state, new: false, min_free: None, capacity: None }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let text = text.strip_prefix("file://").unwrap_or(text);
        let last = text.rfind('/').map_or(0, |at| at + 1);
        let mut parts = text[last..].split(':');
        let path = last + parts.next().map_or(0, str::len);
        if path == 0 {
            return Err(format!("{text:?} names no directory"));
        }
        let mut spec = Spec::from(PathBuf::from(&text[..path]));
        for flag in parts {
            let wrong = |e: String| format!("{}: {flag}: {e}", spec.path.display());
            match flag.split_once('=') {
                None if flag == "shared" => spec.shared = true,
                None if flag == "evict" => spec.evict = true,
                None if flag == "ro" => spec.state = State::ReadOnly,
                None if flag == "no-create" => spec.state = State::NoCreate,
                None if flag == "new" => spec.new = true,
                Some(("min-free", size)) => spec.min_free = Some(size.parse().map_err(wrong)?),
                Some(("capacity", size)) => spec.capacity = Some(size.parse().map_err(wrong)?),
                _ => {
                    return Err(format!(
                        "{}: {flag:?} is nothing that a backing can be; there are {FLAGS} (a path with a colon in its last part ends with a slash)",
                        spec.path.display()
                    ));
                }
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_the_path() {
        let spec: Spec = "/mnt/ceph/kv:shared:min-free=10G".parse().unwrap();
        assert_eq!(spec.path, PathBuf::from("/mnt/ceph/kv"));
        assert!(spec.shared && !spec.evict);
        assert_eq!(spec.min_free, Some(MinFree::Bytes(10 << 30)));
        let spec: Spec = "file:///a:b/kv:capacity=50%:ro".parse().unwrap();
        assert_eq!((spec.path, spec.state), (PathBuf::from("/a:b/kv"), State::ReadOnly));
        assert_eq!(spec.capacity, Some(Limit::Percent(50.0)));
        let plain: Spec = "/a/b:c/".parse().unwrap();
        assert_eq!(plain, Spec::from(PathBuf::from("/a/b:c/")));
    }

    #[test]
    fn unknown_flags_are_refused() {
        for bad in ["/a:b", "/a:shared:x", "/a:min-free", "/a:min-free=x", "/a:shared=1", ":shared", "/a:"] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
        let message = "/a:share".parse::<Spec>().unwrap_err();
        assert!(message.contains("shared, evict, ro"), "{message}");
    }
}
