//! What could undo enforcement is told: programs of others on the same hooks, accounts that hold capabilities.

use std::process::{Command, Stdio};

use serde_json::Value;
use writ_tests::{Config, Host, foreign, wait};

fn list(status: &Value, member: &str) -> Vec<Value> {
    status[member].as_array().cloned().unwrap_or_else(|| panic!("no `{member}` in {status}"))
}

fn findings(host: &Host, name: &str) -> Vec<String> {
    let output = host.writ_output(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let found = report["findings"].as_array().unwrap().iter().filter(|finding| finding["name"] == name);
    found
        .map(|finding| format!("{}: {}", finding["state"].as_str().unwrap(), finding["detail"].as_str().unwrap()))
        .collect()
}

#[test]
fn a_foreign_program_on_a_hook_is_listed() {
    let host = Host::start(&Config::new());
    assert_eq!(list(&host.status(), "foreign_programs"), Vec::<Value>::new(), "writ's own are not foreign");

    let program = foreign::attach_connect4(host.cgroup().path());
    let found = wait::until("the program is listed", || {
        let found = list(&host.status(), "foreign_programs");
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["hook"], &found[0]["name"]), (&"connect4".into(), &foreign::NAME.into()), "{found:?}");
    assert!(host.cgroup().path().to_str().unwrap().ends_with(found[0]["cgroup"].as_str().unwrap()), "{found:?}");
    let told = findings(&host, "foreign-programs");
    assert!(told.len() == 1 && told[0].starts_with("partial: ") && told[0].contains(foreign::NAME), "{told:?}");

    drop(program);
    wait::until("the program is gone", || list(&host.status(), "foreign_programs").is_empty().then_some(()));
}

#[test]
fn a_foreign_program_is_listed_without_a_daemon() {
    let mut host = Host::start(&Config::new());
    host.kill_daemon();
    let _program = foreign::attach_connect4(host.cgroup().path());
    let told = findings(&host, "foreign-programs");
    assert!(told.len() == 1 && told[0].contains(foreign::NAME), "{told:?}");
}

#[test]
fn an_account_that_holds_a_capability_is_not_containable() {
    let host = Host::start(&Config::new());
    let holders = || {
        let holders = list(&host.status(), "not_containable");
        let pids = holders.iter().filter(|holder| holder["account"] == "tested");
        pids.cloned().collect::<Vec<_>>()
    };
    assert_eq!(holders(), Vec::<Value>::new());
    let uid = host.service_user().uid.to_string();
    let capable = |capability: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        command.args(["--inh-caps", &format!("+{capability}"), "--ambient-caps", &format!("+{capability}")]);
        command.args(["sleep", "600"]).stdin(Stdio::null()).spawn().expect("cannot run `setpriv` (util-linux)")
    };

    let mut harmless = capable("net_raw");
    let mut capable = capable("net_admin");
    let found = wait::until("the process is listed", || Some(holders()).filter(|found| !found.is_empty()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["pid"], capable.id());
    assert_eq!(found[0]["capabilities"], serde_json::json!(["CAP_NET_ADMIN"]));
    let told = findings(&host, "not-containable");
    assert!(told.len() == 1 && told[0].contains("CAP_NET_ADMIN") && told[0].contains("tested"), "{told:?}");

    for child in [&mut harmless, &mut capable] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    wait::until("nobody is listed", || holders().is_empty().then_some(()));
}
