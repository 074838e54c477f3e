//! The kernel and Cedar's authorizer, asked the same: random policy sets, real connects and sends, the same answer.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use writ_tests::{Api, Batch, Config, Host, Random, Record, Scale, user};

/// Policy sets; emulated, where one takes seconds to compile, only a few: the programs are the same, the compiler too.
const SETS: Scale = Scale { native: 100, emulated: 8 };
/// Attempts under each.
const ATTEMPTS: usize = 80;

const ACCOUNTS: [(&str, u32); 2] = [("alpha", 61_001), ("beta", 61_002)];
const GROUPS: [&str; 5] = ["d0", "d1", "d2", "d3", "d4"];
const PREFIXES: [&str; 14] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "192.168.0.0/16",
    "127.0.0.0/8",
    "127.0.0.1/32",
    "127.0.3.0/24",
    "0.0.0.0/1",
    "fd00::/8",
    "fd00:1::/32",
    "fd00:1::7/128",
    "::1/128",
    "224.0.0.0/4",
];
const PORTS: [u16; 8] = [1, 22, 53, 443, 444, 5432, 8443, 65534];
const OPERATIONS: [&str; 3] = ["tcp-start", "udp-judge", "udp-send"];

fn list(of: &[impl ToString], quote: &str) -> String {
    of.iter().map(|item| format!("{quote}{}{quote}", item.to_string())).collect::<Vec<_>>().join(", ")
}

fn destinations(random: &mut Random) -> String {
    let mut text = String::new();
    for (index, name) in GROUPS.iter().enumerate() {
        let ports = random.some(&PORTS, 2);
        let ports: Vec<String> =
            ports.iter().map(|first| format!("\"{first}-{}\"", first.saturating_add(random.below(3) as u16))).collect();
        // Later destinations lie in earlier ones, so that parents make no circle.
        let parents = if index > 0 { random.some(&GROUPS[..index], 2) } else { Vec::new() };
        let protocols = random.some(&["tcp", "udp"], 1);
        let of: [(&str, String); 4] = [
            ("addresses", list(&random.some(&PREFIXES, 4), "\"")),
            ("ports", ports.join(", ")),
            ("protocols", list(&protocols, "\"")),
            ("in", list(&parents, "\"")),
        ];
        writeln!(text, "[destination.{name}]").unwrap();
        for (key, values) in of.iter().filter(|(_, values)| !values.is_empty()) {
            writeln!(text, "{key} = [{values}]").unwrap();
        }
    }
    text
}

fn condition(random: &mut Random, depth: usize, programs: &[String]) -> String {
    let op = random.pick(&["==", "!=", "<", "<=", ">", ">="]);
    let equality = random.pick(&["==", "!="]);
    let port = random.pick(&PORTS);
    match random.below(if depth == 0 { 19 } else { 17 }) {
        0 | 1 => format!("context.port {op} {port}"),
        2 => format!("[{port}, {}].contains(context.port)", random.pick(&PORTS)),
        3 | 4 => format!("context.ip.isInRange(ip(\"{}\"))", random.pick(&PREFIXES)),
        5 => format!("context.ip {equality} ip(\"{}\")", random.pick(&["10.1.2.3", "fd00:1::7", "127.0.0.1"])),
        6 => random.pick(&["context.ip.isIpv4()", "context.ip.isLoopback()", "context.ip.isMulticast()"]).into(),
        7 => format!("context.protocol {equality} \"{}\"", random.pick(&["tcp", "udp"])),
        8 => "context.new_destination".into(),
        9 => format!("context.executable {equality} \"{}\"", programs[random.below(programs.len())]),
        10 => "principal.executables.contains(context.executable)".into(),
        11 | 12 => format!("resource in Destination::\"{}\"", random.pick(&GROUPS)),
        13 => format!(
            "resource in [Destination::\"{}\", Destination::\"{}\"]",
            random.pick(&GROUPS),
            random.pick(&GROUPS)
        ),
        14 => format!("context.risk {op} {}", random.pick(&[20, 37, 80])),
        15 => format!("context.hour {op} {}", random.pick(&[7, 12, 19])),
        16 => format!("context.weekday {op} 5"),
        17 => format!("!({})", condition(random, 1, programs)),
        _ => {
            let mut part = || condition(random, 1, programs);
            format!("(if {} then {} else {})", part(), part(), part())
        }
    }
}

fn policy(random: &mut Random, number: usize, programs: &[String]) -> String {
    let principal = match random.below(4) {
        0 => "principal".to_owned(),
        1 => format!("principal in Team::\"{}\"", random.pick(&["t0", "t1"])),
        _ => format!("principal == ServiceAccount::\"{}\"", random.pick(&ACCOUNTS).0),
    };
    let resource = match random.below(3) {
        0 => format!("resource in Destination::\"{}\"", random.pick(&GROUPS)),
        _ => "resource".into(),
    };
    let (effect, decision) = match random.below(10) {
        0 | 1 => ("forbid", ""),
        2 | 3 => ("forbid", "@decision(\"escalate\")"),
        _ => ("permit", ""),
    };
    let mode = if random.chance(12) { "@mode(\"observe\")" } else { "" };
    let mut text = format!(
        "@id(\"p{number}\") @owner(\"o\") @reason(\"r\") {decision} {mode}\n{effect} ({principal}, action == \
         Action::\"connect\", {resource})"
    );
    for word in ["when", "when", "unless"].into_iter().take(random.below(4)) {
        let terms: Vec<String> = (0..=random.below(2)).map(|_| condition(random, 0, programs)).collect();
        write!(text, "\n{word} {{ {} }}", terms.join(random.pick(&[" && ", " || "]))).unwrap();
    }
    text + ";\n"
}

fn world(random: &mut Random, programs: &[String]) -> Config {
    let mut accounts = String::new();
    for (name, uid) in ACCOUNTS {
        let mode = if random.chance(10) { "mode = \"observe\"\n" } else { "" };
        let executables: Vec<&str> = programs.iter().filter(|_| random.chance(50)).map(String::as_str).collect();
        writeln!(
            accounts,
            "[service-account.{name}]\nowner = \"o\"\nmatch = {{ user = \"{uid}\" }}\nteam = [{}]\nexecutables = \
             [{}]\n{mode}",
            list(&random.some(&["t0", "t1"], 1), "\""),
            list(&executables, "\"")
        )
        .unwrap();
    }
    let policies: String = (0..2 + random.below(9)).map(|number| policy(random, number, programs)).collect();
    Config::new()
        .file("destinations.d/random.toml", &destinations(random))
        .file("service-accounts.d/random.toml", &accounts)
        .file("policies.d/random.cedar", &policies)
}

fn address(random: &mut Random) -> IpAddr {
    if random.chance(15) {
        let odd = ["0.0.0.0", "::", "::ffff:10.1.2.3", "::ffff:127.0.0.1", "127.255.255.255", "ffff::ffff"];
        return random.pick(&odd).parse().unwrap();
    }
    // The edges of prefixes, one before, one after.
    let (network, length) = random.pick(&PREFIXES).split_once('/').unwrap();
    let (length, last) = (length.parse::<u32>().unwrap(), random.chance(50));
    let step = random.below(3) as u32;
    match network.parse().unwrap() {
        IpAddr::V4(network) => {
            let edge = u32::from(network) | if last { u32::MAX.checked_shr(length).unwrap_or(0) } else { 0 };
            let moved = Ipv4Addr::from(edge.wrapping_add(step).wrapping_sub(1));
            if random.chance(15) { IpAddr::V6(moved.to_ipv6_mapped()) } else { IpAddr::V4(moved) }
        }
        IpAddr::V6(network) => {
            let edge = u128::from(network) | if last { u128::MAX.checked_shr(length).unwrap_or(0) } else { 0 };
            IpAddr::V6(Ipv6Addr::from(edge.wrapping_add(u128::from(step)).wrapping_sub(1)))
        }
    }
}

fn ids(policies: &Value) -> BTreeSet<&str> {
    policies.as_array().into_iter().flatten().filter_map(|policy| policy.get("id")?.as_str()).collect()
}

/// What is wrong with the kernel's answer, if anything is.
fn disagreement(record: &Record, refused: bool, simulated: &Value) -> Option<String> {
    // At the turn of an hour that a policy names: the fallback is in force until the engine has written the next stance.
    if record.text("/reason_code") == "stance-expired" && refused {
        return None;
    }
    let enforced = record.text("/type") == "decision";
    let verdict = simulated.pointer("/verdict").and_then(Value::as_str).unwrap_or_default();
    let found = [
        (record.text("/verdict") != verdict, "verdict"),
        (refused != (enforced && verdict != "allow"), "errno"),
        (ids(&record.0["policies"]) != ids(&simulated["policies"]), "deciding policies"),
        (record.0["effective_mode"] != simulated["effective_mode"], "mode"),
    ];
    let wrong: Vec<&str> = found.iter().filter(|(wrong, _)| *wrong).map(|(_, what)| *what).collect();
    (!wrong.is_empty()).then(|| format!("{wrong:?} (refused: {refused})\n  record {}\n  cedar {simulated}", record.0))
}

fn simulate(api: &mut Api, record: &Record, account: &str, to: SocketAddr, program: &str) -> Value {
    let (status, simulated) = api.post(
        "/v1/simulate",
        &json!({
            "account": account,
            "address": to.ip(),
            "port": to.port(),
            "protocol": record.text("/destination/protocol"),
            "executable": program,
            "at": record.text("/time"),
            "new_destination": record.0["request"]["context"]["new_destination"],
        }),
    );
    assert_eq!(status, 200, "{simulated}");
    simulated
}

#[test]
fn the_kernel_decides_what_cedar_decides() {
    let mut random = Random(0x5eed_2026);
    let host = Host::start(&Config::new());
    let programs: Vec<String> = ["first", "second"]
        .map(|name| {
            let path = host.directory().join(name);
            std::fs::copy(host.probe(), &path).unwrap();
            path.display().to_string()
        })
        .into();
    let mut probes: Vec<(&str, &String, Batch)> = ACCOUNTS
        .iter()
        .flat_map(|(name, uid)| programs.iter().map(move |program| (*name, *uid, program)))
        .map(|(name, uid, program)| (name, program, host.batch_as(&user::numbered(uid), program)))
        .collect();
    let mut api = host.api();
    let mut log = host.follow();
    // What the accounts have reached: what is not in here is new to them.
    let mut reached = HashSet::new();
    let (mut in_force, mut attempts, mut mismatches) = (0, 0, Vec::new());
    let mut verdicts = std::collections::BTreeMap::<String, usize>::new();

    let sets = SETS.here();
    for set in 0..sets {
        host.configure(&world(&mut random, &programs));
        let (status, answer) = api.post("/v1/reload", &json!({}));
        if status != 200 {
            // A set with an error cell is not put in force.
            assert_eq!(status, 422, "{answer}");
            continue;
        }
        in_force += 1;
        if random.chance(40) {
            let signal = json!({
                "account": random.pick(&ACCOUNTS).0, "kind": "test.risk", "risk": random.pick(&[10, 37, 60, 95]),
                "ttl": "1h", "evidence": format!("set {set}")
            });
            let (status, answer) = api.post("/v1/signals", &signal);
            assert_eq!(status, 200, "{answer}");
        }
        let made: Vec<_> = (0..ATTEMPTS)
            .map(|_| {
                let index = random.below(probes.len());
                let (account, program, probe) = &mut probes[index];
                let to = SocketAddr::new(address(&mut random), random.pick(&PORTS) + random.below(2) as u16);
                let refused = probe.attempt(random.pick(&OPERATIONS), to).errno.as_deref() == Some("EACCES");
                (*account, *program, to, refused)
            })
            .collect();
        let records = log.judgements(made.len());
        for ((account, program, to, refused), record) in made.into_iter().zip(&records) {
            attempts += 1;
            let simulated = simulate(&mut api, record, account, to, program);
            let kind = format!("{} {}", record.text("/type"), record.text("/verdict"));
            *verdicts.entry(kind).or_default() += 1;
            let place = (account, record.text("/destination/address").to_owned());
            let new = record.0["request"]["context"]["new_destination"] == json!(true);
            let mut wrong = disagreement(record, refused, &simulated);
            if new == reached.contains(&place) {
                wrong = Some(format!("new_destination is {new}: {}", record.0));
            }
            if record.text("/type") == "decision" && record.text("/verdict") == "allow" {
                reached.insert(place);
            }
            mismatches.extend(wrong.map(|wrong| format!("set {set}, {account} to {to}: {wrong}")));
        }
        assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
    }
    println!("{in_force} sets, {attempts} attempts, {verdicts:?}");
    assert!(in_force * 10 >= sets * 8, "only {in_force} of {sets} sets were put in force");
    // A generator that made everything the same would prove nothing.
    let kinds = ["decision allow", "decision deny", "decision escalate", "observation deny"];
    for kind in kinds.into_iter().filter(|_| attempts > 5_000) {
        assert!(verdicts.get(kind).is_some_and(|count| *count * 500 >= attempts), "{verdicts:?}");
    }
}
