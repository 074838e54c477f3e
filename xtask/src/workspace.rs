//! Where things lie in the repository and below its target directory.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail};

static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
});

/// The repository.
pub(crate) fn root() -> &'static Path {
    &ROOT
}

/// Cargo's target directory: always the one in the repository, which is what the documented paths name.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The BPF object that `cargo xtask build` makes.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf/bpfel-unknown-none/bpf/writ-programs")
}

/// The `writ` binary of a profile.
pub(crate) fn writ(release: bool) -> PathBuf {
    target().join(if release { "release" } else { "debug" }).join("writ")
}

/// The stock `cedar` command, as `cargo xtask setup --test` builds it.
pub(crate) fn cedar() -> PathBuf {
    target().join("tools/bin/cedar")
}

/// Prometheus' checker of rules, as `cargo xtask setup --rollout` unpacks it.
pub(crate) fn promtool() -> PathBuf {
    target().join("tools/prometheus/usr/bin/promtool")
}

/// The compiler release that `rust-toolchain.toml` pins.
pub(crate) fn pinned_toolchain() -> Result<String> {
    let path = root().join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    for line in text.lines() {
        if let Some(value) = line.trim().strip_prefix("channel") {
            return Ok(value.trim_matches([' ', '=', '"']).to_owned());
        }
    }
    bail!("`{}` names no channel", path.display())
}
