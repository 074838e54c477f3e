//! The stock `cedar` command, which writ did not build, asked the same questions.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use writ_core::record::Verdict;
use writ_core::replay::files::{Answer, agrees};
use writ_core::replay::{Archived, Attempt};

/// What the command prints where a policy's condition fails; its exit code does not tell.
const FAILED_CONDITION: &str = "error while evaluating policy";

/// The command, and the directory its files are written to.
pub(super) struct Cedar {
    program: PathBuf,
    directory: PathBuf,
    /// Removed with this, unless the files are for somebody to look at afterwards.
    temporary: Option<TempDir>,
    /// Which policy sets are written already.
    sets: Mutex<HashMap<String, PathBuf>>,
}

impl Cedar {
    /// Finds the command; the files go to `files`, or to a directory that is removed afterwards.
    pub(super) fn find(program: Option<&Path>, files: Option<&Path>) -> anyhow::Result<Self> {
        let program = program.map_or_else(|| PathBuf::from("cedar"), Path::to_owned);
        let version = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
        let version = version.with_context(|| {
            format!(
                "cannot run `{}`; `cargo install cedar-policy-cli --version 4.14.1 --locked` makes it",
                program.display()
            )
        })?;
        if !version.status.success() {
            bail!("`{} --version` failed: {}", program.display(), String::from_utf8_lossy(&version.stderr).trim());
        }
        let (directory, temporary) = match files {
            Some(files) => {
                fs::create_dir_all(files).with_context(|| format!("cannot make {}", files.display()))?;
                (files.to_owned(), None)
            }
            None => {
                let temporary = tempfile::Builder::new().prefix("writ-replay-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        Ok(Self { program, directory, temporary, sets: Mutex::default() })
    }

    /// Asks about one record that policy decided; `None` if it is not a question for Cedar.
    ///
    /// # Errors
    /// How the answer differs, or why there is none.
    pub(super) fn ask(&self, set: &Archived, attempt: &Attempt<'_>) -> Result<Option<Answer>, String> {
        let Some(question) = set.question(attempt) else { return Ok(None) };
        let policies = self.write_set(set, &attempt.policy_digest).map_err(|error| format!("{error:#}"))?;
        let name = |part: &str| self.directory.join(format!("{}.{part}.json", safe(&attempt.id)));
        let (request, entities) = (name("request"), name("entities"));
        fs::write(&request, question.request.to_string()).map_err(|error| error.to_string())?;
        fs::write(&entities, question.entities.to_string()).map_err(|error| error.to_string())?;
        let enforced = self.run(&policies, "enforced.cedar", &request, &entities)?;
        self.compare("verdict", attempt.verdict, &attempt.reason_code, &enforced)?;
        if let Some(would) = &attempt.would {
            let all = self.run(&policies, "policies.cedar", &request, &entities)?;
            self.compare("would.verdict", would.verdict, if all.errs { "policy-error" } else { "policy" }, &all)?;
        }
        if self.temporary.is_some() {
            let _ = fs::remove_file(&request);
            let _ = fs::remove_file(&entities);
        }
        Ok(Some(enforced))
    }

    fn compare(&self, what: &str, recorded: Verdict, code: &str, answer: &Answer) -> Result<(), String> {
        if agrees(recorded, code, answer) {
            return Ok(());
        }
        let said = if answer.allows { "ALLOW" } else { "DENY" };
        let errs = if answer.errs { " with a failing condition" } else { "" };
        Err(format!("{what}: recorded {} ({code}), `{}` says {said}{errs}", recorded.name(), self.program.display()))
    }

    fn write_set(&self, set: &Archived, digest: &str) -> anyhow::Result<PathBuf> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(directory) = sets.get(digest) {
            return Ok(directory.clone());
        }
        let directory = self.directory.join(safe(digest));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("enforced.cedar"), set.policies(false))?;
        fs::write(directory.join("policies.cedar"), set.policies(true))?;
        fs::write(directory.join("schema.cedarschema"), set.schema())?;
        sets.insert(digest.to_owned(), directory.clone());
        Ok(directory)
    }

    fn run(&self, set: &Path, policies: &str, request: &Path, entities: &Path) -> Result<Answer, String> {
        let mut command = Command::new(&self.program);
        command.args(["authorize", "--schema-format", "cedar"]);
        command.arg("--schema").arg(set.join("schema.cedarschema")).arg("--policies").arg(set.join(policies));
        command.arg("--request-json").arg(request).arg("--entities").arg(entities).stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("cannot run `{}`: {error}", self.program.display()))?;
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).concat();
        match output.status.code() {
            Some(code @ (0 | 2)) => Ok(Answer { allows: code == 0, errs: said.contains(FAILED_CONDITION) }),
            code => Err(format!("`{}` ended with {code:?}: {}", self.program.display(), said.trim())),
        }
    }
}

/// A name from a record as a file name: a record that was tampered with must not lead out of the directory.
fn safe(name: &str) -> String {
    name.chars().map(|char| if char.is_ascii_alphanumeric() || char == '-' { char } else { '_' }).collect()
}
