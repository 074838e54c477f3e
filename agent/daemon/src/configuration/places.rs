//! The paths a configuration names, as this host has them: directories that are somebody else's, programs that do not run.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use writ_core::config::Config;
use writ_core::diagnostic::Diagnostic;

/// Directories of `[paths]` that cannot be writ's own here: errors.
pub(super) fn misplaced(config: &Config, directory: &Path) -> Vec<Diagnostic> {
    let paths = &config.agent.paths;
    let mut findings = Vec::new();
    let own = [("state", Some(&paths.state)), ("log", Some(&paths.log)), ("drop", paths.drop.as_ref())];
    for (key, path) in own.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        if real(Path::new(path)) == real(directory) {
            let message = format!("`[paths]`: `{key}` is the configuration directory, `{path}`");
            let help = "give it a directory of its own: what writ writes there would be read as configuration";
            findings.push(Diagnostic::error("bad-path", message).help(help));
        }
    }
    if is_mount(Path::new(&paths.pins)) {
        let message = format!("`[paths]`: `pins` is a mount itself, `{}`, with the pins of others in it", paths.pins);
        let help = format!("name a directory below it, e.g. \"{}/writ\"", paths.pins.trim_end_matches('/'));
        findings.push(Diagnostic::error("bad-path", message).help(help));
    }
    findings
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Whether something is mounted at a path: it is on another device than what it lies in.
fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

/// A program of `on-escalation` that would not start.
pub(super) fn no_such_program(config: &Config) -> Option<Diagnostic> {
    let program = config.agent.on_escalation.first()?;
    let why = match fs::metadata(program) {
        Ok(found) if !found.is_file() => "is not a file",
        Ok(found) if found.permissions().mode() & 0o111 == 0 => "is not executable",
        Ok(_) => return None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist",
        // Whoever only checks may not be able to see it.
        Err(_) => return None,
    };
    let message = format!("`on-escalation`: `{program}` {why}: nobody is told of an escalation");
    Some(Diagnostic::warning("no-such-program", message).help("install it, make it executable, or correct the path"))
}

#[cfg(test)]
mod tests {
    use writ_core::config::{HostFacts, SourceFile, parse};

    use super::*;

    fn config(text: &str) -> Config {
        let file = SourceFile { name: "writ.toml".to_owned(), text: text.to_owned() };
        parse(&[file], &HostFacts::default()).config.unwrap()
    }

    #[test]
    fn state_and_log_are_not_the_configuration_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::os::unix::fs::symlink(path, path.join("link")).unwrap();
        for (key, written) in [("state", path.to_owned()), ("log", path.join("link")), ("drop", path.to_owned())] {
            let config = config(&format!("[paths]\n{key} = \"{}\"\n", written.display()));
            let found = misplaced(&config, path);
            assert_eq!(found.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["bad-path"], "{key}");
            assert!(found[0].message.contains(key));
        }
        assert_eq!(misplaced(&config(&format!("[paths]\nlog = \"{}/log\"\n", path.display())), path), []);
    }

    #[test]
    fn pins_are_not_a_mount_themselves() {
        assert!(is_mount(Path::new("/proc")));
        let found = misplaced(&config("[paths]\npins = \"/proc\"\n"), Path::new("/etc/writ"));
        assert!(found[0].message.contains("is a mount itself"), "{found:?}");
        assert!(!is_mount(Path::new("/proc/1")) && !is_mount(Path::new("/no/such/place")));
    }

    #[test]
    fn a_program_that_cannot_be_started_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tell");
        let found = || {
            let config = config(&format!("on-escalation = [\"{}\"]\n", program.display()));
            no_such_program(&config).map(|finding| (finding.code, finding.message))
        };
        let mode = |mode: u32| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        assert!(found().unwrap().1.contains("does not exist"));
        fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(0o644);
        assert!(found().unwrap().1.contains("is not executable"));
        mode(0o755);
        assert_eq!(found(), None);
        assert_eq!(no_such_program(&config("")), None);
    }
}
