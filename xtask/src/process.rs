//! Running other programs: what is run is printed first, and what fails is named.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Says what is about to happen.
pub(crate) fn say(text: &str) {
    println!("==> {text}");
}

/// A command that runs at the repository's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    command
}

/// The cargo that runs this program, so that one toolchain does everything. It builds into the repository's own target
/// directory whatever the environment says, because the documented paths name that one.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(program);
    command.env("CARGO_TARGET_DIR", workspace::target());
    // What cargo says about xtask itself: `ring` would be built anew, and all that needs it, for each who asks.
    for (name, _) in std::env::vars_os() {
        let about_us =
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if about_us {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words: Vec<String> = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value
            && key != "CARGO_TARGET_DIR"
        {
            words.push(format!("{}={}", key.to_string_lossy(), value.to_string_lossy()));
        }
    }
    let program = Path::new(command.get_program());
    let name = program.file_name().map_or(program.to_string_lossy(), OsStr::to_string_lossy);
    words.push(if program.starts_with(workspace::root()) { program.display().to_string() } else { name.into_owned() });
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a command in the open; its failure is ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    println!("    $ {line}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command unseen and gives back what it printed, whether or not it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let line = shown(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{line}`"))
}

/// Runs a command unseen and gives back its standard output; its failure is ours, with what it said.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = output(command)?;
    if !output.status.success() {
        bail!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program can be found on the search path.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(program).is_file()))
}
