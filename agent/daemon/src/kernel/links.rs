//! Whether every program is still attached, and attaching those that are not: root can detach a link or remove its pin.

use std::fs;
use std::os::fd::AsFd;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};

use super::attach::{ADDRESS_HOOKS, TRACEPOINTS};
use super::object::Kernel;
use super::pins::{OpenError, Pins, chain};
use super::syscall;

/// Whether attempts are judged by this program of the first line.
pub(crate) fn judges_attempts(program: &str) -> bool {
    ADDRESS_HOOKS.contains(&program) || program == "sock_create"
}

impl Kernel {
    /// The programs whose link is gone: its pin was removed, or it was detached under the pin. "Could not tell" counts as
    /// gone.
    pub(crate) fn detached(&self) -> Vec<String> {
        let holds = |name: &String| -> std::io::Result<bool> {
            let link = syscall::open_pin(&self.pins.links().join(name))?;
            // A detached cgroup link lives on under its pin, and names no cgroup.
            syscall::link_holds(link.as_fd(), self.mount.id)
        };
        self.links.iter().filter(|name| !holds(name).unwrap_or(false)).cloned().collect()
    }

    /// Attaches a program again, and pins its link.
    ///
    /// # Errors
    /// Whatever failed; the program is not attached then.
    pub(crate) fn reattach(&mut self, name: &str) -> Result<(), OpenError> {
        let path = self.pins.links().join(name);
        if !self.pins.links().is_dir() {
            return Err(OpenError::Foreign {
                path: self.pins.links().display().to_string(),
                why: "it was taken away whole, as `writ uninstall` does".into(),
            });
        }
        // What is left of it holds nothing any more.
        let _ = fs::remove_file(&path);
        let cgroup = fs::File::open(&self.mount.attached)
            .map_err(OpenError::io(format!("opening cgroup `{}`", self.mount.attached.display())))?;
        let load = |error: String| OpenError::Load { what: format!("attaching program `{name}` again"), error };
        let failed = |error: aya::programs::ProgramError| load(chain(&error));
        let unlinked = |error: aya::programs::links::LinkError| load(chain(&error));
        let program = self.programs.program_mut(name).ok_or_else(|| load("there is no such program".into()))?;
        let link = match program {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(failed)?;
                FdLink::try_from(program.take_link(id).map_err(failed)?).map_err(unlinked)?
            }
            Program::CgroupSock(program) => {
                let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(failed)?;
                FdLink::try_from(program.take_link(id).map_err(failed)?).map_err(unlinked)?
            }
            Program::CgroupSkb(program) => {
                let egress = CgroupSkbAttachType::Egress;
                let id = program.attach(&cgroup, egress, CgroupAttachMode::Single).map_err(failed)?;
                FdLink::try_from(program.take_link(id).map_err(failed)?).map_err(unlinked)?
            }
            Program::RawTracePoint(program) => {
                let tracepoint = TRACEPOINTS.iter().find(|(known, _)| *known == name).map_or(name, |(_, at)| *at);
                let id = program.attach(tracepoint).map_err(failed)?;
                program.take_link(id).map_err(failed)?.into()
            }
            _ => return Err(load("this kind of program is attached at a start only".into())),
        };
        link.pin(&path).map(drop).map_err(|error| load(chain(&error)))
    }
}

/// Removes the pins of links that were detached: a start attaches those programs anew.
pub(super) fn clear_detached(pins: &Pins) -> Result<(), OpenError> {
    for name in pins.link_names()? {
        let path = pins.links().join(&name);
        let detached = syscall::open_pin(&path).and_then(|link| syscall::link_detached(link.as_fd())).unwrap_or(false);
        if detached {
            tracing::error!(program = name, "was found DETACHED at the start: it judged nothing; it is attached anew");
            fs::remove_file(&path).map_err(OpenError::io(format!("removing the pin `{}`", path.display())))?;
        }
    }
    Ok(())
}
