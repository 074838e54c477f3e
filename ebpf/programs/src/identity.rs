//! Who is calling: every view of the task leads to the accounts it belongs to, and each of them is judged.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id,
    generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid},
};
use writ_abi::{
    Active, Clause, ClauseList, Counter, LEAST_SUBORDINATE, MAX_CLAUSES, MOST_SUBORDINATES, Tables, USER_FILTER_WORDS,
    View,
};

use crate::{
    cgroup::{UNREADABLE, list_of_cgroup, list_of_current},
    config::config,
    emit::count,
    map::{CGROUPS, CLAUSES, EXECUTABLES, ExecutableKey, LINEAGE, USER_FILTER, USERS},
    process, socket,
    tables::{KernelTables, word},
    task::{self, Runs},
};

/// No account.
pub(crate) const NOBODY: u16 = u16::MAX;

/// The accounts that some view of the caller matched, and what was read on the way.
#[repr(C)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) euid: u32,
    pub(crate) executable: ExecutableKey,
    pub(crate) executable_class: u32,
    pub(crate) accounts: [u16; 4],
    pub(crate) views: [u16; 4],
    /// More accounts matched than can be judged.
    pub(crate) overflow: u8,
    /// A view could not be read.
    pub(crate) unknown: u8,
    selectors: [u32; 4],
    /// A user namespace whose owners are to be followed. Here, because a typed pointer may be no argument of a global function.
    namespace: u64,
}

impl Caller {
    /// Nobody yet.
    pub(crate) const NONE: Self = Self {
        uid: 0,
        euid: 0,
        executable: ExecutableKey { inode: 0, device: 0, reserved: 0 },
        executable_class: 0,
        accounts: [NOBODY; 4],
        views: [0; 4],
        overflow: 0,
        unknown: 0,
        selectors: [0; 4],
        namespace: 0,
    };

    /// Whether no view leads to an account.
    #[inline(always)]
    pub(crate) fn unmanaged(&self) -> bool {
        self.accounts[0] == NOBODY && self.unknown == 0 && self.overflow == 0
    }

    #[inline(always)]
    fn add(&mut self, account: u16, view: u32) {
        let view = view as u16;
        let [a, b, c, d] = self.accounts;
        if a == account || a == NOBODY {
            self.accounts[0] = account;
            self.views[0] |= view;
        } else if b == account || b == NOBODY {
            self.accounts[1] = account;
            self.views[1] |= view;
        } else if c == account || c == NOBODY {
            self.accounts[2] = account;
            self.views[2] |= view;
        } else if d == account || d == NOBODY {
            self.accounts[3] = account;
            self.views[3] |= view;
        } else {
            self.overflow = 1;
        }
    }

    #[inline(always)]
    fn selected(&mut self, selector: u32) {
        let [a, b, c, d] = self.selectors;
        if a == 0 || a == selector {
            self.selectors[0] = selector;
        } else if b == 0 || b == selector {
            self.selectors[1] = selector;
        } else if c == 0 || c == selector {
            self.selectors[2] = selector;
        } else if d == 0 || d == selector {
            self.selectors[3] = selector;
        } else {
            self.overflow = 1;
        }
    }

    #[inline(always)]
    fn follow(&mut self, side: u32, list: u32, view: u32) {
        if list != 0 {
            follow_list(self, side, list, view);
        }
    }

    #[inline(always)]
    fn user(&mut self, side: u32, uid: u32, view: u32) {
        if uid < LEAST_SUBORDINATE {
            let Some(filter) = word(&USER_FILTER, side, uid >> 6) else {
                self.unknown = 1;
                return;
            };
            if filter >> (uid & 63) & 1 == 0 {
                return;
            }
        }
        follow_user(self, side, uid, view);
    }

    #[inline(always)]
    fn users(&mut self, side: u32, task: u64) {
        let Some(Sets { own, real, leading }) = Sets::of(task) else {
            self.unknown = 1;
            return;
        };
        let Some(mine) = task::credentials(own) else {
            self.unknown = 1;
            return;
        };
        self.uid = mine.uid;
        self.euid = mine.euid;
        self.user(side, mine.uid, View::UID);
        if mine.euid != mine.uid {
            self.user(side, mine.euid, View::EUID);
        }
        self.namespace(side, mine.user_ns);
        if real != own {
            self.other(side, real, View::REAL_CRED);
        }
        if leading != own && leading != real {
            self.other(side, leading, View::LEADER);
        }
    }

    #[inline(always)]
    fn other(&mut self, side: u32, cred: u64, view: u32) {
        let Some(theirs) = task::credentials(cred) else {
            self.unknown = 1;
            return;
        };
        if theirs.uid != self.uid {
            self.user(side, theirs.uid, view);
        }
        if theirs.euid != theirs.uid && theirs.euid != self.euid {
            self.user(side, theirs.euid, view);
        }
        self.namespace(side, theirs.user_ns);
    }

    #[inline(always)]
    fn namespace(&mut self, side: u32, namespace: u64) {
        if namespace != config!(init_user_ns) {
            self.namespace = namespace;
            follow_namespaces(self, side);
        }
    }

    #[inline(always)]
    fn cgroup(&mut self, side: u32) {
        // SAFETY: the helper has no preconditions.
        let cgroup = unsafe { bpf_get_current_cgroup_id() };
        let Some(cgroups) = CGROUPS.get(side) else {
            self.unknown = 1;
            return;
        };
        // SAFETY: values are only ever written whole, and a cgroup's class never changes within a generation.
        if let Some(list) = unsafe { cgroups.get(cgroup) } {
            let list = *list;
            self.follow(side, list, View::CGROUP);
            return;
        }
        count(Counter::CgroupUnclassified);
        let nearest = list_of_current(side, cgroup);
        if nearest == UNREADABLE {
            self.unknown = 1;
            return;
        }
        if cgroups.insert(cgroup, nearest as u32, 0).is_err() {
            count(Counter::CgroupMapFull);
        }
        self.follow(side, nearest as u32, View::CGROUP);
    }

    #[inline(always)]
    fn executable_entry(&self, side: u32, key: &ExecutableKey) -> u64 {
        let Some(executables) = EXECUTABLES.get(side) else { return 0 };
        // SAFETY: entries of a generation's map are never removed while it is in force.
        match unsafe { executables.get(key) } {
            Some(entry) => *entry,
            None => 0,
        }
    }
}

/// The credentials that a task acts by, those it is acted on by, and the latter of its process's first thread.
struct Sets {
    own: u64,
    real: u64,
    leading: u64,
}

impl Sets {
    /// All of them before any is looked into: the verifier takes as long for a pointer read from a task as for hundreds of
    /// instructions (see `read_executable`), and further on it would come by more than once.
    #[inline(always)]
    fn of(task: u64) -> Option<Self> {
        let own = task::pointer(task, config!(offsets.cred))?;
        let real = task::pointer(task, config!(offsets.real_cred))?;
        let leader = task::pointer(task, config!(offsets.group_leader))?;
        let leading = if leader == task { real } else { task::pointer(leader, config!(offsets.real_cred))? };
        Some(Self { own, real, leading })
    }
}

/// Adds the accounts that a clause list leads to.
///
/// A global function of the object (hence the C ABI and the fixed name): the verifier checks it once, for any contents of
/// `caller`, where it would otherwise follow every history of accounts found so far and give up.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn follow_list(caller: *mut Caller, side: u32, list: u32, view: u32) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole `Caller`.
    let Some(caller) = (unsafe { caller.as_mut() }) else { return 0 };
    if let Some(account) = ClauseList(list).account() {
        caller.add(account, view);
        return 0;
    }
    let Some(length) = word(&CLAUSES, side, list) else {
        caller.unknown = 1;
        return 0;
    };
    let mut index = 0;
    while index < MAX_CLAUSES {
        if u64::from(index) >= length {
            return 0;
        }
        let Some(clause) = word(&CLAUSES, side, list + 1 + index) else {
            caller.unknown = 1;
            return 0;
        };
        let clause = Clause(clause);
        let [a, b, c, d] = caller.selectors;
        let user = clause.user();
        let user_matches = user == 0 || user == a || user == b || user == c || user == d;
        let executable = clause.executable();
        if user_matches && (executable == 0 || executable == caller.executable_class) {
            caller.add(clause.account(), view);
        }
        index += 1;
    }
    if length > u64::from(MAX_CLAUSES) {
        caller.overflow = 1;
    }
    0
}

/// Whose subordinate uid this is, or the uid itself: what a user can give to its own processes counts as its own, also
/// where they are in no user namespace any more (a setuid file made in one). Global for the same reason as [`follow_list`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn owner_of(side: u32, uid: u32) -> u64 {
    let mut low = 0;
    let mut high = match word(&USER_FILTER, side, USER_FILTER_WORDS) {
        Some(rows) if rows <= u64::from(MOST_SUBORDINATES) => rows as u32,
        // A generation of an older version has none.
        _ => 0,
    };
    let mut halvings = 0;
    while halvings <= MOST_SUBORDINATES.ilog2() {
        if low >= high {
            break;
        }
        let middle = (low + high) / 2;
        let Some(row) = word(&USER_FILTER, side, USER_FILTER_WORDS + 1 + middle * 2) else { break };
        if uid < row as u32 {
            high = middle;
        } else if uid > (row >> 32) as u32 {
            low = middle + 1;
        } else {
            return match word(&USER_FILTER, side, USER_FILTER_WORDS + 2 + middle * 2) {
                Some(owner) => owner,
                None => u64::from(uid),
            };
        }
        halvings += 1;
    }
    u64::from(uid)
}

/// Adds the accounts that a uid leads to. Global for the same reason as [`follow_list`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn follow_user(caller: *mut Caller, side: u32, uid: u32, view: u32) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole `Caller`.
    let Some(caller) = (unsafe { caller.as_mut() }) else { return 0 };
    let Some(users) = USERS.get(side) else {
        caller.unknown = 1;
        return 0;
    };
    // SAFETY: entries of a generation's map are never changed or removed while it is in force.
    if let Some(entry) = unsafe { users.get(uid) } {
        let entry = *entry;
        caller.selected((entry >> 32) as u32);
        caller.follow(side, entry as u32, view);
    }
    // It may be somebody's besides being itself: both count.
    let owner = if uid < LEAST_SUBORDINATE { uid } else { owner_of(side, uid) as u32 };
    if owner != uid {
        // SAFETY: as above.
        if let Some(entry) = unsafe { users.get(owner) } {
            let entry = *entry;
            caller.selected((entry >> 32) as u32);
            caller.follow(side, entry as u32, view);
        }
    }
    0
}

/// Adds the accounts that the owners of a user namespace lead to, and of those above it. Global for the same reason as
/// [`follow_list`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn follow_namespaces(caller: *mut Caller, side: u32) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole `Caller`.
    let Some(caller) = (unsafe { caller.as_mut() }) else { return 0 };
    let namespace = caller.namespace;
    if !task::namespace_owners(namespace, |owner| caller.user(side, owner, View::USER_NAMESPACE)) {
        caller.unknown = 1;
    }
    0
}

/// Adds the accounts that a socket leads to, whoever uses it now: by who made it, and in which cgroup. Global for the same
/// reason as [`follow_list`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn follow_socket(caller: *mut Caller, side: u32, socket: u64, by_cgroup: u32) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole `Caller`.
    let Some(caller) = (unsafe { caller.as_mut() }) else { return 0 };
    match task::read::<u32>(socket, config!(sockets.uid)) {
        Some(owner) if owner == caller.uid || owner == caller.euid => {}
        Some(owner) => caller.user(side, owner, View::SOCKET_UID),
        None => caller.unknown = 1,
    }
    if by_cgroup == 0 {
        return 0;
    }
    let Some(cgroup) = socket::cgroup(socket) else {
        caller.unknown = 1;
        return 0;
    };
    if cgroup == 0 {
        return 0; // A socket of the kernel, or of the version 1 hierarchy: of the root cgroup.
    }
    // SAFETY: the helper has no preconditions.
    match list_of_cgroup(side, cgroup, unsafe { bpf_get_current_cgroup_id() }) {
        UNREADABLE => caller.unknown = 1,
        list => caller.follow(side, list as u32, View::SOCKET_CGROUP),
    }
    0
}

/// Finds out who is calling: the task, and the socket it uses, if it uses one that was made before (`socket` is the kernel's
/// `struct sock`, 0 for none). `Caller::unmanaged` callers leave here.
#[inline(always)]
pub(crate) fn find(tables: &KernelTables, caller: &mut Caller, socket: u64) {
    let missed = find_caller(tables.active().0, caller, socket);
    caller.unknown |= missed as u8;
}

/// Does what [`find`] says; 1 if it could not. Global, so that the verifier follows its ways once, and not on to whatever the program does next
/// from the end of each of them: verifying takes a third as long.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_caller(active: u64, caller: *mut Caller, socket: u64) -> u32 {
    // SAFETY: the verifier holds every caller to passing null or a whole `Caller`.
    let Some(caller) = (unsafe { caller.as_mut() }) else { return 1 };
    let active = Active(active);
    let side = active.side();
    let task = task::current();
    caller.unknown = u8::from(!task::resolved());
    caller.users(side, task);
    if socket != 0 {
        follow_socket(caller, side, socket, u32::from(active.has(Active::MATCHES_CGROUPS)));
    }
    let by_executable = active.has(Active::MATCHES_EXECUTABLES | Active::CLASSES_EXECUTABLES);
    let mut entry = 0;
    if by_executable {
        match task::runs() {
            Runs::Executable(key) => {
                caller.executable = key;
                entry = caller.executable_entry(side, &key);
                caller.executable_class = (entry >> 32) as u32;
            }
            Runs::Nothing => {}
            Runs::Unread => caller.unknown = 1,
        }
    }
    if active.has(Active::MATCHES_CGROUPS) {
        caller.cgroup(side);
    }
    if active.has(Active::MATCHES_EXECUTABLES) {
        caller.follow(side, entry as u32, View::EXECUTABLE);
        // SAFETY: the helper has no preconditions.
        let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
        // SAFETY: an entry is inserted whole and replaced only by this process's own exec.
        if let Some(origin) = unsafe { LINEAGE.get(pid) } {
            let origin = *origin;
            let entry = caller.executable_entry(side, &origin);
            caller.follow(side, entry as u32, View::LINEAGE);
        } else if process::is_lost(pid) {
            caller.unknown = 1;
        }
    }
    if !by_executable
        && caller.accounts[0] != NOBODY
        && let Runs::Executable(key) = task::runs()
    {
        caller.executable = key;
    }
    0
}

/// Whether the task lies below the cgroup that writ is confined to. The cgroup hooks run only there; tracepoints run for
/// the whole host and ask.
#[inline(always)]
pub(crate) fn confined() -> bool {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_ancestor_cgroup_id(config!(root_level) as i32) == config!(root_cgroup) }
}
