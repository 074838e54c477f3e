//! What came of one attempt: it went through, the kernel stopped it at some call, or it could not even be tried.

use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Why an attempt did not go through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The kernel refused a call that the technique consists of.
    Stopped {
        /// The call.
        call: &'static str,
        /// What the kernel answered.
        errno: Errno,
    },
    /// Something the technique needs first could not be had; nothing was tried.
    Broken(String),
}

/// The result of an attempt: `Ok` if every call succeeded.
pub type Tried<T = ()> = Result<T, Failure>;

/// Names the call that a result comes from.
pub(crate) fn call<T>(name: &'static str, result: io::Result<T>) -> Tried<T> {
    result.map_err(|error| Failure::Stopped { call: name, errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)) })
}

/// Names the step of the preparation that a result comes from.
pub(crate) fn prepare<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Tried<T> {
    result.map_err(|error| Failure::Broken(format!("{what}: {error}")))
}

/// What a process that tried says to whoever started it, as one line of JSON.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The call the kernel stopped; absent if all went through.
    pub call: Option<String>,
    /// What the kernel answered to it, e.g. `EACCES`.
    pub errno: Option<String>,
    /// Why nothing could be tried.
    pub broken: Option<String>,
    /// Processes that acted, this one first.
    pub pids: Vec<u32>,
    /// How often it was tried, where it was repeated.
    pub attempts: u64,
}

impl Answer {
    /// Puts a result into words.
    pub fn new(tried: &Tried, pids: Vec<u32>) -> Self {
        let mut answer = Self { pids, attempts: 1, ..Self::default() };
        match tried {
            Ok(()) => {}
            Err(Failure::Stopped { call, errno }) => {
                answer.call = Some((*call).to_owned());
                answer.errno = Some(format!("{errno:?}"));
            }
            Err(Failure::Broken(why)) => answer.broken = Some(why.clone()),
        }
        answer
    }

    /// Whether every call succeeded.
    pub fn went_through(&self) -> bool {
        self.errno.is_none() && self.broken.is_none()
    }

    /// The answer that a process printed: the last line of it that is one.
    ///
    /// # Errors
    /// There is none.
    pub fn from_json(printed: &str) -> Result<Self, String> {
        let answers = printed.lines().rev().filter_map(|line| serde_json::from_str(line).ok());
        answers.into_iter().next().ok_or_else(|| "no answer is in it".to_owned())
    }

    /// The result, as the process that printed it had it; the call it names is no more known.
    pub(crate) fn into_tried(self) -> Tried {
        if let Some(why) = self.broken {
            return Err(Failure::Broken(why));
        }
        match self.errno {
            None => Ok(()),
            Some(name) => {
                // The numbers of errors are the kernel's own, below 134 everywhere.
                let errno = (1..134).map(Errno::from_raw).find(|errno| format!("{errno:?}") == name);
                Err(Failure::Stopped { call: "a call of the program", errno: errno.unwrap_or(Errno::UnknownErrno) })
            }
        }
    }
}
