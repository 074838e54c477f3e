//! Values written as text: durations, sizes, names, people, paths.

use std::time::Duration;

use super::fault::Fault;

/// The longest duration that can be written: beyond it, adding to a time of day would overflow before it meant anything.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Units of a duration, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// Parses `90s`, `1h 30m`, `7d`: whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, added up. Never zero.
pub fn duration(text: &str) -> Result<Duration, Fault> {
    let bad = |why: String| {
        Fault::new("bad-duration", why)
            .help("write whole numbers with `ms`, `s`, `m`, `h`, `d` or `w`, e.g. \"1h 30m\"")
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad(format!("`{text}` is not a duration")));
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let (digits, after) = split_digits(rest);
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, tail) = after.split_at_checked(unit_end).unwrap_or((after, ""));
        if digits.is_empty() {
            return Err(bad(format!("`{text}` is not a duration")));
        }
        let Some((_, milliseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(bad(match unit {
                "" => format!("`{text}` is not a duration: `{digits}` has no unit"),
                _ => format!("`{text}` is not a duration: unknown unit `{unit}`"),
            }));
        };
        total = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(*milliseconds))
            .and_then(|part| total.checked_add(part))
            .filter(|total| Duration::from_millis(*total) <= LONGEST)
            .ok_or_else(|| Fault::new("bad-duration", format!("`{text}` is longer than 100 years")))?;
        rest = tail.trim_start();
    }
    if total == 0 {
        return Err(Fault::new("bad-duration", format!("`{text}` is no time at all")));
    }
    Ok(Duration::from_millis(total))
}

/// Parses `16MiB`, `64 KiB`, `4096`: a whole number of bytes, or of `KiB`, `MiB`, `GiB`, `TiB`.
pub fn size(text: &str) -> Result<u64, Fault> {
    let bad =
        |why: String| Fault::new("bad-size", why).help("write bytes, or `KiB`, `MiB`, `GiB`, `TiB`, e.g. \"16MiB\"");
    let (digits, unit) = split_digits(text.trim());
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        // 16MB is 16,000,000 to some and 16,777,216 to others; a ring size would silently be off.
        other => return Err(bad(format!("`{text}` is not a size: unknown unit `{other}`"))),
    };
    if digits.is_empty() {
        return Err(bad(format!("`{text}` is not a size")));
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(1 << shift))
        .ok_or_else(|| bad(format!("`{text}` is too large")))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The longest name.
const NAME_LEN: usize = 64;

/// A name of an account, destination, team, attribute or signal kind: `[A-Za-z0-9._-]`, at most 64, not starting with `.`
/// or `-` (it stands on command lines and in paths).
pub(super) fn name(text: &str) -> Result<String, Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let why = match text.chars().find(|c| !allowed(*c)) {
        _ if text.is_empty() => "a name cannot be empty".to_owned(),
        Some(bad) => format!("`{text}` has a `{bad}`, which a name cannot have"),
        None if text.len() > NAME_LEN => {
            format!("`{text}` has {} characters; a name has at most {NAME_LEN}", text.len())
        }
        None if text.starts_with(['.', '-']) => format!("`{text}` starts with neither letter, digit nor `_`"),
        None => return Ok(text.to_owned()),
    };
    Err(Fault::new("bad-name", why).help("use letters, digits, `.`, `_` and `-`"))
}

/// A signal kind: names joined by single dots.
pub(super) fn kind(text: &str) -> Result<String, Fault> {
    let kind = name(text)?;
    if kind.split('.').any(str::is_empty) {
        return Err(Fault::new("bad-name", format!("`{kind}` has a dot with nothing on one side of it"))
            .help("write a signal kind as words joined by single dots, e.g. \"edr.malware\""));
    }
    Ok(kind)
}

/// A signal kind in which `*` stands for anything.
pub(super) fn pattern(text: &str) -> Result<String, Fault> {
    name(&text.replace('*', "x")).map(|_| text.to_owned()).map_err(|fault| {
        Fault::new("bad-pattern", format!("`{text}` is not a pattern of signal kinds"))
            .help(fault.help.map_or_else(String::new, |help| format!("{help}, and `*` for anything")))
    })
}

/// A user name, or a group name with `%` in front.
pub(super) fn person(text: &str) -> Result<String, Fault> {
    let bare = text.strip_prefix('%').unwrap_or(text);
    if bare.is_empty() || bare.starts_with('%') || bare.chars().any(|c| c.is_whitespace() || c.is_control() || c == ':')
    {
        return Err(Fault::new("bad-person", format!("`{text}` is neither a user nor a `%group`"))
            .help("write a user name, or a group name with `%` in front"));
    }
    Ok(text.to_owned())
}

/// Who may send a signal: a person, or a transmitter of security events as `ssf:ISSUER`.
pub(super) fn sender(text: &str) -> Result<String, Fault> {
    match text.strip_prefix(crate::signal::TRANSMITTER) {
        Some(issuer) if !issuer.is_empty() && !issuer.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            Ok(text.to_owned())
        }
        _ => person(text),
    }
}

/// Any text that says something.
pub(super) fn text(text: &str) -> Result<String, Fault> {
    if text.trim().is_empty() {
        Err(Fault::new("empty-value", "it is empty").help("leave it out"))
    } else {
        Ok(text.to_owned())
    }
}

/// An absolute path without `.` and `..`, slashes at the end taken off.
pub(super) fn path(text: &str) -> Result<String, Fault> {
    let bad = |why: &str| Fault::new("bad-path", format!("`{text}` {why}"));
    if !text.starts_with('/') {
        return Err(bad("is not an absolute path").help("start it with `/`"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("has a control character"));
    }
    let trimmed = text.trim_end_matches('/');
    // The kernel compares what a path leads to, or the path itself: `/usr/bin/../bin/x` would be one thing to a reader
    // and another to it.
    if trimmed.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad("is not in its plain form").help("write it without `.`, `..` and `//`"));
    }
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// The absolute path of a file.
pub(super) fn file(text: &str) -> Result<String, Fault> {
    if text.ends_with('/') {
        return Err(Fault::new("bad-path", format!("`{text}` is a directory, not a file")));
    }
    path(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        for (text, seconds) in
            [("90s", 90), ("1h", 3_600), ("1h 30m", 5_400), ("1h30m", 5_400), ("7d", 604_800), (" 2w ", 1_209_600)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["", " ", "90", "s", "1x", "-1h", "1.5h", "0s", "36501d", "99999999999999999999s", "1h,30m", "1H"] {
            assert_eq!(duration(text).unwrap_err().code, "bad-duration", "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        for (text, bytes) in [("4096", 4096), ("64KiB", 65_536), ("16 MiB", 16_777_216), ("1GiB", 1 << 30), ("1B", 1)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "16MB", "16M", "1.5MiB", "99999999TiB", "-1"] {
            assert_eq!(size(text).unwrap_err().code, "bad-size", "{text}");
        }
    }

    #[test]
    fn names_are_safe_on_command_lines_and_in_paths() {
        for good in ["billing", "edr.malware", "a", "_x", "9-lives", &"n".repeat(64)] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "..", ".hidden", "-v", "a b", "a/b", "ä", "a\n", &"n".repeat(65)] {
            assert_eq!(name(bad).unwrap_err().code, "bad-name", "{bad:?}");
        }
    }

    #[test]
    fn signal_kinds_are_words_joined_by_single_dots() {
        for (text, good) in [("edr", true), ("edr.malware", true), ("edr..malware", false), ("edr.", false)] {
            assert_eq!(kind(text).is_ok(), good, "{text}");
        }
        for (text, good) in [("workload.*", true), ("*", true), ("*.malware", true), ("", false), ("a b", false)] {
            assert_eq!(pattern(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(path("/run/writ/"), Ok("/run/writ".to_owned()));
        assert_eq!(path("/"), Ok("/".to_owned()));
        for bad in ["", "run", "/a/../b", "/a//b", "/./a", "/a\0b"] {
            assert_eq!(path(bad).unwrap_err().code, "bad-path", "{bad:?}");
        }
        assert_eq!(file("/usr/bin/").unwrap_err().code, "bad-path");
    }
}
