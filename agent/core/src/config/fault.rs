//! What is wrong with one written value, before it is known where the value stands.

/// Why a value was refused, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Stable name of the kind of finding, kebab-case.
    pub code: &'static str,
    /// What is wrong: lower-case, names in backticks.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Fault {
    /// A value that cannot be used.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None }
    }

    /// Adds what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// "did you mean `x`?", or the whole choice where nothing is near.
pub(super) fn suggest<'a>(written: &str, choices: impl IntoIterator<Item = &'a str>) -> String {
    let choices: Vec<&str> = choices.into_iter().collect();
    match nearest(written, choices.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if choices.len() > MAX_LISTED => {
            format!("there are {} to choose from, none of them similar", choices.len())
        }
        None => {
            format!("one of: {}", choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", "))
        }
    }
}

/// More than this many choices are counted instead of listed.
const MAX_LISTED: usize = 24;

/// The choice a slip of the pen away from what was written, if there is one.
pub(crate) fn nearest<'a>(written: &str, choices: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    choices
        .into_iter()
        .map(|choice| (distance(written, choice), choice))
        // A quarter of the letters may differ: enough for a swap in a short word, too little for another word.
        .filter(|(distance, choice)| *distance <= 1 + choice.chars().count() / 4)
        .min()
        .map(|(_, choice)| choice)
}

/// How many letters must be put in, taken out or exchanged (Levenshtein), upper and lower case being the same.
pub(crate) fn distance(from: &str, to: &str) -> usize {
    // A long text is never a slip of a name, and the work grows with the product of both lengths.
    if from.len().max(to.len()) > 256 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (1..=to.chars().count()).collect();
    let mut last = row.len();
    for (index, left_letter) in from.chars().enumerate() {
        let (mut diagonal, mut left) = (index, index + 1);
        for (cell, right_letter) in row.iter_mut().zip(to.chars()) {
            let differs = usize::from(!left_letter.eq_ignore_ascii_case(&right_letter));
            let above = *cell;
            left = (diagonal + differs).min(above + 1).min(left + 1);
            (diagonal, *cell) = (above, left);
        }
        last = left;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_letter_edits() {
        for (from, to, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("mode", "mode", 0), ("moed", "mode", 2), ("tem", "team", 1)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_near_choice_is_suggested_and_a_far_one_is_not() {
        assert_eq!(suggest("moed", ["mode", "owner"]), "did you mean `mode`?");
        assert_eq!(suggest("colour", ["mode", "owner"]), "one of: `mode`, `owner`");
    }
}
