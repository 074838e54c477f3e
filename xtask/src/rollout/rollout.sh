#!/bin/bash
# The Ansible role against three hosts, each a root directory with a network namespace, an sshd, a cgroup and a bpf file
# system of its own. Runs in a network and a mount namespace that end with it. Arguments: the guests' root, the package, the
# prober, the role's directory, the stand-in for systemctl, an empty directory.
set -u
base=$1 deb=$2 probe=$3 role=$4 standin=$5 work=$6
hosts="h1 h2 h3"
allowed=127.0.0.1:8080 forbidden=127.0.0.1:9090
passed=0 failed=0
cgroups=$(awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) == "cgroup2" && $4 == "/") { print $5; exit } }' /proc/self/mountinfo)

claim() { # claim WORDS COMMAND…: one claim, one line
    local words=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        passed=$((passed + 1)) && echo "test $words ... ok"
    else
        failed=$((failed + 1)) && echo "test $words ... FAILED" && tail -n 40 "$work/said" | cut -c1-600
    fi
}
told() { echo "    $1: $(grep -v '^$' "$work/said" | tail -n "${2:-1}" | tr '\n' ' ' | cut -c1-600)"; }
within() { # within SECONDS COMMAND…: until it succeeds
    local until=$((SECONDS + $1))
    shift
    until "$@"; do [ $SECONDS -lt $until ] || return 1; sleep 0.2; done
}

cgroup() { echo "$cgroups/writ-rollout-$$-$1"; }
on() { # on HOST COMMAND…: in its root, network and cgroup
    (
        echo $BASHPID >"$(cgroup "$1")/cgroup.procs"
        exec nsenter --net="/run/netns/$1" chroot "$work/$1/root" "${@:2}"
    )
}
as_user() { on "$1" setpriv --reuid=svc-billing --regid=svc-billing --clear-groups /usr/local/bin/writ-probe "${@:2}"; }
refused() { as_user "$1" tcp "$2" | grep -q '"errno":"EACCES"'; }
succeeds() { as_user "$1" tcp "$2" | grep -q '"errno":null'; }
status() { on "$1" writ status --json | python3 -c "import json,sys; print(json.load(sys.stdin)$2)"; }
everywhere() { # everywhere WANTED PATH: every host's status has it
    local host
    for host in $hosts; do
        echo "$host: $(status "$host" "$2")"
        [ "$(status "$host" "$2")" = "$1" ] || return 1
    done
}
judged_everywhere() {
    local host
    for host in $hosts; do refused "$host" $forbidden && succeeds "$host" $allowed || return 1; done
}

host() { # makes one
    local host=$1 number=${1#h} root=$work/$1/root
    mkdir -p "$root" "$work/$host/upper" "$work/$host/work" "$(cgroup "$host")"
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/$host/upper,workdir=$work/$host/work" "$root" || return 1
    mount --rbind /dev "$root/dev" && mount --rbind /proc "$root/proc" && mount --rbind /sys "$root/sys" || return 1
    # A bpf file system of its own: what is pinned there is gone with it.
    mount -t bpf bpf "$root/sys/fs/bpf" && mount -t tmpfs tmpfs "$root/run" && mkdir -p "$root/run/sshd" "$root/run/systemd/system"
    ip netns add "$host" && ip link add "to-$host" type veth peer name eth0 netns "$host" || return 1
    ip address add "10.99.$number.1/24" dev "to-$host" && ip link set "to-$host" up
    ip -n "$host" address add "10.99.$number.2/24" dev eth0
    ip -n "$host" link set eth0 up && ip -n "$host" link set lo up
    install -m 755 "$probe" "$root/usr/local/bin/writ-probe"
    rm -f "$root/usr/bin/systemctl" && install -m 755 "$standin" "$root/usr/bin/systemctl"
    useradd --root "$root" --system svc-billing
    install -d -m 700 "$root/root/.ssh" && install -m 600 "$work/key.pub" "$root/root/.ssh/authorized_keys"
    # Confined to the host's cgroup from the first start on.
    install -d "$root/etc/writ" && settings "$host" >"$root/etc/writ/writ.toml"
    cat >"$root/usr/local/bin/listen" <<'LISTEN'
import selectors, socket
ears = selectors.DefaultSelector()
for port in (8080, 9090):
    ears.register(socket.create_server(("127.0.0.1", port), backlog=4096), selectors.EVENT_READ)
while True:
    for key, _ in ears.select():
        key.fileobj.accept()[0].close()
LISTEN
    on "$host" python3 /usr/local/bin/listen &
    on "$host" /usr/sbin/sshd -D -e -o UsePAM=no -o PermitRootLogin=yes 2>"$work/$host/sshd" &
    echo "$host ansible_host=10.99.$number.2" >>"$work/inventory"
}
settings() { printf 'mode = "enforce"\n[paths]\ncgroup = "%s"\n' "$(cgroup "$1")"; }

playbook() { # playbook MODE POLICY-FILE ARGUMENT…
    cat >"$work/variables.yml" <<VARIABLES
writ_package_file: "${package:-$deb}"
writ_settings: |
  mode = "enforce"
  [paths]
  cgroup = "$cgroups/writ-rollout-$$-{{ inventory_hostname }}"
writ_service_accounts:
  billing: |
    [service-account.billing]
    owner = "payments@example.com"
    match = { user = "svc-billing" }
    mode = "$1"
writ_destinations:
  web: |
    [destination.web]
    addresses = ["127.0.0.1"]
    ports = [8080]
writ_policies:
  billing: "{{ lookup('file', '$2') }}"
writ_anchor_dir: $work/anchors
writ_watch_seconds: 5
VARIABLES
    (cd "$role" && ANSIBLE_ROLES_PATH=$role/roles ansible-playbook --inventory "$work/inventory" \
        --extra-vars "@$work/variables.yml" playbooks/rollout.yml "${@:3}")
}
recap() { grep -c "^h[123] .*$1" "$work/said"; } # hosts whose line of the last recap matches
changed_none() { playbook "$@" && [ "$(grep -c '^h[123] .*changed=0 .*failed=0' <(cat "$work/said"))" = 3 ]; }
stopped_at_the_canary() { # fails, and only the first host was looked at
    playbook "$@" && return 1
    sync
    ! grep -q '^\(changed\|ok\|fatal\): \[h[23]\]' "$work/said" && grep -q '^h1 .*\(failed\|rescued\)=1' "$work/said"
}

probers() { # for every host, what must never succeed and what must never fail
    local host to
    mkfifo "$work/hold"
    exec 9<>"$work/hold"
    for host in $hosts; do
        for to in $forbidden $allowed; do
            as_user "$host" loop 20000 tcp $to <"$work/hold" >"$work/$host/probed-${to#*:}" 9>&- &
            probing="${probing:-} $!"
        done
    done
    sleep 1
}
probed() {
    exec 9>&-
    # shellcheck disable=SC2086
    wait $probing
    local host leaks=0
    for host in $hosts; do
        for port in 9090 8080; do grep '}}$' "$work/$host/probed-$port" | tail -n 1; done
    done | python3 -c '
import json, sys
counts = [json.loads(line) for line in sys.stdin]
forbidden, allowed = counts[0::2], counts[1::2]
leaks = sum(c["succeeded"] for c in forbidden)
refused = sum(c["failed"].get("EACCES", 0) for c in forbidden)
false = sum(c["failed"].get("EACCES", 0) + c["failed"].get("EPERM", 0) for c in allowed)
permitted = sum(c["succeeded"] for c in allowed)
print(f"{refused} forbidden connects refused, {leaks} leaks; {permitted} permitted, {false} false denies")
sys.exit(len(forbidden) != 3 or leaks or false or min(c["failed"].get("EACCES", 0) for c in forbidden) < 100 or min(c["succeeded"] for c in allowed) < 100)'
}

next_package() { # the same files under the next version
    dpkg-deb --raw-extract "$deb" "$work/next" && sed -i 's/^Version: .*/Version: 0.1.0-2/' "$work/next/DEBIAN/control" &&
        dpkg-deb --build "$work/next" "$work/writ_0.1.0-2_amd64.deb"
}
versions() {
    local host
    for host in $hosts; do [ "$(on "$host" dpkg-query -W -f '${Version}' writ)" = "$1" ] || return 1; done
}
anchored() { # each host's log agrees with what left the host
    local host
    for host in $hosts; do
        on "$host" writ verify || return 1
        "$work/next/usr/bin/writ" verify "$work/$host/root/var/log/writ" --key "$(cat "$work/anchors/$host/writ.vkey")" \
            --against "$work/anchors/$host/checkpoint" || return 1
    done
}
purged() {
    local host
    for host in $hosts; do on "$host" dpkg -P writ && succeeds "$host" $forbidden || return 1; done
}
cleaned() { # whatever happens: nothing of the hosts is left but what the namespaces take with them
    local host
    for host in $hosts; do
        [ ! -d "$(cgroup "$host")" ] || echo 1 >"$(cgroup "$host")/cgroup.kill"
    done
    for host in $hosts; do [ ! -d "$(cgroup "$host")" ] || within 20 rmdir "$(cgroup "$host")" 2>/dev/null; done
}
finish() {
    local word=ok host
    if [ $failed != 0 ]; then
        word=FAILED
        for host in $hosts; do
            echo "--- $host"
            tail -n 20 "$work/$host/root/var/log/writ-daemon" "$work/$host/sshd"
        done
    fi
    echo "test result: $word. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out"
    [ $failed = 0 ]
}
trap cleaned EXIT
trap 'exit 1' INT TERM

ip link set lo up
mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
{
    echo '[writ:vars]'
    echo 'ansible_user=root'
    echo 'ansible_become=false'
    echo 'ansible_python_interpreter=/usr/bin/python3'
    echo "ansible_ssh_private_key_file=$work/key"
    echo "ansible_ssh_common_args='-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ControlPath=$work/%h'"
    echo '[writ]'
} >"$work/inventory"
for host in $hosts; do claim "$host is made" host "$host"; done

cat >"$work/good.cedar" <<'CEDAR'
@id("web") @owner("payments@example.com") @reason("they talk to the web server")
permit (principal, action == Action::"connect", resource in Destination::"web");
CEDAR
cp "$work/good.cedar" "$work/broken.cedar" && echo 'permit (principal' >>"$work/broken.cedar"
cat "$work/good.cedar" - >"$work/wrong.cedar" <<'CEDAR'
@id("mistake") @owner("payments@example.com") @reason("valid, and wrong")
forbid (principal, action == Action::"connect", resource in Destination::"web");
CEDAR

claim "a fresh install on every host" playbook observe "$work/good.cedar"
told "recap" 3
claim "it observes" succeeds h1 $forbidden
claim "a second run changes nothing" changed_none observe "$work/good.cedar"
claim "check mode shows and touches nothing" playbook enforce "$work/good.cedar" --check --diff
claim "after check mode it still observes" succeeds h1 $forbidden
claim "enforcing: one host, then all" playbook enforce "$work/good.cedar"
told "recap" 3
claim "every host enforces" judged_everywhere
digest=$(status h1 "['configuration_digest']")
claim "every host holds the same policies" everywhere "$digest" "['configuration_digest']"
claim "a broken policy stops at the first host" stopped_at_the_canary enforce "$work/broken.cedar"
claim "the former policy is in force everywhere" everywhere "$digest" "['configuration_digest']"
probers
claim "a jump in refusals stops at the first host" stopped_at_the_canary enforce "$work/wrong.cedar"
told "stopped" 6
exec 9>&- && wait $probing && rm "$work/hold" && probing=
claim "and is taken back: the former policy is in force everywhere" everywhere "$digest" "['configuration_digest']"
claim "every host still enforces" judged_everywhere
claim "the next version is packed" next_package
probers
package=$work/writ_0.1.0-2_amd64.deb
claim "an upgrade on every host" playbook enforce "$work/good.cedar"
told "recap" 3
claim "throughout: no leak, no false deny" probed
told "probers"
claim "every host has the next version" versions 0.1.0-2
claim "and a second run changes nothing" changed_none enforce "$work/good.cedar"
claim "each log agrees with the checkpoint that left its host" anchored
claim "purged on every host: nothing is enforced" purged
finish
