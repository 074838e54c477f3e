//! Subordinate uids (subuid(5)): uids that a user can give to processes of its own, so that these count as its own.

use std::collections::BTreeMap;

use writ_abi::MOST_SUBORDINATES;

/// A row of uids, and whose they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Subordinates {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// Who may take them.
    pub owner: u32,
}

impl Subordinates {
    /// Reads `/etc/subuid`; `users` are the names (and uids as text) that count, with their uids. What is no such line is
    /// left out, as shadow does. Of rows that overlap, what the first has is its own. The kernel takes the first
    /// `MOST_SUBORDINATES`.
    pub fn read(text: &str, users: &BTreeMap<String, u32>) -> Vec<Self> {
        let row = |line: &str| {
            let mut parts = line.split(':').map(str::trim);
            let (owner, first, count) = (parts.next()?, parts.next()?.parse::<u32>().ok()?, parts.next()?);
            let count: u64 = count.parse().ok().filter(|count| *count > 0)?;
            let last = u32::try_from(u64::from(first) + count - 1).unwrap_or(u32::MAX);
            Some(Self { first, last, owner: *users.get(owner)? })
        };
        let mut rows: Vec<Self> = text.lines().filter_map(row).collect();
        rows.sort();
        let mut apart: Vec<Self> = Vec::new();
        for row in rows {
            let first = match apart.last() {
                Some(before) if before.last >= row.last => continue,
                Some(before) => row.first.max(before.last + 1),
                None => row.first,
            };
            apart.push(Self { first, ..row });
        }
        apart
    }

    /// As the kernel's programs read them, two words a row, with their number in front.
    pub fn words(rows: &[Self]) -> Vec<u64> {
        let pair = |row: &Self| [u64::from(row.first) | u64::from(row.last) << 32, u64::from(row.owner)];
        let rows = rows.get(..MOST_SUBORDINATES as usize).unwrap_or(rows);
        std::iter::once(rows.len() as u64).chain(rows.iter().flat_map(pair)).collect()
    }

    /// Whose uid this is: of a row's owner, or of itself.
    pub fn owner_of(rows: &[Self], uid: u32) -> u32 {
        let before = rows.partition_point(|row| row.last < uid);
        rows.get(before).filter(|row| row.first <= uid).map_or(uid, |row| row.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subordinate_uid_is_its_owners_and_any_other_its_own() {
        let users = BTreeMap::from([("ci".to_owned(), 1001), ("1002".to_owned(), 1002)]);
        let text = "ci:100000:65536\nother:165536:65536\n1002:231072:10\n# ci:1:1\nci:4294967290:100\nci:5:0\nbroken\n";
        let rows = Subordinates::read(text, &users);
        let whose = |uid| Subordinates::owner_of(&rows, uid);
        assert_eq!((whose(99_999), whose(100_000), whose(165_535), whose(165_536)), (99_999, 1001, 1001, 165_536));
        assert_eq!((whose(231_081), whose(231_082), whose(u32::MAX), whose(5)), (1002, 231_082, 1001, 5));
    }

    #[test]
    fn rows_that_overlap_are_told_apart() {
        let users = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let rows = Subordinates::read("a:100:100\nb:150:100\nb:120:10\n", &users);
        let whose = |uid| Subordinates::owner_of(&rows, uid);
        assert_eq!((whose(125), whose(199), whose(200), whose(249), whose(250)), (1, 1, 2, 2, 250));
    }

    #[test]
    fn there_are_never_more_rows_than_the_kernel_looks_at() {
        let users = BTreeMap::from([("a".to_owned(), 1)]);
        let text: String = (0..MOST_SUBORDINATES + 5).map(|row| format!("a:{}:5\n", 100_000 + row * 10)).collect();
        let rows = Subordinates::read(&text, &users);
        let words = Subordinates::words(&rows);
        assert_eq!((words[0], words.len()), (MOST_SUBORDINATES.into(), 2 * MOST_SUBORDINATES as usize + 1));
    }
}
