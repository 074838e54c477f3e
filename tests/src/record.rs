//! Records as `writ tail --json` prints them, and as a test states what it expects of them.

use std::fmt::{self, Display, Formatter};

use serde_json::Value;

/// One line of the log.
#[derive(Clone, PartialEq, Debug)]
pub struct Record(pub Value);

impl Record {
    /// Reads the lines of a stream.
    #[track_caller]
    pub fn parse_lines(text: &str) -> Vec<Self> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value) => Self(value),
            Err(error) => panic!("a record is not JSON: {error}: {line}"),
        };
        text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
    }

    /// The text at a JSON pointer; empty if there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The number at a JSON pointer.
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.0.pointer(pointer).and_then(Value::as_u64)
    }

    /// Whether something was judged, in force or not.
    pub fn is_judgement(&self) -> bool {
        matches!(self.text("/type"), "decision" | "observation")
    }

    /// Whether it is the record of an attempt that the kernel numbered: a judgement by a hook, or the daemon's own test.
    pub fn has_number(&self) -> bool {
        let tested = self.text("/type") == "lifecycle" && self.text("/event") == "self-test";
        (self.is_judgement() || tested) && self.number("/kernel/sequence").is_some()
    }

    /// The ids of the policies that determined the verdict.
    pub fn policies(&self) -> Vec<&str> {
        let policies = self.0.pointer("/policies").and_then(Value::as_array).into_iter().flatten();
        policies.filter_map(|policy| policy.get("id")?.as_str()).collect()
    }

    /// The destinations that the endpoint is in, sorted: their order is not promised.
    pub fn groups(&self) -> Vec<&str> {
        let groups = self.0.pointer("/destination/groups").and_then(Value::as_array).into_iter().flatten();
        let mut groups: Vec<&str> = groups.filter_map(Value::as_str).collect();
        groups.sort_unstable();
        groups
    }

    /// Panics unless every member that the contract promises for a judgement is there.
    #[track_caller]
    pub fn assert_complete(&self) {
        let everywhere = ["id", "type", "time", "schema", "host", "agent_version"];
        let judgement = [
            "account",
            "verdict",
            "effective_mode",
            "action",
            "destination",
            "process",
            "policies",
            "policy_digest",
            "stance_digest",
            "risk",
            "signals",
            "request",
            "kernel",
            "reason_code",
            "errno",
        ];
        let missing = |names: &[&str]| -> Vec<String> {
            names.iter().filter(|name| self.0.get(name).is_none()).map(|name| (*name).to_owned()).collect()
        };
        assert_eq!(missing(&everywhere), Vec::<String>::new(), "members are missing in {self:?}");
        if self.is_judgement() {
            let mut absent = missing(&judgement);
            // A socket that is opened leads nowhere yet.
            absent.retain(|name| !(name == "destination" && self.text("/action") == "open-socket"));
            assert_eq!(absent, Vec::<String>::new(), "members are missing in {self:?}");
            for pointer in [
                "/host/id",
                "/host/boot_id",
                "/process/pid",
                "/process/start_time",
                "/process/executable",
                "/process/uid",
                "/process/euid",
                "/request/principal",
                "/request/action",
                "/request/resource",
                "/request/context",
                "/kernel/generation",
                "/kernel/cpu",
                "/kernel/sequence",
            ] {
                assert!(self.0.pointer(pointer).is_some(), "`{pointer}` is missing in {self:?}");
            }
        }
    }
}

/// A judgement in one line, as tests expect it: `deny tcp 127.0.0.1:80 EACCES`, `allow tcp 127.0.0.1:80 by to-web` or
/// `deny open-socket vsock EACCES`.
impl Display for Record {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.text("/type") == "observation" {
            write!(out, "observed ")?;
        }
        let port = self.number("/destination/port").unwrap_or_default();
        let (verdict, address) = (self.text("/verdict"), self.text("/destination/address"));
        if self.text("/action") == "open-socket" {
            write!(out, "{verdict} open-socket {}", self.text("/request/context/family"))?;
        } else {
            write!(out, "{verdict} {} {address}:{port}", self.text("/destination/protocol"))?;
        }
        if !self.text("/errno").is_empty() {
            write!(out, " {}", self.text("/errno"))?;
        }
        if !self.policies().is_empty() {
            write!(out, " by {}", self.policies().join("+"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judgement_reads_as_one_line() {
        let lines = concat!(
            r#"{"type":"decision","verdict":"deny","errno":"EACCES","policies":[],"#,
            r#""destination":{"address":"127.0.0.1","port":80,"protocol":"tcp"}}"#,
            "\n",
            r#"{"type":"observation","verdict":"allow","errno":null,"policies":[{"id":"to-web"}],"#,
            r#""destination":{"address":"::1","port":53,"protocol":"udp"}}"#,
            "\n"
        );
        let shown: Vec<String> = Record::parse_lines(lines).iter().map(Record::to_string).collect();
        assert_eq!(shown, ["deny tcp 127.0.0.1:80 EACCES", "observed allow udp ::1:53 by to-web"]);
    }
}
