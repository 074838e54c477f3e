//! From the kernel's event to a decision or observation: the event's own facts, and what the daemon adds.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use writ_abi::{Address, DecisionEvent, Hook, Protocol, Reason, View};

use super::process::device_name;
use super::{
    Body, Cgroup, Decision, Destination, EffectiveMode, GrantRef, Kernel, Parent, PolicyRef, Process, Request,
    SignalRef, Would,
};
use crate::policy::now_json;

/// What the daemon knows beside the event: names for its numbers, and the state the stance was made from.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Context {
    /// The account.
    pub account: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The other accounts that matched.
    pub also_matched: Vec<String>,
    /// The name the address was looked up by.
    pub destination_name: Option<String>,
    /// The Destinations it belongs to.
    pub groups: Vec<String>,
    /// Path of the executable.
    pub executable: Option<String>,
    /// The ancestors.
    pub parents: Vec<Parent>,
    /// Path of the cgroup.
    pub cgroup: Option<String>,
    /// The systemd unit.
    pub unit: Option<String>,
    /// The determining policies.
    pub policies: Vec<PolicyRef>,
    /// The policies that determine the would-be verdict, where it differs.
    pub would: Vec<PolicyRef>,
    /// Digest of the policy set.
    pub policy_digest: String,
    /// Digest of the stance.
    pub stance_digest: String,
    /// Risk.
    pub risk: u8,
    /// Live signals.
    pub signals: Vec<SignalRef>,
    /// The grant that permitted it.
    pub grant: Option<GrantRef>,
    /// The Cedar request.
    pub request: Request,
}

impl Decision {
    /// The body of the record for an event: a decision if it was enforced, an observation if not.
    pub fn from_event(event: &DecisionEvent, context: Context) -> Body {
        let enforced = event.enforced == 1;
        let open_socket = event.open_socket == 1;
        let verdict = writ_abi::Verdict::from_bits(event.verdict);
        let would = writ_abi::Verdict::from_bits(event.would);
        let given = match (is_mapped(event), address_text(&event.given)) {
            (true, address) if !address.contains(':') => format!("::ffff:{address}"),
            (_, address) => address,
        };
        let destination = (!open_socket).then(|| Destination {
            address: address_text(&event.address),
            port: event.port,
            protocol: protocol_name(event.protocol),
            name: context.destination_name,
            groups: context.groups,
        });
        let given_address =
            destination.as_ref().and_then(|judged| (judged.address != given || is_mapped(event)).then_some(given));
        let decision = Self {
            account: context.account,
            owner: context.owner,
            identified_by: identified_by(event.views),
            also_matched: context.also_matched,
            verdict: verdict.into(),
            effective_mode: if enforced { EffectiveMode::Enforce } else { EffectiveMode::Observe },
            action: if open_socket { "open-socket" } else { "connect" }.to_owned(),
            destination,
            given_address,
            asked_by: None,
            process: Some(Process {
                pid: event.pid,
                tid: event.tid,
                start_time: event.start_time,
                executable: context.executable,
                device: device_name(event.executable_device),
                inode: event.executable_inode,
                parents: context.parents,
                cgroup: Cgroup { id: event.cgroup, path: context.cgroup },
                unit: context.unit,
                uid: event.uid,
                euid: event.euid,
                loginuid: (event.loginuid != u32::MAX).then_some(event.loginuid),
                comm: comm_text(&event.comm),
            }),
            policies: context.policies,
            policy_digest: context.policy_digest,
            stance_digest: context.stance_digest,
            risk: context.risk,
            signals: context.signals,
            grant: context.grant,
            request: context.request,
            kernel: Some(Kernel {
                generation: event.generation,
                cpu: event.cpu,
                sequence: event.sequence,
                hook: Hook::from_bits(event.hook).map_or_else(|| event.hook.to_string(), |hook| hook.name().to_owned()),
                stance: event.stance,
                epoch: event.epoch,
                socket_cookie: event.socket_cookie,
                netns_cookie: event.netns_cookie,
            }),
            reason_code: Reason::from_bits(event.reason).map_or("unknown", Reason::code).to_owned(),
            errno: (event.errno != 0).then(|| errno_name(event.errno)),
            would: (would != verdict).then(|| Would { verdict: would.into(), policies: context.would }),
            already_open: None,
            count: event.count.max(1),
            boot_time_ns: event.at,
        };
        if enforced { Body::Decision(Box::new(decision)) } else { Body::Observation(Box::new(decision)) }
    }
}

/// An event without what tells it from another attempt of the same process that is the same but for when it was made: their
/// records differ in no more than [`Decision::again`] writes.
pub fn alike(event: &DecisionEvent) -> DecisionEvent {
    DecisionEvent { at: 0, sequence: 0, cpu: 0, socket_cookie: 0, issued: 0, count: 0, ..*event }
}

impl Decision {
    /// Makes the record's body of one event that of another which is [`alike`], judged at this moment. The account's
    /// situation and whatever is said in words must be the same.
    pub fn again(&mut self, event: &DecisionEvent, at: Timestamp) {
        if let Some(kernel) = &mut self.kernel {
            (kernel.cpu, kernel.sequence, kernel.socket_cookie) = (event.cpu, event.sequence, event.socket_cookie);
        }
        (self.count, self.boot_time_ns) = (event.count.max(1), event.at);
        if let Some(now) = self.request.context.get_mut("now") {
            *now = now_json(at);
        }
    }
}

/// The names of the views that matched.
pub fn identified_by(views: u32) -> Vec<String> {
    View::NAMES.into_iter().filter(|(bit, _)| views & bit != 0).map(|(_, name)| name.to_owned()).collect()
}

fn protocol_name(protocol: u8) -> String {
    Protocol::from_bits(protocol).map_or_else(|| protocol.to_string(), |protocol| protocol.name().to_owned())
}

/// Whether an IPv6 socket asked for an IPv4 address in its mapped form; the table form of both is the same.
fn is_mapped(event: &DecisionEvent) -> bool {
    const AF_INET6: u16 = 10;
    event.socket_family == AF_INET6 && event.given.v4().is_some()
}

fn address_text(address: &Address) -> String {
    match address.v4() {
        Some(octets) => Ipv4Addr::from(octets).to_string(),
        None => Ipv6Addr::from(address.octets()).to_string(),
    }
}

fn comm_text(comm: &[u8]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or(comm)).into_owned()
}

/// The name of an errno that writ can return; `E` and the number for any other.
pub fn errno_name(errno: u16) -> String {
    crate::config::errno_name(errno).map_or_else(|| format!("E{errno}"), str::to_owned)
}
