//! docs/openapi.yaml holds what is served: every path and method, every error code with its status, every member, and no other.

use std::collections::BTreeSet;

const ROUTER: &str = include_str!("routes.rs");
const DESCRIPTION: &str = include_str!("../../../../docs/openapi.yaml");

/// `METHOD PATH` of every `.route(…)`.
fn served() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in ROUTER.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
        let (path, handlers) = line.split_once('"').unwrap();
        for method in ["get", "post"] {
            if handlers.contains(&format!("{method}(")) {
                found.insert(format!("{method} {path}"));
            }
        }
    }
    found
}

/// The same of the description: paths at the second level, methods at the third.
fn described() -> BTreeSet<String> {
    let paths = DESCRIPTION.split_once("\npaths:\n").unwrap().1.split_once("\ncomponents:\n").unwrap().0;
    let mut found = BTreeSet::new();
    let mut path = "";
    for line in paths.lines() {
        let name = line.trim().trim_end_matches(':');
        match line.len() - line.trim_start().len() {
            2 => path = name,
            4 => drop(found.insert(format!("{name} {path}"))),
            _ => {}
        }
    }
    found
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    assert!(served().len() > 20);
    assert_eq!(served(), described());
}

/// Every file that says how a request fails.
const FAILING: [&str; 5] = [
    ROUTER,
    include_str!("connection.rs"),
    include_str!("https.rs"),
    include_str!("changes.rs"),
    include_str!("limit.rs"),
];

fn status(name: &str) -> u16 {
    match name {
        "BAD_REQUEST" => 400,
        "FORBIDDEN" => 403,
        "NOT_FOUND" => 404,
        "METHOD_NOT_ALLOWED" => 405,
        "REQUEST_TIMEOUT" => 408,
        "PAYLOAD_TOO_LARGE" => 413,
        "UNPROCESSABLE_ENTITY" => 422,
        "INTERNAL_SERVER_ERROR" => 500,
        "SERVICE_UNAVAILABLE" => 503,
        other => panic!("what number is {other}?"),
    }
}

/// Codes and statuses of every `Fault` that is made: `StatusCode::NAME, "code"`, on one line or two.
fn failures() -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::from([("too-many-connections".to_owned(), 429)]);
    assert!(FAILING[4].contains("429 Too Many Requests") && FAILING[4].contains("too-many-connections"));
    for text in FAILING {
        for rest in text.split("StatusCode::").skip(1) {
            let Some((name, rest)) = rest.split_once(',') else { continue };
            let Some((code, _)) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"')) else {
                continue;
            };
            if name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_') {
                found.insert((code.to_owned(), status(name)));
            }
        }
    }
    found
}

/// The names below a line of the description, as deep as the first of them, with what stands behind each.
fn below(heading: &str) -> Vec<(String, String)> {
    let (_, rest) = DESCRIPTION.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no `{heading}`"));
    let depth = |line: &str| line.len() - line.trim_start().len();
    let own = depth(rest.lines().next().unwrap());
    let lines = rest.lines().take_while(|line| depth(line) >= own).filter(|line| depth(line) == own);
    lines.filter_map(|line| line.trim().split_once(':')).map(|(a, b)| (a.to_owned(), b.trim().to_owned())).collect()
}

#[test]
fn every_error_code_is_described_with_its_status_and_no_other() {
    let described: BTreeSet<(String, u16)> =
        below("              x-status:").into_iter().map(|(code, status)| (code, status.parse().unwrap())).collect();
    assert!(described.len() > 8);
    assert_eq!(described, failures());
    let codes = DESCRIPTION.lines().find_map(|line| line.trim().strip_prefix("enum: [invalid-request")).unwrap();
    for (code, _) in &described {
        assert!(code == "invalid-request" || codes.contains(&format!(", {code}")), "{code}");
    }
}

/// The public members of a structure, as the source has them.
fn members(source: &str, name: &str) -> BTreeSet<String> {
    let (_, rest) = source.split_once(&format!(" struct {name} {{\n")).unwrap_or_else(|| panic!("no `{name}`"));
    let (body, _) = rest.split_once("\n}").unwrap();
    let mut flattened = false;
    let mut found = BTreeSet::new();
    for line in body.lines().map(str::trim) {
        if let Some((name, _)) = line.strip_prefix("pub ").and_then(|line| line.split_once(':'))
            && !std::mem::take(&mut flattened)
        {
            found.insert(name.to_owned());
        }
        flattened |= line == "#[serde(flatten)]";
    }
    found
}

#[test]
fn every_member_of_an_answer_is_described() {
    let (api, status) = (include_str!("../api.rs"), include_str!("../engine/status.rs"));
    let around = members(include_str!("../surroundings.rs"), "Surroundings");
    for (schema, source, name) in [
        ("Status", status, "Status"),
        ("Account", status, "AccountStatus"),
        ("Reloaded", api, "Reloaded"),
        ("Why", api, "WhyAnswer"),
        ("WhyAccount", api, "WhyAccount"),
        ("Denial", api, "Denial"),
    ] {
        let described: BTreeSet<String> = below(&format!("    {schema}:\n      type: object\n      properties:"))
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let mut served = members(source, name);
        if name == "Status" {
            served.extend(around.iter().cloned());
        }
        assert!(!served.is_empty());
        assert_eq!(described, served, "{schema}");
    }
}
