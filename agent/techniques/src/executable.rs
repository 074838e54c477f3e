//! Ways to run a program as something it is not: by another name, without a name, out of memory, as a copy, by a script.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::order::{Image, Order};
use crate::scene::Scene;
use crate::system::become_user;
use crate::tried::{Answer, Failure, Tried, prepare};

/// What each of these programs does once it runs.
const DEED: &str = "udp-sendto";

fn order(scene: &Scene) -> Order {
    Order { as_is: true, ..Order::new(DEED, scene) }
}

/// Starts a program (a copy of the one that runs, which understands orders) as the user who tries.
fn start(scene: &Scene, program: &Path, order: &Order) -> Tried<Child> {
    let mut command = Command::new(program);
    command.args(["attempt", &order.to_json()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = command.uid(scene.uid).gid(scene.uid).current_dir("/").spawn();
    let child = prepare(&format!("running `{}`", program.display()), child)?;
    scene.note(child.id());
    Ok(child)
}

/// Waits for a program, and takes over what it says.
fn finish(scene: &Scene, child: Child) -> Tried {
    // Its input closes here, which is what a program that was told to wait waits for.
    let output = prepare("waiting for the program", child.wait_with_output())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let answer = prepare(&format!("reading the program's answer `{said}`"), Answer::from_json(&said))?;
    for pid in &answer.pids {
        scene.note(*pid);
    }
    answer.into_tried()
}

pub(crate) fn by_its_name(scene: &Scene) -> Tried {
    finish(scene, start(scene, &scene.tool, &order(scene))?)
}

pub(crate) fn by_a_symbolic_link(scene: &Scene) -> Tried {
    let link = own(scene, "link");
    prepare("making the link", symlink(&scene.tool, &link))?;
    finish(scene, start(scene, &link, &order(scene))?)
}

/// The program runs, and its file is gone before it acts. (Another name of the same file: others need it still.)
pub(crate) fn deleted(scene: &Scene) -> Tried {
    let name = own(scene, "deleted");
    prepare("making another name", fs::hard_link(&scene.tool, &name))?;
    let child = start(scene, &name, &Order { wait: true, ..order(scene) })?;
    prepare("removing the name", fs::remove_file(&name))?;
    finish(scene, child)
}

/// The program makes an image of itself in memory and becomes that.
pub(crate) fn in_memory(scene: &Scene) -> Tried {
    finish(scene, start(scene, &scene.tool, &Order { image: Image::Memory, ..order(scene) })?)
}

/// The program copies itself and becomes the copy, another file of the same bytes.
pub(crate) fn copied(scene: &Scene) -> Tried {
    finish(scene, start(scene, &scene.tool, &Order { image: Image::Copy, ..order(scene) })?)
}

/// A script whose interpreter is the shell, which starts the program.
pub(crate) fn by_a_script(scene: &Scene) -> Tried {
    let script = own(scene, "script");
    let order = order(scene).to_json();
    let text = format!("#!/bin/sh\nexec '{}' attempt '{}'\n", scene.tool.display(), order.replace('\'', "'\\''"));
    prepare("writing the script", fs::write(&script, text))?;
    prepare("opening the script", fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))?;
    // The script has its order inside; what it is given with its name is not read.
    finish(scene, start(scene, &script, &self::order(scene))?)
}

/// A child that starts the program and ends at once: fork, exec, send, exit, as fast as can be.
pub(crate) fn fork_exec_exit(scene: &Scene) -> Tried {
    become_user(scene.uid, &[])?;
    let mut command = Command::new(&scene.tool);
    command.args(["attempt", &order(scene).to_json()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = prepare("running the program", command.spawn())?;
    scene.note(child.id());
    finish(scene, child)
}

/// A name of one's own in the scene's directory.
fn own(scene: &Scene, what: &str) -> PathBuf {
    scene.directory.join(format!("{what}-{}", std::process::id()))
}

/// Becomes an image of this program that lies elsewhere. Does not return unless that fails.
pub(crate) fn become_image(image: Image, order: &Order) -> Failure {
    let tried = match image {
        Image::Itself => return Failure::Broken("this program is itself already".into()),
        Image::Memory => from_memory(order),
        Image::Copy => from_copy(order),
    };
    match tried {
        Ok(error) => Failure::Broken(format!("becoming another image: {error}")),
        Err(failure) => failure,
    }
}

fn from_memory(order: &Order) -> Tried<std::io::Error> {
    let bytes = prepare("reading the program", fs::read("/proc/self/exe"))?;
    let memory = prepare("making a file in memory", memfd_create(c"writ", MFdFlags::empty()))?;
    let mut memory = fs::File::from(memory);
    prepare("filling the file in memory", memory.write_all(&bytes))?;
    // Open for writing, it could not be executed; the descriptor of this other opening stays open until it is.
    let read_only = prepare("opening it again", fs::File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())))?;
    drop(memory);
    let path = format!("/proc/self/fd/{}", read_only.as_raw_fd());
    Ok(Command::new(path).args(["attempt", &order.to_json()]).exec())
}

fn from_copy(order: &Order) -> Tried<std::io::Error> {
    let copy = order.scene.directory.join("scratch").join(std::process::id().to_string());
    prepare("copying the program", fs::copy("/proc/self/exe", &copy))?;
    prepare("making the copy executable", fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))?;
    Ok(Command::new(copy).args(["attempt", &order.to_json()]).exec())
}
