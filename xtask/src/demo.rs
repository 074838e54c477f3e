//! `cargo xtask demo`
use anyhow::Result;
#[derive(clap::Args)]
pub(crate) struct Options {}
pub(crate) fn demo(_: &Options) -> Result<()> {
    Ok(())
}
