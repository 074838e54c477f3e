//! Where the running kernel keeps its fields: offsets from its own type information (BTF, Documentation/bpf/btf.rst).
//!
//! aya's BTF types cannot be walked from outside it, and the one crate that can is LGPL; this reads just what is needed.

use std::collections::HashMap;

use writ_abi::{SocketOffsets, TaskOffsets};

/// The kernel's type information.
pub(super) struct Btf<'a> {
    data: &'a [u8],
    strings: usize,
    types: Vec<usize>,
    structs: HashMap<&'a str, usize>,
}

/// Type information that could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// The data ends early or is not BTF.
    #[error("kernel type information is damaged at byte {0}")]
    Damaged(usize),
    /// A structure or member is not there.
    #[error("this kernel has no `{0}.{1}`")]
    Missing(&'static str, &'static str),
}

const MAGIC: u32 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

impl<'a> Btf<'a> {
    /// Indexes the raw data of `/sys/kernel/btf/vmlinux`.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let word = |at: usize| word(data, at);
        if word(0)? & 0xffff != MAGIC {
            return Err(BtfError::Damaged(0));
        }
        let header = word(4)? as usize;
        let first = header + word(8)? as usize;
        let end = first + word(12)? as usize;
        let strings = header + word(16)? as usize;
        let mut btf = Self { data, strings, types: vec![0], structs: HashMap::new() };
        let mut at = first;
        while at < end {
            let info = word(at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            btf.types.push(at);
            if kind == STRUCT {
                let name = btf.string(word(at)?)?;
                btf.structs.entry(name).or_insert(at);
            }
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,                         // int, var, declaration tag
                    3 => 12,                                  // array
                    STRUCT | UNION | 15 | 19 => 12 * members, // and data section, 64-bit enum
                    6 | 13 => 8 * members,                    // enum, function prototype
                    _ => 0,
                };
        }
        Ok(btf)
    }

    fn string(&self, offset: u32) -> Result<&'a str, BtfError> {
        let start = self.strings + offset as usize;
        let tail = self.data.get(start..).ok_or(BtfError::Damaged(start))?;
        let length = tail.iter().position(|byte| *byte == 0).ok_or(BtfError::Damaged(start))?;
        tail.get(..length).and_then(|name| std::str::from_utf8(name).ok()).ok_or(BtfError::Damaged(start))
    }

    /// The type behind typedefs and qualifiers.
    fn stripped(&self, mut id: u32) -> Result<usize, BtfError> {
        for _ in 0..32 {
            let at = *self.types.get(id as usize).ok_or(BtfError::Damaged(id as usize))?;
            match word(self.data, at + 4)? >> 24 & 0x1f {
                8..=11 | 18 => id = word(self.data, at + 8)?,
                _ => return Ok(at),
            }
        }
        Err(BtfError::Damaged(id as usize))
    }

    fn member(&self, at: usize, name: &str) -> Result<Option<u32>, BtfError> {
        let info = word(self.data, at + 4)?;
        let (bitfields, count) = (info >> 31 == 1, (info & 0xffff) as usize);
        for index in 0..count {
            let member = at + 12 + 12 * index;
            let bits = word(self.data, member + 8)?;
            let offset = if bitfields { bits & 0x00ff_ffff } else { bits } / 8;
            let found = self.string(word(self.data, member)?)?;
            if found == name {
                return Ok(Some(offset));
            }
            if found.is_empty() {
                let inner = self.stripped(word(self.data, member + 4)?)?;
                if matches!(word(self.data, inner + 4)? >> 24 & 0x1f, STRUCT | UNION)
                    && let Some(nested) = self.member(inner, name)?
                {
                    return Ok(Some(offset + nested));
                }
            }
        }
        Ok(None)
    }

    fn offset(&self, structure: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let missing = BtfError::Missing(structure, member);
        let Some(at) = self.structs.get(structure) else { return Err(missing) };
        self.member(*at, member)?.ok_or(missing)
    }

    /// Everything the programs read.
    pub(super) fn task_offsets(&self) -> Result<TaskOffsets, BtfError> {
        Ok(TaskOffsets {
            resolved: 1,
            start_boottime: self.offset("task_struct", "start_boottime")?,
            real_parent: self.offset("task_struct", "real_parent")?,
            group_leader: self.offset("task_struct", "group_leader")?,
            tgid: self.offset("task_struct", "tgid")?,
            mm: self.offset("task_struct", "mm")?,
            loginuid: self.offset("task_struct", "loginuid")?,
            cred: self.offset("task_struct", "cred")?,
            real_cred: self.offset("task_struct", "real_cred")?,
            signal: self.offset("task_struct", "signal")?,
            live: self.offset("signal_struct", "live")?,
            uid: self.offset("cred", "uid")?,
            user_ns: self.offset("cred", "user_ns")?,
            ns_owner: self.offset("user_namespace", "owner")?,
            ns_parent: self.offset("user_namespace", "parent")?,
            exe_file: self.offset("mm_struct", "exe_file")?,
            f_inode: self.offset("file", "f_inode")?,
            i_ino: self.offset("inode", "i_ino")?,
            i_sb: self.offset("inode", "i_sb")?,
            s_dev: self.offset("super_block", "s_dev")?,
            filename: self.offset("linux_binprm", "filename")?,
            cgroup_self: self.offset("cgroup", "self")?,
            css_parent: self.offset("cgroup_subsys_state", "parent")?,
            cgroup_kn: self.offset("cgroup", "kn")?,
            kn_id: self.offset("kernfs_node", "id")?,
            cgroup_root: self.offset("cgroup", "root")?,
            hierarchy_id: self.offset("cgroup_root", "hierarchy_id")?,
            reserved: 0,
        })
    }

    /// Everything the programs read of sockets.
    pub(super) fn socket_offsets(&self) -> Result<SocketOffsets, BtfError> {
        Ok(SocketOffsets {
            sock_addr_sk: self.offset("bpf_sock_addr_kern", "sk")?,
            socket_sk: self.offset("socket", "sk")?,
            family: self.offset("sock", "__sk_common")? + self.offset("sock_common", "skc_family")?,
            kind: self.offset("sock", "sk_type")?,
            protocol: self.offset("sock", "sk_protocol")?,
            uid: self.offset("sock", "sk_uid")?,
            cgroup: self.offset("sock", "sk_cgrp_data")?,
            msg_name: self.offset("msghdr", "msg_name")?,
            nsproxy: self.offset("task_struct", "nsproxy")?,
            net_ns: self.offset("nsproxy", "net_ns")?,
            net_cookie: self.offset("net", "net_cookie").unwrap_or(0),
            reserved: 0,
        })
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..at + 4).ok_or(BtfError::Damaged(at))?;
    bytes.try_into().map(u32::from_le_bytes).map_err(|_| BtfError::Damaged(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_every_field() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let offsets = Btf::parse(&data).unwrap().task_offsets().unwrap();
        assert_eq!(offsets.resolved, 1);
        assert!(offsets.cred > offsets.tgid);
        let sockets = Btf::parse(&data).unwrap().socket_offsets().unwrap();
        assert!(sockets.uid > sockets.family);
    }

    #[test]
    fn damaged_type_information_is_an_error_and_never_a_panic() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for cut in [0, 3, 24, 1000, 65_537, data.len() / 2] {
            let _ = Btf::parse(&data[..cut]).and_then(|btf| btf.task_offsets()).unwrap_err();
        }
        let mut garbage = data[..200_000].to_vec();
        for index in (0..garbage.len()).step_by(97) {
            garbage[index] ^= 0x5a;
        }
        let _ = Btf::parse(&garbage).and_then(|btf| btf.task_offsets());
    }
}
