//! `cargo xtask`: one door to everything that builds, runs, tests and shows writ.

mod bench;
mod beside;
mod build;
mod demo;
mod fuzz;
mod fuzz_api;
mod lint;
mod package;
mod process;
mod rollout;
mod run;
mod setup;
mod soak;
mod tally;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and shows writ.", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get what building and testing need; without a scope, all of it
    Setup(setup::Options),
    /// Build the BPF object, and `writ` with the object inside
    Build(build::Options),
    /// Build, then run `writ` with the arguments given
    Run(run::Options),
    /// Formatting, clippy for both targets, and the house rules
    Lint,
    /// Everything CI runs: lint, unit tests, the whole-system suite here and in virtual machines
    Test(test::Options),
    /// The whole-system suite in a virtual machine, writ attached at the root cgroup
    Vm(vm::Options),
    /// A .deb and a .rpm, checked, with their checksums
    Package(package::Options),
    /// The Ansible role against three hosts of its own: install, change, refuse, upgrade under a prober
    Rollout(rollout::Options),
    /// Measure what a connect costs (never a test)
    Bench(bench::Options),
    /// Drive every parser with mutations of real inputs
    Fuzz(fuzz::Options),
    /// Kill the daemon under load, again and again: more than every run of the tests has time for
    Soak(soak::Options),
    /// Throw at the API what schemathesis makes of its description; as root
    FuzzApi(fuzz_api::Options),
    /// See writ work: a service account, its policy, real connects, the records; cleans up after itself
    Demo(demo::Options),
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let result = match Cli::parse().command {
        Command::Setup(options) => setup::setup(&options).map(done),
        Command::Build(options) => build::build(&options).map(done),
        Command::Run(options) => run::run(&options).map(done),
        Command::Lint => lint::lint().map(done),
        Command::Test(options) => test::test(&options),
        Command::Vm(options) => vm::vm(&options).map(done),
        Command::Package(options) => package::package(&options).map(done),
        Command::Rollout(options) => rollout::rollout(&options).map(done),
        Command::Bench(options) => bench::bench(&options).map(done),
        Command::Fuzz(options) => fuzz::fuzz(&options).map(done),
        Command::Soak(options) => soak::soak(&options).map(done),
        Command::FuzzApi(options) => fuzz_api::fuzz_api(&options).map(done),
        Command::Demo(options) => demo::demo(&options).map(done),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
