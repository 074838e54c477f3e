//! What the loader tells the programs before they are verified; frozen, so that the verifier prunes what is switched off.

use writ_abi::{Address, KernelConfig, NAT64_PREFIXES, Nat64Prefix, SocketOffsets, TaskOffsets};

/// Set by the loader (`EbpfLoader::override_global`).
#[unsafe(no_mangle)]
static CONFIG: KernelConfig = KernelConfig {
    abi: 0,
    root_level: 0,
    root_cgroup: 0,
    init_user_ns: 0,
    set_retval: 0,
    typed: 0,
    offsets: TaskOffsets {
        resolved: 0,
        start_boottime: 0,
        real_parent: 0,
        group_leader: 0,
        tgid: 0,
        mm: 0,
        loginuid: 0,
        cred: 0,
        real_cred: 0,
        signal: 0,
        live: 0,
        uid: 0,
        user_ns: 0,
        ns_owner: 0,
        ns_parent: 0,
        exe_file: 0,
        f_inode: 0,
        i_ino: 0,
        i_sb: 0,
        s_dev: 0,
        filename: 0,
        cgroup_self: 0,
        css_parent: 0,
        cgroup_kn: 0,
        kn_id: 0,
        cgroup_root: 0,
        hierarchy_id: 0,
        reserved: 0,
    },
    sockets: SocketOffsets {
        sock_addr_sk: 0,
        socket_sk: 0,
        family: 0,
        kind: 0,
        protocol: 0,
        uid: 0,
        cgroup: 0,
        msg_name: 0,
        nsproxy: 0,
        net_ns: 0,
        net_cookie: 0,
        reserved: 0,
    },
    nat64: [Nat64Prefix { prefix: Address::NONE, used: 0 }; NAT64_PREFIXES],
};

/// Reads one member of [`CONFIG`].
macro_rules! config {
    ($($member:tt)+) => { $crate::config::value(&$crate::config::configuration().$($member)+) };
}
pub(crate) use config;

/// The static itself, for [`config!`].
#[inline(always)]
pub(crate) fn configuration() -> &'static KernelConfig {
    &CONFIG
}

/// Reads a member as the loader set it: volatile, because the compiler must not use the initial values above.
#[inline(always)]
pub(crate) fn value<T: Copy>(member: &'static T) -> T {
    // SAFETY: a plain read of a static that is never written after the program was loaded.
    unsafe { core::ptr::read_volatile(member) }
}
