//! What a technique is: who may use it, what proves that it worked, what writ claims about it.

use crate::scene::Scene;
use crate::tried::Tried;
use crate::{families, inet, system};

/// Who a technique starts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// As the user who tries, with the capabilities named.
    User,
    /// As root: it has something to prepare before it becomes the user.
    Root,
    /// As root, to run a program that an account is matched by, as a user of no account.
    Program,
}

/// What shows that a technique worked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// The capture saw a packet.
    Packet,
    /// Every call succeeded; what follows is beyond the capture.
    Calls,
}

/// What becomes of a technique.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It is decided by its destination, and the decision is recorded.
    Covered,
    /// It is refused as a whole before a destination matters: by `Action::"open-socket"`, or by the kernel itself.
    Refused,
    /// It is not stopped.
    Residual,
}

impl Claim {
    /// As reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::Refused => "refused",
            Self::Residual => "residual",
        }
    }
}

/// What is done to writ's own daemon first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// It is stopped (SIGSTOP) meanwhile.
    Stopped,
    /// It is killed, and started again afterwards.
    Killed,
    /// It is stopped, and the ring is filled meanwhile: the record may be lost, and must then be counted.
    RingFull,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    Try(fn(&Scene) -> Tried),
    /// Make a socket of this family, type and protocol.
    Open(i32, i32, i32),
    /// Nothing that could be tried here: stated, with the reason.
    Stated,
}

/// One way out.
#[derive(Clone, Copy, Debug)]
pub struct Technique {
    /// Its name in reports, records and documents.
    pub id: &'static str,
    /// What is tried, in a few words.
    pub title: &'static str,
    /// Who it starts as.
    pub start: Start,
    /// Capabilities (by number) that whoever tries has: the least that the technique is of use with.
    pub capabilities: &'static [u32],
    /// What shows that it worked.
    pub proof: Proof,
    /// What is done to the daemon first.
    pub disturbance: Disturbance,
    /// The hook that is to see it.
    pub hook: &'static str,
    /// What writ claims with cgroup programs alone.
    pub claim: Claim,
    /// What it claims where the BPF LSM is active as well.
    pub claim_with_lsm: Claim,
    /// Why it is refused or not stopped; empty where it is covered.
    pub reason: &'static str,
    /// What an operator can add; empty where nothing needs to be.
    pub remedy: &'static str,
    pub(crate) deed: Deed,
}

impl Technique {
    /// Whether something is tried at all.
    pub const fn is_tried(&self) -> bool {
        !matches!(self.deed, Deed::Stated)
    }

    /// Whether it may be driven at full speed: it needs no daemon that is disturbed, and leaves no files.
    pub fn may_be_repeated(&self) -> bool {
        self.is_tried()
            && self.disturbance == Disturbance::None
            && self.start != Start::Program
            && self.claim != Claim::Residual
    }

    /// The claim for a kernel.
    pub const fn claimed(&self, lsm: bool) -> Claim {
        if lsm { self.claim_with_lsm } else { self.claim }
    }
}

pub(crate) const fn covered(
    id: &'static str,
    title: &'static str,
    hook: &'static str,
    deed: fn(&Scene) -> Tried,
) -> Technique {
    Technique {
        id,
        title,
        start: Start::User,
        capabilities: &[],
        proof: Proof::Packet,
        disturbance: Disturbance::None,
        hook,
        claim: Claim::Covered,
        claim_with_lsm: Claim::Covered,
        reason: "",
        remedy: "",
        deed: Deed::Try(deed),
    }
}

pub(crate) const fn as_root(technique: Technique) -> Technique {
    Technique { start: Start::Root, ..technique }
}

pub(crate) const fn program(id: &'static str, title: &'static str, deed: fn(&Scene) -> Tried) -> Technique {
    Technique { start: Start::Program, ..covered(id, title, "cgroup/sendmsg4", deed) }
}

pub(crate) const fn refused(id: &'static str, title: &'static str, deed: fn(&Scene) -> Tried) -> Technique {
    Technique {
        claim: Claim::Refused,
        claim_with_lsm: Claim::Refused,
        reason: "refused when the socket is made, unless policy permits Action::\"open-socket\" for the family",
        ..covered(id, title, "cgroup/sock_create", deed)
    }
}

/// Judged by an address that is permitted; what makes the packet go elsewhere is seen when it goes.
pub(crate) const fn stopped_on_its_way(id: &'static str, title: &'static str, deed: fn(&Scene) -> Tried) -> Technique {
    Technique {
        hook: "cgroup/egress",
        // Without it the kernel lets nobody set the option.
        capabilities: NET_RAW,
        reason: "packets with IP options are stopped on their way out, and counted (egress_stopped)",
        ..refused(id, title, deed)
    }
}

/// A family that no cgroup hook sees, and that the BPF LSM does.
pub(crate) const fn family(id: &'static str, title: &'static str, family: i32, kind: i32, protocol: i32) -> Technique {
    Technique {
        proof: Proof::Calls,
        claim: Claim::Residual,
        reason: "cgroup hooks see no sockets but those of IP; the BPF LSM sees this one",
        remedy: "boot with lsm=…,bpf; or RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 in the unit",
        deed: Deed::Open(family, kind, protocol),
        ..refused(id, title, inet::udp_sendto)
    }
}

pub(crate) const fn residual(technique: Technique, reason: &'static str, remedy: &'static str) -> Technique {
    Technique { claim: Claim::Residual, claim_with_lsm: Claim::Residual, reason, remedy, ..technique }
}

pub(crate) const fn stated(
    id: &'static str,
    title: &'static str,
    reason: &'static str,
    remedy: &'static str,
) -> Technique {
    let technique = Technique { deed: Deed::Stated, hook: "none", ..covered(id, title, "", inet::udp_sendto) };
    residual(technique, reason, remedy)
}

pub(crate) const NET_RAW: &[u32] = &[system::CAP_NET_RAW];

/// Tries a technique, as whoever this process is.
///
/// # Errors
/// What the kernel stopped, or why nothing could be tried.
pub(crate) fn perform(technique: &Technique, scene: &Scene) -> Tried {
    match technique.deed {
        Deed::Try(attempt) => attempt(scene),
        Deed::Open(family, kind, protocol) => families::open(family, kind, protocol).map(drop),
        Deed::Stated => Ok(()),
    }
}
