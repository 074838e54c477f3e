//! writ: decides at run time what a host's service accounts may connect to, and proves every decision.

mod api;
mod cli;
mod client;
mod configuration;
mod coverage;
mod engine;
mod kernel;
mod log;
mod process;
mod serve;
mod sink;
mod stack;
mod statement;
mod surroundings;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
