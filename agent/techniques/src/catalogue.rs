//! The catalogue: every technique that its makers know of.

use crate::technique::{
    Claim, Deed, Disturbance, NET_RAW, Proof, Technique, as_root, covered, family, program, refused, residual, stated,
    stopped_on_its_way,
};
use crate::{executable, families, handed, identity, inet, uring};

const PASSED: &str = "the connect is what is judged, and somebody else made it, who was allowed to";
const KEEP_APART: &str = "keep unix sockets between accounts apart; let services open their own connections";
const BPF_LSM_OR_UNIT: &str = "boot with lsm=…,bpf; or drop CAP_NET_RAW and set RestrictAddressFamilies= in the unit";

/// Every technique. Those that disturb the daemon come last.
pub static CATALOGUE: &[Technique] = &[
    // TCP.
    covered("tcp-connect", "TCP connect", "cgroup/connect4", inet::tcp_connect),
    covered(
        "tcp-connect-nonblocking",
        "TCP connect that is not waited for",
        "cgroup/connect4",
        inet::tcp_connect_nonblocking,
    ),
    covered("tcp-connect-v6", "TCP connect over IPv6", "cgroup/connect6", inet::tcp_connect_v6),
    covered("tcp-mapped", "TCP connect to an IPv4-mapped address", "cgroup/connect6", inet::tcp_mapped),
    covered("tcp-any", "TCP connect to 0.0.0.0, which is this host", "cgroup/connect4", inet::tcp_any),
    covered("tcp-any-v6", "TCP connect to ::, which is this host", "cgroup/connect6", inet::tcp_any_v6),
    covered("tfo-sendto", "TCP Fast Open by sendto(MSG_FASTOPEN)", "cgroup/connect4", inet::tfo_sendto),
    covered("tfo-sendmsg-v6", "TCP Fast Open by sendmsg over IPv6", "cgroup/connect6", inet::tfo_sendmsg_v6),
    covered("tfo-connect", "TCP Fast Open by TCP_FASTOPEN_CONNECT", "cgroup/connect4", inet::tfo_connect),
    covered(
        "tcp-unspec-reconnect",
        "TCP connect, AF_UNSPEC, connect elsewhere",
        "cgroup/connect4",
        inet::tcp_unspec_reconnect,
    ),
    covered("mptcp", "Multipath TCP", "cgroup/connect4", inet::mptcp),
    // UDP.
    covered("udp-connect", "UDP connect, then send", "cgroup/connect4", inet::udp_connect_send),
    covered("udp-sendto", "UDP sendto", "cgroup/sendmsg4", inet::udp_sendto),
    covered("udp-sendto-v6", "UDP sendto over IPv6", "cgroup/sendmsg6", inet::udp_sendto_v6),
    covered("udp-sendmsg", "UDP sendmsg", "cgroup/sendmsg4", inet::udp_sendmsg),
    covered("udp-sendmmsg", "UDP sendmmsg, a permitted destination first", "cgroup/sendmsg4", inet::udp_sendmmsg),
    covered("udp-mapped", "UDP sendto an IPv4-mapped address", "cgroup/sendmsg4", inet::udp_mapped),
    covered("udp-any", "UDP sendto 0.0.0.0, which is this host", "cgroup/sendmsg4", inet::udp_any),
    covered(
        "udp-unspec-name",
        "UDP sendto an address of family AF_UNSPEC",
        "cgroup/sendmsg4",
        inet::udp_unspecified_name,
    ),
    covered("udp-v4-name-on-v6", "an IPv4 address given to an IPv6 socket", "cgroup/sendmsg4", inet::udp_v4_name_on_v6),
    covered(
        "udp-reconnect",
        "UDP connect where it may, connect again elsewhere",
        "cgroup/connect4",
        inet::udp_reconnect,
    ),
    covered(
        "udp-unspec-reconnect",
        "UDP connect, AF_UNSPEC, connect elsewhere",
        "cgroup/connect4",
        inet::unspec_reconnect,
    ),
    covered(
        "udp-name-on-connected",
        "another destination with a message on a connected socket",
        "cgroup/sendmsg4",
        inet::name_on_connected_udp,
    ),
    covered(
        "udp-decoy-name",
        "a permitted destination with a message after a refused connect",
        "cgroup/connect4",
        inet::permitted_name_after_refusal,
    ),
    covered(
        "dns-elsewhere",
        "DNS question to a resolver that is not permitted",
        "cgroup/sendmsg4",
        inet::dns_elsewhere,
    ),
    covered("dns-elsewhere-tcp", "the same over TCP", "cgroup/connect4", inet::dns_elsewhere_tcp),
    covered("socketcall-32bit", "connect by the 32-bit socketcall gate", "cgroup/connect4", inet::socketcall_32bit),
    residual(
        Technique {
            capabilities: NET_RAW,
            ..covered(
                "source-route",
                "source routing without a connection, with CAP_NET_RAW",
                "none",
                inet::source_route,
            )
        },
        "an IP option sends the packet elsewhere than the address that was judged; only connections are followed to egress",
        "drop CAP_NET_RAW; routers and hosts drop such packets by default (accept_source_route=0)",
    ),
    stopped_on_its_way("source-route-tcp", "source routing of a connection, with CAP_NET_RAW", inet::source_route_tcp),
    // io_uring.
    covered("uring-connect", "io_uring connect", "cgroup/connect4", uring::connect),
    covered("uring-connect-async", "io_uring connect by a worker thread", "cgroup/connect4", uring::connect_async),
    covered(
        "uring-connect-sqpoll",
        "io_uring connect by a polling kernel thread",
        "cgroup/connect4",
        uring::connect_polled,
    ),
    covered("uring-sendmsg", "io_uring sendmsg", "cgroup/sendmsg4", uring::sendmsg),
    covered("uring-send", "io_uring send with a destination", "cgroup/sendmsg4", uring::send_to),
    as_root(covered(
        "uring-before-setuid",
        "a polling ring from before setuid",
        "cgroup/connect4",
        uring::ring_before_setuid,
    )),
    as_root(covered(
        "uring-personality",
        "a personality registered before setuid",
        "cgroup/connect4",
        uring::personality_before_setuid,
    )),
    Technique {
        capabilities: NET_RAW,
        ..refused("uring-raw-socket", "a raw socket made by io_uring", uring::raw_socket)
    },
    // Who acts.
    as_root(covered("seteuid", "only the effective uid is the account's", "cgroup/sendmsg4", identity::effective_uid)),
    as_root(covered("thread-setuid", "only one thread is the account's", "cgroup/sendmsg4", identity::one_thread)),
    as_root(covered(
        "thread-root",
        "one thread stayed root, the process is the account's",
        "cgroup/sendmsg4",
        identity::thread_back_to_root,
    )),
    covered("child", "a child acts", "cgroup/sendmsg4", identity::child),
    covered("grandchild", "a grandchild acts", "cgroup/sendmsg4", identity::grandchild),
    as_root(covered(
        "cgroup-move",
        "the process moves to another cgroup with its socket",
        "cgroup/sendmsg4",
        identity::moved_cgroup,
    )),
    covered("user-namespace", "root in a user namespace of its own", "cgroup/sendmsg4", identity::user_namespace),
    Technique {
        proof: Proof::Calls,
        ..covered("network-namespace", "a network namespace of its own", "cgroup/sendmsg4", identity::network_namespace)
    },
    covered(
        "pid-mount-namespaces",
        "process and mount namespaces of its own",
        "cgroup/sendmsg4",
        identity::pid_and_mount_namespaces,
    ),
    // Which program acts.
    program("executable", "the program an account is matched by", executable::by_its_name),
    program("executable-symlink", "that program by a symbolic link", executable::by_a_symbolic_link),
    program("executable-deleted", "that program with its file deleted", executable::deleted),
    program("executable-memfd", "that program, having become a copy in memory", executable::in_memory),
    program("executable-copy", "that program, having become a copy of its file", executable::copied),
    program("interpreter", "that program started by a script", executable::by_a_script),
    as_root(covered("fork-exec-exit", "fork, exec, send, exit at once", "cgroup/sendmsg4", executable::fork_exec_exit)),
    // Sockets that somebody else made.
    as_root(covered(
        "passed-unconnected",
        "a socket made by somebody else (SCM_RIGHTS), connected here",
        "cgroup/connect4",
        handed::unconnected_passed,
    )),
    residual(
        as_root(covered(
            "passed-connected",
            "a socket connected by somebody else (SCM_RIGHTS)",
            "none",
            handed::connected_passed,
        )),
        PASSED,
        KEEP_APART,
    ),
    residual(
        as_root(covered(
            "inherited-connected",
            "a socket connected before setuid",
            "none",
            handed::connected_inherited,
        )),
        PASSED,
        KEEP_APART,
    ),
    // The BPF LSM judges the first use by other accounts than those that made it.
    Technique {
        claim_with_lsm: Claim::Refused,
        ..residual(
            as_root(covered("inherited-raw", "a raw socket made before setuid", "none", handed::raw_inherited)),
            "raw sockets are judged when they are made, and this one was made by somebody who may",
            "do not hand raw sockets to services",
        )
    },
    residual(
        as_root(covered("accepted", "an answer on a connection that somebody else made", "none", handed::accepted)),
        "accepted connections are not judged",
        "IPAddressDeny= in the unit, or no listening sockets",
    ),
    Technique {
        claim: Claim::Refused,
        claim_with_lsm: Claim::Refused,
        reason: "the kernel lets nobody take descriptors of another user's process without CAP_SYS_PTRACE",
        ..as_root(covered("pidfd-getfd", "a connected socket taken out of another process", "none", handed::taken))
    },
    // Other sockets of IP.
    Technique { capabilities: NET_RAW, ..refused("raw", "a raw socket, with CAP_NET_RAW", families::raw) },
    Technique {
        capabilities: NET_RAW,
        ..refused("raw-header", "a raw socket with a header of its own", families::raw_with_header)
    },
    Technique { capabilities: NET_RAW, ..refused("raw-v6", "a raw socket over IPv6", families::raw_v6) },
    refused("ping", "a ping socket", families::ping),
    refused("sctp", "SCTP", families::sctp),
    refused("dccp", "DCCP", families::dccp),
    refused("udplite", "UDP-Lite", families::udplite),
    // The BPF LSM sees a family that is not IP; without it the TCP that it falls back to is seen.
    Technique {
        claim_with_lsm: Claim::Refused,
        ..covered("smc", "an SMC socket, which falls back to TCP", "cgroup/connect4", families::smc)
    },
    // Other families.
    Technique {
        capabilities: NET_RAW,
        proof: Proof::Packet,
        remedy: BPF_LSM_OR_UNIT,
        deed: Deed::Try(families::link_layer),
        ..family("packet", "AF_PACKET, with CAP_NET_RAW", libc::AF_PACKET, libc::SOCK_DGRAM, 0)
    },
    family("vsock", "AF_VSOCK", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    family("alg", "AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    family("rds", "AF_RDS", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
    family("tipc", "AF_TIPC", libc::AF_TIPC, libc::SOCK_RDM, 0),
    Technique { capabilities: NET_RAW, ..family("xdp", "AF_XDP, with CAP_NET_RAW", libc::AF_XDP, libc::SOCK_RAW, 0) },
    family("bluetooth", "AF_BLUETOOTH", libc::AF_BLUETOOTH, libc::SOCK_SEQPACKET, 0),
    residual(
        family("netlink", "AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW, 0),
        "not judged unless policy names the family: ordinary programs ask the kernel about interfaces by it",
        "RestrictAddressFamilies=, or Action::\"open-socket\" with context.family == \"netlink\" and the BPF LSM",
    ),
    residual(
        Technique {
            deed: Deed::Try(families::unix),
            ..family(
                "unix",
                "a unix socket to a local deputy (proxy, docker.sock, D-Bus)",
                libc::AF_UNIX,
                libc::SOCK_STREAM,
                0,
            )
        },
        "not judged unless policy names the family; what the deputy does is the deputy's",
        "file permissions; keep such sockets away from the account",
    ),
    // What cannot be tried on a host without harm or help, stated.
    stated(
        "open-before",
        "connections made before writ started",
        "they are found, judged and recorded, and left alone until the account's access is tightened",
        "[sessions] at-start = \"cut\"",
    ),
    stated(
        "encrypted-dns",
        "DNS over HTTPS or TLS",
        "destinations are addresses; what is asked is not seen",
        "permit only the host's resolvers",
    ),
    stated(
        "permitted-proxy",
        "a tunnel or proxy that policy permits",
        "the inner destination is not seen",
        "do not permit proxies",
    ),
    stated(
        "borrowed-executable",
        "LD_PRELOAD or ptrace into a permitted executable",
        "an executable's identity can be borrowed",
        "match by user or unit as well",
    ),
    stated(
        "kernel-sockets",
        "sockets the kernel opens by itself (NFS, iSCSI, CIFS)",
        "they belong to no account",
        "leave mounts to root",
    ),
    stated(
        "capabilities",
        "CAP_BPF, CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE",
        "they can remove or alter enforcement",
        "do not give them to service accounts; `writ doctor` lists those who hold them",
    ),
    // The daemon disturbed.
    Technique {
        disturbance: Disturbance::Stopped,
        ..covered("daemon-stopped", "UDP sendto while the daemon is stopped", "cgroup/sendmsg4", inet::udp_sendto)
    },
    Technique {
        disturbance: Disturbance::RingFull,
        ..covered("ring-full", "UDP sendto while no record fits", "cgroup/sendmsg4", inet::after_a_flood)
    },
    Technique {
        disturbance: Disturbance::Killed,
        ..covered("daemon-killed", "UDP sendto after the daemon was killed", "cgroup/sendmsg4", inet::udp_sendto)
    },
];

/// The technique with this id.
pub fn find(id: &str) -> Option<&'static Technique> {
    CATALOGUE.iter().find(|technique| technique.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_fit_a_command_line() {
        let ids: BTreeSet<&str> = CATALOGUE.iter().map(|technique| technique.id).collect();
        assert_eq!(ids.len(), CATALOGUE.len());
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(ids.iter().all(|id| id.bytes().all(plain)), "{ids:?}");
    }

    #[test]
    fn what_is_not_stopped_says_why_and_what_to_add() {
        for technique in CATALOGUE {
            let stopped = technique.claim != Claim::Residual;
            assert!(stopped || !technique.reason.is_empty() && !technique.remedy.is_empty(), "{}", technique.id);
            assert!(technique.is_tried() || !stopped, "{} is claimed and never tried", technique.id);
        }
    }

    #[test]
    fn the_bpf_lsm_takes_no_claim_away() {
        for technique in CATALOGUE {
            let weaker = technique.claim != Claim::Residual && technique.claim_with_lsm == Claim::Residual;
            assert!(!weaker, "{}", technique.id);
        }
    }
}
