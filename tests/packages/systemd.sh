#!/bin/bash
# Runs inside a booted clean Debian (tests/packages/run systemd): the unit and fstab as systemd itself handles them.
# The last line says whether all held.
exec >/opt/said 2>&1
trap 'poweroff' EXIT
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager kvfs@kv mnt-kv.mount
    journalctl --no-pager -o short-precise -u kvfs@kv | tail -60
    exit 1
}
ok() { echo "  ok    $*"; }
is_fuse() { [ "$(stat -f -c %t /mnt/kv)" = 65735546 ]; }
daemon() { kvfs status --json /mnt/kv 2>/dev/null | tr ',' '\n' | sed -n 's/^ *"pid": *//p' | head -1; }
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
# The mount's own number: another one is another mount.
mounted() { findmnt -n -o ID /mnt/kv; }

# Clients that are at it all the time: one by name, one that has the file open. What goes wrong for one is written down.
reads_on() {
    : >/opt/errors
    touch /opt/reading
    { while [ -e /opt/reading ]; do cmp /opt/data /mnt/kv/file || sleep 0.1; done; } 2>>/opt/errors &
    python3 - 3</mnt/kv/file 2>>/opt/errors <<'END' &
import os
data = open("/opt/data", "rb").read()
while os.path.exists("/opt/reading"):
    assert os.pread(3, len(data) + 1, 0) == data, "the open file"
END
}
read_well() {
    rm /opt/reading
    wait
    [ ! -s /opt/errors ] || { cat /opt/errors; return 1; }
}
systemd=$(systemctl --version | awk 'NR == 1 { print $2 }')
# Whether it keeps what a daemon needs that takes over: FDSTORE= and FileDescriptorStorePreserve=, 254.
keeps() { [ "$systemd" -ge 254 ]; }
by() { kvfs status --json /mnt/kv | grep -o '"by": *"[^"]*"' | cut -d '"' -f 4; }

dpkg -i /opt/kvfs.deb || fail "dpkg -i"
mkdir -p /nvme0/kv /nvme1/kv /mnt/kv /etc/kvfs
printf 'mount-point = "/mnt/kv"\nbacking = ["/nvme0/kv", "/nvme1/kv"]\nmetrics = "127.0.0.1:9464"\n' >/etc/kvfs/kv.toml
head -c 100000 /dev/urandom >/opt/data
# What needs the mount says so, as docs/CONFIGURATION.md has it.
printf '[Unit]\nRequires=kvfs@kv.service\nAfter=kvfs@kv.service\n[Service]\nExecStart=sleep infinity\n' >/etc/systemd/system/client.service
# Sooner than the unit has it.
drop_ins=/run/systemd/system/kvfs@kv.service.d
mkdir -p $drop_ins
printf '[Service]\nTimeoutStopSec=3s\nWatchdogSec=8s\n' >$drop_ins/sooner.conf
systemctl daemon-reload
echo "  --    systemd $systemd"

systemctl start kvfs@kv || fail "systemctl start"
is_fuse || fail "active, and not mounted"
[ "$(findmnt -n -o FSTYPE /mnt/kv)" = fuse.kvfs ] || fail "the unit's mount isn't seen outside of it"
cp /opt/data /mnt/kv/file
ok "systemctl start kvfs@kv: active when it's mounted, and seen by all"
if keeps; then wanted=systemd; else wanted="its parent process"; fi
[ "$(by)" = "$wanted" ] || fail "supervised by $(by), not $wanted"
[ -S /mnt/kv/.kvfs-socket ] || fail "no socket for descriptors in the mount"
python3 -c 'import urllib.request as r; assert b"kvfs_" in r.urlopen("http://127.0.0.1:9464/metrics", timeout=5).read()' ||
    fail "no metrics from a loopback address"
ok "supervised by $wanted; metrics are served, and there's the socket for descriptors"

systemctl start client || fail "a unit that needs the mount"
client=$(systemctl show -P MainPID client)
mount=$(mounted)
reads_on
for i in 1 2 3; do
    first=$(daemon)
    kill -9 "$first"
    soon another_daemon "$first" || fail "no other daemon"
done
read_well || fail "clients noticed that the daemon was killed"
[ "$(mounted)" = "$mount" ] || fail "after a crash it's another mount"
systemctl is-active --quiet kvfs@kv || fail "the unit isn't active after a crash"
ok "a killed daemon, three times: another takes over, clients that read notice nothing, the unit stays active"
reads_on
kill -STOP "$(daemon)"
soon serves || fail "a stopped daemon isn't replaced by the watchdog"
if keeps; then
    read_well || fail "clients noticed that the daemon had stopped"
else
    rm /opt/reading
    wait
fi
ok "a daemon that was stopped: the watchdog has another take over"
mount=$(mounted)
if keeps; then
    # In use, and not.
    reads_on
    for i in 1 2 3; do
        first=$(daemon)
        systemctl kill -s KILL kvfs@kv
        soon another_daemon "$first" || fail "no other daemon"
    done
    read_well || fail "clients noticed that all processes were killed"
    first=$(daemon)
    systemctl kill -s KILL kvfs@kv
    soon another_daemon "$first" || fail "no other daemon"
    [ "$(mounted)" = "$mount" ] || fail "after a crash it's another mount"
    ok "all of its processes killed: systemd starts it with what it has kept, clients that read notice nothing"
    [ "$(systemctl show -P MainPID client)" = "$client" ] || fail "a unit that needs the mount didn't survive its crashes"
    ok "a unit that needs the mount goes on meanwhile"
else
    systemctl kill -s KILL kvfs@kv
    soon serves || fail "after all of the unit's processes were killed"
    ok "all of its processes killed: systemd starts it anew, in the place of the dead mount"
fi
systemctl stop client

first=$(daemon)
mount=$(mounted)
reads_on
systemctl reload kvfs@kv || fail "systemctl reload"
soon another_daemon "$first" || fail "no other daemon after a reload"
read_well || fail "clients noticed a reload"
[ "$(mounted)" = "$mount" ] || fail "after a reload it's another mount"
kvfs status --json /mnt/kv | tr -d ' \n' | grep -q '"outcome":"done"' || fail "the reload was no upgrade"
systemctl is-active --quiet kvfs@kv || fail "the unit isn't active after a reload"
first=$(daemon)
cp /etc/kvfs/kv.toml /opt/kv.toml
echo 'placement = "hash"' >>/etc/kvfs/kv.toml
systemctl reload kvfs@kv && fail "a reload that would have to change options"
journalctl -u kvfs@kv | grep -q -- "--placement: the mount has by_gpu, given was hash" || fail "nobody says why it can't be reloaded"
[ "$(daemon)" = "$first" ] || fail "a reload that was refused ended the daemon"
cp /opt/kv.toml /etc/kvfs/kv.toml
ok "systemctl reload: another daemon takes over, clients that read notice nothing; refused where the file has other options"

systemctl restart kvfs@kv || fail "systemctl restart"
serves || fail "restarted, and it doesn't serve"
[ "$(systemctl show -P NFileDescriptorStore kvfs@kv)" -le 6 ] || fail "the store has more than one daemon's"
ok "systemctl restart: unmounted and mounted anew"
# As long as a file is open the former one goes on, out of sight; but not for ever.
exec 7</mnt/kv/file
systemctl restart kvfs@kv || fail "systemctl restart with a file open"
serves || fail "restarted with a file open, and it doesn't serve"
exec 7<&-
ok "systemctl restart with a file open: mounted anew when TimeoutStopSec= is over"

tries() { /opt/capabilities /mnt/kv /nvme0/kv /nvme1/kv 2>/dev/null; }
tries || fail "the unit leaves the daemon too few capabilities"
ok "what each of the unit's capabilities is for can be done"
if keeps; then
    for capability in $(systemctl show -P CapabilityBoundingSet kvfs@kv); do
        printf '[Service]\nRestart=no\nCapabilityBoundingSet=~%s\n' "$capability" >$drop_ins/without.conf
        systemctl daemon-reload
        # Without CAP_SYS_ADMIN there's no mount at all.
        if systemctl restart kvfs@kv 2>/dev/null; then
            tries | grep -q "^${capability^^}:" || fail "nothing misses $capability"
        fi
        [ "$capability" != cap_sys_admin ] || ! systemctl is-active --quiet kvfs@kv || fail "mounted without $capability"
    done
    rm $drop_ins/without.conf
    systemctl daemon-reload
    systemctl restart kvfs@kv || fail "systemctl restart"
    ok "none of them is there for nothing"
fi

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
