//! From the object's programs to programs in force: loaded side by side, then attached, or handed the links of those before.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Program, ProgramError, ProgramFd,
    RawTracePoint,
};
use rayon::prelude::*;

use super::host::CgroupMount;
use super::pins::{OpenError, Pins, chain};
use super::syscall;

/// The programs attached to the cgroup. An address hook that is missing would be a way around the decision: all or none.
pub(super) const ADDRESS_HOOKS: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];
/// The programs that see sockets made and closed.
const SOCKET_HOOKS: [&str; 2] = ["sock_create", "sock_release"];
/// The program that sees packets on their way out.
const EGRESS: &str = "egress";
/// Program and tracepoint.
pub(super) const TRACEPOINTS: [(&str, &str); 5] = [
    ("process_exec", "sched_process_exec"),
    ("process_fork", "sched_process_fork"),
    ("process_exit", "sched_process_exit"),
    ("cgroup_mkdir", "cgroup_mkdir"),
    ("cgroup_rmdir", "cgroup_rmdir"),
];

/// Loads every program but those of the BPF LSM, which not every kernel takes. Verifying them is most of a start, so it is done
/// on every processor, and before anything is attached.
///
/// # Errors
/// The kernel refuses one of them.
pub(super) fn load(programs: &mut Ebpf) -> Result<(), OpenError> {
    let programs: Vec<(&str, &mut Program)> = programs.programs_mut().collect();
    programs.into_par_iter().try_for_each(|(name, program)| {
        match program {
            Program::RawTracePoint(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => Ok(()),
        }
        .map_err(failed(name))
    })
}

fn failed(name: &str) -> impl Fn(ProgramError) -> OpenError {
    let what = format!("loading program `{name}`");
    move |error| OpenError::Load { what: what.clone(), error: chain(&error) }
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &str) -> Result<P, OpenError>
where
    P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing = || OpenError::Load { what: "loading programs".into(), error: format!("no program `{name}`") };
    programs.program_mut(name).ok_or_else(missing)?.try_into().map_err(failed(name))
}

/// Attaches what is loaded, each to where it belongs; what an earlier daemon attached to the cgroup gets the new program.
///
/// # Errors
/// The kernel refuses, or a pin is not what it should be. `made` has the pins that are new.
pub(super) fn attach(
    programs: &mut Ebpf,
    pins: &Pins,
    cgroup: &CgroupMount,
    made: &mut Vec<PathBuf>,
) -> Result<(), OpenError> {
    let opening = OpenError::io(format!("opening cgroup `{}`", cgroup.attached.display()));
    let place = Place { directory: fs::File::open(&cgroup.attached).map_err(opening)?, id: cgroup.id };
    // Tracepoints first: a cgroup or process must not be missed between classification and enforcement.
    for (name, tracepoint) in TRACEPOINTS {
        let program: &mut RawTracePoint = program(programs, name)?;
        let id = program.attach(tracepoint).map_err(failed(name))?;
        let link = program.take_link(id).map_err(failed(name))?;
        replace_pin(link.into(), &pins.links().join(name), made)?;
    }
    for name in ADDRESS_HOOKS {
        let program: &mut CgroupSockAddr = program(programs, name)?;
        place.take(name, pins, made, program, CgroupSockAddr::fd, |program, directory| {
            program.attach(directory, CgroupAttachMode::Single).and_then(|id| program.take_link(id))
        })?;
    }
    for name in SOCKET_HOOKS {
        let program: &mut CgroupSock = program(programs, name)?;
        place.take(name, pins, made, program, CgroupSock::fd, |program, directory| {
            program.attach(directory, CgroupAttachMode::Single).and_then(|id| program.take_link(id))
        })?;
    }
    let program: &mut CgroupSkb = program(programs, EGRESS)?;
    place.take(EGRESS, pins, made, program, CgroupSkb::fd, |program, directory| {
        let id = program.attach(directory, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)?;
        program.take_link(id)
    })
}

/// The cgroup that programs are attached to.
struct Place {
    directory: fs::File,
    id: u64,
}

impl Place {
    /// Has a program judge here: by the link that an earlier daemon pinned, or by a new one.
    fn take<P, L>(
        &self,
        name: &str,
        pins: &Pins,
        made: &mut Vec<PathBuf>,
        program: &mut P,
        descriptor: impl FnOnce(&P) -> Result<&ProgramFd, ProgramError>,
        attach: impl FnOnce(&mut P, &fs::File) -> Result<L, ProgramError>,
    ) -> Result<(), OpenError>
    where
        FdLink: TryFrom<L, Error: std::fmt::Display>,
    {
        let path = pins.links().join(name);
        if path.exists() {
            return hand_over(&path, descriptor(program).map_err(failed(name))?, self.id);
        }
        let link = attach(program, &self.directory).map_err(failed(name))?;
        let link =
            FdLink::try_from(link).map_err(|error| OpenError::Load { what: name.into(), error: error.to_string() })?;
        pin(link, path, made)
    }
}

/// Gives a pinned cgroup link to a new program: no moment without either.
fn hand_over(path: &Path, program: &ProgramFd, cgroup: u64) -> Result<(), OpenError> {
    let link = syscall::open_pin(path).map_err(OpenError::io(format!("opening the pin `{}`", path.display())))?;
    let found = syscall::link_cgroup(link.as_fd())
        .map_err(OpenError::io(format!("asking what the pin `{}` is attached to", path.display())))?;
    if found != cgroup {
        return Err(OpenError::OtherCgroup { found, wanted: cgroup });
    }
    syscall::update_link(link.as_fd(), program.as_fd())
        .map_err(OpenError::io(format!("handing `{}` over to the new program", path.display())))
}

fn pin(link: FdLink, path: PathBuf, made: &mut Vec<PathBuf>) -> Result<(), OpenError> {
    link.pin(&path)
        .map_err(|error| OpenError::Load { what: format!("pinning `{}`", path.display()), error: chain(&error) })?;
    made.push(path);
    Ok(())
}

/// Pins a link in place of an older one: the new one runs before the old one stops, for a moment both do.
pub(super) fn replace_pin(link: FdLink, path: &Path, made: &mut Vec<PathBuf>) -> Result<(), OpenError> {
    if !path.exists() {
        return pin(link, path.to_owned(), made);
    }
    PinnedLink::from_pin(path)
        .map_err(|error| OpenError::Foreign { path: path.display().to_string(), why: chain(&error) })?;
    // Renamed over the old pin, so that at no moment, however this ends, is neither of the two pinned.
    // A bpf file system takes no dot in a name.
    let mut beside = path.as_os_str().to_owned();
    beside.push("-new");
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    link.pin(&beside)
        .map(drop)
        .map_err(|error| OpenError::Load { what: format!("pinning `{}`", beside.display()), error: chain(&error) })?;
    fs::rename(&beside, path).map_err(OpenError::io(format!("replacing the pin `{}`", path.display())))
}
