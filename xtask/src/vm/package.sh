#!/bin/bash
# The package on a host with systemd: installed, in force, restarted, upgraded, rebooted, removed. Runs twice, before and
# after a reboot; what the first run printed is printed again by the second.
set -u
here=$PWD
deb=$(echo "$here"/writ_*.deb)
probe=/usr/local/bin/writ-probe
allowed=127.0.0.1:8080 forbidden=127.0.0.1:9090
passed=0 failed=0

say() { echo "$*" | tee -a "$here/first"; }
# claim WORDS COMMAND…: one claim, one line.
claim() {
    local words=$1
    shift
    if "$@" >"$here/said" 2>&1; then
        passed=$((passed + 1)) && say "test $words ... ok"
    else
        failed=$((failed + 1)) && say "test $words ... FAILED" && say "$(tail -n 20 "$here/said" | cut -c1-400)"
    fi
}
finish() {
    local word=ok
    [ "$failed" = 0 ] || word=FAILED
    say "test result: $word. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out"
}
within() { # within SECONDS COMMAND…: until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@"; do [ $SECONDS -lt $until ] || return 1; sleep 0.2; done
}

refused() { "$@" | grep -q '"errno":"EACCES"'; }
succeeds() { "$@" | grep -q '"errno":null'; }
as_user() { setpriv --reuid=svc-billing --regid=svc-billing --clear-groups "$probe" tcp "$1"; }
as_unit() { systemd-run --quiet --wait --pipe --collect "${@:2}" "$probe" tcp "$1"; }
active() { [ "$(systemctl is-active writ)" = active ]; }
status() { writ status --json | python3 -c "import json,sys; print(json.load(sys.stdin)$1)"; }
mode_is() { [ "$(status "['effective_mode']")" = "$1" ]; }
records() { writ tail --json | wc -l; }

listeners() {
    cat >/run/listen.py <<'LISTEN'
import selectors, socket
ears = selectors.DefaultSelector()
for port in (8080, 9090):
    ear = socket.create_server(("127.0.0.1", port), backlog=4096)
    ears.register(ear, selectors.EVENT_READ)
while True:
    for key, _ in ears.select():
        key.fileobj.accept()[0].close()
LISTEN
    systemd-run --quiet --unit=peers python3 /run/listen.py
    within 30 python3 -c 'import socket; socket.create_connection(("127.0.0.1", 9090)).close()'
}

configuration() {
    cat >/etc/writ/service-accounts.d/test.toml <<'TOML'
[service-account.billing]
owner = "payments@example.com"
match = { user = "svc-billing" }
[service-account.looping]
owner = "payments@example.com"
match = { unit = "looping.service" }
[service-account.dynamic]
owner = "payments@example.com"
match = { unit = "dynamic.service" }
TOML
    cat >/etc/writ/destinations.d/test.toml <<'TOML'
[destination.web]
addresses = ["127.0.0.1"]
ports = [8080]
TOML
    cat >/etc/writ/policies.d/test.cedar <<'CEDAR'
@id("web") @owner("payments@example.com") @reason("they talk to the web server")
permit (principal, action == Action::"connect", resource in Destination::"web");
CEDAR
    # Of different kinds: a user, a unit, a unit whose user exists only while it runs.
    useradd --system svc-billing
    sed -i 's/^mode = .*/mode = "enforce"/' /etc/writ/writ.toml
    writ check
}

restart_loop() { # a unit whose first act is a forbidden connect, in a cgroup that is new each time
    cat >/run/systemd/system/looping.service <<UNIT
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=$probe tcp $forbidden
Restart=always
RestartSec=20ms
StandardOutput=append:/var/log/looping
UNIT
    : >/var/log/looping
    systemctl daemon-reload
    systemctl start looping
    within 240 enough_lines || return 1
    systemctl stop looping
    echo "$(wc -l </var/log/looping) starts, $(grep -c '"errno":null' /var/log/looping) connects"
    ! grep -v '"errno":"EACCES"' /var/log/looping
}
enough_lines() { [ "$(wc -l </var/log/looping)" -ge 100 ]; }

probers() { # two of the same user: what must never succeed, and what must never fail
    # Slowly, because an emulated machine records a hundred decisions a second at best.
    mkfifo "$here/hold" 2>/dev/null
    exec 9<>"$here/hold"
    for to in $forbidden $allowed; do
        setpriv --reuid=svc-billing --regid=svc-billing --clear-groups \
            "$probe" loop 20000 tcp $to <"$here/hold" >"$here/probed-${to#*:}" 9>&- &
    done
    sleep 1
}
probed() {
    exec 9>&-
    wait
    echo "forbidden: $(last_line 9090)"
    echo "allowed: $(last_line 8080)"
    last_line 9090 | python3 -c 'import json,sys; c=json.load(sys.stdin); sys.exit(c["succeeded"] != 0 or c["failed"].get("EACCES",0) < 100)' &&
        last_line 8080 | python3 -c 'import json,sys; c=json.load(sys.stdin); sys.exit(c["succeeded"] < 100 or "EACCES" in c["failed"] or "EPERM" in c["failed"])'
}
last_line() { grep '}}$' "$here/probed-$1" | tail -n 1; }

restarts() { for _ in 1 2 3; do systemctl restart writ && systemctl reload writ && systemctl daemon-reload || return 1; done; active; }
killed() {
    systemctl kill --kill-whom=main --signal=KILL writ
    sleep 1
    within 90 active && within 30 writ status --json
}
reload_refused() {
    echo 'permit (principal' >/etc/writ/policies.d/broken.cedar
    systemctl reload writ
    local code=$?
    rm /etc/writ/policies.d/broken.cedar
    [ $code != 0 ] && active && refused as_user $forbidden && systemctl reload writ
}
upgrade() { for _ in 1 2; do dpkg -i "$deb" || return 1; active || return 1; done; }
before_the_network() { # in force before early boot is over
    local ready sysinit
    ready=$(systemctl show -P ActiveEnterTimestampMonotonic writ.service)
    sysinit=$(systemctl show -P ActiveEnterTimestampMonotonic sysinit.target)
    echo "in force $((ready / 1000)) ms, sysinit.target $((sysinit / 1000)) ms after the boot"
    [ "$ready" -gt 0 ] && [ "$ready" -le "$sysinit" ]
}
log_kept() {
    local now
    now=$(records)
    echo "$(cat "$here/records") records before the reboot, $now after"
    [ "$now" -ge "$(cat "$here/records")" ] && writ verify
}
scrape() { curl -sf --unix-socket /run/writ/writ.sock http://writ/v1/metrics | grep "^writ_decisions_total{account=\"billing\",verdict=\"deny\",mode=\"enforce\"}"; }
told() { # what the numbers were
    say "    $1: $(tr '\n' ' ' <"$here/said" | cut -c1-400)"
}

first_boot() {
    install -m 755 "$here/writ-probe" "$probe"
    listeners
    claim "dpkg installs" dpkg -i "$deb"
    claim "the unit is active" within 90 active
    claim "it observes and declares nothing" mode_is observe
    claim "doctor is green" writ doctor
    [ $failed = 0 ] || { cat "$here/said"; journalctl -u writ --no-pager | tail -n 40; }
    claim "the configuration is valid" configuration
    claim "reload puts it in force" systemctl reload writ
    claim "the mode in force is the one asked for" mode_is enforce
    claim "User=: the permitted connect" succeeds as_unit $allowed -p User=svc-billing
    claim "User=: the forbidden connect" refused as_unit $forbidden -p User=svc-billing
    claim "DynamicUser=: the permitted connect" succeeds as_unit $allowed --unit=dynamic.service -p DynamicUser=yes
    claim "DynamicUser=: the forbidden connect" refused as_unit $forbidden --unit=dynamic.service -p DynamicUser=yes
    claim "another unit is not judged" succeeds as_unit $forbidden --unit=other.service -p DynamicUser=yes
    claim "no start of a restarting unit gets through" restart_loop
    told "restart loop"
    claim "a broken policy is refused and changes nothing" reload_refused
    probers
    claim "restarts and reloads" restarts
    claim "a killed daemon comes back" killed
    claim "dpkg installs the same again" upgrade
    claim "throughout: no leak, no false deny" probed
    told "probers"
    claim "doctor is green after all that" writ doctor
    claim "metrics count the denials" scrape
    claim "the log verifies" writ verify
    claim "hardening at most 4.0" systemd-analyze security --no-pager --threshold=40 writ.service
    say "    $(systemd-analyze security --no-pager writ.service | tail -n 1)"
    records >"$here/records"
    echo "$passed $failed" >"$here/counts"
}
second_boot() {
    cat "$here/first"
    read -r passed failed <"$here/counts"
    listeners
    claim "after a reboot the unit is active" active
    claim "after a reboot it was in force before sysinit.target" before_the_network
    told "boot"
    claim "after a reboot the forbidden connect" refused as_user $forbidden
    claim "after a reboot the permitted connect" succeeds as_user $allowed
    claim "the log outlives the reboot" log_kept
    told "log"
    claim "removed and asked to keep: still in force" kept
    claim "removed: nothing is enforced" taken
    claim "purged: no pins, no state, the log kept" purged
    claim "installed again: a new key, a new log" again
    finish
}
kept() { WRIT_KEEP_ENFORCEMENT=1 dpkg -r writ && refused as_user $forbidden; }
taken() { dpkg -i "$deb" && within 60 active && refused as_user $forbidden && dpkg -r writ && succeeds as_user $forbidden; }
purged() { dpkg -P writ && ! [ -e /sys/fs/bpf/writ ] && ! [ -e /var/lib/writ ] && [ -e /var/log/writ/writ.vkey ]; }
again() { dpkg -i "$deb" && within 60 active && writ doctor && dpkg -P writ; }

if [ -e "$here/counts" ]; then
    second_boot
    [ "$failed" = 0 ]
else
    first_boot
    sync
    systemctl reboot
    sleep 600 # The reboot ends this.
fi
