//! The documented enumeration behind `reason_code`.

use writ_abi::Reason;

/// Every `reason_code` a decision or observation can carry, with its meaning; docs/records.md lists the same.
pub const REASON_CODES: [(&str, &str); 16] = [
    (Reason::Policy.code(), "the policies named, or, where none is named, that nothing permits it"),
    (Reason::Expired.code(), "the stance's validity had ended; its fallback decided"),
    (Reason::PolicyError.code(), "a policy's condition errored for this attempt: denied"),
    (Reason::NoSlot.code(), "the account had no slot in the generation in force: denied"),
    (Reason::NoStance.code(), "the account's slot named a stance that was not there: denied"),
    (Reason::NoClass.code(), "the address, port or executable had no class: denied"),
    (Reason::NoCell.code(), "the stance had no such cell: denied"),
    (Reason::IdentityUnknown.code(), "the caller's identity could not be read: denied"),
    (Reason::TooManyAccounts.code(), "more accounts matched the caller than can be judged: denied"),
    (Reason::RecordLoss.code(), "no record could be made and the account demands one: denied"),
    (Reason::NoAddress.code(), "the destination's address could not be read: denied"),
    (Reason::Offboarded.code(), "the account is offboarded: everything is denied"),
    (Reason::Untracked.code(), "the session could not be remembered with its socket, so it could not be cut: denied"),
    ("already-open", "policy, for a connection that was open before writ judged it (see `already_open`)"),
    ("invalid-request", "a question to the decision endpoint that policy could not judge: denied"),
    ("unknown", "a reason this agent does not know: written by another version"),
];
