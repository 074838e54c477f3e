//! Generations as the loader gets them: shared parts, stable indices, expiry, flags; and identities.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use writ_abi::{
    AccountFlags, Active, Address, Clause, ClauseList, Decision, Endpoint, Protocol, Reason, Slot, Verdict,
};

use super::{Generation, Identities, Outlook, StanceError, Unresolved, build};
use crate::config::{Config, Match, Mode, OnRecordLoss};
use crate::policy::fixture::{EGRESS, account, bundle, config, destination, state};
use crate::policy::{Approval, Bundle};

const NOON: &str = "2026-11-23T12:00:00Z";

fn boot_ns_of(at: Timestamp) -> u64 {
    (at.as_millisecond() as u64) * 1_000_000
}

fn boot(at: &str) -> u64 {
    boot_ns_of(at.parse().unwrap())
}

fn egress() -> Config {
    config(vec![account("payments", &[]), account("report", &["platform"])], EGRESS)
}

fn outlooks(config: &Config, risk: u8) -> BTreeMap<String, Outlook> {
    config.accounts.keys().map(|name| (name.clone(), Outlook::from(state(risk, NOON)))).collect()
}

fn generation(config: &Config, bundle: &Bundle, risk: u8, previous: &[&str]) -> Generation {
    let previous: Vec<String> = previous.iter().map(|name| (*name).to_owned()).collect();
    build(bundle, config, 6, &outlooks(config, risk), &previous, &boot_ns_of).unwrap()
}

fn decide(generation: &Generation, account: u32, to: &str, now: u64) -> Decision {
    let to: std::net::SocketAddrV4 = to.parse().unwrap();
    let endpoint = Endpoint { address: Address::from_v4(to.ip().octets()), port: to.port(), protocol: Protocol::Tcp };
    writ_abi::decide(generation, account, &writ_abi::Attempt::Connect { endpoint, executable: 0 }, now)
}

#[test]
fn accounts_keep_their_index_and_a_removed_one_is_refused() {
    let config = egress();
    let bundle = bundle(&config);
    let generation = generation(&config, &bundle, 0, &["gone", "report"]);
    assert_eq!(generation.accounts, ["gone", "report", "payments"]);
    let gone = decide(&generation, 0, "10.20.0.1:5432", boot(NOON));
    assert_eq!((gone.verdict, gone.enforced), (Verdict::Deny, true));
    assert_eq!(decide(&generation, 2, "10.20.0.1:5432", boot(NOON)).verdict, Verdict::Allow);
}

#[test]
fn a_state_that_was_met_before_adds_nothing() {
    let config = egress();
    let bundle = bundle(&config);
    let mut generation = generation(&config, &bundle, 0, &[]);
    let size = |generation: &Generation| {
        (generation.cells.len(), generation.stances.len(), generation.projections.len(), generation.explanations.len())
    };
    let calm = size(&generation);
    let current = Slot(generation.slots[0]).stance();
    let again = generation.append_stance(&bundle, "payments", &Outlook::from(state(0, NOON)), &boot_ns_of).unwrap();
    assert_eq!((again, size(&generation)), (current, calm));
    let risky = generation.append_stance(&bundle, "payments", &Outlook::from(state(80, NOON)), &boot_ns_of).unwrap();
    assert!(risky > current);
    generation.set_slot(0, Slot::new(risky, 1));
    let denied = decide(&generation, 0, "10.20.0.1:5432", boot(NOON));
    assert_eq!((denied.verdict, denied.epoch), (Verdict::Deny, 1));
    assert_eq!(
        generation.explanation(denied.explanation).unwrap().policies,
        ["high-risk-block-prod", "medium-risk-new-destination"]
    );
    assert_ne!(generation.digests[risky as usize], generation.digests[current as usize]);
}

#[test]
fn what_was_prepared_beside_a_generation_is_laid_out_only_where_it_was_worked_out_for() {
    let config = egress();
    let bundle = std::sync::Arc::new(bundle(&config));
    let mut generation = generation(&config, &bundle, 0, &[]);
    let risky = Outlook::from(state(80, NOON));
    assert!(generation.preparation(&bundle, "payments", &Outlook::from(state(0, NOON))).is_none(), "laid out already");
    let preparation = generation.preparation(&bundle, "payments", &risky).unwrap();
    assert!(!generation.has_rows(&bundle, "payments", &risky));
    let other = std::sync::Arc::new((*bundle).clone());
    assert_eq!(generation.lay_out(&other, preparation.clone().work_out()), Ok(false), "other policies are in force");
    assert!(!generation.has_rows(&bundle, "payments", &risky));
    let stances = generation.stances.len();
    assert_eq!(generation.lay_out(&bundle, preparation.work_out()), Ok(true));
    assert!(generation.has_rows(&bundle, "payments", &risky));
    assert_eq!(generation.stances.len(), stances, "a row is no stance");
    let cells = generation.cells.len();
    let prepared = generation.append_stance(&bundle, "payments", &risky, &boot_ns_of).unwrap();
    assert_eq!(generation.cells.len(), cells, "nothing had to be worked out");
    let mut asked = self::generation(&config, &bundle, 0, &[]);
    let asked_for = asked.append_stance(&bundle, "payments", &risky, &boot_ns_of).unwrap();
    assert_eq!(generation.digests[prepared as usize], asked.digests[asked_for as usize]);
}

#[test]
fn an_approval_without_a_class_asks_for_a_new_generation() {
    let config = egress();
    let bundle = bundle(&config);
    let mut first = generation(&config, &bundle, 60, &[]);
    let mut approved = state(60, NOON);
    approved.approvals.push(Approval {
        policies: BTreeSet::from(["medium-risk-new-destination".into()]),
        executable: Some("/usr/bin/psql".into()),
        address: "::ffff:10.20.3.7".parse().unwrap(),
        port: 5432,
        protocol: "tcp".into(),
    });
    let outlook = Outlook::from(approved);
    let refused = first.append_stance(&bundle, "payments", &outlook, &boot_ns_of);
    assert_eq!(refused, Err(StanceError::NewApproval("payments".into())));
    assert_eq!(decide(&first, 0, "10.20.3.7:5432", boot(NOON)).verdict, Verdict::Escalate);
    let outlooks = BTreeMap::from([("payments".to_owned(), outlook)]);
    let second = build(&bundle, &config, 7, &outlooks, &[], &boot_ns_of).unwrap();
    // Approved for one executable, so the kernel must be told to look at it.
    assert!(Active(second.active).has(Active::CLASSES_EXECUTABLES));
    assert!(!Active(first.active).has(Active::CLASSES_EXECUTABLES));
    let endpoint = Endpoint { address: Address::from_v4([10, 20, 3, 7]), port: 5432, protocol: Protocol::Tcp };
    let executable = second.executables["/usr/bin/psql"];
    let approved = writ_abi::decide(&second, 0, &writ_abi::Attempt::Connect { endpoint, executable }, boot(NOON));
    assert_eq!(approved.verdict, Verdict::Allow);
    assert_eq!(decide(&second, 0, "10.20.3.7:5432", boot(NOON)).verdict, Verdict::Escalate, "another executable");
    assert_eq!(decide(&second, 0, "10.20.3.8:5432", boot(NOON)).verdict, Verdict::Escalate);
    assert_eq!(decide(&second, 1, "10.0.0.1:443", boot(NOON)).verdict, Verdict::Deny, "no outlook, no access");
}

#[test]
fn a_window_closes_by_itself_and_its_forbids_stay() {
    let config = egress();
    let bundle = bundle(&config);
    let generation = generation(&config, &bundle, 0, &[]);
    let at = |to: &str, now: &str| {
        let decision = decide(&generation, 1, to, boot(now));
        (decision.verdict, decision.reason)
    };
    assert_eq!(at("10.30.0.1:5005", "2026-11-23T18:59:59Z"), (Verdict::Allow, Reason::Policy));
    assert_eq!(at("10.30.0.1:5005", "2026-11-23T19:00:00Z"), (Verdict::Deny, Reason::Expired));
    assert_eq!(at("10.30.0.1:5005", "2026-11-24T08:00:00Z"), (Verdict::Deny, Reason::Expired), "nobody renewed it");
    assert_eq!(at("10.0.0.1:443", "2026-11-24T08:00:00Z"), (Verdict::Allow, Reason::Expired), "always allowed");
}

#[test]
fn access_that_rests_on_freshness_ends_with_it() {
    let policies = r#"@id("fresh") @owner("o") @reason("r")
permit (principal, action == Action::"connect", resource) when { context.fresh.contains("edr") };"#;
    let config = config(vec![account("gateway", &[])], policies);
    let bundle = bundle(&config);
    let mut fresh = state(0, NOON);
    fresh.fresh.insert("edr".into());
    let stale = state(0, "2026-11-23T12:05:00Z");
    let outlook = Outlook { later: vec![stale], ..Outlook::from(fresh) };
    let outlooks = BTreeMap::from([("gateway".to_owned(), outlook)]);
    let generation = build(&bundle, &config, 1, &outlooks, &[], &boot_ns_of).unwrap();
    assert_eq!(decide(&generation, 0, "1.1.1.1:1", boot("2026-11-23T12:04:59Z")).verdict, Verdict::Allow);
    assert_eq!(decide(&generation, 0, "1.1.1.1:1", boot("2026-11-23T12:05:00Z")).verdict, Verdict::Deny);
}

#[test]
fn a_kind_that_is_required_and_not_declared_keeps_everything_refused() {
    let mut gateway = account("gateway", &[]);
    gateway.requires_fresh = vec!["edr.heartbeat".into()];
    let policies = r#"@id("all") @owner("o") @reason("r") permit (principal, action == Action::"connect", resource);"#;
    let config = config(vec![gateway], policies);
    let (bundle, findings) = Bundle::compile(&config);
    // What reads the configuration warns of it; nothing refuses it.
    assert_eq!(findings, []);
    let generation = generation(&config, &bundle.unwrap(), 0, &[]);
    let decision = decide(&generation, 0, "1.1.1.1:1", boot(NOON));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Deny, Reason::Policy));
}

#[test]
fn an_expiry_that_changes_nothing_does_not_end_the_stance() {
    let config = egress();
    let bundle = bundle(&config);
    let later = vec![state(30, "2026-11-23T12:05:00Z")];
    let outlook = Outlook { later, ..Outlook::from(state(40, NOON)) };
    let outlooks = BTreeMap::from([("payments".to_owned(), outlook)]);
    let generation = build(&bundle, &config, 1, &outlooks, &[], &boot_ns_of).unwrap();
    let stance = generation.stances[Slot(generation.slots[0]).stance() as usize];
    assert_eq!(stance.valid_until, writ_abi::NEVER, "risk 40 and risk 30 are the same to these policies");
}

#[test]
fn flags_say_what_the_configuration_says() {
    let mut config = egress();
    let payments = config.accounts.get_mut("payments").unwrap();
    payments.mode = Some(Mode::Observe);
    payments.on_record_loss = OnRecordLoss::Deny;
    payments.errno = 111;
    payments.matches = vec![Match { unit: Some("payments.service".into()), ..Match::default() }];
    let bundle = bundle(&config);
    let mut outlooks = outlooks(&config, 0);
    outlooks.get_mut("report").unwrap().offboarded = true;
    let generation = build(&bundle, &config, 6, &outlooks, &[], &boot_ns_of).unwrap();
    let flags = AccountFlags(generation.flags[0]);
    let set = [AccountFlags::PRESENT, AccountFlags::OBSERVE, AccountFlags::RECORD_LOSS_DENIES];
    assert!(set.into_iter().all(|flag| flags.has(flag)) && !flags.has(AccountFlags::OFFBOARDED));
    assert_eq!(flags.errno(), 111);
    assert_eq!(decide(&generation, 1, "10.0.0.1:443", boot(NOON)).reason, Reason::Offboarded);
    let active = Active(generation.active);
    assert_eq!(active.generation(), 6);
    assert!(active.has(Active::MATCHES_CGROUPS));
    assert!(
        ![Active::MATCHES_EXECUTABLES, Active::CLASSES_EXECUTABLES, Active::OBSERVE]
            .iter()
            .any(|flag| active.has(*flag))
    );
}

#[test]
fn fifty_thousand_prefixes_in_ten_destinations_make_about_ten_classes() {
    let policies: String = (0..10)
        .map(|number| {
            format!("@id(\"p{number}\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource in Destination::\"d{number}\");")
        })
        .collect();
    let mut config = config(vec![account("a", &[])], &policies);
    for number in 0..10u32 {
        let mut found = destination(&format!("d{number}"), &[], &[], &[]);
        found.addresses = (0..5_000u32)
            .map(|index| format!("{}.{}.{}.0/24", 11 + number, index >> 8, index & 255).parse().unwrap())
            .collect();
        config.destinations.insert(found.name.clone(), found);
    }
    let bundle = bundle(&config);
    let classes: BTreeSet<u32> = bundle.classes().v4.values().copied().collect();
    assert_eq!((bundle.classes().v4.len(), classes.len()), (50_001, 11));
    let generation = generation(&config, &bundle, 0, &[]);
    assert_eq!(decide(&generation, 0, "15.3.7.9:1", boot(NOON)).verdict, Verdict::Allow);
    assert_eq!(decide(&generation, 0, "22.3.7.9:1", boot(NOON)).verdict, Verdict::Deny);
}

fn matched(by: &[Match]) -> Config {
    let mut accounts: Vec<_> = (0..by.len()).map(|index| account(&format!("a{index}"), &[])).collect();
    for (account, found) in accounts.iter_mut().zip(by) {
        account.matches = vec![found.clone()];
    }
    config(accounts, "")
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_key_alone_is_direct_and_shared_or_joint_keys_are_lists() {
    let config = matched(&[
        Match { user: text("alone"), ..Match::default() },
        Match { user: text("shared"), ..Match::default() },
        Match { user: text("1001"), executable: text("/bin/tool"), ..Match::default() },
        Match { user: text("shared"), unit: text("job.service"), executable: text("/bin/tool"), ..Match::default() },
        Match { cgroup: text("/batch"), ..Match::default() },
        Match { user: text("shared"), ..Match::default() },
        Match { user: text("nobody-has-it"), unit: text("x.service"), ..Match::default() },
        Match { executable: text("/bin/absent"), ..Match::default() },
    ]);
    let bundle = bundle(&config);
    let generation = generation(&config, &bundle, 0, &[]);
    let users = BTreeMap::from([("alone".to_owned(), 1000), ("shared".to_owned(), 1002)]);
    let files = BTreeMap::from([("/bin/tool".to_owned(), (8, 77))]);
    let (identities, missing) = Identities::build(&config, &users, &files, &generation);
    let class = generation.executables["/bin/tool"];
    let list = |index: u32| {
        let first = index as usize + 1;
        let count = identities.clauses[index as usize] as usize;
        identities.clauses[first..first + count].to_vec()
    };
    assert_eq!(identities.cgroups, BTreeMap::from([("/batch".to_owned(), ClauseList::direct(4).0)]));
    assert_eq!(identities.users[&1000], (0, ClauseList::direct(0).0));
    let (shared, clauses) = identities.users[&1002];
    assert_eq!(list(clauses), [Clause::new(1, 0, 0).0, Clause::new(5, 0, 0).0]);
    assert_eq!(list(identities.units["job.service"]), [Clause::new(3, shared, class).0]);
    let (number, none) = identities.users[&1001];
    assert_eq!(none, ClauseList::NONE.0);
    assert_eq!(identities.executables[&(8, 77)].0, class);
    assert_eq!(list(identities.executables[&(8, 77)].1), [Clause::new(2, number, 0).0]);
    assert!(number != shared && number > 0 && shared > 0);
    assert_eq!(identities.units.len(), 1);
    assert_eq!(
        missing,
        [
            Unresolved::User { account: "a6".into(), user: "nobody-has-it".into() },
            Unresolved::Executable { account: "a7".into(), path: "/bin/absent".into() },
            Unresolved::ExecutableClass { path: "/bin/absent".into() },
        ]
    );
}

#[test]
fn a_unit_and_a_cgroup_within_it_are_the_cgroup_and_any_other_pair_is_refused() {
    let pair = |unit, cgroup| Match { unit: text(unit), cgroup: text(cgroup), user: text("1001"), ..Match::default() };
    let within = [
        pair("x.service", "/system.slice/x.service"),
        pair("x.service", "/system.slice/system-x.slice/x.service/job"),
        pair("batch.slice", "/batch.slice"),
    ];
    for found in within {
        let config = matched(std::slice::from_ref(&found));
        assert_eq!(Identities::check(&config), []);
        let bundle = bundle(&config);
        let generation = generation(&config, &bundle, 0, &[]);
        let (identities, _) = Identities::build(&config, &BTreeMap::new(), &BTreeMap::new(), &generation);
        assert_eq!(identities.cgroups.keys().collect::<Vec<_>>(), [found.cgroup.as_ref().unwrap()]);
        assert!(identities.units.is_empty());
        // The user beside them still counts.
        assert_eq!(identities.clauses, [0, 1, Clause::new(0, 1, 0).0]);
    }
    // The last is a cgroup that a user's manager made, and no system unit's.
    for found in
        [pair("x.service", "/batch"), pair("x.service", "/system.slice"), pair("x.service", "/u.service/x.service")]
    {
        let findings = Identities::check(&matched(&[found]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, "match");
        assert!(findings[0].help.as_ref().unwrap().contains("cgroup = \"/system.slice/x.service\""));
    }
}

#[test]
fn two_paths_of_one_file_are_one_class_and_both_still_match() {
    let config = matched(&[
        Match { executable: text("/bin/link"), ..Match::default() },
        Match { executable: text("/bin/real"), unit: text("u.service"), ..Match::default() },
    ]);
    let bundle = bundle(&config);
    let generation = generation(&config, &bundle, 0, &[]);
    let files = BTreeMap::from([("/bin/link".to_owned(), (8, 1)), ("/bin/real".to_owned(), (8, 1))]);
    let (identities, missing) = Identities::build(&config, &BTreeMap::new(), &files, &generation);
    let class = generation.executables["/bin/link"];
    assert_eq!(identities.executables, BTreeMap::from([((8, 1), (class, ClauseList::direct(0).0))]));
    assert_eq!(identities.clauses, [0, 1, Clause::new(1, 0, class).0]);
    assert_eq!(missing, [Unresolved::SameFile { path: "/bin/link".into(), other: "/bin/real".into() }]);
}

#[test]
fn a_view_with_too_many_clauses_is_refused() {
    let config = matched(&vec![Match { user: text("all"), ..Match::default() }; 9]);
    let (bundle, findings) = Bundle::compile(&config);
    assert!(bundle.is_none());
    assert!(findings[0].message.starts_with("9 `match` tables begin with user `all`; 8 is the limit"));
}

#[test]
fn a_row_holds_what_its_account_is_answered_not_what_others_are() {
    let mut policies = String::from(EGRESS);
    for number in 0..20 {
        policies.push_str(&format!(
            "@id(\"p{number}\") @owner(\"o\") @reason(\"r\") permit (principal == ServiceAccount::\"a{number}\", action == Action::\"connect\", resource in Destination::\"d{number}\");\n"
        ));
    }
    let mut config = config((0..20).map(|number| account(&format!("a{number}"), &[])).collect(), &policies);
    for number in 0..20 {
        // All of them are in `prod`, which every account's forbid asks for: classes for all, answers for one.
        let port = 5000 + number;
        let name = format!("d{number}");
        config.destinations.insert(
            name.clone(),
            destination(&name, &[&format!("10.{}.0.0/16", 100 + number)], &[(port, port)], &["prod"]),
        );
    }
    let bundle = bundle(&config);
    let generation = generation(&config, &bundle, 0, &[]);
    let index = generation.account("a7").unwrap();
    let stance = generation.stances[Slot(generation.slots[index as usize]).stance() as usize];
    // Its own destination and port, what the observing policy watches (10.0.0.0/8, 8443), and the rest.
    assert_eq!((stance.addresses, stance.ports), (3, 3));
    assert_eq!(decide(&generation, index, "10.107.0.1:5007", boot(NOON)).verdict, Verdict::Allow);
    assert_eq!(decide(&generation, index, "10.107.0.1:5008", boot(NOON)).verdict, Verdict::Deny);
    assert_eq!(decide(&generation, index, "10.108.0.1:5007", boot(NOON)).verdict, Verdict::Deny);
}
