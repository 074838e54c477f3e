//! A configuration as large as one host's could be: many accounts with policies of every kind, destinations, prefixes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::config::ACCOUNT;
use crate::{Config, user};

/// How large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estate {
    /// Service accounts, the one under test among them.
    pub accounts: u32,
    /// Policies of each account's own.
    pub policies: u32,
    /// Prefixes over all destinations.
    pub prefixes: u32,
    /// Destinations; each has as many prefixes as the next.
    pub destinations: u32,
}

impl Estate {
    /// What a host is to bear: a thousand accounts of ten policies, ten thousand prefixes in two hundred destinations.
    pub const FULL: Self = Self { accounts: 1_000, policies: 10, prefixes: 10_000, destinations: 200 };

    /// The name of the `index`-th account; the first is the one under test.
    pub fn account(index: u32) -> String {
        if index == 0 { ACCOUNT.to_owned() } else { format!("service-{index:04}") }
    }

    /// The name of the `index`-th destination.
    pub fn destination(index: u32) -> String {
        format!("group-{index:03}")
    }

    /// The `index`-th prefix: an address of 127.0.0.0/8, so that every one of them can be connected to without a network.
    pub fn address(index: u32) -> Ipv4Addr {
        // An odd multiplier spreads them; the lowest bit keeps clear of network addresses.
        Ipv4Addr::from(0x7f00_0000 | (index.wrapping_mul(0x009e_3779) & 0x00ff_ffff) | 1)
    }

    /// An index of a prefix in a destination that the account is permitted to reach, whatever its state of calm.
    pub fn reachable(self, account: u32) -> u32 {
        self.group(account, 0)
    }

    /// The `nth` destination that an account is permitted to reach.
    fn group(self, account: u32, nth: u32) -> u32 {
        account.wrapping_mul(7).wrapping_add(nth.wrapping_mul(41)) % self.destinations
    }

    /// The policies of one account. `note` is written into their reasons: another note is another policy.
    pub fn policies_of(self, account: u32, note: &str) -> String {
        let name = Self::account(account);
        let mut text = String::new();
        for nth in 0..self.policies {
            let group = Self::destination(self.group(account, nth));
            let (effect, extra, resource, condition) = match nth % 10 {
                0 | 1 => ("permit", "", format!("resource in Destination::\"{group}\""), String::new()),
                2 => (
                    "permit",
                    "",
                    format!("resource in Destination::\"{group}\""),
                    "when { context.port == 443 && context.protocol == \"tcp\" }".to_owned(),
                ),
                3 => (
                    "permit",
                    "",
                    format!("resource in Destination::\"{group}\""),
                    "when { context.hour >= 6 && context.hour < 22 }".to_owned(),
                ),
                4 => (
                    "permit",
                    "",
                    "resource".to_owned(),
                    format!("when {{ context.ip.isInRange(ip(\"10.{}.0.0/16\")) }}", account % 250),
                ),
                5 => ("forbid", "", "resource".to_owned(), "when { context.risk >= 80 }".to_owned()),
                6 => (
                    "forbid",
                    "@decision(\"escalate\")\n",
                    "resource".to_owned(),
                    "when { context.risk >= 50 && context.new_destination }".to_owned(),
                ),
                7 => (
                    "forbid",
                    "",
                    format!("resource in Destination::\"{group}\""),
                    "when { context.signals.contains(\"bench.flag\") }".to_owned(),
                ),
                8 => (
                    "forbid",
                    "@mode(\"observe\")\n",
                    format!("resource in Destination::\"{group}\""),
                    "when { context.port == 8443 }".to_owned(),
                ),
                _ => (
                    "permit",
                    "",
                    format!("resource in Destination::\"{group}\""),
                    "when { context.new_destination == false }".to_owned(),
                ),
            };
            let _ = write!(
                text,
                "@id(\"{name}-{nth}\")\n@owner(\"team@example.com\")\n@reason(\"{note} {nth}\")\n{extra}{effect} (principal \
                 == ServiceAccount::\"{name}\", action == Action::\"connect\", {resource})\n{condition};\n"
            );
        }
        text
    }

    /// The name of the file that holds an account's policies.
    pub fn policy_file(account: u32) -> String {
        format!("policies.d/{:03}.cedar", account / 10)
    }

    /// The whole of it as files.
    pub fn config(self) -> Config {
        let mut destinations = String::new();
        let each = self.prefixes / self.destinations.max(1);
        for group in 0..self.destinations {
            let list = (0..each).map(|nth| format!("\"{}\"", Self::address(nth * self.destinations + group)));
            let list = list.collect::<Vec<_>>().join(", ");
            let _ = writeln!(destinations, "[destination.{}]\naddresses = [{list}]\n", Self::destination(group));
        }
        let mut accounts = String::new();
        for index in 1..self.accounts {
            let uid = user::BENCH_UIDS + index;
            let _ = writeln!(
                accounts,
                "[service-account.{}]\nowner = \"team@example.com\"\nmatch = {{ user = \"{uid}\" }}\n",
                Self::account(index)
            );
        }
        let mut config = Config::new()
            .file("destinations.d/estate.toml", &destinations)
            .file("service-accounts.d/estate.toml", &accounts)
            .file("signals.d/bench.toml", SIGNALS);
        for first in (0..self.accounts).step_by(10) {
            let text: String =
                (first..self.accounts.min(first + 10)).map(|account| self.policies_of(account, "as made")).collect();
            config = config.file(&Self::policy_file(first), &text);
        }
        config
    }
}

/// Kinds of signals: one that closes everything, one that is only a flag, one that changes nothing by itself.
pub const SIGNALS: &str = "[signal.\"bench.malware\"]\nrisk = 90\nttl = \"1h\"\n\n\
                           [signal.\"bench.flag\"]\nrisk = 10\nttl = \"1h\"\nflag = true\n\n\
                           [signal.\"bench.note\"]\nrisk = 20\nttl = \"1h\"\n";
