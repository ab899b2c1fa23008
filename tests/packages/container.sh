# Part of tests/packages/run: the image as packaging/container/Containerfile makes it, and containers as
# docs/CONTAINERS.md has them. Where there's no network to a registry: what the Containerfile starts from is made
# of a clean Debian, with a stand-in for the toolchain that hands out the program built here.

container_engine() {
    STORAGE_DRIVER=vfs timeout -k 5 120 "$@"
}
pod() {
    container_engine podman --root "$work/engine/root" --runroot "$runroot" --tmpdir "$work/engine/tmp" \
        --cgroup-manager=cgroupfs --runtime "$work/engine/runc" "$@"
}

# Limits that this process can't raise are left as they are: an engine's defaults need CAP_SYS_RESOURCE.
engine_runtime() {
    cat >"$work/engine/runc" <<'END'
#!/usr/bin/env python3
import json, os, sys
for option, find in (("--bundle", lambda at: (os.path.join(at, "config.json"), "process")), ("--process", lambda at: (at, None))):
    if option in sys.argv:
        path, part = find(sys.argv[sys.argv.index(option) + 1])
        with open(path) as file:
            spec = json.load(file)
        (spec[part] if part else spec).pop("rlimits", None)
        with open(path, "w") as file:
            json.dump(spec, file)
os.execvp("runc", sys.argv)
END
    chmod +x "$work/engine/runc"
}

base_images() {
    local debian=docker.io/library/debian:bookworm-slim
    root="$work/image"
    base "$SUITE" "$SUITE-minbase"
    tar -C "$root" -cf "$work/engine/debian.tar" .
    rm -rf "$root"
    pod import --quiet "$work/engine/debian.tar" "$debian" >/dev/null
    mkdir -p "$work/engine/rust/usr/local/bin"
    cat >"$work/engine/rust/usr/local/bin/cargo" <<'END'
#!/bin/sh
set -e
[ "$*" = "build --release --locked" ]
[ -e Cargo.lock ] && [ -e src/main.rs ] && [ ! -e target ] && [ ! -e .git ]
mkdir -p target/release
cp /built/kvfs target/release/
END
    printf '#!/bin/sh\n[ -x "$1" ]\n' >"$work/engine/rust/usr/local/bin/strip"
    chmod +x "$work"/engine/rust/usr/local/bin/*
    printf 'FROM %s\nCOPY rust /\n' "$debian" >"$work/engine/rust.containerfile"
    build -f "$work/engine/rust.containerfile" -t docker.io/library/rust:1-bookworm "$work/engine"
}

build() {
    container_engine buildah --root "$work/engine/root" --runroot "$runroot" build --quiet --isolation chroot "$@" \
        >"$work/build.log" 2>&1 || { cat "$work/build.log"; fail "buildah build"; }
}

container() {
    local needed
    for needed in podman buildah runc; do
        command -v "$needed" >/dev/null || { echo "  --    container: left out, for it needs $needed"; return 0; }
    done
    mkdir -p "$work"/engine/{tmp,built} "$work"/{nvme0,nvme1,shared}/kv
    # podman takes 50 characters at most.
    runroot="$(mktemp -d /tmp/kvfs-podman-XXXXXX)"
    trap 'rm -rf "$runroot"; clean_up' EXIT
    cargo build --quiet --release --locked
    strip -o "$work/engine/built/kvfs" "${CARGO_TARGET_DIR:-target}/release/kvfs"
    engine_runtime
    base_images
    build -v "$work/engine/built:/built:ro" -f packaging/container/Containerfile -t kvfs .
    [ "$(pod run --rm --network=host kvfs --version)" = "$("$work/engine/built/kvfs" --version)" ] || fail "the image's entry point"
    ok "the Containerfile is an image"

    mount --bind "$work/shared" "$work/shared"
    mount --make-shared "$work/shared"
    local client=(--network=host -v "$work/shared:/mnt:rslave" docker.io/library/debian:bookworm-slim)
    pod run -d --name early "${client[@]}" sleep infinity >/dev/null
    trap 'pod rm -f -t 0 kvfs early >/dev/null 2>&1 || true; rm -rf "$runroot"; clean_up' EXIT
    serve
    echo from a container >"$work/data"
    pod run --rm "${client[@]}" sh -c 'echo from a container >/mnt/kv/file' || fail "a client in a container"
    cmp "$work/data" "$work/shared/kv/file" || fail "the host sees another file"
    pod exec early cat /mnt/kv/file | cmp - "$work/data" || fail "a container from before the mount"
    pod run --rm --user 1000:1000 "${client[@]}" cat /mnt/kv/file | cmp - "$work/data" || fail "a container's user"
    [ -e "$work/nvme0/kv/file" ] || [ -e "$work/nvme1/kv/file" ] || fail "the file is on no drive"
    pod exec kvfs kvfs status /mnt/kv >"$work/status" || fail "kvfs status"
    grep -q "passthrough  on" "$work/status" || { cat "$work/status"; fail "no passthrough in a container"; }
    ok "seen by the host, by containers and their users, also those that were there before; passed through"

    local daemon
    daemon="$(pod exec kvfs kvfs status --json /mnt/kv | tr ',' '\n' | sed -n 's/^ *"pid": *//p' | head -1)"
    exec 7<"$work/shared/kv/file"
    # The container has the host's processes.
    kill -9 "$daemon"
    cmp "$work/data" "$work/shared/kv/file" || fail "after the daemon's death"
    cmp "$work/data" - <&7 || fail "the open file after the daemon's death"
    exec 7<&-
    ok "a daemon that dies is started again within its container"

    pod kill -s KILL kvfs >/dev/null
    pod rm -f -t 0 kvfs >/dev/null
    serve
    cmp "$work/data" "$work/shared/kv/file" || fail "after the container's death"
    ok "a container that was killed: the next one takes the dead mount's place"
    pod stop kvfs >/dev/null
    [ "$(pod inspect -f '{{.State.ExitCode}}' kvfs)" = 0 ] || fail "stopped with another status than 0"
    findmnt "$work/shared/kv" && fail "stopped, and still mounted"
    pod rm -f -t 0 kvfs early >/dev/null
    umount "$work/shared"
    ok "stopping the container unmounts"
}

# As docs/CONTAINERS.md says.
serve() {
    local i
    pod run -d --name kvfs --network=host --pid=host --device /dev/fuse \
        --cap-add SYS_ADMIN,SYS_PTRACE,LEASE,IPC_LOCK --security-opt apparmor=unconfined \
        -v "$work/nvme0/kv:/nvme0/kv" -v "$work/nvme1/kv:/nvme1/kv" \
        --mount "type=bind,source=$work/shared,target=/mnt,bind-propagation=shared" \
        kvfs mount --foreground --supervise on /mnt/kv --backing /nvme0/kv,/nvme1/kv >/dev/null || fail "the container"
    for i in $(seq 100); do
        [ "$(stat -f -c %t "$work/shared/kv" 2>/dev/null)" != 65735546 ] || return 0
        sleep 0.1
    done
    pod logs kvfs
    fail "the container mounts nothing"
}
