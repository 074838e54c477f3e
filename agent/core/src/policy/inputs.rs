//! What a set of policies asks about: the atoms by which connects are classed, and the parts of the state they read.

use std::collections::BTreeSet;

use ipnet::IpNet;
use writ_abi::Family;

/// Addresses that an atom is true for; sorted, without repeats.
pub(crate) type AddressSet = Vec<IpNet>;

/// Ports that an atom is true for, as sorted inclusive ranges.
pub(crate) type PortSet = Vec<(u16, u16)>;

/// Everything that policies ask. Two connects on which all of it agrees get the same answer, errors included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Inputs {
    /// `context.ip` is one of these.
    pub(crate) addresses: BTreeSet<AddressSet>,
    /// `context.port` is one of these.
    pub(crate) ports: BTreeSet<PortSet>,
    /// `resource` is in this destination.
    pub(crate) destinations: BTreeSet<String>,
    /// `context.executable` is this.
    pub(crate) executables: BTreeSet<String>,
    /// `context.executable` is one of the account's own.
    pub(crate) own_executables: bool,
    /// `context.protocol`
    pub(crate) protocol: bool,
    /// `context.new_destination`
    pub(crate) new_destination: bool,
    /// `context.approvals`
    pub(crate) approvals: bool,
    /// `context.risk` in any other form than compared with a literal.
    pub(crate) risk: bool,
    /// Risks from which on some comparison of it with a literal has another value.
    pub(crate) risks: BTreeSet<u8>,
    /// `context.signals`
    pub(crate) signals: bool,
    /// `context.fresh`
    pub(crate) fresh: bool,
    /// `context.now`, `.hour`, `.minute`, `.weekday`
    pub(crate) times: TimeAtoms,
    /// Whether `context.now` may be read in any form. A `datetime` is dear: Cedar reads it from text for each question.
    pub(crate) now: bool,
    /// `context.family` is this.
    pub(crate) families: BTreeSet<Family>,
    /// Some expression can fail when evaluated (overflow, an entity that is not there).
    pub(crate) fallible: bool,
}

/// The comparisons of time that policies make.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct TimeAtoms {
    /// Milliseconds since the epoch from which on some comparison of `now` has another value.
    pub(crate) now: BTreeSet<i64>,
    /// Hours an atom is true for, one bit each.
    pub(crate) hours: BTreeSet<u32>,
    /// Minutes an atom is true for, one bit each.
    pub(crate) minutes: BTreeSet<u64>,
    /// Weekdays an atom is true for, one bit each (bit 1 Monday … bit 7 Sunday).
    pub(crate) weekdays: BTreeSet<u8>,
}

impl Inputs {
    /// Adds what another policy asks.
    pub(crate) fn merge(&mut self, other: &Self) {
        let Self {
            addresses,
            ports,
            destinations,
            executables,
            own_executables,
            protocol,
            new_destination,
            approvals,
            risk,
            risks,
            signals,
            fresh,
            times,
            now,
            families,
            fallible,
        } = other;
        self.addresses.extend(addresses.iter().cloned());
        self.ports.extend(ports.iter().cloned());
        self.destinations.extend(destinations.iter().cloned());
        self.executables.extend(executables.iter().cloned());
        self.own_executables |= own_executables;
        self.protocol |= protocol;
        self.new_destination |= new_destination;
        self.approvals |= approvals;
        self.risk |= risk;
        self.risks.extend(risks);
        self.signals |= signals;
        self.fresh |= fresh;
        self.times.merge(times);
        self.now |= now;
        self.families.extend(families);
        self.fallible |= fallible;
    }

    /// What of a risk the policies can see: the same number for risks that they cannot tell apart.
    pub(crate) fn risk_class(&self, risk: u8) -> u8 {
        if self.risk { risk } else { self.risks.range(..=risk).count().try_into().unwrap_or(u8::MAX) }
    }

    /// Whether the executable matters.
    pub(crate) fn classes_executables(&self) -> bool {
        self.own_executables || !self.executables.is_empty()
    }
}

impl TimeAtoms {
    fn merge(&mut self, other: &Self) {
        self.now.extend(&other.now);
        self.hours.extend(&other.hours);
        self.minutes.extend(&other.minutes);
        self.weekdays.extend(&other.weekdays);
    }
}
