//! What the kernel programs tell the daemon, byte for byte: decisions and process starts, and what the loader tells them.

use crate::{Address, NAT64_PREFIXES, Nat64Prefix};

/// Length of a task's `comm`.
pub const COMM_LEN: usize = 16;
/// Length of the path an exec event carries; longer paths are cut and marked.
pub const PATH_LEN: usize = 256;

/// `kind` of a [`DecisionEvent`].
pub const EVENT_DECISION: u32 = 1;
/// `kind` of a [`ProcessEvent`].
pub const EVENT_PROCESS: u32 = 2;

/// The hook that saw an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hook {
    /// cgroup/connect4
    Connect4 = 1,
    /// cgroup/connect6
    Connect6 = 2,
    /// cgroup/sendmsg4
    Sendmsg4 = 3,
    /// cgroup/sendmsg6
    Sendmsg6 = 4,
    /// cgroup/sock_create
    SockCreate = 5,
    /// lsm/socket_connect
    LsmConnect = 6,
    /// lsm/socket_sendmsg
    LsmSendmsg = 7,
    /// lsm/socket_create
    LsmCreate = 8,
    /// cgroup_skb/egress
    Egress = 9,
}

impl Hook {
    /// Every hook, in the order of its number.
    pub const ALL: [Self; 9] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::SockCreate,
        Self::LsmConnect,
        Self::LsmSendmsg,
        Self::LsmCreate,
        Self::Egress,
    ];

    /// The hook with this number, if there is one.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == bits)
    }

    /// The hook's name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "cgroup/connect4",
            Self::Connect6 => "cgroup/connect6",
            Self::Sendmsg4 => "cgroup/sendmsg4",
            Self::Sendmsg6 => "cgroup/sendmsg6",
            Self::SockCreate => "cgroup/sock_create",
            Self::LsmConnect => "lsm/socket_connect",
            Self::LsmSendmsg => "lsm/socket_sendmsg",
            Self::LsmCreate => "lsm/socket_create",
            Self::Egress => "cgroup_skb/egress",
        }
    }
}

/// Which views of the caller matched the account that a decision names; bits of [`DecisionEvent::views`].
pub struct View;

impl View {
    /// The calling thread's real uid.
    pub const UID: u32 = 1;
    /// The calling thread's effective uid.
    pub const EUID: u32 = 1 << 1;
    /// The uids of the thread's objective credentials (`real_cred`).
    pub const REAL_CRED: u32 = 1 << 2;
    /// The uids of the thread group's leader.
    pub const LEADER: u32 = 1 << 3;
    /// The owner of the caller's user namespace, or of one of its ancestors.
    pub const USER_NAMESPACE: u32 = 1 << 4;
    /// The task's cgroup.
    pub const CGROUP: u32 = 1 << 5;
    /// The executable.
    pub const EXECUTABLE: u32 = 1 << 6;
    /// An executable earlier in the process's lineage.
    pub const LINEAGE: u32 = 1 << 7;
    /// The socket's cgroup.
    pub const SOCKET_CGROUP: u32 = 1 << 8;
    /// The socket's owner.
    pub const SOCKET_UID: u32 = 1 << 9;

    /// Every view with its name in records.
    pub const NAMES: [(u32, &'static str); 10] = [
        (Self::UID, "uid"),
        (Self::EUID, "euid"),
        (Self::REAL_CRED, "real-cred"),
        (Self::LEADER, "leader"),
        (Self::USER_NAMESPACE, "user-namespace"),
        (Self::CGROUP, "cgroup"),
        (Self::EXECUTABLE, "executable"),
        (Self::LINEAGE, "lineage"),
        (Self::SOCKET_CGROUP, "socket-cgroup"),
        (Self::SOCKET_UID, "socket-uid"),
    ];
}

/// One judged attempt, with everything the verdict used. All times are boot-time nanoseconds; all ids are those of the
/// initial namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct DecisionEvent {
    /// [`EVENT_DECISION`].
    pub kind: u32,
    /// [`crate::ABI_VERSION`].
    pub abi: u32,
    /// When it was decided.
    pub at: u64,
    /// Number of the attempt on its CPU, from 1, without gaps: what is missing was lost.
    pub sequence: u64,
    /// Inode of the executable.
    pub executable_inode: u64,
    /// Start of the process.
    pub start_time: u64,
    /// Id of the task's cgroup.
    pub cgroup: u64,
    /// Cookie of the socket.
    pub socket_cookie: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// Canonical destination; zero for `open-socket`.
    pub address: Address,
    /// The address as the caller gave it.
    pub given: Address,
    /// The CPU it was decided on.
    pub cpu: u32,
    /// Generation of the tables.
    pub generation: u32,
    /// Index of the stance that was used.
    pub stance: u32,
    /// Epoch of the account.
    pub epoch: u32,
    /// Index of the explanation.
    pub explanation: u32,
    /// Process id (thread group).
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Real uid of the calling thread.
    pub uid: u32,
    /// Effective uid of the calling thread.
    pub euid: u32,
    /// Audit login uid; `u32::MAX` when unset.
    pub loginuid: u32,
    /// Device of the executable, in the kernel's encoding (major << 20 | minor).
    pub executable_device: u32,
    /// Class of the executable.
    pub executable_class: u32,
    /// Views that matched the account (see [`View`]).
    pub views: u32,
    /// How many attempts this event stands for: 1, or more where datagrams were folded.
    pub count: u32,
    /// The socket's protocol number.
    pub socket_protocol: u32,
    /// The account named, by its index.
    pub account: u16,
    /// Other accounts that were judged too and were no stricter; `u16::MAX` where unused.
    pub also: [u16; 3],
    /// Port, in host byte order.
    pub port: u16,
    /// Which hook (see [`Hook`]).
    pub hook: u8,
    /// Protocol, or family for `open-socket`.
    pub protocol: u8,
    /// 1 for `open-socket`, 0 for `connect`.
    pub open_socket: u8,
    /// The verdict (see [`crate::Verdict`]).
    pub verdict: u8,
    /// The reason (see [`crate::Reason`]).
    pub reason: u8,
    /// 1 if enforced, 0 if observed.
    pub enforced: u8,
    /// The verdict with observe-mode policies counted in.
    pub would: u8,
    /// 1 if the destination was new to the account.
    pub new_destination: u8,
    /// The errno the caller got; 0 if the call went on.
    pub errno: u16,
    /// The socket's address family.
    pub socket_family: u16,
    /// The socket's type.
    pub socket_type: u16,
    /// Number of the event among those of its account (see [`crate::Budget::issued`]).
    pub issued: u64,
    /// The task's name.
    pub comm: [u8; COMM_LEN],
}

/// One exec by a process that belongs to an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ProcessEvent {
    /// [`EVENT_PROCESS`].
    pub kind: u32,
    /// [`crate::ABI_VERSION`].
    pub abi: u32,
    /// When.
    pub at: u64,
    /// Inode of the executable.
    pub executable_inode: u64,
    /// Start of the process.
    pub start_time: u64,
    /// Id of the task's cgroup.
    pub cgroup: u64,
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Real uid.
    pub uid: u32,
    /// Device of the executable, in the kernel's encoding.
    pub executable_device: u32,
    /// Length of the path, without its terminating zero; [`PATH_LEN`] if it was cut.
    pub path_len: u32,
    /// Audit login uid; `u32::MAX` when unset.
    pub loginuid: u32,
    /// Number of the event among those of its account (see [`crate::Budget::starts_issued`]).
    pub issued: u64,
    /// An account it belongs to, by its index.
    pub account: u16,
    /// Keeps the size a multiple of eight without hidden bytes.
    pub reserved: [u16; 3],
    /// The path given to `execve(2)`.
    pub path: [u8; PATH_LEN],
}

/// Where the running kernel keeps what the programs read, resolved from its BTF when the programs are loaded. Offsets are
/// bytes; 0 in `resolved` means the offsets were not resolved and every identity is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct TaskOffsets {
    /// 1 once everything below is filled in.
    pub resolved: u32,
    /// `task_struct.start_boottime`
    pub start_boottime: u32,
    /// `task_struct.real_parent`
    pub real_parent: u32,
    /// `task_struct.group_leader`
    pub group_leader: u32,
    /// `task_struct.tgid`
    pub tgid: u32,
    /// `task_struct.mm`
    pub mm: u32,
    /// `task_struct.loginuid`
    pub loginuid: u32,
    /// `task_struct.cred`
    pub cred: u32,
    /// `task_struct.real_cred`
    pub real_cred: u32,
    /// `task_struct.signal`
    pub signal: u32,
    /// `signal_struct.live`
    pub live: u32,
    /// `cred.uid`; `suid` and `euid` follow it.
    pub uid: u32,
    /// `cred.user_ns`
    pub user_ns: u32,
    /// `user_namespace.owner`
    pub ns_owner: u32,
    /// `user_namespace.parent`
    pub ns_parent: u32,
    /// `mm_struct.exe_file`
    pub exe_file: u32,
    /// `file.f_inode`
    pub f_inode: u32,
    /// `inode.i_ino`
    pub i_ino: u32,
    /// `inode.i_sb`
    pub i_sb: u32,
    /// `super_block.s_dev`
    pub s_dev: u32,
    /// `linux_binprm.filename`
    pub filename: u32,
    /// `cgroup.self`
    pub cgroup_self: u32,
    /// `cgroup_subsys_state.parent`
    pub css_parent: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kn_id: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub hierarchy_id: u32,
    /// Keeps the layout free of hidden bytes.
    pub reserved: u32,
}

/// Where the running kernel keeps what the programs read of sockets; as [`TaskOffsets`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SocketOffsets {
    /// `bpf_sock_addr_kern.sk`: what the context of the address hooks really is.
    pub sock_addr_sk: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `sock.__sk_common.skc_family`
    pub family: u32,
    /// `sock.sk_type`
    pub kind: u32,
    /// `sock.sk_protocol`
    pub protocol: u32,
    /// `sock.sk_uid`
    pub uid: u32,
    /// `sock.sk_cgrp_data`: a pointer to the cgroup; before Linux 5.16 its lowest bits are flags.
    pub cgroup: u32,
    /// `msghdr.msg_name`
    pub msg_name: u32,
    /// `task_struct.nsproxy`
    pub nsproxy: u32,
    /// `nsproxy.net_ns`
    pub net_ns: u32,
    /// `net.net_cookie`; 0 where there is none (before Linux 5.12).
    pub net_cookie: u32,
    /// Keeps the layout free of hidden bytes.
    pub reserved: u32,
}

/// `socket(AF_UNSPEC, SOCK_RAW, LSM_PULSE)` answers [`LSM_PULSE_ERRNO`] where the LSM programs are called: programs can be
/// attached to the BPF LSM of a kernel that never calls it. No such socket exists, so nobody misses it.
pub const LSM_PULSE: u32 = u32::from_be_bytes(*b"writ");
/// ENOANO, which no socket call returns by itself.
pub const LSM_PULSE_ERRNO: i32 = 55;

/// What the loader tells the programs, frozen before they are verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct KernelConfig {
    /// [`crate::ABI_VERSION`] of the loader.
    pub abi: u32,
    /// Depth of the cgroup the hooks are attached to, below the root of its hierarchy.
    pub root_level: u32,
    /// Id of that cgroup.
    pub root_cgroup: u64,
    /// Address of `init_user_ns`; 0 if it could not be learnt, and every namespace is followed to its root.
    pub init_user_ns: u64,
    /// 1 where `bpf_set_retval` exists (Linux 5.18); otherwise refusals return EPERM.
    pub set_retval: u32,
    /// 1 where members of the calling task can be read by plain loads (`bpf_get_current_task_btf`, Linux 5.11) instead of calls.
    pub typed: u32,
    /// Where the kernel keeps what is read.
    pub offsets: TaskOffsets,
    /// The same for sockets.
    pub sockets: SocketOffsets,
    /// NAT64 prefixes.
    pub nat64: [Nat64Prefix; NAT64_PREFIXES],
}
