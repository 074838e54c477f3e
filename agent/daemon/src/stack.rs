//! Stacks that hold the deepest policy writ accepts: Cedar reads, checks and evaluates policies by recursion.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

pub(crate) use writ_core::policy::STACK;

/// Does something that may touch policies on a stack of its own: the first thread's is as large as whoever started writ
/// lets it be. Rayon's threads, which compile, get the same.
///
/// # Errors
/// No thread is free.
pub(crate) fn deep<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    // Who ends this process, or asks something of it, means the work: no thread but that takes a signal in its place.
    let mut meant = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        meant.add(signal);
    }
    let before = meant.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let work = move || {
        // It fails for no set there is.
        let _ = before.thread_set_mask();
        work()
    };
    // It only fails where the pool is there already.
    let _ = rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global();
    let thread = std::thread::Builder::new().name("main".into()).stack_size(STACK).spawn(work)?;
    // A panic was reported by the thread itself, and goes on as one.
    Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use writ_core::policy::Bundle;

    use super::*;
    use crate::configuration;

    #[test]
    fn a_policy_with_a_thousand_terms_compiles_on_the_stack_that_commands_have() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("policies.d")).unwrap();
        let ports: Vec<String> = (0..1_000).map(|port| format!("context.port == {port}")).collect();
        let text = format!(
            "@id(\"p\") @owner(\"o\") @reason(\"r\")\n\
             permit (principal, action == Action::\"connect\", resource) when {{ {} }};",
            ports.join(" || ")
        );
        std::fs::write(directory.path().join("policies.d/p.cedar"), text).unwrap();
        let path = directory.path().to_owned();
        let compiled = deep(move || {
            let config = configuration::load(&path).config.unwrap();
            // Whether the pool was there before this test or not, the stack is the one commands have.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(STACK).build().unwrap();
            pool.install(|| Bundle::compile(&config).0.is_some())
        });
        assert!(compiled.unwrap());
    }
}
