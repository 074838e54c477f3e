#!/bin/sh
# In place of systemd on a host that is a root directory and a network namespace: starts and stops the daemon, and answers
# what the package's scripts and Ansible ask. What systemd itself does is tried by `cargo xtask vm --package`.
for word; do
    case $word in
    -*) ;;
    *) if [ -z "${verb:-}" ]; then verb=$word; else unit=${word%.service}; fi ;;
    esac
done
[ "${unit:-writ}" = writ ] || exit 0
pid=/run/writ.pid
running() { [ -s $pid ] && kill -0 "$(cat $pid)" 2>/dev/null; }
stop() {
    running || return 0
    kill "$(cat $pid)"
    for _ in $(seq 300); do running || break; sleep 0.1; done
    running && kill -9 "$(cat $pid)"
    rm -f $pid
}
start() {
    running && return 0
    # Never on the whole of the machine that this is a part of.
    grep -q '^cgroup = "/sys/fs/cgroup/.*writ-rollout-' /etc/writ/writ.toml || { echo "not confined" >&2; exit 1; }
    mkdir -p /run/writ /sys/fs/bpf/writ
    setsid /usr/bin/writ run </dev/null >>/var/log/writ-daemon 2>&1 &
    echo $! >$pid
    for _ in $(seq 600); do
        /usr/bin/writ status >/dev/null 2>&1 && return 0
        running || break
        sleep 0.1
    done
    tail -n 20 /var/log/writ-daemon >&2
    exit 1
}
case $verb in
start) start ;;
stop) stop ;;
restart) stop; start ;;
try-restart) if running; then stop; start; fi ;;
reload) exec /usr/bin/writ reload ;;
is-active) if running; then echo active; else echo inactive; exit 3; fi ;;
is-enabled) echo enabled ;;
show)
    echo LoadState=loaded
    if running; then echo ActiveState=active; else echo ActiveState=inactive; fi
    echo UnitFileState=enabled
    ;;
esac
exit 0
