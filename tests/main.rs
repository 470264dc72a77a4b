//! One test binary with a table of contents. See README.md beside it for the tiers, and how to replay a failure.
#![expect(clippy::expect_used, clippy::disallowed_methods, reason = "tests may")]
#![expect(unreachable_pub, reason = "the modules of one binary")]

/// What the checks of a promise must notice.
#[path = "promise/bad_histories.rs"]
mod bad_histories;
/// The command line as people meet it: help texts, configuration faults, exit codes.
mod cli;
/// One suite per door, against each implementation of it.
mod conformance;
/// The documents against the product.
mod docs;
/// What is acknowledged is on the disk: the store under strace.
mod durability;
/// The HTTP and gRPC faces over real sockets, and the commands that ask them.
mod faces;
/// Imports only go down; libraries stay in their rooms.
mod floors;
/// Random faults on whole sites of real processes and real networks.
mod lab;
/// Real processes: the fencer and its workload, SIGKILL, SIGSTOP, orphans.
mod process;
/// The promises P1 to P5, each as a check of a simulated site.
mod promise;
/// Stories of a simulated site.
mod scenario;
/// A whole site in one deterministic simulation.
mod stage;
/// Random trouble, some seeds: the promises hold all the time, and afterwards somebody owns. `cargo sim` has many.
mod sweep;
/// Alert rules and dashboard against the metrics, and whether alarms sound.
mod watching;
