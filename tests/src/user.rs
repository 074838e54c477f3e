//! The system users that play service accounts: made once, used again, never a person's.

use std::process::Command;

use nix::unistd::User;

/// The user of the account under test.
pub const SERVICE: &str = "writ-test";
/// A user that no account names.
pub const STRANGER: &str = "writ-stranger";

/// Uids from here on are those of accounts that a benchmark declares: no host has such users.
pub const BENCH_UIDS: u32 = 3_200_000;

/// The user with this name, made if there is none.
#[track_caller]
pub fn ensure(name: &str) -> User {
    if let Some(user) = find(name) {
        return user;
    }
    let made = Command::new("useradd")
        .args(["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"])
        .args(["--shell", "/usr/sbin/nologin", name])
        .output();
    match (made, find(name)) {
        (Ok(_), Some(user)) => user,
        (made, _) => panic!("cannot make the system user `{name}`: {made:?}"),
    }
}

/// A user that only its number names: no host has it.
pub fn numbered(uid: u32) -> User {
    User {
        name: uid.to_string(),
        passwd: Default::default(),
        uid: uid.into(),
        gid: uid.into(),
        gecos: Default::default(),
        dir: "/".into(),
        shell: "/bin/false".into(),
    }
}

fn find(name: &str) -> Option<User> {
    User::from_name(name).ok().flatten()
}
