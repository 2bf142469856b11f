//! The `statecast` command: arguments in, exit code out. One file per command.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed; one line on standard error says what, where and what to do |
//! | 64 | wrong usage |
//! | 78 | the configuration is not valid |
//!
//! Results go to standard output, everything else to standard error.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod cursor;
mod demo;
mod doctor;
mod install;
mod maintain;
mod parked;
mod plain;
mod progress;
mod publish;
mod reading;
mod run;
mod status;
mod tail;
mod top;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_postgres::Client;

use crate::config::{self, Config, ConfigErrors};
use crate::postgres::{self, Guard, PgError};

const FAILURE: u8 = 1;
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// Names the configuration file where `--config` does not.
const CONFIG_VARIABLE: &str = "STATECAST_CONFIG";

/// Relays the events of a PostgreSQL outbox table to RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "statecast", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    /// Configuration file, TOML or YAML [env: STATECAST_CONFIG=]. Variables such as STATECAST_POSTGRES__URL override it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create or upgrade Statecast's schema, roles and publication in the database
    Install(install::Args),
    /// Check configuration, database and broker, and say what is wrong
    Check,
    /// Examine both servers, read-only: what is wrong, where, and what to do about it
    Doctor(doctor::Args),
    /// Run the relay; `source.mode` says whether it streams or polls
    Run(run::Args),
    /// Show where the pipeline stands
    Status(status::Args),
    /// Watch the pipeline: rates, latency, what waits and why, as it changes
    Top(Box<top::Args>),
    /// Write one event to the outbox
    Publish(Box<publish::Args>),
    /// Print events as they are committed, or the messages of a queue
    Tail(tail::Args),
    /// Look at the pipeline's cursor, move it to another server, or drop it
    #[command(subcommand)]
    Cursor(cursor::Command),
    /// Look at events that the broker refused, try them again, or give them up
    #[command(subcommand)]
    Parked(parked::Command),
    /// Do the outbox's upkeep once: chunks, retention, a tail that holds rows
    Maintain,
    /// Show all of it with private servers: writers, relay, consumer, and a summary
    Demo(demo::Args),
}

/// What a command needs besides its own arguments.
#[derive(Debug)]
struct Context {
    file: Option<PathBuf>,
}

impl Context {
    fn load(&self) -> Result<Config, ConfigErrors> {
        config::load(self.file.as_deref(), config::environment())
    }
}

/// Called wrongly in a way that the parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Threads besides the main one, which runs the relay's loop; each lane's connection and the HTTP side have their own. More
/// brought nothing in the benchmark, and each costs 3 to 4 MB: memory that one thread takes and another gives back.
const WORKERS: usize = 1;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail: there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    // Two providers may be compiled in, and rustls panics where none is chosen. An error says that one is already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&anyhow::Error::new(error).context("cannot start the runtime")),
        };
    let result = runtime.block_on(dispatch(cli));
    // A read from standard input cannot be cancelled: do not wait for it.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let file = cli
        .config
        .or_else(|| std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
    let context = Context { file };
    match cli.command {
        Command::Install(args) => install::run(&context, &args).await,
        Command::Check => Box::pin(check::run(&context)).await,
        Command::Doctor(args) => Box::pin(doctor::run(&context, &args)).await,
        Command::Run(args) => Box::pin(run::run(&context, &args)).await,
        Command::Status(args) => status::run(&context, &args).await,
        Command::Top(args) => Box::pin(top::run(&context, &args)).await,
        Command::Publish(args) => publish::run(&context, *args).await,
        Command::Tail(args) => Box::pin(tail::run(&context, &args)).await,
        Command::Cursor(command) => cursor::run(&context, &command).await,
        Command::Parked(command) => parked::run(&context, &command).await,
        Command::Maintain => maintain::run(&context).await,
        Command::Demo(args) => Box::pin(demo::run(&context, &args)).await,
    }
}

/// Says why, and with which code the process ends.
fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        // One line per mistake.
        eprintln!("statecast: {errors}");
        return CONFIGURATION.into();
    }
    let broken_pipe =
        error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        // `statecast tail | head` has what it wanted.
        return ExitCode::SUCCESS;
    }
    eprintln!("statecast: {}", postgres::describe(error.as_ref()));
    if error.is::<Usage>() { USAGE.into() } else { FAILURE.into() }
}

/// A connection for a person's command.
async fn connect(config: &Config, command: &str) -> Result<(Client, Guard), PgError> {
    postgres::connect(&config.postgres, &format!("statecast {} {command}", config.name)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("statecast").chain(args.iter().copied()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_parses() {
        for line in [
            "install --print",
            "check",
            "doctor --json --strict --long-transaction 1m --horizon-age 100 --rows 5",
            "run --until-idle --from now",
            "--config x.toml status --json",
            "status --config x.toml",
            "publish order 1 order.placed {} --headers {} --entity-version 3 --lock",
            "publish order 1 order.deleted --delete",
            "publish order 1 order.placed -",
            "tail -n 5 --payload",
            "tail --queue orders --no-follow",
            "cursor show",
            "cursor rebase --yes --reason restored",
            "cursor drop",
            "parked list --json --limit 5 --key order:4711",
            "parked show 01890a5d-ac96-774b-bcce-b302099a8057 --payload",
            "parked retry --id 01890a5d-ac96-774b-bcce-b302099a8057 --id 01890a5d-ac96-774b-bcce-b302099a8058",
            "parked retry --all --dry-run --why fixed",
            "parked retry --all --wait",
            "parked discard --all --why x --wait",
            "parked discard --type order --reason too_large --state parked --older-than 7d --why obsolete",
            "top --once --interval 500ms --metrics http://a:9465 --metrics http://b:9465/metrics",
            "maintain",
            "demo --keep --seconds 5",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            assert!(parse(&args).is_ok(), "{line}: {}", parse(&args).unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_is_64_and_help_is_0() {
        let code = |args: &[&str]| {
            let args = std::iter::once("statecast").chain(args.iter().copied()).map(OsString::from);
            format!("{:?}", main_with(args))
        };
        let is = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&["--no-such-option"]), is(USAGE));
        assert_eq!(code(&["publish", "order", "1", "placed"]), is(USAGE), "neither payload nor --delete");
        assert_eq!(code(&["publish", "order", "1", "placed", "{}", "--delete"]), is(USAGE));
        assert_eq!(code(&["run", "--from", "yesterday"]), is(USAGE));
        for line in [
            "doctor --long-transaction soon",
            "doctor --rows -1",
            "parked retry",
            "parked retry --all --reason nack",
            "parked retry --key order",
            "parked retry --key order:1 --type order",
            "parked retry --older-than soon",
            "parked discard --all",
            "parked discard --why x",
            "parked retry --all --wait --dry-run",
            "parked list --limit -1",
            "parked show 4711",
            "top --interval 1ms",
            "top --metrics a:9465",
        ] {
            assert_eq!(code(&line.split(' ').collect::<Vec<_>>()), is(USAGE), "{line}");
        }
        assert_eq!(code(&["parked", "discard", "--all", "--why", ""]), is(USAGE));
        assert_eq!(code(&["--version"]), is(0));
        assert_eq!(code(&["--config", "/nonexistent/statecast.toml", "status"]), is(CONFIGURATION));
    }
}
