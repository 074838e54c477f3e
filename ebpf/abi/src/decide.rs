//! The decision: written once, pure and total; run by the kernel program, the daemon, the replayer and the tests.

use crate::{
    AccountFlags, Active, Address, Cell, FAMILIES, Family, NEVER, PROTOCOLS, Protocol, Reason, Slot, StanceRow,
    StanceWord, Verdict, stance::halves,
};

/// Where one attempt wants to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Canonical address (see [`Address::canonical`]).
    pub address: Address,
    /// Port, in host byte order.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// One attempt to be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// `Action::"connect"`: a connect, or a datagram sent to an address.
    Connect {
        /// The destination.
        endpoint: Endpoint,
        /// Class of the executable; 0 is `unlisted`.
        executable: u32,
    },
    /// `Action::"open-socket"`: a socket of a family that is not decided by address.
    OpenSocket(Family),
}

/// One judgement, with everything that led to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The verdict of policy.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Whether the verdict changes what the caller gets; false is an observation.
    pub enforced: bool,
    /// The verdict with observe-mode policies counted in.
    pub would: Verdict,
    /// The stance that was used (the fallback's, if expired).
    pub stance: u32,
    /// The epoch of the account.
    pub epoch: u32,
    /// The explanation's index (see [`Cell::explanation`]); 0 where no cell was reached.
    pub explanation: u32,
    /// The account's flags.
    pub flags: AccountFlags,
    /// What `context.new_destination` was.
    pub new_destination: bool,
    /// Whether this attempt, if allowed, teaches the account's baseline.
    pub learn: bool,
    /// Until when time alone cannot change this (boot-time nanoseconds): the end of the stance, of an observed spell, of a
    /// learning period. 0 where something was missing.
    pub until: u64,
}

impl Decision {
    /// Whether the call is to be refused.
    #[inline(always)]
    pub fn refuses(&self) -> bool {
        self.enforced && self.verdict != Verdict::Allow
    }
}

/// The tables of one generation, wherever they lie: in kernel maps, or in memory.
pub trait Tables {
    /// How a stance is read.
    type Row: StanceRow;
    /// The word that names the generation.
    fn active(&self) -> Active;
    /// The account's flags.
    fn flags(&self, account: u32) -> Option<AccountFlags>;
    /// The account's slot.
    fn slot(&self, account: u32) -> Option<Slot>;
    /// The stance with this index.
    fn stance(&self, index: u32) -> Option<Self::Row>;
    /// The class of an address: the longest matching prefix.
    fn address_class(&self, address: &Address) -> Option<u32>;
    /// The class of a port.
    fn port_class(&self, port: u16) -> Option<u32>;
    /// What a class is to an account: entry `base + class` of the projections.
    fn projection(&self, index: u32) -> Option<u32>;
    /// The cell with this index.
    fn cell(&self, index: u32) -> Option<Cell>;
    /// Whether the account has been to this address before.
    fn seen(&self, account: u32, address: &Address) -> bool;
}

/// Judges one attempt of one account at one moment (`now`: boot-time nanoseconds).
///
/// Whatever is missing denies, under its own reason. Observe mode is applied last and to every cause alike; an account's
/// own mode overrides the global one.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, account: u32, attempt: &Attempt, now: u64) -> Decision {
    let flags = match tables.flags(account) {
        Some(flags) if flags.has(AccountFlags::PRESENT) => flags,
        _ => AccountFlags::default(),
    };
    let mut decision = Decision {
        verdict: Verdict::Deny,
        reason: Reason::NoSlot,
        enforced: !flags.has(AccountFlags::OBSERVE),
        would: Verdict::Deny,
        stance: 0,
        epoch: 0,
        explanation: 0,
        flags,
        new_destination: false,
        learn: false,
        until: 0,
    };
    let Some(slot) = tables.slot(account) else { return decision };
    decision.epoch = slot.epoch();
    decision.stance = slot.stance();
    decision.reason = Reason::NoStance;
    let Some(mut row) = tables.stance(decision.stance) else { return decision };
    let expired = now >= row.word(StanceWord::ValidUntil);
    if expired {
        decision.stance = halves(row.word(StanceWord::FallbackCells)).0;
        let Some(fallback) = tables.stance(decision.stance) else { return decision };
        row = fallback;
    }
    if row.word(StanceWord::Present) != 1 {
        return decision;
    }
    // A fallback does not expire.
    decision.until = if expired { NEVER } else { row.word(StanceWord::ValidUntil) };
    let observe_until = row.word(StanceWord::ObserveUntil);
    if now < observe_until {
        decision.enforced = false;
        decision.until = earlier(decision.until, observe_until);
    }
    let learning_until = row.word(StanceWord::LearningUntil);
    let learning = now < learning_until;
    if learning {
        decision.until = earlier(decision.until, learning_until);
    }
    let mut learnable = false;
    let cell = match attempt {
        Attempt::OpenSocket(family) => {
            let index = *family as u32;
            let (families, _) = halves(row.word(StanceWord::FamiliesExecutables));
            if index < FAMILIES { tables.cell(families.wrapping_add(index)) } else { None }
        }
        Attempt::Connect { endpoint, executable } => {
            decision.reason = Reason::NoClass;
            let seen = tables.seen(account, &endpoint.address);
            decision.new_destination = !seen && !learning;
            learnable = !seen;
            let (_, executable_base) = halves(row.word(StanceWord::FamiliesExecutables));
            let Some(index) = tables.projection(executable_base.wrapping_add(*executable)) else { return decision };
            let Some(class) = tables.address_class(&endpoint.address) else { return decision };
            let (address_base, port_base) = halves(row.word(StanceWord::Bases));
            let Some(address) = tables.projection(address_base.wrapping_add(class)) else { return decision };
            let Some(class) = tables.port_class(endpoint.port) else { return decision };
            let Some(port) = tables.projection(port_base.wrapping_add(class)) else { return decision };
            let (addresses, ports) = halves(row.word(StanceWord::Counts));
            if address >= addresses || port >= ports {
                return decision;
            }
            let index = index.wrapping_mul(addresses).wrapping_add(address);
            let index = index.wrapping_mul(ports).wrapping_add(port);
            let index = index.wrapping_mul(PROTOCOLS).wrapping_add(endpoint.protocol as u32);
            let index = index.wrapping_mul(2).wrapping_add(decision.new_destination as u32);
            let (_, cells) = halves(row.word(StanceWord::FallbackCells));
            tables.cell(cells.wrapping_add(index))
        }
    };
    let Some(cell) = cell else {
        decision.reason = Reason::NoCell;
        return decision;
    };
    if cell.0 == 0 {
        decision.reason = Reason::NoCell;
        return decision;
    }
    decision.explanation = cell.explanation();
    decision.verdict = cell.verdict();
    decision.would = cell.would();
    decision.reason = if cell.reason() == Reason::PolicyError as u8 {
        Reason::PolicyError
    } else if expired {
        Reason::Expired
    } else {
        Reason::Policy
    };
    if flags.has(AccountFlags::OFFBOARDED) {
        decision.verdict = Verdict::Deny;
        decision.would = Verdict::Deny;
        decision.reason = Reason::Offboarded;
        decision.enforced = true;
    }
    // A refused attempt must not teach, nor one that only observe mode let through.
    decision.learn = learnable && decision.verdict == Verdict::Allow && (decision.enforced || learning);
    decision
}

#[inline(always)]
const fn earlier(a: u64, b: u64) -> u64 {
    if b < a { b } else { a }
}

/// Whether `challenger` is to be preferred as the outcome of an attempt that several accounts match: a refusal before an
/// acceptance, then the stricter verdict.
#[inline(always)]
pub fn stricter(incumbent: &Decision, challenger: &Decision) -> bool {
    (challenger.refuses() as u8, challenger.verdict as u8) > (incumbent.refuses() as u8, incumbent.verdict as u8)
}
