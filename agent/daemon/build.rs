//! Puts the BPF object inside `writ`: copies it to where `include_bytes!` finds it, and names what the build was.
//!
//! `cargo xtask build` builds the object and names it in `WRIT_BPF_OBJECT`. Without the variable an empty stub takes its
//! place, so that plain `cargo check`, `clippy` and unit tests need no BPF toolchain; a daemon with the stub refuses to
//! start. This script does not build the object itself: two cargos would wait for each other's locks, and the object
//! would be built anew for every profile.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

const OBJECT: &str = "WRIT_BPF_OBJECT";
/// The first bytes of every ELF file.
const ELF: &[u8] = b"\x7fELF";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={OBJECT}");
    let bytes = match env::var_os(OBJECT) {
        None => Vec::new(),
        Some(path) => {
            let path = Path::new(&path);
            println!("cargo:rerun-if-changed={}", path.display());
            let bytes = fs::read(path).map_err(|error| format!("{OBJECT}: `{}`: {error}", path.display()))?;
            if !bytes.starts_with(ELF) {
                return Err(format!("{OBJECT}: `{}` is not an ELF object", path.display()).into());
            }
            bytes
        }
    };
    let out = env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?;
    fs::write(Path::new(&out).join("writ.bpf.o"), bytes)?;
    // Only what the sources and the toolchain determine: no time, host, path or commit, so that equal sources give equal
    // bytes wherever they are built.
    println!("cargo:rustc-env=WRIT_TARGET={}", env::var("TARGET")?);
    println!("cargo:rustc-env=WRIT_PROFILE={}", env::var("PROFILE")?);
    Ok(())
}
