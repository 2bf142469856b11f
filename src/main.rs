//! The `statecast` command.

fn main() {}
