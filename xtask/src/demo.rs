//! `cargo xtask demo`: writ at work on this machine, on an account made for the purpose, and nothing left afterwards.

mod curtain;
mod scenery;
mod stage;
mod story;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process::{command, say};
use crate::{build, setup};

/// How to show it.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Use the optimised build
    #[arg(long)]
    release: bool,
    /// The part that runs in a process of its own
    #[arg(long, hide = true)]
    on_stage: bool,
}

/// Sets the stage, tells the story, clears the stage: the last also if the story fails or is interrupted.
pub(crate) fn demo(options: &Options) -> Result<()> {
    if options.on_stage {
        return story::tell(&stage::Stage::set(scenery::Scenery::new(options.release)?)?);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo needs root: it makes a system user and a cgroup, and loads programs into the kernel");
    }
    setup::setup(&setup::Options { build: true, ..setup::Options::default() })?;
    build::build(&build::Options { release: options.release })?;

    say("setting the stage: a system user, a cgroup, three local web servers, a policy");
    let scenery = scenery::Scenery::new(options.release)?;
    scenery.clear().context("cannot clear away an earlier demo")?;
    let played = scenery.make().and_then(|()| play(options));
    say("clearing the stage");
    let cleared = scenery.clear();
    let (well, curtain, received) = played?;
    curtain.lift(received)?;
    cleared?;
    println!("    the user, the cgroup, the servers, the policy and everything in the kernel are gone");
    if !well {
        bail!("the demo did not go as announced");
    }
    Ok(())
}

/// Starts the part that can be interrupted, and waits for it.
fn play(options: &Options) -> Result<(bool, curtain::Curtain, Option<nix::sys::signal::Signal>)> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut on_stage = command(this);
    on_stage.args(["demo", "--on-stage"]);
    if options.release {
        on_stage.arg("--release");
    }
    let mut child = on_stage.spawn().context("cannot start the demo")?;
    let curtain = curtain::Curtain::draw()?;
    let (well, received) = curtain.wait(&mut child)?;
    Ok((well, curtain, received))
}
