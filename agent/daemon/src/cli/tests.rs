//! Claims about the commands: what they say of a log is what is in it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::explain::page;
use super::find::{Filter, by_id, since};
use super::prove::proof_of;
use super::tail::{Folding, Form, TailArgs, show};
use super::verify::check_proof;
use crate::log::tests::Log;
use crate::log::verify::tests::{record, records};

fn shown(args: &TailArgs, log: &Log, filter: &Filter, form: Form) -> Vec<String> {
    let mut output = Vec::new();
    show(args, &log.dir(), filter, form, &mut output).unwrap();
    String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn tail_shows_every_record_as_it_was_written_and_filters_by_what_it_says() {
    let log = Log::with(&records(0..300), 50_000);
    let all = shown(&TailArgs::default(), &log, &Filter::default(), Form::Json);
    let written: Vec<String> = records(0..300).into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
    assert_eq!(all, written);
    let losses = Filter { kind: Some("loss".to_owned()), ..Filter::default() };
    assert_eq!(shown(&TailArgs::default(), &log, &losses, Form::Json).len(), 30);
    let account = Filter { account: Some("billing".to_owned()), verdict: Some("deny".to_owned()), ..Filter::default() };
    assert_eq!(shown(&TailArgs::default(), &log, &account, Form::Json).len(), 269);
    let nobody = Filter { account: Some("nobody".to_owned()), ..Filter::default() };
    assert_eq!(shown(&TailArgs::default(), &log, &nobody, Form::Json).len(), 0);
    let late = Filter { since: Some(record(290).time.to_string()), ..Filter::default() };
    assert_eq!(shown(&TailArgs::default(), &log, &late, Form::Json).len(), 10);
}

#[test]
fn a_terminal_sees_repeats_folded() {
    let log = Log::with(&records(0..18).split_off(6), 50_000);
    let text = shown(&TailArgs::default(), &log, &Filter::default(), Form::Text(Folding::default()));
    assert_eq!(text.len(), 1, "{text:?}");
    let shown = "deny      billing python3[100] → 10.20.0.5:5432/tcp (nothing permits it) ×12";
    assert!(text[0].ends_with(shown), "{text:?}");
}

#[test]
fn no_view_for_a_person_holds_what_a_terminal_would_obey_and_json_is_exact() {
    let lines: Vec<Vec<u8>> = records(0..30)
        .into_iter()
        .map(|line| {
            let line = String::from_utf8(line).unwrap();
            line.replace("python3", "py\\u001b]0;x\\u0007\\nALLOWED \u{202e}\u{9b}2J\u{7f}").into_bytes()
        })
        .collect();
    let log = Log::with(&lines, 50_000);
    let written: Vec<String> = lines.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect();
    assert_eq!(shown(&TailArgs::default(), &log, &Filter::default(), Form::Json), written);

    let tail = shown(&TailArgs::default(), &log, &Filter::default(), Form::Text(Folding::default())).join("\n");
    let page = page(&record(20).id, &log.dir()).unwrap();
    let obeyed = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    for view in [&tail, &page] {
        assert!(view.contains(r"py\u{1b}]0;x\u{7}\nALLOWED \u{202e}\u{9b}2J\u{7f}"), "{view}");
        assert!(!view.contains(obeyed), "{view:?}");
    }
    let evidence = serde_json::json!([{ "evidence": "a\u{1b}[2J\nb" }]);
    assert_eq!(super::output::shown(&evidence).unwrap(), serde_json::json!([{ "evidence": r"a\u{1b}[2J\nb" }]));
}

#[test]
fn a_follower_shows_the_last_ten_and_then_each_new_record_within_300_ms() {
    let log = Log::with(&records(0..40), 10_000);
    let (send, receive) = mpsc::channel();
    struct Lines(mpsc::Sender<(Instant, String)>, Vec<u8>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1.extend_from_slice(bytes);
            while let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                let rest = self.1.split_off(end + 1);
                let line = String::from_utf8(std::mem::replace(&mut self.1, rest)).unwrap();
                // An error ends the follower when the test is over.
                self.0.send((Instant::now(), line.trim_end().to_owned())).map_err(std::io::Error::other)?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = log.dir();
    std::thread::spawn(move || {
        let args = TailArgs { follow: true, ..TailArgs::default() };
        let _ended = show(&args, &dir, &Filter::default(), Form::Json, Lines(send, Vec::new()));
    });
    let next = || receive.recv_timeout(Duration::from_secs(10)).unwrap();
    let recent: Vec<Vec<u8>> = (0..10).map(|_| next().1.into_bytes()).collect();
    assert_eq!(recent, records(30..40));
    let mut late = Vec::new();
    for round in 0..5u64 {
        // Each round is another life of the daemon.
        let (mut writer, _) = log.open();
        for number in 40 + round * 4..44 + round * 4 {
            writer.append(&records(number..number + 1)).unwrap();
            // What else an append does (another segment, room on the disk) is no part of it.
            let written = Instant::now();
            let (shown, line) = next();
            assert_eq!(line.into_bytes(), records(number..number + 1)[0]);
            late.push(shown.saturating_duration_since(written));
        }
    }
    late.sort_unstable();
    // One of twenty may have met a machine that did something else for so long.
    assert!(late.iter().rev().nth(1).is_some_and(|late| *late < Duration::from_millis(300)), "{late:?}");
}

#[test]
fn a_proof_holds_by_itself_and_not_for_another_record() {
    let log = Log::with(&records(0..700), 50_000);
    for number in [0, 255, 256, 511, 699] {
        let id = record(number).id;
        let proof = proof_of(&id, &log.dir()).unwrap();
        assert_eq!(proof.index, number);
        let mut answer = Vec::new();
        assert!(check_proof(&proof.to_string(), None, &log.dir(), true, &mut answer).unwrap());
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((answer["id"].as_str(), answer["index"].as_u64()), (Some(id.as_str()), Some(number)));
        let mut other = proof.clone();
        other.extra = Some(record(number + 1).to_line());
        assert!(!check_proof(&other.to_string(), None, &log.dir(), true, &mut Vec::new()).unwrap());
    }
    assert!(proof_of("01ARZ3NDEKTSV4RRFFQ69G5FAV", &log.dir()).is_err());
}

#[test]
fn a_record_that_is_not_signed_yet_has_no_proof() {
    let log = Log::with(&records(0..10), 50_000);
    let (mut writer, _) = log.open();
    writer.append(&records(10..11)).unwrap();
    let error = proof_of(&record(10).id, &log.dir()).unwrap_err().to_string();
    assert!(error.contains("not signed yet"), "{error}");
}

#[test]
fn an_id_is_found_wherever_it_is() {
    let log = Log::with(&records(0..300), 20_000);
    for number in 0..300 {
        assert_eq!(by_id(&log.dir(), &record(number).id).unwrap().unwrap().index, number);
    }
    assert!(by_id(&log.dir(), "nothing").unwrap().is_none());
}

#[test]
fn the_story_of_a_decision_names_who_what_why_and_what_next() {
    let log = Log::with(&records(0..30), 50_000);
    let page = page(&record(20).id, &log.dir()).unwrap();
    for part in [
        "Service account billing tried to connect 10.20.0.5:5432/tcp.",
        "It was judged: DENY. The call was refused with EACCES.",
        "python3[100]",
        "last time",
        "To allow it: no policy permits it",
    ] {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    assert!(page.lines().count() < 40, "{page}");
}

#[test]
fn ocsf_events_have_what_the_class_requires() {
    let log = Log::with(&records(0..20), 50_000);
    let events = shown(&TailArgs::default(), &log, &Filter::default(), Form::Ocsf(Some("writ/x+00".to_owned())));
    assert_eq!(events.len(), 17, "losses and heartbeats are no network activity");
    for event in events {
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!((event["class_uid"].as_u64(), event["type_uid"].as_u64()), (Some(4001), Some(400_105)));
        assert_eq!((event["action_id"].as_u64(), event["disposition_id"].as_u64()), (Some(2), Some(2)));
        for name in
            ["activity_id", "category_uid", "severity_id", "time", "metadata", "dst_endpoint", "device", "actor"]
        {
            assert!(!event[name].is_null(), "{name}");
        }
        // Where its record is found again.
        let index = event["metadata"]["sequence"].as_u64().unwrap();
        assert_eq!(event["metadata"]["uid"], record(index).id.as_str());
        assert_eq!(event["metadata"]["log_name"], "writ/x+00");
    }
}

#[test]
fn since_takes_times_dates_and_durations() {
    assert_eq!(since("2026-11-23").unwrap(), "2026-11-23T00:00:00.000000000Z");
    assert_eq!(since("2026-11-23T01:02:03+01:00").unwrap(), "2026-11-23T00:02:03.000000000Z");
    for (text, seconds) in [("15m", 900), ("2h", 7200), ("7d", 604_800)] {
        let ago = jiff::SignedDuration::from_secs(seconds);
        let earliest = jiff::Timestamp::now() - ago;
        let then: jiff::Timestamp = since(text).unwrap().parse().unwrap();
        assert!(earliest <= then && then <= jiff::Timestamp::now() - ago, "{text}");
    }
    assert!(since("yesterday").is_err());
    let error = since("300000000h").unwrap_err().to_string();
    assert!(error.contains("300000000h") && error.contains("longer ago"), "{error}");
}

#[test]
fn no_log_is_no_empty_log() {
    let empty = tempfile::tempdir().unwrap();
    for directory in [empty.path().to_owned(), empty.path().join("nowhere")] {
        let args = TailArgs::default();
        let shown = show(&args, &directory, &Filter::default(), Form::Json, Vec::new());
        assert!(shown.unwrap_err().to_string().contains("there is no log here"));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    use std::io::{Error, ErrorKind, Write};
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let json = serde_json::to_writer(Closed, &serde_json::json!({})).unwrap_err();
    assert!(super::output::is_broken_pipe(&json.into()));
    assert!(super::output::is_broken_pipe(&Error::from(ErrorKind::BrokenPipe).into()));
    assert!(!super::output::is_broken_pipe(&Error::from(ErrorKind::NotFound).into()));
    // Nor does it make of what was found something else.
    let unread = || Err(Error::from(ErrorKind::BrokenPipe).into());
    let code = |well| format!("{:?}", super::output::found(well, unread()).unwrap());
    assert_eq!(code(true), format!("{:?}", std::process::ExitCode::SUCCESS));
    assert_eq!(code(false), format!("{:?}", std::process::ExitCode::FAILURE));
    assert!(super::output::found(true, Err(Error::from(ErrorKind::StorageFull).into())).is_err());
}

#[test]
fn an_id_stands_on_one_line_however_narrow_the_terminal() {
    let mut table = super::output::table(&["id", "account", "executable", "reason"]);
    table.set_width(80);
    let id = "a-sender's-own-id-of-fifty-characters-0123456789-abc";
    table.add_row([id, "billing", "/usr/lib/billing/bin/worker", "a reason of some length that is wrapped"]);
    assert!(table.to_string().lines().any(|line| line.contains(id)), "{table}");
}

#[test]
fn fuzz_signal_lines() {
    let seeds: [&[u8]; 2] = [
        br#"{"account":"a","kind":"k","risk":3,"ttl":"1h","evidence":"e","at":"2026-11-23T00:00:00Z"}"#,
        br#"{"specversion":"1.0","type":"k","subject":"a","id":"1","time":"2026-11-23T00:00:00Z","data":{"risk":3,"ttl":"1h"}}"#,
    ];
    let driven = writ_fuzz::drive("signal lines", &seeds, |input| {
        crate::statement::statement(&String::from_utf8_lossy(input)).is_ok()
    });
    assert!(driven.accepted > 0, "the real ones are refused");
}
