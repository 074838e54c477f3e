//! A configuration directory written by a test, in the files and forms that an operator would use.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::user;

/// The account that every host has.
pub const ACCOUNT: &str = "tested";

/// What a test configures; the paths are the host's business.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Further lines of `writ.toml`, before its tables.
    pub agent: String,
    /// Further lines of `[paths]`.
    pub paths: String,
    /// Further lines of the account under test.
    pub account: String,
    /// Judge the test's own cgroup only, even where the machine is made to be judged as a whole.
    pub confined: bool,
    files: Vec<(String, String)>,
}

impl Config {
    /// An account and nothing it may do.
    pub fn new() -> Self {
        Self::default()
    }

    /// A destination that is one endpoint.
    #[must_use]
    pub fn destination(self, name: &str, at: SocketAddr) -> Self {
        let text = format!("[destination.{name}]\naddresses = [\"{}\"]\nports = [{}]\n", prefix(at), at.port());
        self.file(&format!("destinations.d/{name}.toml"), &text)
    }

    /// A policy file that permits the account one destination; `id` is the policy's and the file's name.
    #[must_use]
    pub fn permit(self, id: &str, destination: &str) -> Self {
        let text = format!(
            "@id(\"{id}\")\n@owner(\"tests\")\n@reason(\"the test needs it\")\npermit (\n  principal == \
             ServiceAccount::\"{ACCOUNT}\",\n  action == Action::\"connect\",\n  resource in \
             Destination::\"{destination}\"\n);\n"
        );
        self.file(&format!("policies.d/{id}.cedar"), &text)
    }

    /// Any file below the configuration directory; a later one with the same name replaces an earlier.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.retain(|(known, _)| known != name);
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Writes the directory. `paths` is the `[paths]` table, which depends on where the host keeps things.
    pub(crate) fn write(&self, directory: &Path, paths: &str) {
        let mut account = format!("[service-account.{ACCOUNT}]\nowner = \"tests@example.com\"\n");
        writeln!(account, "match = {{ user = \"{}\" }}\n{}", user::SERVICE, self.account).expect("cannot format");
        let own = [
            ("writ.toml".to_owned(), format!("{}\n{paths}{}", self.agent, self.paths)),
            (format!("service-accounts.d/{ACCOUNT}.toml"), account),
        ];
        // What a test took out must be gone, or it would still be in force.
        if directory.exists() {
            fs::remove_dir_all(directory).expect("cannot empty the configuration directory");
        }
        for part in ["service-accounts.d", "destinations.d", "policies.d", "signals.d", "schema.d"] {
            fs::create_dir_all(directory.join(part)).expect("cannot make the configuration directory");
        }
        for (name, text) in own.iter().chain(&self.files) {
            fs::write(directory.join(name), text).expect("cannot write a configuration file");
        }
    }
}

fn prefix(at: SocketAddr) -> String {
    format!("{}/{}", at.ip(), if at.is_ipv4() { 32 } else { 128 })
}
