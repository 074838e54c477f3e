//! Who holds which sockets, and every view of a process that can lead to an account: read from `/proc`.

use std::collections::{HashMap, HashSet};
use std::fs;

use writ_abi::View;
use writ_core::table::Views;

use super::lineage::lineage;
use super::table::cgroup_of;
use crate::kernel::user_namespace_owners;

/// The processes that hold these sockets, by the sockets' inodes: each process once for each socket.
pub(crate) fn holders(inodes: &HashSet<u32>) -> HashMap<u32, Vec<u32>> {
    let mut found: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends meanwhile holds nothing.
        for entry in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else { continue };
            let holding = found.entry(inode).or_default();
            if !holding.contains(&pid) {
                holding.push(pid);
            }
        }
    }
    found
}

/// Every view of a process, its threads' uids included.
pub(crate) fn views(pid: u32) -> Views {
    let mut uids = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let Some(line) = status.lines().find_map(|line| line.strip_prefix("Uid:")) else { continue };
        let mut numbers = line.split_ascii_whitespace().map_while(|number| number.parse::<u32>().ok());
        for view in [View::UID, View::EUID] {
            let Some(uid) = numbers.next() else { break };
            if !uids.iter().any(|(known, _)| *known == uid) {
                uids.push((uid, view));
            }
        }
    }
    uids.extend(user_namespace_owners(pid).into_iter().map(|uid| (uid, View::USER_NAMESPACE)));
    let lineage = lineage(pid);
    let mut lineage = lineage.iter().filter_map(|process| process.executable);
    Views {
        uids,
        cgroups: cgroup_of(pid).map(|path| (path, View::CGROUP)).into_iter().collect(),
        executable: lineage.next(),
        lineage: lineage.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_socket_of_our_own_is_ours() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (pid, descriptor) = (std::process::id(), socket.as_raw_fd());
        let inode = fs::metadata(format!("/proc/self/fd/{descriptor}")).unwrap().ino() as u32;
        let found = holders(&HashSet::from([inode]));
        // A child that another test starts has it too, until its exec.
        assert_eq!(found.get(&inode).map(|held| held.iter().filter(|holder| **holder == pid).count()), Some(1));
        let views = views(pid);
        assert_eq!(views.uids.first(), Some(&(nix::unistd::getuid().as_raw(), View::UID)));
        assert!(views.executable.is_some() && !views.lineage.is_empty() && views.cgroups.len() == 1);
    }
}
