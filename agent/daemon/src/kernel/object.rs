//! Loading the BPF object and attaching its programs, or adopting what an earlier daemon left, without a gap.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, MapType, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use writ_abi::{
    ABI_VERSION, Active, Budget, COUNTERS, Counter, KernelConfig, NAT64_PREFIXES, Nat64Prefix, Session, SocketOffsets,
    TaskOffsets,
};

use super::attach::{attach, load};
use super::barrier::Barrier;
use super::btf::Btf;
use super::bytes::{ExecutableKey, Plain, SeenKey};
use super::features::{chooses_errno, types_the_task};
use super::generation::{InForce, Outer};
use super::host::{CgroupMount, init_user_ns, most_processes};
use super::live::Extent;
use super::lsm;
use super::pins::{OpenError, Pins, chain};
use super::ring::{self, Drained};
use super::shared::{AccountLost, Budgets, Positions};
use super::syscall;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/writ.bpf.o"));

/// Maps that outlive the daemon: name, type, key and value size. `None`: the size is not checked.
const PINNED: [(&str, MapType, u32, u32); 34] = [
    ("ACTIVE", MapType::Array, 4, 8),
    ("USER_FILTER", MapType::ArrayOfMaps, 4, 4),
    ("USERS", MapType::ArrayOfMaps, 4, 4),
    ("CGROUPS", MapType::ArrayOfMaps, 4, 4),
    ("NAMED_CGROUPS", MapType::ArrayOfMaps, 4, 4),
    ("CGROUPS_LOST", MapType::Array, 4, 8),
    ("CGROUP_PATHS", MapType::ArrayOfMaps, 4, 4),
    ("UNITS", MapType::ArrayOfMaps, 4, 4),
    ("EXECUTABLES", MapType::ArrayOfMaps, 4, 4),
    ("CLAUSES", MapType::ArrayOfMaps, 4, 4),
    ("ADDRESSES_V4", MapType::ArrayOfMaps, 4, 4),
    ("ADDRESSES_V6", MapType::ArrayOfMaps, 4, 4),
    ("PORTS", MapType::ArrayOfMaps, 4, 4),
    ("PROJECTIONS", MapType::ArrayOfMaps, 4, 4),
    ("CELLS", MapType::ArrayOfMaps, 4, 4),
    ("STANCES", MapType::ArrayOfMaps, 4, 4),
    ("FLAGS", MapType::ArrayOfMaps, 4, 4),
    ("SLOTS", MapType::ArrayOfMaps, 4, 4),
    ("BARRIER", MapType::ArrayOfMaps, 4, 4),
    ("SEEN", MapType::Hash, 20, 8),
    ("SEEN_COUNT", MapType::Array, 4, 8),
    ("LINEAGE", MapType::Hash, 4, 16),
    ("LINEAGE_LOST", MapType::Array, 4, 8),
    ("TRACKED", MapType::SkStorage, 4, size_of::<Session>() as u32),
    ("OPENED", MapType::SkStorage, 4, 8),
    ("SESSIONS", MapType::Hash, 8, size_of::<Session>() as u32),
    ("FOUND", MapType::Array, 4, 8),
    ("SESSIONS_USED", MapType::Array, 4, 8),
    ("SESSIONS_SHARE", MapType::Array, 4, 8),
    ("DECISIONS", MapType::RingBuf, 0, 0),
    ("PROCESSES", MapType::RingBuf, 0, 0),
    ("BUDGETS", MapType::Array, 4, size_of::<Budget>() as u32),
    ("COUNTS", MapType::PerCpuArray, 4, COUNTERS * 8),
    ("PATH", MapType::PerCpuArray, 4, 560),
];

/// What the programs are loaded with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The pin directory.
    pub pins: PathBuf,
    /// The cgroup to judge.
    pub cgroup: CgroupMount,
    /// Bytes of the decision ring; a power of two.
    pub ring_size: u32,
    /// NAT64 prefixes; more than the ABI holds are refused by `check`.
    pub nat64: Vec<Nat64Prefix>,
    /// Whether to refuse to run without the BPF LSM.
    pub require_lsm: bool,
}

/// The kernel side: programs attached and pinned, maps open.
pub(crate) struct Kernel {
    /// Whether an earlier daemon's enforcement was adopted.
    pub adopted: bool,
    /// Whether refusals carry the configured errno (`bpf_set_retval`, Linux 5.18).
    pub chooses_errno: bool,
    /// Whether the BPF LSM is the second line; if not, why.
    pub lsm: Result<(), String>,
    pub(super) active: Array<MapData, u64>,
    pub(super) outer: Outer,
    pub(super) barrier: Barrier,
    /// `None` until this daemon has installed a generation: what an earlier one left is only read.
    pub(super) in_force: Option<InForce>,
    /// How far the generation in force is written.
    pub(super) written: Extent,
    pub(super) mount: CgroupMount,
    decisions: RingBuf<MapData>,
    processes: RingBuf<MapData>,
    budgets: Budgets,
    positions: Positions,
    /// Bytes of the ring of decisions, and of that of process starts.
    ring_sizes: (u64, u64),
    counts: PerCpuArray<MapData, [u64; COUNTERS as usize]>,
    seen: HashMap<MapData, Plain<SeenKey>, u64>,
    lineage: HashMap<MapData, u32, Plain<ExecutableKey>>,
    pub(super) sessions: MapData,
    sessions_share: Array<MapData, u64>,
    pub(super) found: Array<MapData, u64>,
    pub(super) pins: Pins,
    pub(super) links: Vec<String>,
    pub(super) programs: Ebpf,
}

impl Kernel {
    /// Loads and attaches the programs, or adopts pinned ones: their maps are kept and their links go over to the new
    /// programs from one moment to the next.
    ///
    /// # Errors
    /// Whatever failed. Hooks attached by this call are taken back; enforcement found pinned stays in force.
    pub(crate) fn open(options: &Options) -> Result<Self, OpenError> {
        if OBJECT.is_empty() {
            return Err(OpenError::NoObject);
        }
        // The verifier's own words for it name no feature. Where the kernel would not say, they have to do.
        if syscall::has_fetching_atomics() == Some(false) {
            return Err(OpenError::NoAtomics);
        }
        let pins = Pins::open(&options.pins)?;
        let mut present = 0;
        for (name, kind, key, value) in PINNED {
            present += usize::from(pins.check_map(name, kind, key, value)?);
        }
        if present != 0 && present != PINNED.len() && !pins.has_links()? {
            // An earlier start was cut short before it attached anything: nothing is in force that could be lost.
            pins.clear_maps()?;
            present = 0;
        }
        if present != 0 && present != PINNED.len() {
            return Err(OpenError::Foreign {
                path: pins.maps().display().to_string(),
                why: format!(
                    "{present} of {} maps, though programs are attached; `writ uninstall` takes everything away",
                    PINNED.len()
                ),
            });
        }
        let adopted = present != 0;
        super::links::clear_detached(&pins)?;
        let chooses_errno = chooses_errno();
        let config = Plain(kernel_config(options, chooses_errno)?);
        // Read once: it takes as long as all else together.
        let types = aya::Btf::from_sys_fs().ok();
        let mut loader = EbpfLoader::new();
        loader
            .btf(types.as_ref())
            .override_global("CONFIG", &config, true)
            .map_max_entries("DECISIONS", options.ring_size)
            .map_max_entries("LINEAGE", most_processes());
        for (name, ..) in PINNED {
            loader.map_pin_path(name, pins.maps().join(name));
        }
        let mut programs = loader.load(OBJECT).map_err(OpenError::load("loading the BPF object"))?;
        let mut made = Vec::new();
        let attached = load(&mut programs)
            .and_then(|()| attach(&mut programs, &pins, &options.cgroup, &mut made))
            .and_then(|()| lsm::attach(&mut programs, types.as_ref(), &pins.links(), options.require_lsm, &mut made));
        let lsm = match attached {
            Ok(lsm) => lsm,
            Err(error) => {
                for path in made {
                    let _ = fs::remove_file(path);
                }
                if !adopted {
                    let _ = super::uninstall(&options.pins);
                }
                return Err(error);
            }
        };
        let mut take = |name: &'static str| {
            programs
                .take_map(name)
                .ok_or_else(|| OpenError::Load { what: "opening maps".into(), error: format!("no map `{name}`") })
        };
        let map_error =
            |error: aya::maps::MapError| OpenError::Load { what: "opening maps".into(), error: chain(&error) };
        // Kept by the kernel's own word: an adopted ring keeps its size, whatever the configuration says now.
        let ring = |map: Map| match map {
            Map::RingBuf(data) => {
                let size = data.info().map(|info| u64::from(info.max_entries())).map_err(map_error)?;
                let positions = Positions::map(data.fd()).map_err(OpenError::io("mapping a ring's positions"))?;
                let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(map_error)?;
                Ok::<_, OpenError>((ring, size, positions))
            }
            _ => Err(OpenError::Load { what: "opening maps".into(), error: "a ring is no ring".into() }),
        };
        let (decisions, decisions_size, positions) = ring(take("DECISIONS")?)?;
        let (processes, processes_size, _) = ring(take("PROCESSES")?)?;
        let budgets = match take("BUDGETS")? {
            Map::Array(data) => Budgets::map(data.fd()).map_err(OpenError::io("mapping the accounts' budgets"))?,
            _ => return Err(OpenError::Load { what: "opening maps".into(), error: "BUDGETS is no array".into() }),
        };
        Ok(Self {
            adopted,
            chooses_errno,
            lsm,
            active: Array::try_from(take("ACTIVE")?).map_err(map_error)?,
            outer: Outer::open(&mut take)?,
            barrier: Barrier::start(take("BARRIER")?.try_into().map_err(map_error)?)
                .map_err(OpenError::io("starting a thread"))?,
            in_force: None,
            written: Extent::default(),
            mount: options.cgroup.clone(),
            decisions,
            processes,
            budgets,
            positions,
            ring_sizes: (decisions_size, processes_size),
            counts: PerCpuArray::try_from(take("COUNTS")?).map_err(map_error)?,
            seen: HashMap::try_from(take("SEEN")?).map_err(map_error)?,
            lineage: HashMap::try_from(take("LINEAGE")?).map_err(map_error)?,
            // aya's maps do not lend their descriptor, and read one element at a time.
            sessions: match take("SESSIONS")? {
                Map::HashMap(data) => data,
                _ => return Err(OpenError::Load { what: "opening maps".into(), error: "SESSIONS is no hash".into() }),
            },
            sessions_share: Array::try_from(take("SESSIONS_SHARE")?).map_err(map_error)?,
            found: Array::try_from(take("FOUND")?).map_err(map_error)?,
            links: pins.link_names()?,
            pins,
            programs,
        })
    }

    /// The generation in force.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn active(&self) -> Result<Active, aya::maps::MapError> {
        self.active.get(&0, 0).map(Active)
    }

    /// Reads at most `limit` decisions, and the process starts that explain them.
    pub(crate) fn drain(&mut self, limit: usize) -> Drained {
        let drained = ring::drain(&mut self.decisions, &mut self.processes, limit);
        // Only now have they left the ring.
        self.budgets.took(&drained.decisions, &drained.processes);
        drained
    }

    /// Has a process descend from an executable, unless it is known to descend from one; whether it was not.
    ///
    /// # Errors
    /// The map is full, or cannot be written.
    pub(crate) fn note_origin(&mut self, pid: u32, (device, inode): (u32, u64)) -> Result<bool, aya::maps::MapError> {
        const IF_ABSENT: u64 = 1; // BPF_NOEXIST
        match self.lineage.insert(pid, Plain(ExecutableKey { inode, device, reserved: 0 }), IF_ABSENT) {
            Ok(()) => Ok(true),
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Divides what each account may always have in the rings, and on the list of sessions, among these accounts.
    ///
    /// # Errors
    /// The map cannot be written.
    pub(super) fn divide(&mut self, accounts: &[u16]) -> Result<(), aya::maps::MapError> {
        self.budgets.divide(accounts, self.ring_sizes.0, self.ring_sizes.1);
        self.sessions_share.set(0, writ_abi::session_share(accounts.len() as u64 + 1), 0)
    }

    /// What an account has lost since the maps were made.
    pub(crate) fn lost(&self, account: u16) -> AccountLost {
        self.budgets.lost(account)
    }

    /// How many decisions an account may always have in the ring.
    pub(crate) fn share(&self, account: u16) -> u64 {
        self.budgets.share(account)
    }

    /// Up to where the ring has been written, in bytes since it was made.
    pub(crate) fn written(&self) -> u64 {
        self.positions.written()
    }

    /// Up to where the ring has been read, in bytes since it was made.
    pub(crate) fn read(&self) -> u64 {
        self.positions.read()
    }

    /// A descriptor that becomes readable when decisions wait.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn readiness(&self) -> std::io::Result<OwnedFd> {
        self.decisions.as_fd().try_clone_to_owned()
    }

    /// The last number that each CPU was given by the programs of older versions of writ, which are still in force.
    ///
    /// # Errors
    /// Their counters cannot be read.
    pub(crate) fn older_numbers(&self) -> Result<BTreeMap<u32, u64>, OpenError> {
        let mut numbers = BTreeMap::new();
        for version in self.pins.older()? {
            let path = version.join("maps/COUNTS");
            let what = || OpenError::io(format!("reading `{}`", path.display()));
            let size = MapInfo::from_pin(&path).map_err(|error| what()(std::io::Error::other(error)))?.value_size();
            let counters = size.div_ceil(8) as usize;
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| what()(error))?;
            let mut values = vec![0u64; counters * cpus];
            let map = syscall::open_pin(&path).map_err(what())?;
            syscall::read_first(map.as_fd(), &mut values).map_err(what())?;
            // The first counter is the number, in every version.
            for (cpu, given) in (0..).zip(values.chunks(counters.max(1)).filter_map(|counters| counters.first())) {
                let known: &mut u64 = numbers.entry(cpu).or_default();
                *known = (*known).max(*given);
            }
        }
        Ok(numbers)
    }

    /// Takes away what older versions of writ pinned; to be called once a generation is in force.
    ///
    /// # Errors
    /// The pin that could not be removed.
    pub(crate) fn retire_older(&self) -> Result<(), OpenError> {
        self.pins.retire_older()
    }

    /// Lets each CPU's numbers go on from these, where maps were made anew in a boot that has given numbers out already:
    /// a number means one attempt, however often writ was taken away and put back. To be called before a generation is
    /// in force: nothing is counted until then.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub(crate) fn resume_numbers(&mut self, last: &BTreeMap<u32, u64>) -> Result<(), aya::maps::MapError> {
        let mut counts: Vec<[u64; COUNTERS as usize]> = self.counts.get(&0, 0)?.iter().copied().collect();
        for (counts, cpu) in counts.iter_mut().zip(0u32..) {
            let given = last.get(&cpu).copied().unwrap_or(0);
            // What was given out before is recorded, or lost and said so, in the log.
            for counter in [Counter::Seen, Counter::Recorded] {
                if let Some(count) = counts.get_mut(counter as usize) {
                    *count = given;
                }
            }
        }
        let values = aya::maps::PerCpuValues::try_from(counts)?;
        self.counts.set(0, values, 0)
    }

    /// Every counter of every CPU.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn counters(&self) -> Result<Vec<[u64; COUNTERS as usize]>, aya::maps::MapError> {
        Ok(self.counts.get(&0, 0)?.iter().copied().collect())
    }

    /// The destinations remembered for accounts: account index, address, boot time of the first visit.
    pub(crate) fn seen(&self) -> Vec<(u32, [u8; 16], u64)> {
        self.seen.iter().flatten().map(|(key, at)| (key.0.account, key.0.address, at)).collect()
    }

    /// Whether the account has been at this address.
    pub(crate) fn has_seen(&self, account: u32, address: [u8; 16]) -> bool {
        self.seen.get(&Plain(SeenKey { account, address }), 0).is_ok()
    }

    /// Where it is attached.
    pub(crate) fn cgroup(&self) -> &CgroupMount {
        &self.mount
    }
}

fn kernel_config(options: &Options, chooses_errno: bool) -> Result<KernelConfig, OpenError> {
    let btf = fs::read("/sys/kernel/btf/vmlinux")
        .map_err(OpenError::io("reading the kernel's type information (needs CONFIG_DEBUG_INFO_BTF)"))?;
    let btf = Btf::parse(&btf)?;
    let offsets: TaskOffsets = btf.task_offsets()?;
    let sockets: SocketOffsets = btf.socket_offsets()?;
    let mut nat64 = [Nat64Prefix::default(); NAT64_PREFIXES];
    for (entry, prefix) in nat64.iter_mut().zip(&options.nat64) {
        *entry = *prefix;
    }
    Ok(KernelConfig {
        abi: ABI_VERSION,
        root_level: options.cgroup.level,
        root_cgroup: options.cgroup.id,
        init_user_ns: init_user_ns(),
        set_retval: u32::from(chooses_errno),
        typed: u32::from(types_the_task()),
        offsets,
        sockets,
        nat64,
    })
}
