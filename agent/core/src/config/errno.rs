//! The errnos a refusal can carry: those of connect(2) that a program reads as "no".

use super::fault::{Fault, suggest};

/// What a refusal is unless the account says otherwise: `EACCES`, what connect(2) gives for a local firewall rule.
pub const EACCES: u16 = 13;

/// Names and numbers (asm-generic, as on x86-64, arm64 and riscv64).
const ERRNOS: [(&str, u16); 25] = [
    ("EPERM", 1),
    ("EIO", 5),
    ("EBADF", 9),
    ("ENOMEM", 12),
    ("EACCES", EACCES),
    ("EFAULT", 14),
    ("EINVAL", 22),
    ("ENOTSOCK", 88),
    ("EPROTOTYPE", 91),
    ("EPROTONOSUPPORT", 93),
    ("EOPNOTSUPP", 95),
    ("EAFNOSUPPORT", 97),
    ("EADDRINUSE", 98),
    ("EADDRNOTAVAIL", 99),
    ("ENETDOWN", 100),
    ("ENETUNREACH", 101),
    ("ENETRESET", 102),
    ("ECONNABORTED", 103),
    ("ECONNRESET", 104),
    ("ENOBUFS", 105),
    ("ETIMEDOUT", 110),
    ("ECONNREFUSED", 111),
    ("EHOSTDOWN", 112),
    ("EHOSTUNREACH", 113),
    ("EKEYREJECTED", 129),
];

/// Errnos of connect(2) that do not mean "no": a program told so would wait, try again at once, or go on.
const NOT_REFUSALS: [&str; 6] = ["EINPROGRESS", "EALREADY", "EISCONN", "EINTR", "EAGAIN", "EWOULDBLOCK"];

/// The number of an errno that a refusal can carry.
pub(super) fn errno(name: &str) -> Result<u16, Fault> {
    if let Some((_, number)) = ERRNOS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    if NOT_REFUSALS.contains(&name) {
        return Err(Fault::new("bad-errno", format!("`{name}` is not a refusal: a program would wait or try again"))
            .help("use e.g. `EACCES`, `EPERM`, `ECONNREFUSED`"));
    }
    Err(Fault::new("bad-errno", format!("`{name}` is not an errno of connect(2)"))
        .help(suggest(name, ERRNOS.iter().map(|(known, _)| *known))))
}

/// The name of an errno that a refusal can carry.
pub fn errno_name(number: u16) -> Option<&'static str> {
    ERRNOS.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_has_one_name_and_one_number() {
        for (name, number) in ERRNOS {
            assert_eq!(errno(name), Ok(number));
            assert_eq!(errno_name(number), Some(name));
        }
    }

    #[test]
    fn an_errno_that_means_try_again_is_refused() {
        for name in NOT_REFUSALS {
            assert!(errno(name).unwrap_err().message.contains("not a refusal"), "{name}");
        }
        assert_eq!(errno("EACCESS").unwrap_err().help.as_deref(), Some("did you mean `EACCES`?"));
    }
}
