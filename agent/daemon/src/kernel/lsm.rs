//! The BPF LSM as the second line: attached where the kernel has it, and believed only once it has been seen to act.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{Lsm, Program, ProgramError};
use aya::{Btf, Ebpf};
use rayon::prelude::*;
use writ_abi::{LSM_PULSE, LSM_PULSE_ERRNO};

use super::attach::replace_pin;
use super::pins::{OpenError, chain};

/// Program and hook. Sockets are marked as theirs before their use is asked about.
const HOOKS: [(&str, &str); 4] = [
    ("lsm_created", "socket_post_create"),
    ("lsm_create", "socket_create"),
    ("lsm_connect", "socket_connect"),
    ("lsm_sendmsg", "socket_sendmsg"),
];
/// What the kernel calls, in order.
const ACTIVE_MODULES: &str = "/sys/kernel/security/lsm";

/// Attaches all of the programs, or none and says why. New links are pinned before the old ones go, as an LSM link cannot
/// be given another program; for a moment both judge.
///
/// # Errors
/// The LSM is required and not there; or an earlier daemon's links are pinned and cannot be replaced, which stay in force.
pub(super) fn attach(
    programs: &mut Ebpf,
    types: Option<&Btf>,
    links: &Path,
    required: bool,
    made: &mut Vec<PathBuf>,
) -> Result<Result<(), String>, OpenError> {
    let pinned = HOOKS.iter().any(|(program, _)| links.join(program).exists());
    let before = made.len();
    let why = match attach_all(programs, types, links, made) {
        Ok(()) if answers() => return Ok(Ok(())),
        Ok(()) => format!(
            "attached and never called: `bpf` is not among the active security modules ({}); add it to `lsm=` on the \
             kernel's command line",
            active_modules()
        ),
        Err(error) if pinned => return Err(error),
        Err(error) => {
            tracing::info!(%error, "the BPF LSM cannot be used");
            first_line(&error.to_string())
        }
    };
    // What is never called covers nothing.
    for path in made.drain(before..) {
        let _ = fs::remove_file(path);
    }
    if required { Err(OpenError::NoLsm(why)) } else { Ok(Err(why)) }
}

fn attach_all(
    programs: &mut Ebpf,
    types: Option<&Btf>,
    links: &Path,
    made: &mut Vec<PathBuf>,
) -> Result<(), OpenError> {
    let types = types.ok_or_else(|| OpenError::Load {
        what: "attaching to the BPF LSM".into(),
        error: "the kernel's type information cannot be read".into(),
    })?;
    // All are loaded before the first is attached.
    let ours = |(name, program)| Some((HOOKS.iter().position(|(known, _)| *known == name)?, program));
    let mut each: Vec<(usize, &mut Program)> = programs.programs_mut().filter_map(ours).collect();
    each.sort_unstable_by_key(|(place, _)| *place);
    let load = |(place, program): (usize, &mut Program)| {
        let (name, hook) = HOOKS.get(place).copied().unwrap_or_default();
        let program: &mut Lsm = program.try_into().map_err(|error: ProgramError| failed(name, &error))?;
        program.load(hook, types).map_err(|error| failed(name, &error))
    };
    // The first refusal in the order above, whichever came first: records and reports name it.
    let loaded: Vec<Result<(), OpenError>> = each.into_par_iter().map(load).collect();
    loaded.into_iter().collect::<Result<(), OpenError>>()?;
    for (name, _) in HOOKS {
        let program = program(programs, name)?;
        let id = program.attach().map_err(|error| failed(name, &error))?;
        let link = program.take_link(id).map_err(|error| failed(name, &error))?;
        replace_pin(FdLink::from(link), &links.join(name), made)?;
    }
    Ok(())
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut Lsm, OpenError> {
    let found = programs.program_mut(name);
    let missing = || OpenError::Load { what: "loading programs".into(), error: format!("no program `{name}`") };
    found.ok_or_else(missing)?.try_into().map_err(|error: ProgramError| failed(name, &error))
}

fn failed(name: &str, error: &(dyn std::error::Error + 'static)) -> OpenError {
    OpenError::Load { what: format!("attaching `{name}` to the BPF LSM"), error: chain(error) }
}

/// The first line, without the beginning of a verifier's log.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(". Verifier output").map_or(line, |(line, _)| line).to_owned()
}

/// Whether the programs are called: asks for a socket that cannot exist, and that they alone answer.
fn answers() -> bool {
    // SAFETY: a system call on integers; no memory is touched. It makes no socket, whoever answers.
    let made = unsafe { libc::socket(libc::AF_UNSPEC, libc::SOCK_RAW, LSM_PULSE.cast_signed()) };
    made < 0 && io::Error::last_os_error().raw_os_error() == Some(LSM_PULSE_ERRNO)
}

/// The active security modules, as the kernel lists them.
pub(super) fn active_modules() -> String {
    fs::read_to_string(ACTIVE_MODULES)
        .map_or_else(|_| "the list cannot be read".to_owned(), |list| list.trim().to_owned())
}
