//! A bundle and the accounts' states laid out as one generation.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use writ_abi::{AccountFlags, Active, Family, Slot};

use super::layout::{StanceError, approvals};
use super::{Generation, Outlook};
use crate::config::{Config, Mode, OnRecordLoss};
use crate::diagnostic::Diagnostic;
use crate::policy::{Bundle, Classes};

/// The most accounts: clauses name them in 16 bits.
const MOST_ACCOUNTS: usize = 1 << 16;

/// Builds a generation.
///
/// `previous` are the names of accounts by index, as pinned: an account keeps its index, a new one gets the next, and none is
/// reused. An account without an outlook is refused everything. `boot_ns_of` turns wall-clock time into boot time.
pub fn build(
    bundle: &Bundle,
    config: &Config,
    number: u32,
    outlooks: &BTreeMap<String, Outlook>,
    previous: &[String],
    boot_ns_of: &dyn Fn(Timestamp) -> u64,
) -> Result<Generation, Box<Diagnostic>> {
    let classes = bundle.classes_with(approvals(bundle, outlooks.iter()))?;
    let mut accounts = previous.to_vec();
    let known: HashSet<&String> = previous.iter().collect();
    accounts.extend(config.accounts.keys().filter(|name| !known.contains(name)).cloned());
    if accounts.len() > MOST_ACCOUNTS {
        let finding = Diagnostic::error(
            "too-many-accounts",
            format!(
                "{} accounts were declared since the maps were pinned; {MOST_ACCOUNTS} is the limit",
                accounts.len()
            ),
        )
        .help("run `writ uninstall` and start again: indices are not reused while maps are pinned");
        return Err(Box::new(finding));
    }
    let mut generation = Generation {
        active: u64::from(number) | lookups(bundle, config, &classes),
        v4: classes.v4.clone(),
        v6: classes.v6.clone(),
        ports: classes.ports.clone(),
        executables: classes
            .executables
            .iter()
            .enumerate()
            .filter_map(|(class, executable)| Some((executable.path.clone()?, class as u32)))
            .collect(),
        accounts,
        ..Generation::default()
    };
    generation.add_refusal(classes).map_err(full)?;
    generation.place_rows(bundle, outlooks).map_err(full)?;
    for name in generation.accounts.clone() {
        let (flags, slot) = match config.accounts.get(&name) {
            None => (AccountFlags::default(), Slot::new(0, 0)),
            Some(account) => {
                let outlook = outlooks.get(&name);
                let mut flags = AccountFlags::PRESENT;
                if account.effective_mode(config.agent.mode) == Mode::Observe {
                    flags |= AccountFlags::OBSERVE;
                }
                if account.on_record_loss == OnRecordLoss::Deny {
                    flags |= AccountFlags::RECORD_LOSS_DENIES;
                }
                if bundle.names_family(&name, Family::Unix) {
                    flags |= AccountFlags::JUDGES_UNIX;
                }
                if bundle.names_family(&name, Family::Netlink) {
                    flags |= AccountFlags::JUDGES_NETLINK;
                }
                if outlook.is_some_and(|outlook| outlook.offboarded) {
                    flags |= AccountFlags::OFFBOARDED;
                }
                let slot = match outlook {
                    None => Slot::new(0, 0),
                    Some(outlook) => {
                        let stance = generation.append_stance(bundle, &name, outlook, boot_ns_of).map_err(full)?;
                        Slot::new(stance, outlook.epoch)
                    }
                };
                (AccountFlags(flags).with_errno(account.errno), slot)
            }
        };
        generation.flags.push(flags.0);
        generation.slots.push(slot.0);
    }
    Ok(generation)
}

fn full(error: StanceError) -> Box<Diagnostic> {
    let finding = Diagnostic::error("too-many-cells", error.to_string());
    Box::new(finding.help("put addresses that are treated alike into one destination, and ports into ranges"))
}

/// Which lookups a program run cannot leave out.
fn lookups(bundle: &Bundle, config: &Config, classes: &Classes) -> u64 {
    let matches = || config.accounts.values().flat_map(|account| &account.matches);
    let mut flags = 0;
    if matches().any(|found| found.unit.is_some() || found.cgroup.is_some()) {
        flags |= Active::MATCHES_CGROUPS;
    }
    if matches().any(|found| found.executable.is_some()) {
        flags |= Active::MATCHES_EXECUTABLES;
    }
    if bundle.classes_executables() || classes.approves_executables() {
        flags |= Active::CLASSES_EXECUTABLES;
    }
    let local = |name: &String| [Family::Unix, Family::Netlink].iter().any(|family| bundle.names_family(name, *family));
    if config.accounts.keys().any(local) {
        flags |= Active::JUDGES_LOCAL;
    }
    if config.agent.mode == Mode::Observe {
        flags |= Active::OBSERVE;
    }
    flags
}
