//! docs/openapi.yaml holds what the router serves: every path and method, and no other.

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
