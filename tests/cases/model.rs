//! Random signals, grants, approvals, offboardings, reloads and restarts: after each step the kernel decides as Cedar does on
//! the live state, and no session outlives the step that forbids it.

use std::net::SocketAddr;

use serde_json::{Value, json};
use writ_tests::{Config, Held, Host, KeepingPeer, Random};

const KINDS: &str = "[signal.\"t.low\"]\nrisk = 30\nttl = \"1h\"\n[signal.\"t.high\"]\nrisk = 90\nttl = \"1h\"\nflag = true\n\
                     [signal.\"t.fresh\"]\nttl = \"1h\"\nfreshness = true\n";
/// Policy sets that a reload goes over to.
const SETS: [&str; 3] = [
    "@id(\"all\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource);\n\
     @id(\"risk\") @owner(\"o\") @reason(\"r\") forbid (principal, action == Action::\"connect\", resource in \
     Destination::\"a\") when { context.risk >= 30 };\n",
    "@id(\"a-only\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource in \
     Destination::\"a\") when { context.risk < 90 };\n@id(\"fresh\") @owner(\"o\") @reason(\"r\") permit (principal, action == \
     Action::\"connect\", resource in Destination::\"b\") when { context.fresh.contains(\"t.fresh\") };\n",
    "@id(\"all\") @owner(\"o\") @reason(\"r\") permit (principal, action == Action::\"connect\", resource);\n@id(\"flag\") \
     @owner(\"o\") @reason(\"r\") forbid (principal, action == Action::\"connect\", resource) when { \
     context.signals.contains(\"t.high\") };\n@id(\"ask\") @owner(\"o\") @reason(\"r\") @decision(\"escalate\") forbid \
     (principal, action == Action::\"connect\", resource in Destination::\"b\");\n",
];

struct World {
    host: Host,
    peers: [KeepingPeer; 2],
    held: Vec<(SocketAddr, Held)>,
    set: usize,
    grants: Vec<String>,
    done: Vec<String>,
}

impl World {
    fn config(peers: &[KeepingPeer; 2], set: usize) -> Config {
        Config::new()
            .destination("a", peers[0].address)
            .destination("b", peers[1].address)
            .file("signals.d/t.toml", KINDS)
            .file("policies.d/set.cedar", SETS[set])
    }

    /// Asks; what is refused changes nothing, and is as good a step as any.
    fn post(&mut self, path: &str, body: Value) -> Value {
        self.done.push(format!("{path} {body}"));
        let answer = self.host.request("POST", path, body);
        assert!(answer.status < 500, "{path}: {answer:?}");
        answer.body
    }

    fn step(&mut self, random: &mut Random) {
        let to = random.pick(&["a", "b"]);
        match random.below(12) {
            0..=3 => {
                let kind = random.pick(&["t.low", "t.high", "t.fresh"]);
                self.post("/v1/signals", json!({ "account": "tested", "kind": kind }));
            }
            4 | 5 => {
                let live = self.host.request("GET", "/v1/signals", Value::Null).body;
                let live: Vec<String> = live
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|signal| Some(signal.get("id")?.as_str()?.to_owned()))
                    .collect();
                for id in live {
                    self.post(&format!("/v1/signals/{id}/clear"), json!({ "reason": "r" }));
                }
            }
            6 => {
                let body = json!({ "account": "tested", "to": to, "ttl": "1h", "reason": "r" });
                let made = self.post("/v1/grants", body);
                self.grants.extend(made.get("id").and_then(Value::as_str).map(str::to_owned));
            }
            7 => {
                if let Some(id) = self.grants.pop() {
                    self.post(&format!("/v1/grants/{id}/revoke"), json!({ "reason": "r" }));
                }
            }
            8 => {
                let open = self.host.request("GET", "/v1/escalations", Value::Null).body;
                if let Some(id) = open.pointer("/0/id").and_then(Value::as_str) {
                    let answer = random.pick(&["approve", "deny"]);
                    let body = if answer == "approve" {
                        json!({ "ttl": "1h", "reason": "r" })
                    } else {
                        json!({ "reason": "r" })
                    };
                    self.post(&format!("/v1/escalations/{id}/{answer}"), body);
                }
            }
            9 => {
                let what = random.pick(&["offboard", "reinstate", "reinstate"]);
                self.post(&format!("/v1/accounts/tested/{what}"), json!({ "reason": "r" }));
            }
            10 => {
                self.set = random.below(SETS.len());
                self.done.push(format!("reload to {}", self.set));
                self.host.configure(&Self::config(&self.peers, self.set));
                assert!(self.host.writ_output(&["reload"]).status.success());
            }
            _ => {
                self.done.push("restart".into());
                if random.chance(50) {
                    self.host.kill_daemon();
                } else {
                    self.host.stop_daemon();
                }
                self.host.run_daemon();
            }
        }
    }

    /// What the core says now, executable and all.
    fn model(&self, to: SocketAddr) -> bool {
        let asked = json!({ "account": "tested", "address": to.ip().to_string(), "port": to.port(), "protocol": "tcp",
                            "executable": self.host.probe().display().to_string() });
        let answer = self.host.request("POST", "/v1/simulate", asked);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body.get("verdict") == Some(&json!("allow"))
    }

    fn check(&mut self) {
        for to in [self.peers[0].address, self.peers[1].address] {
            let allowed = self.model(to);
            let attempt = self.host.attempt("tcp", &[to]);
            assert_eq!(attempt.errno.is_none(), allowed, "{to} {attempt:?} after {:#?}", self.done);
            // An escalation that this raised is recorded before the next step looks for it.
            for (_, held) in self.held.iter_mut().filter(|(at, _)| *at == to) {
                let sent = held.send().succeeded;
                assert_eq!(sent > 0, allowed, "a session to {to} after {:#?}", self.done);
            }
            if !allowed {
                self.held.retain(|(at, _)| *at != to);
            } else if self.held.iter().all(|(at, _)| *at != to) {
                let held = self.host.hold(1, "tcp", to);
                self.held.push((to, held));
            }
        }
    }
}

#[test]
fn the_kernel_equals_the_model_after_every_step_and_no_session_outlives_its_cut() {
    for seed in [3, 11] {
        let peers = [KeepingPeer::new(), KeepingPeer::new()];
        let host = Host::start(&World::config(&peers, 0));
        let mut world =
            World { host, peers, held: Vec::new(), set: 0, grants: Vec::new(), done: vec![format!("seed {seed}")] };
        let mut random = Random(seed);
        world.check();
        for _ in 0..30 {
            world.step(&mut random);
            world.check();
        }
        let log = world.host.log_directory().display().to_string();
        drop(world.held);
        let replayed = world.host.writ_output(&["replay", &log]);
        assert!(replayed.status.success(), "{replayed:?}");
    }
}
