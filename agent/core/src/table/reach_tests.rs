//! Claims about what a change opened and closed, and about digests that say what a row means and not how it is laid out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{Timestamp, ToSpan};
use writ_abi::{AccountFlags, Reason, Slot, Verdict};

use super::agreement::{ACCOUNTS, Random, START, attempt, boot_ns_of, kernel, state, world};
use super::{Common, Generation, Held, Outlook, ReachDifference, build};
use crate::config::Config;
use crate::policy::fixture::{EGRESS, account, bundle, config, destination};
use crate::policy::{AccountState, Attempt, Bundle};
use crate::record::Reach;

fn now() -> Timestamp {
    START.parse().unwrap()
}

fn held(generation: &Generation, account: u32) -> Held {
    let index = account as usize;
    Held { slot: Slot(generation.slots[index]), flags: AccountFlags(generation.flags[index]) }
}

fn built(bundle: &Bundle, config: &Config, states: &BTreeMap<String, AccountState>) -> Generation {
    let outlooks = states.iter().map(|(name, state)| (name.clone(), Outlook::from(state.clone()))).collect();
    let generation = build(bundle, config, 2, &outlooks, &[], &boot_ns_of);
    generation.unwrap_or_else(|error| panic!("{error:?}"))
}

fn within(config: &Config, name: &str, ip: IpAddr, port: u16, protocol: writ_abi::Protocol) -> bool {
    let Some(found) = config.destinations.get(name) else { return false };
    found.addresses.iter().any(|net| net.contains(&ip))
        && (found.ports.is_empty() || found.ports.iter().any(|(first, last)| (*first..=*last).contains(&port)))
        && (found.protocols.is_empty() || found.protocols.contains(&protocol))
}

/// Whether an entry speaks of an attempt; prefixes and lists that were cut short speak of anything.
fn covers(
    entry: &Reach,
    bundle: &Bundle,
    config: &Config,
    sides: [&Generation; 2],
    attempt: &Attempt,
    cut: bool,
) -> bool {
    let Attempt::Connect { ip, port, protocol, new_destination, executable } = attempt else {
        return false;
    };
    let ip = bundle.canonical(*ip);
    let named = executable.as_ref().filter(|path| sides.iter().any(|side| side.executables.contains_key(*path)));
    let executable = named.map_or("unlisted", String::as_str);
    let ports = |text: &String| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.parse().unwrap()..=last.parse().unwrap()).contains(port)
    };
    entry.action == "connect"
        && entry.destination.as_ref().is_none_or(|name| within(config, name, ip, *port, *protocol))
        && (cut
            || entry.addresses.is_empty()
            || entry.addresses.iter().any(|net| net.parse::<ipnet::IpNet>().unwrap().contains(&ip)))
        && (cut || entry.ports.is_empty() || entry.ports.iter().any(ports))
        && entry.protocols.iter().any(|name| name == if *protocol as u32 == 0 { "tcp" } else { "udp" })
        && entry.executables.as_ref().is_none_or(|named| cut || named.iter().any(|name| name == executable))
        && entry.new_destination.is_none_or(|new| new == *new_destination)
}

#[derive(Default, Debug)]
struct Tally {
    opened: usize,
    closed: usize,
    same: usize,
    whole: usize,
}

fn compare(
    random: &mut Random,
    (old_bundle, old_config, old): (&Bundle, &Config, &mut Generation),
    (new_bundle, new_config, new): (&Bundle, &Config, &mut Generation),
    tally: &mut Tally,
) {
    let common = Common::of(old, new);
    for name in ACCOUNTS {
        let index = old.account(name).unwrap();
        let found = common.difference(index, (old, held(old, index)), (new, held(new, index)));
        for _ in 0..150 {
            let attempt = attempt(random);
            if !matches!(attempt, Attempt::Connect { .. }) {
                continue;
            }
            let at = boot_ns_of(now());
            let (_, was) = kernel(old_bundle, old, name, &attempt, at);
            let (_, is) = kernel(new_bundle, new, name, &attempt, at);
            let sides = [&*old, &*new];
            let speak = |list: &[Reach], bundle: &Bundle, config: &Config, member: &str, whole: bool| {
                let cut = found.truncated.contains(member);
                list.iter().any(|entry| {
                    let exact = entry.destination.is_some() && entry.addresses.is_empty() && !entry.part && !cut;
                    (!whole || exact) && covers(entry, bundle, config, sides, &attempt, cut)
                })
            };
            let opened = |whole| speak(&found.opened, new_bundle, new_config, "opened", whole);
            let closed = |whole| speak(&found.closed, old_bundle, old_config, "closed", whole);
            match (was.verdict == Verdict::Allow, is.verdict == Verdict::Allow) {
                (false, true) => {
                    tally.opened += 1;
                    assert!(opened(false), "opened, and not told: {attempt:?} of {name} in {found:#?}");
                    assert!(!closed(true), "opened, and told as closed: {attempt:?} of {name} in {found:#?}");
                }
                (true, false) => {
                    tally.closed += 1;
                    assert!(closed(false), "closed, and not told: {attempt:?} of {name} in {found:#?}");
                    assert!(!opened(true), "closed, and told as opened: {attempt:?} of {name} in {found:#?}");
                }
                _ => {
                    tally.same += 1;
                    tally.whole += usize::from(!found.opened.is_empty() || !found.closed.is_empty());
                    assert!(!opened(true) && !closed(true), "as before, and told: {attempt:?} of {name} in {found:#?}");
                }
            }
        }
    }
}

#[test]
fn whatever_opened_or_closed_is_told_and_what_is_told_whole_did() {
    let mut tally = Tally::default();
    for seed in 7_000..7_020 {
        let random = &mut Random(seed);
        let config = world(random);
        let bundle = bundle(&config);
        let mut states = || -> BTreeMap<String, AccountState> {
            ACCOUNTS.iter().map(|name| ((*name).to_owned(), state(random, now()))).collect()
        };
        let (before, after) = (states(), states());
        let (mut old, mut new) = (built(&bundle, &config, &before), built(&bundle, &config, &after));
        compare(random, (&bundle, &config, &mut old), (&bundle, &config, &mut new), &mut tally);
        // Another policy set over the same destinations: classes differ on both sides.
        let mut other = world(random);
        other.destinations.clone_from(&config.destinations);
        let (other_bundle, findings) = Bundle::compile(&other);
        let Some(other_bundle) = other_bundle else { panic!("{findings:?}") };
        let mut third = built(&other_bundle, &other, &before);
        compare(random, (&bundle, &config, &mut old), (&other_bundle, &other, &mut third), &mut tally);
    }
    assert!(tally.opened > 100 && tally.closed > 100 && tally.whole > 100, "{tally:?}");
}

fn egress(extra: &str) -> Config {
    config(vec![account("payments", &[]), account("report", &["platform"])], &format!("{EGRESS}{extra}"))
}

fn at_risk(risk: u8) -> BTreeMap<String, AccountState> {
    let state = AccountState { risk, ..AccountState::quiet(now()) };
    ["payments", "report"].map(|name| (name.to_owned(), state.clone())).into()
}

fn names(entries: &[Reach]) -> Vec<&str> {
    entries.iter().map(|entry| entry.destination.as_deref().unwrap_or("elsewhere")).collect()
}

fn difference(old: &Generation, new: &Generation, account: &str) -> ReachDifference {
    let [was, is] = [old, new].map(|generation| held(generation, generation.account(account).unwrap()));
    Common::of(old, new).difference(old.account(account).unwrap(), (old, was), (new, is))
}

#[test]
fn a_risk_that_closes_a_destination_is_told_by_its_name_and_what_ends_it_the_other_way_round() {
    let config = egress("");
    let bundle = bundle(&config);
    let (calm, tense) = (built(&bundle, &config, &at_risk(0)), built(&bundle, &config, &at_risk(90)));

    let closed = difference(&calm, &tense, "payments");
    // What is in two destinations is told under both names.
    assert_eq!((names(&closed.closed), closed.opened.len()), (vec!["corp-internal", "prod-db"], 0), "{closed:#?}");
    let whole = &closed.closed[1];
    assert!(whole.addresses.is_empty() && whole.ports.is_empty() && !whole.part, "{closed:#?}");
    assert!(whole.executables.is_none() && whole.new_destination.is_none(), "{closed:#?}");

    let opened = difference(&tense, &calm, "payments");
    assert_eq!((&opened.opened, opened.closed.len()), (&closed.closed, 0));
    assert_eq!(difference(&calm, &calm, "payments"), ReachDifference::default());
}

#[test]
fn broken_glass_opens_everything_and_offboarding_closes_what_there_was() {
    let config = egress("");
    let bundle = bundle(&config);
    let generation = built(&bundle, &config, &at_risk(0));
    let mut broken = built(&bundle, &config, &at_risk(0));
    let index = generation.account("payments").unwrap();
    let state = at_risk(0).remove("payments").unwrap();
    let outlook = Outlook { observe_until: Some(now() + 1.hours()), ..Outlook::from(state) };
    let stance = broken.append_stance(&bundle, "payments", &outlook, &boot_ns_of).unwrap();
    broken.set_slot(index, Slot::new(stance, 2));
    let opened = difference(&generation, &broken, "payments");
    assert!(opened.closed.is_empty());
    assert!(opened.opened.iter().any(|entry| entry.addresses.contains(&"0.0.0.0/0".to_owned())), "{opened:#?}");
    assert!(opened.opened.iter().any(|entry| entry.family.as_deref() == Some("raw")), "{opened:#?}");

    let was = held(&generation, index);
    let offboarded = Held { flags: AccountFlags(was.flags.0 | AccountFlags::OFFBOARDED), ..was };
    let closed = Common::of(&generation, &generation).difference(index, (&generation, was), (&generation, offboarded));
    assert_eq!((names(&closed.closed), closed.opened.len()), (vec!["corp-internal", "prod-db"], 0), "{closed:#?}");
}

#[test]
fn what_changes_only_how_classes_are_laid_out_leaves_every_digest_as_it_was() {
    let config = egress("");
    // Asked by nobody but another account: every projection of `payments` and `report` is another one.
    let more = r#"
@id("other") @owner("o") @reason("r")
permit (principal == ServiceAccount::"other", action == Action::"connect", resource in Destination::"elsewhere")
when { [1, 5432, 6000].contains(context.port) && context.executable == "/usr/bin/a" };
"#;
    let mut wider = egress(more);
    wider.accounts.insert("other".into(), account("other", &[]));
    wider
        .destinations
        .insert("elsewhere".into(), destination("elsewhere", &["10.20.0.0/24", "10.0.0.0/9", "fd00::/9"], &[], &[]));
    let (narrow, wide) = (bundle(&config), bundle(&wider));
    let (narrow, wide) = (built(&narrow, &config, &at_risk(0)), built(&wide, &wider, &at_risk(0)));
    assert!(wide.v4.len() > narrow.v4.len(), "the layout is another one");
    for name in ["payments", "report"] {
        let digest = |generation: &Generation| {
            let index = generation.account(name).unwrap();
            generation.digests[held(generation, index).slot.stance() as usize].clone()
        };
        assert_eq!(digest(&narrow), digest(&wide), "{name}");
        assert_eq!(difference(&narrow, &wide, name), ReachDifference::default(), "{name}");
    }
    assert_ne!(
        narrow.digests[held(&narrow, 0).slot.stance() as usize],
        narrow.digests[held(&narrow, 1).slot.stance() as usize],
        "accounts that may do different things"
    );
}

#[test]
fn rows_with_the_same_digest_answer_alike_whatever_classes_they_were_made_over() {
    let (mut alike, mut compared) = (0, 0);
    for seed in 8_000..8_030 {
        let random = &mut Random(seed);
        let config = world(random);
        let bundle = bundle(&config);
        let mut generations: Vec<Generation> = (0..3)
            .map(|_| {
                let states = ACCOUNTS.iter().map(|name| ((*name).to_owned(), state(random, now()))).collect();
                built(&bundle, &config, &states)
            })
            .collect();
        for name in ACCOUNTS {
            let digests: Vec<String> = generations
                .iter()
                .map(|generation| {
                    let index = generation.account(name).unwrap();
                    generation.digests[held(generation, index).slot.stance() as usize].clone()
                })
                .collect();
            let mut differs = [false; 2];
            for _ in 0..100 {
                let attempt = attempt(random);
                let answers: Vec<(Reason, _)> = generations
                    .iter_mut()
                    .map(|generation| kernel(&bundle, generation, name, &attempt, boot_ns_of(now())))
                    .collect();
                for (other, differs) in [1, 2].into_iter().zip(&mut differs) {
                    *differs |= answers[0] != answers[other];
                }
            }
            for (other, differs) in [1, 2].into_iter().zip(differs) {
                compared += 1;
                alike += usize::from(digests[0] == digests[other]);
                assert!(!(differs && digests[0] == digests[other]), "{name} of seed {seed}");
            }
        }
    }
    assert!(alike > 10 && compared - alike > 10, "{alike} of {compared}");
}
