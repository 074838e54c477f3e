//! The accounts that a process belongs to, found from outside: the same clauses as the programs follow, on the host's names.

use std::collections::BTreeMap;

use writ_abi::{CGROUP_PATH_LEN, Clause, ClauseList, PathHash, PathWalk, View};

use super::Identities;

/// What can be seen of a process, or of a socket, from outside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Views {
    /// Uids, each with the view that it is (see [`View`]).
    pub uids: Vec<(u32, u32)>,
    /// Paths of cgroups below the root of the hierarchy, each with its view.
    pub cgroups: Vec<(String, u32)>,
    /// What it runs: device (kernel encoding) and inode.
    pub executable: Option<(u32, u64)>,
    /// What its ancestors run.
    pub lineage: Vec<(u32, u64)>,
}

impl Identities {
    /// The accounts that these views lead to, with the views that did.
    pub fn accounts(&self, views: &Views) -> BTreeMap<u16, u32> {
        let selectors: Vec<u32> = views
            .uids
            .iter()
            .filter_map(|(uid, _)| self.users.get(uid))
            .map(|(selector, _)| *selector)
            .filter(|selector| *selector != 0)
            .collect();
        let class = self.class_of(views.executable);
        let mut lists: Vec<(u32, u32)> = Vec::new();
        lists.extend(views.uids.iter().filter_map(|(uid, view)| Some((self.users.get(uid)?.1, *view))));
        lists.extend(views.cgroups.iter().map(|(path, view)| (self.list_of_cgroup(path), *view)));
        let runs = |file: &(u32, u64)| self.executables.get(file).map(|(_, list)| *list);
        lists.extend(views.executable.as_ref().and_then(runs).map(|list| (list, View::EXECUTABLE)));
        lists.extend(views.lineage.iter().filter_map(runs).map(|list| (list, View::LINEAGE)));
        let mut found = BTreeMap::new();
        for (list, view) in lists.into_iter().filter(|(list, _)| *list != 0) {
            for account in self.follow(list, &selectors, class) {
                *found.entry(account).or_insert(0) |= view;
            }
        }
        found
    }

    /// The class of an executable; 0 is `unlisted`.
    pub fn class_of(&self, executable: Option<(u32, u64)>) -> u32 {
        executable.and_then(|file| self.executables.get(&file)).map_or(0, |(class, _)| *class)
    }

    fn follow(&self, list: u32, selectors: &[u32], class: u32) -> Vec<u16> {
        if let Some(account) = ClauseList(list).account() {
            return vec![account];
        }
        let first = list as usize;
        let length = self.clauses.get(first).copied().unwrap_or(0) as usize;
        let clauses = self.clauses.get(first + 1..first + 1 + length).unwrap_or(&[]);
        let holds = |clause: &Clause| {
            (clause.user() == 0 || selectors.contains(&clause.user()))
                && (clause.executable() == 0 || clause.executable() == class)
        };
        clauses.iter().map(|clause| Clause(*clause)).filter(holds).map(Clause::account).collect()
    }

    /// The list of a cgroup: its own, or that of its nearest ancestor that has one.
    fn list_of_cgroup(&self, path: &str) -> u32 {
        let mut path = path;
        loop {
            let walk = PathWalk::over(path.as_bytes());
            let unit = || {
                let name = path.rsplit('/').next().filter(|_| walk.below_slices == 1)?;
                debug_assert_eq!(walk.unit, PathHash::of(name.as_bytes()));
                self.units.get(name)
            };
            let own = self.cgroups.get(path).or_else(unit).filter(|_| path.len() <= CGROUP_PATH_LEN);
            match (own, path.rsplit_once('/')) {
                (Some(list), _) => return *list,
                (None, Some((parent, _))) if !parent.is_empty() => path = parent,
                (None, Some(("", rest))) if !rest.is_empty() => path = "/",
                _ => return 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Account 1 by uid 10; 2 by unit; 3 by cgroup and uid 10; 4 by executable; 5 by uid 11 running that executable.
    fn identities() -> Identities {
        Identities {
            subordinates: Vec::new(),
            users: BTreeMap::from([(10, (1, ClauseList::direct(1).0)), (11, (2, 4))]),
            units: BTreeMap::from([("job.service".into(), ClauseList::direct(2).0)]),
            cgroups: BTreeMap::from([("/apps".into(), 1)]),
            executables: BTreeMap::from([((8, 99), (7, ClauseList::direct(4).0))]),
            clauses: vec![0, 1, Clause::new(3, 1, 0).0, 0, 1, Clause::new(5, 0, 7).0],
        }
    }

    fn of(views: Views) -> Vec<(u16, u32)> {
        identities().accounts(&views).into_iter().collect()
    }

    #[test]
    fn every_view_leads_to_its_accounts() {
        let uids = |uid| vec![(uid, View::UID)];
        let cgroup = |path: &str| vec![(path.to_owned(), View::CGROUP)];
        assert_eq!(of(Views::default()), []);
        assert_eq!(of(Views { uids: uids(10), ..Views::default() }), [(1, View::UID)]);
        assert_eq!(
            of(Views { cgroups: cgroup("/system.slice/job.service/x"), ..Views::default() }),
            [(2, View::CGROUP)]
        );
        // Below anything but slices the name is somebody else's to give.
        assert_eq!(of(Views { cgroups: cgroup("/box/job.service"), ..Views::default() }), []);
        assert_eq!(of(Views { lineage: vec![(8, 99)], ..Views::default() }), [(4, View::LINEAGE)]);
        assert_eq!(of(Views { uids: vec![(10, View::SOCKET_UID)], ..Views::default() }), [(1, View::SOCKET_UID)]);
    }

    #[test]
    fn a_clause_holds_only_with_all_it_names() {
        let cgroup = || vec![("/apps/web".to_owned(), View::CGROUP)];
        assert_eq!(of(Views { cgroups: cgroup(), ..Views::default() }), []);
        let both = Views { cgroups: cgroup(), uids: vec![(10, View::EUID)], ..Views::default() };
        assert_eq!(of(both), [(1, View::EUID), (3, View::CGROUP)]);
        assert_eq!(of(Views { uids: vec![(11, View::UID)], ..Views::default() }), []);
        let runs = Views { uids: vec![(11, View::UID)], executable: Some((8, 99)), ..Views::default() };
        assert_eq!(of(runs), [(4, View::EXECUTABLE), (5, View::UID)]);
    }
}
