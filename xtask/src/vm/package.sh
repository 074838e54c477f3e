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
# further WORDS COMMAND…: a claim that a brief run leaves out.
further() { if [ -e "$here/thorough" ]; then claim "$@"; fi; }
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
[service-account.timed]
owner = "payments@example.com"
match = { unit = "timed.service" }
[service-account.sessions]
owner = "payments@example.com"
match = { cgroup = "/user.slice" }
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

timer() { # a unit that a timer starts
    printf '[Service]\nExecStart=%s tcp %s\nStandardOutput=append:/var/log/timed\n' "$probe" $forbidden >/run/systemd/system/timed.service
    printf '[Timer]\nOnActiveSec=100ms\nAccuracySec=10ms\n' >/run/systemd/system/timed.timer
    systemctl daemon-reload
    systemctl start timed.timer
    within 60 grep -q '"errno"' /var/log/timed && refused cat /var/log/timed
}
slices() { # the slice of a person who logged in is made at that moment; another person's service account is in none
    systemd-run --quiet --wait --pipe --collect --slice=user-1999.slice "$probe" tcp $forbidden >"$here/sliced"
    refused cat "$here/sliced" &&
        succeeds systemd-run --quiet --wait --pipe --collect --slice=user-1999.slice "$probe" tcp $allowed
}
watchdog() { # a hung daemon is replaced, and refuses all the while
    mkdir -p /run/systemd/system/writ.service.d
    printf '[Service]\nWatchdogSec=5s\nTimeoutAbortSec=5s\n' >/run/systemd/system/writ.service.d/quick.conf
    systemctl daemon-reload && systemctl restart writ || return 1
    local hung
    hung=$(systemctl show -P MainPID writ)
    kill -STOP "$hung"
    refused as_user $forbidden && within 120 replaced "$hung" && within 120 writ status --json
    local code=$?
    rm -r /run/systemd/system/writ.service.d
    systemctl daemon-reload && systemctl restart writ && return $code
}
replaced() { active && [ "$(systemctl show -P MainPID writ)" != "$1" ]; }
newer_pins() { # what a downgrade meets: refused, said so, and left in force
    mkdir /sys/fs/bpf/writ/v9999
    systemctl restart writ && return 1
    local said
    said=$(journalctl -u writ --no-pager | grep -m 1 -i 'newer\|v9999')
    refused as_user $forbidden || return 1
    rmdir /sys/fs/bpf/writ/v9999
    systemctl restart writ && echo "$said" && [ -n "$said" ]
}
unreadable() { # a policy, and then the whole directory, that cannot be read
    ln -s /nonexistent /etc/writ/policies.d/lost.cedar
    systemctl reload writ && return 1
    rm /etc/writ/policies.d/lost.cedar
    mv /etc/writ /etc/writ.away && ln -s writ /etc/writ
    systemctl reload writ && return 1
    rm /etc/writ && mv /etc/writ.away /etc/writ
    refused as_user $forbidden && succeeds as_user $allowed && systemctl reload writ
}
full_disk() { # the log's disk is full: enforced all the same, said so, and recorded again when there is room
    systemctl stop writ
    mount -t tmpfs -o "size=$(($(du -sm /var/log/writ | cut -f1) + 4))m" tmpfs /mnt || return 1
    cp -a /var/log/writ/. /mnt/ && chown root:writ /mnt && chmod 2750 /mnt && mount --bind /mnt /var/log/writ || return 1
    systemctl start writ || return 1
    dd if=/dev/zero of=/var/log/writ/filler bs=4k 2>/dev/null
    for _ in $(seq 40); do refused as_user $forbidden || return 1; done
    within 60 failing_sink || return 1
    writ doctor && return 1
    rm /var/log/writ/filler
    within 120 working_sink && refused as_user $forbidden && writ verify
    local code=$?
    systemctl stop writ
    cp -a /var/log/writ /var/log/writ.meanwhile && umount /var/log/writ && umount /mnt && rm -rf /var/log/writ/* || return 1
    cp -a /var/log/writ.meanwhile/. /var/log/writ/ && rm -r /var/log/writ.meanwhile
    systemctl start writ && return $code
}
failing_sink() { refused as_user $forbidden && [ "$(status "['sinks'][0]['ok']")" = False ]; }
working_sink() { [ "$(status "['sinks'][0]['ok']")" = True ]; }
no_network() { ! ip route | grep . && ! ip -6 route | grep default; }
without_lsm() { # whether or not the BPF LSM is there, doctor says so and is content: nothing here requires it
    # A machine that others keep busy may answer the first time too late for doctor, which then says that writ is silent.
    if ! within 60 writ doctor; then
        writ doctor --json | python3 -c 'import json,sys; print([f for f in json.load(sys.stdin)["findings"] if f["weaker"]])'
        return 1
    fi
    if grep -q bpf /sys/kernel/security/lsm; then writ doctor --json | grep -q '"lsm"'; else
        writ doctor --json | python3 -c 'import json,sys; f=[f for f in json.load(sys.stdin)["findings"] if "lsm" in f["name"]]; print(f); sys.exit(not f or f[0]["state"] == "ok")'
    fi
}
capabilities() { # each taken away in turn: what is missed. One that nothing misses should not be there.
    local set one missed code=0 dropin=/run/systemd/system/writ.service.d
    install -d -m 700 -o svc-billing /home/private
    set=$(systemctl cat writ | sed -n 's/^CapabilityBoundingSet=//p')
    mkdir -p $dropin
    for one in $set; do
        # Another one each time: what was found once is not given up because it cannot be looked at any more.
        cp "$probe" "/home/private/$one"
        printf '[service-account.homed]\nowner = "x@example.com"\nmatch = { executable = "/home/private/%s" }\n' "$one" \
            >/etc/writ/service-accounts.d/homed.toml
        printf '[Service]\nRestart=no\nCapabilityBoundingSet=\nCapabilityBoundingSet=%s\n' "${set/$one/}" >$dropin/less.conf
        systemctl daemon-reload
        if ! systemctl restart writ; then missed="it does not start"
        elif ! writ status >/dev/null; then missed="the API's callers"
        elif [ "$(status "['accounts']" | grep -c "executable /home")" != 0 ]; then missed="executables below private homes"
        elif ! named; then missed="names of other users' programs"
        elif ! writ doctor >/dev/null; then missed="doctor"
        else missed="nothing here"; fi
        echo "without $one: $missed;"
        # Ending sessions is what this one is for; the egress backstop holds without it, and nothing here looks closer.
        [ "$missed" != "nothing here" ] || [ "$one" = CAP_NET_ADMIN ] || code=1
    done
    rm -r $dropin /etc/writ/service-accounts.d/homed.toml
    systemctl daemon-reload && systemctl reset-failed writ; systemctl restart writ && return $code
}
named() { # the record of somebody else's attempt says which program it was
    refused as_user $forbidden
    within 20 has_name
}
has_name() { writ tail --json --since 3s --account billing | grep -q '"executable":"/usr/local/bin/writ-probe"'; }
symbol() { # the sandbox has no symbol table, and the daemon the one symbol it needs
    [ "$(awk '{print $1}' /run/writ/kallsyms)" = "$(awk '$3 == "init_user_ns" {print $1}' /proc/kallsyms)" ] &&
        [ "$(stat -c %a /run/writ/kallsyms)" = 600 ]
}

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
scrape() { # counted since the daemon started
    refused as_user $forbidden && within 30 counted
}
counted() { curl -sf --unix-socket /run/writ/writ.sock http://writ/v1/metrics | grep "^writ_decisions_total{account=\"billing\",verdict=\"deny\",mode=\"enforce\"}"; }
told() { # what the numbers of the last claim were
    say "    $1: $(tr '\n' ' ' <"$here/said" | cut -c1-800)"
}

first_boot() {
    install -m 755 "$here/writ-probe" "$probe"
    listeners
    claim "there is no network to install from" no_network
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
    claim "a timer's unit: the forbidden connect" timer
    claim "user.slice: forbidden and permitted" slices
    further "no start of a restarting unit gets through" restart_loop
    [ ! -e "$here/thorough" ] || told "restart loop"
    claim "a broken policy is refused and changes nothing" reload_refused
    claim "unreadable configuration is refused and changes nothing" unreadable
    probers
    claim "restarts and reloads" restarts
    claim "a killed daemon comes back" killed
    claim "dpkg installs the same again" upgrade
    claim "throughout: no leak, no false deny" probed
    told "probers"
    further "a hung daemon is replaced by the watchdog" watchdog
    claim "pins of a newer version are refused and stay in force" newer_pins
    told "downgrade"
    further "a full disk takes no enforcement away, and is survived" full_disk
    claim "doctor is green after all that, and tells of the BPF LSM" without_lsm
    claim "the sandbox knows one symbol" symbol
    further "each capability is needed" capabilities
    [ ! -e "$here/thorough" ] || told "capabilities"
    further "metrics count the denials" scrape
    further "the log verifies" writ verify
    for unit in writ writ-self-test; do
        claim "hardening of $unit.service at most 2.4" systemd-analyze security --no-pager --threshold=24 $unit.service
        say "    $(systemd-analyze security --no-pager $unit.service | tail -n 1)"
    done
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
    claim "the first half hour, to the letter, with a new key and a new log" half_hour
    claim "after it the account is refused what it must be, and nothing else" half_hour_enforced
    claim "purged again" dpkg -P writ
    finish
}
kept() { WRIT_KEEP_ENFORCEMENT=1 dpkg -r writ && refused as_user $forbidden; }
taken() { dpkg -i "$deb" && within 60 active && refused as_user $forbidden && dpkg -r writ && succeeds as_user $forbidden; }
purged() { dpkg -P writ && ! [ -e /sys/fs/bpf/writ ] && ! [ -e /var/lib/writ ] && [ -e /var/log/writ/writ.vkey ]; }
# A service as the guide has it: it lives in a database, and tries something else now and then.
billing_service() {
    ip address add 10.20.0.5/32 dev lo
    cat >/run/billing.py <<'BILLING'
import socket, time
ear = socket.create_server(("10.20.0.5", 5432))
held = socket.create_connection(("10.20.0.5", 5432))
while True:
    for to in (("10.20.0.5", 5432), ("192.0.2.1", 443)):
        try:
            socket.create_connection(to, timeout=1).close()
            print(to[0], "connected", flush=True)
        except OSError as error:
            print(to[0], error.errno, flush=True)
    time.sleep(0.5)
BILLING
    printf '[Service]\nExecStart=python3 /run/billing.py\nStandardOutput=truncate:/run/billing\n' >/run/systemd/system/billing.service
    systemctl daemon-reload && systemctl start billing
}
half_hour() {
    rm -rf /etc/writ && billing_service && cd "$here" && python3 "$here/guide.py" "$here/first-half-hour.md"
}
half_hour_enforced() { # the guide ends by rolling back: what was recorded in between, and what is so when it is enforced again
    grep -q 'owner = "unassigned"' /etc/writ/service-accounts.d/*.toml || grep -q unassigned /etc/writ/policies.d/* || echo "init found nothing"
    writ tail --json --account billing --verdict deny | grep -q '"errno":"EACCES"' || return 1
    sed -i 's/^mode = .*/mode = "enforce"/' /etc/writ/service-accounts.d/billing.toml && systemctl reload writ || return 1
    systemctl restart billing
    within 60 grep -q '^192.0.2.1 13$' /run/billing && within 60 grep -q '^10.20.0.5 connected$' /run/billing &&
        ! grep -q '^10.20.0.5 [0-9]' /run/billing
}

if [ -e "$here/counts" ]; then
    second_boot
    [ "$failed" = 0 ]
else
    first_boot
    sync
    systemctl reboot
    sleep 600 # The reboot ends this.
fi
