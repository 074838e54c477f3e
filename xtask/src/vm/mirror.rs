//! Which Debian mirror to ask: the one this machine is configured for.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{command, read, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets Debian from.
pub(crate) struct Mirror {
    pub(crate) archive: String,
    security: String,
}

impl Mirror {
    /// What apt is configured for; it can be asked only if its lists have been fetched.
    pub(crate) fn configured() -> Result<Self> {
        Self::known().or_else(|_| {
            run(command("apt-get").args(["update", "-qq"]))?;
            Self::known()
        })
    }

    fn known() -> Result<Self> {
        let targets = read(command("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(SITE)",
            "Created-By: Packages",
        ]))?;
        let site = |label: &str| {
            let mut found = targets.lines().filter_map(|line| line.strip_prefix("Debian ")?.strip_prefix(label));
            found.next().map(|site| site.trim().to_owned())
        };
        let archive = site("Debian ").context("apt is configured for no Debian archive")?;
        let security = site("Debian-Security ").unwrap_or_else(|| format!("{archive}-security"));
        Ok(Self { archive, security })
    }

    /// One line of a sources list.
    fn source(&self, suite: &str) -> String {
        let site = if suite.ends_with("-security") { &self.security } else { &self.archive };
        format!("deb [signed-by={KEYRING}] {site} {suite} main\n")
    }
}

/// apt with its own lists and cache, for suites that this machine itself must not install from.
pub(crate) struct PrivateApt {
    directory: PathBuf,
}

impl PrivateApt {
    /// Fetches the lists of these suites into the directory.
    pub(crate) fn open(directory: PathBuf, suites: &[&str]) -> Result<Self> {
        let mirror = Mirror::configured()?;
        let sources: String = suites.iter().map(|suite| mirror.source(suite)).collect();
        let apt = Self { directory };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = apt.directory.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("cannot create `{}`", part.display()))?;
        }
        std::fs::write(apt.directory.join("sources.list"), sources).context("cannot write the sources list")?;
        run(apt.call("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    /// `apt-get` or `apt-cache` on the private directory.
    pub(crate) fn call(&self, program: &str) -> Command {
        let at = |part: &str| self.directory.join(part).display().to_string();
        let mut command = command(program);
        for option in [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // The unprivileged download user cannot write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}
