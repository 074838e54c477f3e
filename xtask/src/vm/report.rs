//! KERNELS.md: one row for each kernel that was tried, as its last run left it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::{command, read};
use crate::tally::Tally;

/// What a test says of the kernel it ran on.
const MARK: &str = "writ-kernel: ";
const BEGIN: &str = "<!-- rows: written by `cargo xtask vm` -->\n";
const END: &str = "<!-- end of rows -->";

/// Puts what a run said of its kernel into the table; a run that did not ask says nothing.
pub(crate) fn note(root: &Path, version: &str, release: &str, printed: &str, tally: &Tally) -> Result<()> {
    let Some(said) = printed.lines().find_map(|line| line.trim().strip_prefix(MARK)) else { return Ok(()) };
    let said: Value = serde_json::from_str(said).context("cannot read what a test said of its kernel")?;
    let day = read(command("date").args(["-u", "+%Y-%m-%d"]))?;
    let row = row(version, release, &said, &tally.summary(), day.trim());
    let path = root.join("KERNELS.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let text = with_row(&text, version, &row).context("KERNELS.md has no marked rows")?;
    fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

fn row(version: &str, release: &str, said: &Value, result: &str, day: &str) -> String {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let missing = said.get("missing").and_then(Value::as_object).into_iter().flatten();
    let missing: Vec<String> =
        missing.map(|(name, why)| format!("{name}: {}", why.as_str().unwrap_or_default())).collect();
    let (enforced, missing) = match said.get("refused").and_then(Value::as_str) {
        Some(why) => ("nothing: writ refuses to run".to_owned(), why.to_owned()),
        None => (
            said.get("coverage").map(list).unwrap_or_default().join(", "),
            if missing.is_empty() { "nothing".to_owned() } else { missing.join("; ") },
        ),
    };
    format!("| {version} | {release} | {enforced} | {missing} | {result} | {day} |\n")
}

/// The text with this kernel's row in place of its last one, rows in the order of their versions.
fn with_row(text: &str, version: &str, row: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (rows, tail) = rest.split_once(END)?;
    let own = format!("| {version} |");
    let mut rows: Vec<&str> = rows.split_inclusive('\n').filter(|line| !line.starts_with(&own)).collect();
    let (heading, mut rows) = (rows.drain(..2.min(rows.len())).collect::<String>(), rows);
    rows.push(row);
    let key = |row: &&str| -> Vec<u32> {
        let version = row.trim_start_matches("| ").split(' ').next().unwrap_or_default();
        version.split('.').filter_map(|number| number.parse().ok()).collect()
    };
    rows.sort_by_key(key);
    Some(format!("{head}{BEGIN}{heading}{}{END}{tail}", rows.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_takes_the_place_of_the_last_one_of_its_kernel() {
        let text = format!("before\n{BEGIN}| kernel |\n|---|\n| 6.12 | old |\n{END}\nafter");
        let text = with_row(&text, "6.12", "| 6.12 | new |\n").unwrap();
        let text = with_row(&text, "6.1", "| 6.1 | new |\n").unwrap();
        let rows = "| kernel |\n|---|\n| 6.1 | new |\n| 6.12 | new |\n";
        assert_eq!(text, format!("before\n{BEGIN}{rows}{END}\nafter"));
        assert_eq!(with_row("nothing", "6.1", ""), None);
    }

    #[test]
    fn a_row_says_what_is_enforced_and_what_falls_away() {
        let said = serde_json::json!({ "coverage": ["cgroup", "egress"], "missing": { "lsm": "why" } });
        let expected = "| 6.1 | 6.1.0 | cgroup, egress | lsm: why | 3 passed | 2026-01-02 |\n";
        assert_eq!(row("6.1", "6.1.0", &said, "3 passed", "2026-01-02"), expected);
        let refused = serde_json::json!({ "refused": "why" });
        assert!(row("5.10", "5.10.0", &refused, "", "").contains("| nothing: writ refuses to run | why |"));
    }
}
