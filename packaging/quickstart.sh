#!/usr/bin/env bash
# Builds kvfs, mounts it and shows that it serves files.
#
#   packaging/quickstart.sh                                  on temporary directories
#   packaging/quickstart.sh /mnt/kv /nvme0/kv /nvme1/kv ...  on your own
#
# As root the kernel passes file data through to the drives; as an ordinary user (with fusermount3) the data
# goes through the daemon. The mount stays: the last lines say how to use it and how to end it.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null; then
    echo "quickstart: Rust 1.91 or newer is needed: install it with rustup (https://rustup.rs)" >&2
    exit 1
fi
if ! command -v cc >/dev/null || { [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; }; then
    echo "quickstart: installing a C linker and fusermount3"
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    if command -v apt-get >/dev/null; then
        $sudo apt-get update -qq && $sudo apt-get install -y -qq gcc libc6-dev fuse3
    elif command -v dnf >/dev/null; then
        $sudo dnf install -y -q gcc fuse3
    else
        echo "quickstart: neither apt-get nor dnf is here: install a C compiler (cc) and fuse3 yourself, then run this again" >&2
        exit 1
    fi
fi

cargo build --release --locked
kvfs=$(realpath "${CARGO_TARGET_DIR:-target}/release/kvfs")

if [ $# -ge 2 ]; then
    mnt=$1
    shift
    backings=$(IFS=,; echo "$*")
else
    work=$(mktemp -d "${TMPDIR:-/tmp}/kvfs-quickstart-XXXXXX")
    mnt=$work/mnt
    backings=$work/nvme0,$work/nvme1,$work/nvme2,$work/nvme3
fi
mkdir -p "$mnt"
"$kvfs" doctor || true
"$kvfs" mount "$mnt" --backing "$backings" --log "${work:-/tmp}/kvfs.log"

# What eight LMCache workers would do: each rank's chunk lands on the backing that its rank names.
for rank in 0 1 2 3 4 5 6 7; do
    head -c 1048576 /dev/urandom >"$mnt/quickstart@8@$rank@c0ffee@bfloat16.pt"
done
"$kvfs" locate "$mnt"/quickstart@*.pt | grep -E '^/|path'
cat "$mnt"/quickstart@*.pt | sha256sum
rm "$mnt"/quickstart@*.pt
"$kvfs" status "$mnt"
cat <<END

kvfs serves $mnt. Use it as a directory; then:
  $kvfs status $mnt
  $kvfs umount $mnt${work:+ && rm -r $work}
END
