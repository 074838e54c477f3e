//! Ways to act as somebody else, or from somewhere else: uids shed in part, children, cgroups, namespaces.

use std::fs;
use std::io::{Read as _, Write as _};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

use crate::inet::udp_sendto;
use crate::scene::Scene;
use crate::system::{become_user, enter_cgroup, in_child, loopback_up, thread_becomes};
use crate::tried::{Failure, Tried, call, prepare};

/// The effective uid alone; the real one stays root's.
pub(crate) fn effective_uid(scene: &Scene) -> Tried {
    prepare("changing the effective user", nix::unistd::seteuid(Uid::from_raw(scene.uid)))?;
    udp_sendto(scene)
}

/// One thread changes its user by the raw call; the rest of the process stays root's.
pub(crate) fn one_thread(scene: &Scene) -> Tried {
    let there = Scene { others: Default::default(), ..scene.clone() };
    let acting = std::thread::spawn(move || {
        prepare("changing a thread's user", thread_becomes(there.uid))?;
        udp_sendto(&there)
    });
    acting.join().unwrap_or_else(|_| Err(Failure::Broken("the thread panicked".into())))
}

/// The process is the account's, and one of its threads stayed root and acts.
pub(crate) fn thread_back_to_root(scene: &Scene) -> Tried {
    let there = Scene { others: Default::default(), ..scene.clone() };
    // The thread is made first and keeps root's identity, as the change below is the other thread's alone.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let acting = std::thread::spawn(move || {
        prepare("waiting for the other thread", gone.recv())?;
        udp_sendto(&there)
    });
    prepare("changing a thread's user", thread_becomes(scene.uid))?;
    prepare("telling the other thread", go.send(()))?;
    acting.join().unwrap_or_else(|_| Err(Failure::Broken("the thread panicked".into())))
}

pub(crate) fn child(scene: &Scene) -> Tried {
    in_child(scene, || udp_sendto(scene))
}

/// A child's child: what acts is not what was started.
pub(crate) fn grandchild(scene: &Scene) -> Tried {
    let (mut told, mut teller) = prepare("making a pipe", std::io::pipe())?;
    let tried = in_child(scene, || {
        in_child(scene, || {
            prepare("telling who acts", teller.write_all(&std::process::id().to_ne_bytes()))?;
            udp_sendto(scene)
        })
    });
    // Or reading would wait for ever where nobody acted.
    drop(teller);
    let mut pid = [0; 4];
    prepare("reading who acted", told.read_exact(&mut pid))?;
    scene.note(u32::from_ne_bytes(pid));
    tried
}

/// The socket is made in one cgroup, and the process is in another when it sends.
pub(crate) fn moved_cgroup(scene: &Scene) -> Tried {
    let socket = call("socket", inet_socket(scene))?;
    prepare("entering another cgroup", enter_cgroup(&scene.elsewhere))?;
    become_user(scene.uid, &[])?;
    call("sendto", socket.send_to(scene.payload(), &scene.target().into())).map(drop)
}

fn inet_socket(scene: &Scene) -> std::io::Result<socket2::Socket> {
    crate::inet::socket(scene.target(), socket2::Type::DGRAM)
}

fn own_user_namespace(scene: &Scene, beside: CloneFlags) -> Tried {
    call("unshare", unshare(CloneFlags::CLONE_NEWUSER | beside).map_err(Into::into))?;
    // A process that changed its uid owns its files in /proc only once it is dumpable again.
    prepare("making the process dumpable", nix::sys::prctl::set_dumpable(true))?;
    prepare("mapping the user", fs::write("/proc/self/uid_map", format!("0 {} 1", scene.uid)))
}

/// Root in a user namespace of its own.
pub(crate) fn user_namespace(scene: &Scene) -> Tried {
    own_user_namespace(scene, CloneFlags::empty())?;
    udp_sendto(scene)
}

/// A network namespace of its own, in which it may do what it likes; its hooks are those of the host.
pub(crate) fn network_namespace(scene: &Scene) -> Tried {
    own_user_namespace(scene, CloneFlags::CLONE_NEWNET)?;
    prepare("bringing the loopback device up", loopback_up())?;
    udp_sendto(scene)
}

/// Root again in namespaces for mounts and processes; a child acts, because a process keeps the process namespace it is in.
pub(crate) fn pid_and_mount_namespaces(scene: &Scene) -> Tried {
    own_user_namespace(scene, CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    in_child(scene, || udp_sendto(scene))
}
