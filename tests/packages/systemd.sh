#!/bin/bash
# Runs inside a booted clean Debian (tests/packages/run systemd): the unit and fstab as systemd itself handles them.
# The last line says whether all held.
exec >/opt/said 2>&1
trap 'poweroff' EXIT
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager kvfs@kv mnt-kv.mount
    journalctl --no-pager -u kvfs@kv | tail -40
    exit 1
}
ok() { echo "  ok    $*"; }
is_fuse() { [ "$(stat -f -c %t /mnt/kv)" = 65735546 ]; }
daemon() { kvfs status --json /mnt/kv | tr ',' '\n' | sed -n 's/^ *"pid": *//p' | head -1; }
# Asks until it's so, half a minute at most.
soon() {
    local i
    for i in $(seq 300); do
        "$@" && return
        sleep 0.1
    done
    return 1
}
another_daemon() { [ -n "$(daemon)" ] && [ "$(daemon)" != "$1" ]; }
serves() { is_fuse 2>/dev/null && cmp -s /opt/data /mnt/kv/file; }

dpkg -i /opt/kvfs.deb || fail "dpkg -i"
mkdir -p /nvme0/kv /nvme1/kv /mnt/kv /etc/kvfs
printf 'mount-point = "/mnt/kv"\nbacking = ["/nvme0/kv", "/nvme1/kv"]\n' >/etc/kvfs/kv.toml
head -c 100000 /dev/urandom >/opt/data
systemctl daemon-reload

systemctl start kvfs@kv || fail "systemctl start"
is_fuse || fail "active, and not mounted"
[ "$(findmnt -n -o FSTYPE /mnt/kv)" = fuse.kvfs ] || fail "the unit's mount isn't seen outside of it"
cp /opt/data /mnt/kv/file
ok "systemctl start kvfs@kv: active when it's mounted, and seen by all"
exec 7</mnt/kv/file
first=$(daemon)
kill -9 "$first"
soon another_daemon "$first" || fail "no other daemon"
cmp /opt/data - <&7 || fail "the open file"
systemctl is-active --quiet kvfs@kv || fail "the unit isn't active after a crash"
exec 7<&-
ok "a killed daemon: another takes over, an open file goes on, the unit stays active"
kill -STOP "$(daemon)"
second=$(daemon)
soon serves || fail "a stopped daemon isn't replaced by the watchdog"
ok "a daemon that was stopped: the watchdog has another take over"
systemctl kill -s KILL kvfs@kv
soon serves || fail "after all of the unit's processes were killed"
ok "all of its processes killed: systemd starts it anew, in the place of the dead mount"
systemctl stop kvfs@kv || fail "systemctl stop"
findmnt /mnt/kv && fail "stopped, and still mounted"
ok "systemctl stop unmounts"

echo "/nvme0/kv,/nvme1/kv /mnt/kv kvfs nofail,placement=hash,x-systemd.requires-mounts-for=/nvme0 0 0" >>/etc/fstab
systemctl daemon-reload
systemctl start mnt-kv.mount || fail "fstab's line"
serves || fail "mounted by fstab, and no file"
systemctl stop mnt-kv.mount || fail "stop mnt-kv.mount"
findmnt /mnt/kv && fail "fstab's mount is still there"
ok "fstab's line is a unit of systemd's, which mounts and unmounts"
echo all held
