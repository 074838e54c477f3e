//! `cargo xtask vm`
use anyhow::Result;
#[derive(clap::Args)]
pub(crate) struct Options {}
pub(crate) fn vm(_: &Options) -> Result<()> {
    Ok(())
}
