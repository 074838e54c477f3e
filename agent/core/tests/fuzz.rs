//! Whatever the bytes, the core's parsers answer and do not panic: configuration, policy, signals, records, notes, proofs.

use writ_core::config::{HostFacts, SourceFile, parse};
use writ_core::log::{Checkpoint, NoteSigner, SignedNote, TlogProof, Vkey, decode_bundle};
use writ_core::policy::Bundle;
use writ_core::record::Record;
use writ_core::signal::Incoming;
use writ_fuzz::drive;

const ACCOUNT: &str = "[service-account.a]\nowner = \"o\"\nteam = [\"t\"]\nmatch = [{ user = \"7\" }, { unit = \"u.service\", \
    executable = \"/bin/x\" }]\nexecutables = [\"/bin/x\"]\nerrno = \"EPERM\"\nlearning = \"7d\"\n";
const DESTINATION: &str = "[destination.d]\naddresses = [\"10.0.0.0/8\", \"fd00::/8\"]\nports = [80, \"5000-5010\"]\nprotocols = \
    [\"tcp\"]\nin = [\"e\"]\n[destination.e]\naddresses = []\n";
const AGENT: &str = "mode = \"observe\"\napprovers = [\"root\", \"%wheel\"]\n[paths]\nstate = \"/s\"\n[kernel]\nring-size = \
    \"64KiB\"\nrequire = [\"lsm\"]\n[log]\nfsync = \"never\"\n";
const SIGNAL: &str = "[signal.\"a.b\"]\nrisk = 90\nttl = \"1h\"\nflag = true\nfrom = [\"root\"]\nfreshness = false\n";
const POLICY: &str = "@id(\"p\") @owner(\"o\") @reason(\"r\") permit (principal == ServiceAccount::\"a\", action == \
    Action::\"connect\", resource in Destination::\"d\") when { context.ip.isInRange(ip(\"10.1.0.0/16\")) && context.port < 90 && \
    context.risk <= 50 && !context.new_destination } unless { context.signals.contains(\"a.b\") };\n";
const FORBID: &str = "@id(\"f\") @owner(\"o\") @reason(\"r\") @decision(\"escalate\") forbid (principal, action == \
    Action::\"open-socket\", resource) when { context.family == \"raw\" || context.hour > 18 };\n";

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

#[test]
fn fuzz_configuration() {
    let names = ["writ.toml", "service-accounts.d/a.toml", "destinations.d/d.toml", "signals.d/s.toml"];
    for (name, seed) in names.into_iter().zip([AGENT, ACCOUNT, DESTINATION, SIGNAL]) {
        let driven = drive(name, &[seed.as_bytes()], |input| {
            let text = String::from_utf8_lossy(input);
            parse(&[file(name, &text)], &HostFacts::default()).config.is_some()
        });
        assert!(driven.accepted > 0, "{name}: the real one is refused");
    }
}

#[test]
fn fuzz_policy() {
    let driven = drive("policy", &[POLICY.as_bytes(), FORBID.as_bytes()], |input| {
        let text = String::from_utf8_lossy(input);
        let files = [
            file("writ.toml", ""),
            file("service-accounts.d/a.toml", ACCOUNT),
            file("destinations.d/d.toml", DESTINATION),
            file("signals.d/s.toml", SIGNAL),
            file("policies.d/p.cedar", &text),
        ];
        let config = parse(&files, &HostFacts::default()).config;
        config.is_some_and(|config| Bundle::compile(&config).0.is_some())
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}

#[test]
fn fuzz_signal() {
    let seed =
        br#"{"id":"1","account":"a","kind":"a.b","risk":90,"ttl":{"secs":60,"nanos":0},"at":"2026-11-23T00:00:00Z"}"#;
    drive("signal", &[seed], |input| serde_json::from_slice::<Incoming>(input).is_ok());
}

#[test]
fn fuzz_record() {
    let seeds: [&[u8]; 2] = [
        br#"{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","type":"loss","time":"2026-11-23T00:00:00Z","schema":1,"host":{"id":"m","boot_id":"b"},"agent_version":"0","reason":"ring-full","cpu":0,"first":1,"last":2,"count":2}"#,
        br#"{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","type":"decision","time":"2026-11-23T00:00:00Z","schema":1,"host":{"id":"m","boot_id":"b"},"kernel":{"cpu":1,"sequence":3}}"#,
    ];
    drive("record", &seeds, |input| {
        let checked = Record::check(input).is_ok();
        match Record::from_line(input) {
            // What was read can be written, and read again.
            Ok(record) => Record::from_line(&record.to_line()).is_ok(),
            Err(_) => checked,
        }
    });
}

#[test]
fn fuzz_checkpoint_and_proofs() {
    let signer = NoteSigner::from_seed("writ.test/host", &[7; 32]).unwrap();
    let key = signer.vkey();
    let root = writ_core::log::hash_leaf(b"a");
    let note = Checkpoint { origin: "writ.test/host".into(), size: 1, root }.sign(&signer);
    let proof = format!("c2sp.org/tlog-proof@v1\nindex 0\n\n{note}");
    let (key_text, private) = (key.to_string(), signer.to_private_text());
    let seeds = [note.as_bytes(), proof.as_bytes(), key_text.as_bytes(), private.as_bytes()];
    let driven = drive("checkpoint and proofs", &seeds, |input| {
        let text = String::from_utf8_lossy(input);
        let opened = Checkpoint::open(&text, &key).is_ok();
        // Nothing but the note as it was signed opens.
        assert!(!opened || Checkpoint::open(&text, &key).unwrap().root == root, "a note that nobody signed");
        let proven = TlogProof::parse(&text).is_ok_and(|proof| proof.verify(b"a", &key).is_ok());
        opened
            | proven
            | SignedNote::parse(&text).is_ok()
            | Vkey::parse(&text).is_ok()
            | NoteSigner::parse(&text).is_ok()
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}

#[test]
fn fuzz_tile() {
    drive("tile", &[b"\0\x01a\0\x02bc"], |input| decode_bundle(input).is_some());
}
