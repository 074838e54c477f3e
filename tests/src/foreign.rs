//! A program that is not writ's on a hook that writ uses: the smallest there is, attached until it is dropped.

use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// What the kernel lists it as.
pub const NAME: &str = "not_writs";

const BPF_PROG_LOAD: c_long = 5;
const BPF_LINK_CREATE: c_long = 28;
const CGROUP_SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;

/// What `BPF_PROG_LOAD` reads, as far as it is needed here.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// Attached while this is held.
#[derive(Debug)]
pub struct Attached {
    _link: OwnedFd,
}

/// Attaches a program that lets every IPv4 connect go on.
#[track_caller]
pub fn attach_connect4(cgroup: &Path) -> Attached {
    // r0 = 1; exit
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let licence = c"GPL";
    let mut name = [0u8; 16];
    for (to, from) in name.iter_mut().zip(NAME.bytes()) {
        *to = from;
    }
    let load = Load {
        kind: CGROUP_SOCK_ADDR,
        instructions: 2,
        code: instructions.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log: [0; 4],
        kernel_version: 0,
        flags: 0,
        name,
        interface: 0,
        attach: INET4_CONNECT,
    };
    let program = bpf(BPF_PROG_LOAD, &load).expect("cannot load a program");
    let cgroup = File::open(cgroup).expect("cannot open the cgroup");
    let link = [program.as_raw_fd().cast_unsigned(), cgroup.as_raw_fd().cast_unsigned(), INET4_CONNECT, 0];
    Attached { _link: bpf(BPF_LINK_CREATE, &link).expect("cannot attach the program") }
}

fn bpf<T>(command: c_long, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is as long as is said, and what it points to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}
