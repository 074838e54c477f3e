//! The house rules that no lint knows: how files open and how long they are, where aya and unsafe may appear, who depends
//! on whom.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{self, command, read};
use crate::workspace;

const LONGEST_FILE: usize = 500;
/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// The only place in the agent that names aya.
const KERNEL: &str = "agent/daemon/src/kernel/";
/// Where unsafe code may be: the kernel programs, the one module that talks to the kernel, the techniques (which are system
/// calls that no safe interface offers, and do not run in the daemon), and the test harness.
const UNSAFE: &[&str] = &["ebpf/programs/", KERNEL, "agent/techniques/", "tests/"];

/// Crates that are the product, which xtask must build without knowing.
const PRODUCT: &[&str] = &["writ", "writ-abi", "writ-core", "writ-programs", "writ-techniques"];

/// Text files that people write.
const TEXT: &[&str] =
    &["cedar", "cedarschema", "conf", "j2", "json", "md", "rs", "service", "sh", "socket", "toml", "yaml", "yml"];

/// One broken rule.
#[derive(PartialEq, Eq, Debug)]
struct Finding {
    file: String,
    line: usize,
    rule: &'static str,
}

impl Display for Finding {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// Checks every file that git knows or would know.
pub(crate) fn tidy() -> Result<()> {
    let listed = read(command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let mut findings = Vec::new();
    for file in listed.lines() {
        let path = workspace::root().join(file);
        let extension = Path::new(file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        // A file deleted but not yet committed is still listed; fixtures are whatever their test needs.
        if !TEXT.contains(&extension) || !path.is_file() || file.contains("/fixtures/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{file}`"))?;
        whitespace(file, &text, &mut findings);
        if extension == "rs" {
            source(file, &text, &mut findings);
        }
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    for (file, reason) in LONG_FILES {
        if !workspace::root().join(file).is_file() {
            bail!("`{file}` is excused from the length limit ({reason}) and does not exist");
        }
    }
    if !findings.is_empty() {
        bail!("{} breaches of the house rules", findings.len());
    }
    dependencies()
}

fn whitespace(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let mut add = |line, rule| findings.push(Finding { file: file.to_owned(), line, rule });
    for (number, line) in (1..).zip(text.lines()) {
        if line.ends_with([' ', '\t']) {
            add(number, "white space at the end of the line");
        }
    }
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        add(text.lines().count(), "a file ends with one line break");
    }
}

fn source(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let mut add = |line, rule| findings.push(Finding { file: file.to_owned(), line, rule });
    if !text.starts_with("//! ") {
        add(1, "a source file opens with one `//!` sentence that says what it is for");
    }
    if text.lines().count() > LONGEST_FILE && !LONG_FILES.iter().any(|(long, _)| *long == file) {
        add(LONGEST_FILE, "longer than 500 lines: split it, or list it with a reason in xtask/src/tidy.rs");
    }
    for (number, line) in (1..).zip(text.lines()) {
        let code = code(line);
        if file.starts_with("agent/") && !file.starts_with(KERNEL) && names_aya(&code) {
            add(number, "only agent/daemon/src/kernel/ may name aya");
        }
        if words(&code).any(|word| word == "unsafe") && !UNSAFE.iter().any(|place| file.starts_with(place)) {
            add(
                number,
                "unsafe code belongs in ebpf/programs, agent/daemon/src/kernel, agent/techniques or the test harness",
            );
        }
    }
}

/// The line without its comment and without what stands in string literals (those on one line, which is what occurs).
fn code(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut in_string = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if in_string => drop(characters.next()),
            // `'"'` is a character, not the beginning of a string.
            '"' if !(code.ends_with('\'') && characters.peek() == Some(&'\'')) => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => code.push(character),
        }
    }
    code
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
}

fn names_aya(code: &str) -> bool {
    words(code).any(|word| word == "aya" || word.starts_with("aya_"))
}

/// xtask builds the product and so must build without it.
fn dependencies() -> Result<()> {
    let metadata = read(process::cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cannot read cargo's metadata")?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("cargo's metadata lists no packages")?;
    let name = |value: &Value| value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    for package in packages {
        let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        for dependency in dependencies.map(name) {
            match name(package).as_str() {
                "xtask" if PRODUCT.contains(&dependency.as_str()) => {
                    bail!("xtask depends on `{dependency}`; it must build without the product");
                }
                package if dependency == "writ" => {
                    bail!("`{package}` depends on the daemon, and nothing may");
                }
                "writ-abi" | "writ-core" if dependency.starts_with("aya") => {
                    bail!("`{dependency}` belongs to the daemon's kernel module and the kernel programs alone");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(file: &str, text: &str) -> Vec<(usize, &'static str)> {
        let mut findings = Vec::new();
        whitespace(file, text, &mut findings);
        source(file, text, &mut findings);
        findings.into_iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn a_tidy_file_has_no_findings() {
        let text = "//! Says hello.\n\n// aya and unsafe are words here\nfn f() -> &'static str { \"unsafe aya\" }\n";
        assert_eq!(rules("agent/core/src/a.rs", text), []);
    }

    #[test]
    fn aya_stays_in_the_kernel_module() {
        let text = "//! Loads.\nuse aya::Ebpf;\n";
        assert_eq!(rules("agent/daemon/src/kernel/load.rs", text), []);
        assert_eq!(rules("agent/daemon/src/load.rs", text).len(), 1);
        assert_eq!(rules("agent/daemon/src/load.rs", "//! Loads.\nuse aya_obj::Btf;\n").len(), 1);
    }

    #[test]
    fn unsafe_stays_behind_its_fence() {
        let text = "//! Reads.\nfn f() { unsafe { g() } }\n";
        assert_eq!(rules("ebpf/programs/src/a.rs", text), []);
        assert_eq!(rules("agent/core/src/a.rs", text).len(), 1);
        assert_eq!(rules("agent/core/src/a.rs", "//! Forbids.\n#![forbid(unsafe_code)]\n"), []);
    }

    #[test]
    fn form_is_checked() {
        assert_eq!(rules("xtask/src/a.rs", "fn f() {} \n").len(), 2);
        assert_eq!(rules("xtask/src/a.rs", "//! Ends badly.").len(), 1);
        let long = format!("//! Long.\n{}", "fn f() {}\n".repeat(LONGEST_FILE));
        assert_eq!(rules("xtask/src/a.rs", &long).len(), 1);
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        assert_eq!(code(r#"let a = "x // \" y"; // z"#), "let a = ; ");
        assert_eq!(code(r#"f('"', b)"#), r#"f('"', b)"#);
    }
}
