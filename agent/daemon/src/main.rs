//! writ.
mod kernel;
use std::path::PathBuf;
fn main() -> anyhow::Result<()> {
    let cgroup = kernel::CgroupMount::find(std::env::args().nth(1).as_deref())?;
    let mut k = kernel::Kernel::open(&kernel::Options {
        pins: PathBuf::from("/sys/fs/bpf/probe"),
        cgroup,
        ring_size: 16 << 20,
        nat64: vec![],
    })?;
    println!("opened adopted={} errno={} {:?}", k.adopted, k.chooses_errno, k.counters()?);
    println!("{:?}", kernel::uninstall(&PathBuf::from("/sys/fs/bpf/probe")));
    let _ = k.drain(1);
    Ok(())
}
