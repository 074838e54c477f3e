//! Reading the files of a configuration directory, and who else could have written them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use writ_core::config::{DIRECTORIES, Role, SourceFile, role};
use writ_core::diagnostic::{Diagnostic, Location, Severity};

/// A larger file is a mistake, or somebody's attempt to fill the daemon's memory.
const MAX_FILE: u64 = 16 << 20;

const AGENT: &str = "writ.toml";

/// How deep misplaced files are looked for.
const MAX_DEPTH: usize = 3;

/// The files that were read and what was found on the way.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// In name order.
    pub(crate) sources: Vec<SourceFile>,
    /// Unreadable files, files others can write.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Reads every file of a configuration directory that has a role.
pub(crate) fn read(directory: &Path) -> Files {
    let mut files = Files::default();
    files.directory(directory, "", 0);
    files.sources.sort_by(|left, right| left.name.cmp(&right.name));
    files
}

/// Reads `writ.toml` alone, which says where everything is: a command that only speaks to the daemon needs no more.
pub(crate) fn read_agent(directory: &Path) -> Files {
    let mut files = Files::default();
    let path = directory.join(AGENT);
    if path.exists() {
        files.file(&path, AGENT.to_owned());
    }
    files
}

/// Reads the `*.cedar` files of a directory (`--policies DIR`), named as an operator would find them.
pub(crate) fn read_policies(directory: &Path) -> Files {
    let mut files = Files::default();
    let entries = files.entries(directory, "");
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if role(&format!("policies.d/{name}")) == Role::Policies {
            files.file(&path, path.display().to_string());
        }
    }
    let failed = files.diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    if files.sources.is_empty() && !failed {
        let message = format!("directory `{}` holds no `*.cedar` file", directory.display());
        let help = "name the directory that the policies are in: no policies would refuse everything";
        files.diagnostics.push(Diagnostic::error("no-policies", message).help(help));
    }
    files
}

impl Files {
    fn directory(&mut self, directory: &Path, below: &str, depth: usize) {
        for path in self.entries(directory, below) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = if below.is_empty() { name.into_owned() } else { format!("{below}/{name}") };
            // Other directories at the top are none of writ's: `--config-dir` may name one that holds more.
            if path.is_dir() {
                self.misnamed(&path, &name, depth);
                let ours = depth > 0 || name.ends_with(".d");
                if ours && depth < MAX_DEPTH && !name.starts_with('.') {
                    self.directory(&path, &name, depth + 1);
                }
            } else if depth == 0 && DIRECTORIES.iter().any(|(known, ..)| *known == name) {
                let message = format!("`{}` is not a directory: nothing in it is read", path.display());
                self.diagnostics.push(Diagnostic::error("unreadable", message).help("make it a directory of files"));
            } else if role(&name) != Role::Ignored {
                self.file(&path, name);
            }
        }
    }

    /// A directory that is called like a file.
    fn misnamed(&mut self, path: &Path, name: &str, depth: usize) {
        let start = Location { file: name.to_owned(), line: 1, column: 1, offset: 0, length: 0 };
        match role(name) {
            Role::Agent => {
                let message = format!("`{}` is a directory, not a file", path.display());
                let finding =
                    Diagnostic::error("unreadable", message).help("move it away, and write the settings there");
                self.diagnostics.push(finding.at(start));
            }
            Role::Ignored => {}
            _ if depth == 0 => {}
            _ => {
                let message = format!("`{name}` is a directory: nothing in it is in force");
                let help = "put the files into the directory above it";
                self.diagnostics.push(Diagnostic::warning("not-read", message).help(help).at(start));
            }
        }
    }

    /// The paths in a directory, sorted.
    fn entries(&mut self, directory: &Path, below: &str) -> Vec<PathBuf> {
        let shown = directory.display();
        let listed = fs::metadata(directory).and_then(|metadata| {
            self.writable(&metadata, &format!("directory `{shown}`"), None);
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()
        });
        match listed {
            Ok(mut paths) => {
                paths.sort();
                paths
            }
            Err(error) => {
                let finding = Diagnostic::error("unreadable", format!("cannot read directory `{shown}`: {error}"));
                let at_top = below.is_empty() && error.kind() == io::ErrorKind::NotFound;
                self.diagnostics.push(match at_top {
                    true => finding.help("`writ init` drafts a configuration; `--config-dir DIR` names another place"),
                    false => finding,
                });
                Vec::new()
            }
        }
    }

    fn file(&mut self, path: &Path, name: String) {
        let start = Location { file: name.clone(), line: 1, column: 1, offset: 0, length: 0 };
        let bytes = match open(path) {
            Ok((file, metadata)) => {
                self.writable(&metadata, &format!("`{}`", path.display()), Some(&start));
                contents(file)
            }
            Err(error) => Err(error),
        };
        let text = match bytes.map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes());
                let finding = Diagnostic::error("not-utf-8", format!("`{}` is not UTF-8", path.display()));
                self.diagnostics.push(
                    finding.help("save it as UTF-8, without other encodings").at(Location::of(&name, &text, valid, 0)),
                );
                return;
            }
            Err(error) => {
                let finding = Diagnostic::error("unreadable", format!("cannot read `{}`: {error}", path.display()));
                self.diagnostics.push(finding.at(start));
                return;
            }
        };
        // Editors that write a byte order mark do not count it as a column.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        self.sources.push(SourceFile { name, text });
    }

    /// Whoever can write the configuration decides what every account may do.
    fn writable(&mut self, metadata: &Metadata, shown: &str, at: Option<&Location>) {
        if !nix::unistd::geteuid().is_root() || !writable_by_others(metadata.mode(), metadata.gid()) {
            return;
        }
        let message = format!("{shown} can be written by others than its owner (mode {:o})", metadata.mode() & 0o7777);
        let finding = Diagnostic::warning("world-writable", message).help("`chmod go-w` it: who writes it decides");
        self.diagnostics.push(match at {
            Some(at) => finding.at(at.clone()),
            None => finding,
        });
    }
}

/// Whether a file's mode lets somebody write it who is neither its owner nor of root's group.
pub(crate) fn writable_by_others(mode: u32, gid: u32) -> bool {
    mode & 0o002 != 0 || (mode & 0o020 != 0 && gid != 0)
}

/// Opens a regular file, or what a link leads to; a FIFO would keep the daemon waiting for its writer.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((file, metadata))
}

fn contents(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 16MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory with these files, nobody else's to write.
    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            mode(&path, 0o600);
            mode(path.parent().unwrap(), 0o700);
        }
        directory
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(files: &Files) -> Vec<&str> {
        files.sources.iter().map(|source| source.name.as_str()).collect()
    }

    fn codes(files: &Files) -> Vec<&str> {
        files.diagnostics.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn files_with_a_role_are_read_in_name_order_and_others_are_not() {
        let directory = directory(&[
            ("writ.toml", b"\xef\xbb\xbfmode = \"observe\""),
            ("policies.d/b.cedar", b"b"),
            ("policies.d/a.cedar", b"a"),
            ("policies.d/a.cedar~", b"backup"),
            ("policies.d/.a.cedar.swp", b"\xff"),
            ("policies.d/team/deep.cedar", b"misplaced"),
            ("policy.d/typo.cedar", b"misplaced"),
            ("elsewhere/Cargo.toml", b"[package]"),
            ("README.md", b"\xff"),
        ]);
        let files = read(directory.path());
        let expected = [
            "policies.d/a.cedar",
            "policies.d/b.cedar",
            "policies.d/team/deep.cedar",
            "policy.d/typo.cedar",
            "writ.toml",
        ];
        assert_eq!(names(&files), expected);
        assert_eq!(files.sources[4].text, "mode = \"observe\"");
        assert_eq!(codes(&files), [""; 0]);
    }

    #[test]
    fn a_missing_directory_is_an_error_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let files = read(&directory.path().join("absent"));
        assert_eq!(codes(&files), ["unreadable"]);
        assert!(files.diagnostics[0].help.as_deref().unwrap().contains("writ init"));
    }

    #[test]
    fn a_file_that_is_not_utf_8_is_refused_where_it_stops_being_so() {
        let directory = directory(&[("signals.d/a.toml", b"a = 1\nb = \"\xff\"\n")]);
        let files = read(directory.path());
        let at = files.diagnostics[0].at.as_ref().unwrap();
        assert_eq!(
            (codes(&files), at.file.as_str(), at.line, at.column),
            (vec!["not-utf-8"], "signals.d/a.toml", 2, 6)
        );
        assert!(files.sources.is_empty());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let directory = directory(&[("policies.d/a.cedar", b"a")]);
        let fifo = directory.path().join("policies.d/fifo.cedar");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        symlink("nowhere", directory.path().join("policies.d/dangling.cedar")).unwrap();
        symlink("a.cedar", directory.path().join("policies.d/link.cedar")).unwrap();
        let files = read(directory.path());
        assert_eq!(names(&files), ["policies.d/a.cedar", "policies.d/link.cedar"]);
        assert_eq!(codes(&files), ["unreadable"; 2]);
    }

    #[test]
    fn a_file_too_large_to_be_configuration_is_refused() {
        let directory = directory(&[("policies.d/a.cedar", b"")]);
        let path = directory.path().join("policies.d/a.cedar");
        File::options().write(true).open(path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert_eq!(codes(&read(directory.path())), ["unreadable"]);
    }

    #[test]
    fn only_owner_and_root_should_write() {
        for (bits, gid, others) in
            [(0o644, 0, false), (0o664, 0, false), (0o664, 1000, true), (0o646, 0, true), (0o755, 5, false)]
        {
            assert_eq!(writable_by_others(bits, gid), others, "{bits:o} {gid}");
        }
        let directory = directory(&[("writ.toml", b"")]);
        mode(&directory.path().join("writ.toml"), 0o666);
        // Anyone else cannot know who should own it, and is only checking.
        let expected: &[&str] = if nix::unistd::geteuid().is_root() { &["world-writable"] } else { &[] };
        assert_eq!(codes(&read(directory.path())), expected);
    }

    #[test]
    fn a_directory_that_is_called_like_a_file_is_reported() {
        let directory = directory(&[("policies.d/q.cedar/p.cedar", b"forbid"), ("elsewhere.toml/x", b"")]);
        let files = read(directory.path());
        assert_eq!(codes(&files), ["not-read"]);
        assert!(files.diagnostics[0].message.contains("policies.d/q.cedar"));
        fs::create_dir(directory.path().join("writ.toml")).unwrap();
        let files = read(directory.path());
        assert_eq!(codes(&files), ["not-read", "unreadable"]);
        assert_eq!(files.diagnostics[1].severity, Severity::Error);
    }

    #[test]
    fn a_file_or_a_broken_link_in_the_place_of_a_directory_is_an_error() {
        let directory = directory(&[("policies.d", b"forbid"), ("notes.d", b"")]);
        symlink("nowhere", directory.path().join("signals.d")).unwrap();
        assert_eq!(codes(&read(directory.path())), ["unreadable", "unreadable"]);
    }

    #[test]
    fn a_directory_of_policies_without_a_policy_file_is_an_error() {
        let directory = directory(&[("writ.toml", b""), ("p.cedar.bak", b"forbid")]);
        let files = read_policies(directory.path());
        assert_eq!(codes(&files), ["no-policies"]);
        assert!(files.diagnostics[0].message.contains(&directory.path().display().to_string()));
    }

    #[test]
    fn a_directory_of_policies_is_read_by_itself() {
        let directory = directory(&[("b.cedar", b"b"), ("a.cedar", b"a"), ("writ.toml", b""), (".x.cedar", b"")]);
        let files = read_policies(directory.path());
        let expected = ["a.cedar", "b.cedar"].map(|name| directory.path().join(name).display().to_string());
        assert_eq!(names(&files), expected);
    }
}
