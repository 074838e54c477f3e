//! Claims about records: what goes out comes back, always fits a line, and matches the published schema.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use writ_abi::{Address, DecisionEvent};

use super::schema::schema;
use super::*;

fn event() -> DecisionEvent {
    DecisionEvent {
        kind: writ_abi::EVENT_DECISION,
        abi: writ_abi::ABI_VERSION,
        at: 12_345,
        sequence: 7,
        executable_inode: 99,
        start_time: 1000,
        cgroup: 42,
        socket_cookie: 8,
        netns_cookie: 1,
        address: Address::from_v4([10, 20, 0, 5]),
        given: Address::from_v4([10, 20, 0, 5]),
        cpu: 1,
        generation: 3,
        stance: 5,
        epoch: 2,
        explanation: 4,
        pid: 100,
        tid: 101,
        parent: 1,
        uid: 998,
        euid: 998,
        loginuid: u32::MAX,
        executable_device: 8 << 20 | 1,
        executable_class: 1,
        views: writ_abi::View::UID | writ_abi::View::CGROUP,
        count: 1,
        socket_protocol: 6,
        account: 0,
        also: [u16::MAX; 3],
        port: 5432,
        hook: writ_abi::Hook::Connect4 as u8,
        protocol: 0,
        open_socket: 0,
        verdict: writ_abi::Verdict::Deny as u8,
        reason: writ_abi::Reason::Policy as u8,
        enforced: 1,
        would: writ_abi::Verdict::Deny as u8,
        new_destination: 1,
        errno: 13,
        socket_family: 2,
        socket_type: 1,
        issued: 0,
        comm: *b"python3\0\0\0\0\0\0\0\0\0",
    }
}

fn time() -> jiff::Timestamp {
    "2026-11-23T23:06:42.000000001Z".parse().unwrap()
}

fn context() -> Context {
    let mut context = Map::new();
    context.insert("port".to_owned(), json!(5432));
    Context {
        account: "billing".to_owned(),
        owner: Some("payments@example.com".to_owned()),
        groups: vec!["prod".to_owned(), "prod-db".to_owned()],
        executable: Some("/usr/bin/python3.11".to_owned()),
        parents: vec![Parent { pid: 1, executable: None }],
        cgroup: Some("/system.slice/billing.service".to_owned()),
        policies: vec![PolicyRef { id: "no-prod".to_owned(), ..PolicyRef::default() }],
        policy_digest: "sha256-00".to_owned(),
        stance_digest: "sha256-11".to_owned(),
        risk: 40,
        signals: vec![SignalRef {
            id: "S-1".to_owned(),
            kind: "edr.malware".to_owned(),
            source: "edr-agent".to_owned(),
            risk: 40,
            age_seconds: 3,
            expires: Time(time()),
        }],
        request: Request { principal: "ServiceAccount::\"billing\"".to_owned(), context, ..Request::default() },
        ..Context::default()
    }
}

fn record(body: Body) -> Record {
    let host = Host { id: "machine".to_owned(), boot_id: "boot".to_owned() };
    let id = record_id(time(), BootTag::of("boot"), IdSource::Kernel { cpu: 1, sequence: 7 });
    Record::new(id, time(), host, "0.1.0", body)
}

fn caller() -> Caller {
    Caller { uid: 0, loginuid: LoginUid::Unattributed, user: Some("root".to_owned()), pid: None, executable: None }
}

fn approver() -> Approver {
    Approver { uid: 1000, loginuid: LoginUid::Uid(1000), user: None, ticket: Some("CHG-1".to_owned()) }
}

fn state(risk: u8) -> StanceState {
    StanceState {
        stance_digest: "sha256-11".to_owned(),
        risk,
        signals: Vec::new(),
        fresh: Vec::new(),
        grants: Vec::new(),
        approvals: Vec::new(),
        offboarded: false,
        mode: EffectiveMode::Enforce,
        valid_until: Some(Time(time())),
    }
}

/// One record of each kind.
fn every_kind() -> Vec<Record> {
    let endpoint = Endpoint { address: "10.20.0.5".to_owned(), port: 5432, protocol: "tcp".to_owned() };
    let bodies = vec![
        Decision::from_event(&event(), context()),
        Decision::from_event(&DecisionEvent { enforced: 0, errno: 0, ..event() }, context()),
        Body::Change(Box::new(Change {
            account: "billing".to_owned(),
            cause: "signal".to_owned(),
            cause_id: Some("S-1".to_owned()),
            reason: None,
            by: Some(caller()),
            before: Some(state(0)),
            after: state(90),
            opened: Vec::new(),
            closed: vec![Reach {
                destination: Some("prod-db".to_owned()),
                ports: vec!["5432".to_owned()],
                protocols: vec!["tcp".to_owned()],
                executables: Some(vec!["/usr/bin/psql".to_owned()]),
                ..Reach::of("connect")
            }],
            policy_digest: "sha256-00".to_owned(),
            generation: 3,
            fallback_first: false,
            applied_us: 80,
        })),
        Body::Cut(Box::new(Cut {
            account: "billing".to_owned(),
            destination: endpoint.clone(),
            source: None,
            socket_cookie: 8,
            pid: Some(100),
            method: "sock-destroy".to_owned(),
            change: None,
            decision: None,
            reason: "risk 90".to_owned(),
            stance_digest: "sha256-11".to_owned(),
            policies: Vec::new(),
            took_us: 900,
        })),
        Body::Escalation(Box::new(Escalation {
            escalation: "E-1".to_owned(),
            state: EscalationState::Approved,
            account: "billing".to_owned(),
            destination: Some(endpoint),
            executable: None,
            action: None,
            resource: None,
            policies: Vec::new(),
            decision: None,
            approver: Some(approver()),
            reason: Some("agreed".to_owned()),
            expires: Time(time()),
        })),
        Body::Grant(Box::new(Grant {
            grant: "G-1".to_owned(),
            state: GrantState::Created,
            account: "billing".to_owned(),
            destination: "prod-db".to_owned(),
            expires: Time(time()),
            approver: approver(),
            reason: "migration".to_owned(),
            ended_because: None,
            ended_by: None,
            signal: None,
        })),
        Body::Lifecycle(Box::new(Lifecycle::Signal(Box::new(SignalRecord {
            signal: "S-1".to_owned(),
            state: SignalState::Received,
            account: "billing".to_owned(),
            kind: "edr.malware".to_owned(),
            risk: 90,
            expires: Time(time()),
            source: "edr-agent".to_owned(),
            by: Some(caller()),
            evidence: None,
            reason: None,
        })))),
        Body::Loss(Box::new(Loss {
            cpu: Some(1),
            from_sequence: Some(8),
            to_sequence: Some(9),
            count: 2,
            reason: "ring-full".to_owned(),
            ..Loss::default()
        })),
        Body::Lifecycle(Box::new(Lifecycle::Heartbeat { seen: 9, recorded: 7, lost: 2, in_flight: 0 })),
        Body::Lifecycle(Box::new(Lifecycle::Refused {
            operation: "grant create".to_owned(),
            by: caller(),
            account: Some("billing".to_owned()),
            reason: "the caller is the account".to_owned(),
            count: 3,
        })),
    ];
    bodies.into_iter().map(record).collect()
}

#[test]
fn every_kind_of_record_comes_back_as_it_went_out_and_matches_the_schema() {
    let schema = jsonschema::validator_for(&schema()).unwrap();
    for record in every_kind() {
        let line = record.to_line();
        assert!(!line.contains(&b'\n'));
        assert_eq!(Record::from_line(&line).unwrap(), record);
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(problem(&schema, &value), None, "{value}");
        let head = Head::of(&line).unwrap();
        assert_eq!((head.id.as_ref(), head.r#type.as_ref()), (record.id.as_str(), record.body.kind()));
        assert_eq!(head.account.as_deref(), record.body.account());
    }
}

fn problem(schema: &jsonschema::Validator, value: &Value) -> Option<String> {
    schema.iter_errors(value).next().map(|error| format!("{error} at {}", error.instance_path()))
}

/// OCSF's own schema of the class, as published (tests/ocsf).
#[test]
fn every_event_is_valid_by_the_published_schema_of_ocsf() {
    let published = include_str!("../../../../tests/ocsf/network_activity-1.8.0.schema.json");
    let published = jsonschema::validator_for(&serde_json::from_str(published).unwrap()).unwrap();
    let mut events = 0;
    for record in every_kind() {
        let mut variants = vec![record.clone()];
        if let Body::Decision(judged) = &record.body {
            for verdict in [Verdict::Allow, Verdict::Deny, Verdict::Escalate] {
                for (mode, risk) in [(EffectiveMode::Enforce, 95), (EffectiveMode::Observe, 50)] {
                    let mut other = (**judged).clone();
                    (other.verdict, other.effective_mode, other.risk) = (verdict, mode, risk);
                    variants.push(Record { body: Body::Decision(Box::new(other.clone())), ..record.clone() });
                    // Where no connection is meant, and where the process was gone.
                    (other.destination, other.process, other.policies) = (None, None, Vec::new());
                    variants.push(Record { body: Body::Observation(Box::new(other)), ..record.clone() });
                }
            }
        }
        for event in variants.iter().filter_map(|record| to_ocsf(record, Some(&Place { log: "writ/x+00", index: 7 }))) {
            assert_eq!(problem(&published, &event), None, "{event}");
            events += 1;
        }
    }
    assert!(events > 12, "{events}");
}

#[test]
fn the_schema_refuses_what_is_not_a_record() {
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let line: Value = serde_json::from_slice(&every_kind()[0].to_line()).unwrap();
    let changes: [fn(&mut Value); 6] = [
        |record| drop(record.as_object_mut().unwrap().remove("policies")),
        |record| record["verdict"] = json!("maybe"),
        |record| record["type"] = json!("event"),
        |record| record["time"] = json!(1),
        |record| record["reason_code"] = json!("because"),
        |record| record["process"]["pid"] = json!("1"),
    ];
    for change in changes {
        let mut record = line.clone();
        change(&mut record);
        assert!(problem(&schema, &record).is_some(), "{record}");
    }
}

#[test]
fn the_fast_check_accepts_what_reading_accepts_and_refuses_what_lacks_a_member() {
    for record in every_kind() {
        let line = record.to_line();
        let checked = Record::check(&line).unwrap();
        match record.body.judged() {
            Some(_) => assert!(matches!(checked, Checked::Judged { place: Some((1, 7)), count: 1, .. })),
            None => assert_eq!(checked, Checked::Other(Box::new(record.clone()))),
        }
        let value: Value = serde_json::from_slice(&line).unwrap();
        for name in value.as_object().unwrap().keys() {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(name);
            let text = without.to_string();
            // A missing errno reads as null, but the published form always has it; only judgements have one.
            let read = Record::from_line(text.as_bytes());
            assert_eq!(Record::check(text.as_bytes()).is_ok(), read.is_ok() && name != "errno", "{name}");
        }
    }
}

#[test]
fn a_decision_says_what_the_event_says() {
    let line = every_kind()[0].to_line();
    let value: Value = serde_json::from_slice(&line).unwrap();
    let expected = json!({
        "type": "decision", "verdict": "deny", "effective_mode": "enforce", "action": "connect", "errno": "EACCES",
        "reason_code": "policy", "identified_by": ["uid", "cgroup"], "count": 1, "time": "2026-11-23T23:06:42.000000001Z",
    });
    for (name, member) in expected.as_object().unwrap() {
        assert_eq!(&value[name], member, "{name}");
    }
    assert_eq!(value["destination"]["address"], "10.20.0.5");
    assert_eq!(value["process"]["device"], "8:1");
    assert_eq!(value["process"]["loginuid"], Value::Null);
    assert_eq!(value["process"]["comm"], "python3");
    assert_eq!(value["kernel"]["hook"], "cgroup/connect4");
    assert_eq!((value.get("given_address"), value.get("would"), value.get("grant")), (None, None, None));
}

#[test]
fn an_observation_has_no_errno_and_a_mapped_address_is_shown_as_given() {
    let observed = DecisionEvent { enforced: 0, errno: 0, socket_family: 10, would: 1, verdict: 3, ..event() };
    let body = Decision::from_event(&observed, context());
    let judged = body.judged().unwrap();
    assert_eq!(
        (body.kind(), judged.effective_mode, judged.errno.as_deref()),
        ("observation", EffectiveMode::Observe, None)
    );
    assert_eq!(judged.given_address.as_deref(), Some("::ffff:10.20.0.5"));
    assert_eq!(judged.would.as_ref().map(|would| would.verdict), Some(Verdict::Allow));
    let open = Decision::from_event(&DecisionEvent { open_socket: 1, ..event() }, context());
    assert_eq!((open.judged().unwrap().action.as_str(), &open.judged().unwrap().destination), ("open-socket", &None));
}

#[test]
fn ids_sort_by_time_and_differ_by_source() {
    let at = |ms: i64, source| record_id(jiff::Timestamp::from_millisecond(ms).unwrap(), BootTag::of("boot"), source);
    let one = at(1_800_000_000_000, IdSource::Kernel { cpu: 0, sequence: u64::MAX });
    let two = at(1_800_000_000_001, IdSource::Kernel { cpu: 0, sequence: 1 });
    assert!(one < two && one.len() == 26);
    assert_eq!(time_of_id(&two).unwrap().as_millisecond(), 1_800_000_000_001);
    assert_eq!(time_of_id("not an id"), None);
    let same_moment = [
        at(5, IdSource::Kernel { cpu: 0, sequence: 1 }),
        at(5, IdSource::Kernel { cpu: 1, sequence: 1 }),
        at(5, IdSource::Kernel { cpu: 0, sequence: 2 }),
        at(5, IdSource::Agent(1)),
        record_id(jiff::Timestamp::from_millisecond(5).unwrap(), BootTag::of("other boot"), IdSource::Agent(1)),
    ];
    assert_eq!(std::collections::BTreeSet::from(same_moment.clone()).len(), same_moment.len());
}

#[test]
fn a_record_that_fits_is_never_shortened() {
    let mut long = context();
    long.executable = Some("x".repeat(60_000));
    let line = record(Decision::from_event(&event(), long)).to_line();
    assert_eq!(Record::from_line(&line).unwrap().truncated, Vec::<String>::new());
}

proptest! {
    // Each case renders megabytes; a few dozen reach every limit.
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_record_fits_a_line_and_says_what_was_shortened(
        executable in 0usize..200_000, reasons in 0usize..3000, groups in 0usize..20_000, text in "\\PC{1,4}",
    ) {
        let mut long = context();
        long.executable = Some(text.repeat(executable / text.len()));
        long.groups = vec![text.repeat(8); groups];
        let policy = PolicyRef { id: text.repeat(30), reason: Some(text.repeat(90)), ..PolicyRef::default() };
        long.policies = vec![policy; reasons];
        long.request.context.insert("executable".to_owned(), long.executable.clone().into());
        let whole = record(Decision::from_event(&event(), long));
        let line = whole.to_line();
        prop_assert!(line.len() <= MAX_LINE);
        let read = Record::from_line(&line).unwrap();
        prop_assert_eq!(read.truncated.is_empty(), read.body == whole.body);
        prop_assert_eq!((read.id, read.body.kind()), (whole.id.clone(), "decision"));
        prop_assert_eq!(line, whole.to_line());
    }
}

#[test]
fn the_documentation_lists_every_reason_and_type() {
    let text = include_str!("../../../../docs/records.md");
    for (code, meaning) in REASON_CODES {
        assert!(text.contains(&format!("| `{code}` | {meaning} |")), "{code}");
    }
    for reason in writ_abi::Reason::ALL {
        assert!(REASON_CODES.iter().any(|(code, _)| *code == reason.code()), "{reason:?}");
    }
    assert!(Body::TYPES.iter().all(|kind| text.contains(&format!("`{kind}`"))));
}

#[test]
fn the_record_of_an_attempt_made_again_is_what_it_would_be_by_itself() {
    let now = |at: jiff::Timestamp| {
        let mut context = context();
        context.request.context.insert("now".to_owned(), crate::policy::now_json(at));
        context
    };
    let later = time() + jiff::SignedDuration::from_millis(250);
    let second = DecisionEvent { at: 99, sequence: 8, cpu: 3, socket_cookie: 9, issued: 5, count: 2, ..event() };
    assert_eq!(alike(&event()), alike(&second));
    assert_ne!(alike(&event()), alike(&DecisionEvent { port: 1, ..event() }));
    let (Body::Decision(mut again), Body::Decision(itself)) =
        (Decision::from_event(&event(), now(time())), Decision::from_event(&second, now(later)))
    else {
        panic!("not decisions");
    };
    assert_ne!(again, itself);
    again.again(&second, later);
    assert_eq!(again, itself);
}

#[test]
fn the_type_of_a_line_is_read_off_its_place_and_nowhere_else() {
    let line = record(Decision::from_event(&event(), context())).to_line();
    assert_eq!(kind_of_line(&line), Some(&b"decision"[..]));
    for other in ["{\"type\":\"loss\"}", "{\"id\":\"a\\\"\",\"type\":\"loss\"}", "{\"id\":\"a\"", ""] {
        assert_eq!(kind_of_line(other.as_bytes()), None, "{other}");
    }
}
