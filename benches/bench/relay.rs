//! The relay as an operator runs it: the optimised binary, environment in, metrics and `/proc` out.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use statecast::sandbox::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::servers::{Database, Place, Servers, unique};
use crate::usage::Usage;

/// Another binary than the one that was built beside this benchmark, to compare two.
const BINARY: &str = "STATECAST_BENCH_BINARY";
/// Between two looks at the metrics; a look costs the relay about 0.1 ms.
const LOOK: Duration = Duration::from_millis(25);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const CONFIRMED: &str = "statecast_events_confirmed_total";
/// Written for every confirm: `target`, `seq` and the time in microseconds since 1970.
const CONFIRM_LINES: &str = "warn,statecast::confirmed=trace";

/// How to run it. Everything else is the default.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Setup {
    /// A pipeline of its own that polls.
    pub(crate) fn new(postgres: &str, rabbitmq: &str, exchange: &str) -> Setup {
        Setup { environment: Vec::new(), arguments: vec!["run".to_owned()] }
            .with("STATECAST_NAME", &unique("pipeline"))
            .with("STATECAST_POSTGRES__URL", postgres)
            .with("STATECAST_RABBITMQ__URLS", rabbitmq)
            .with("STATECAST_RABBITMQ__EXCHANGE", exchange)
            .with("STATECAST_LOG__LEVEL", "warn")
            .streaming(false)
    }

    /// Between a database and a queue of this run.
    pub(crate) fn between(servers: &Servers, database: &Database, place: &Place) -> Setup {
        Setup::new(&database.url, &servers.rabbitmq.url(), &place.exchange)
    }

    /// One more variable; it wins over an earlier one.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn streaming(self, streams: bool) -> Setup {
        self.with("STATECAST_SOURCE__MODE", if streams { "wal" } else { "poll" })
    }

    /// Begins after everything that is committed.
    pub(crate) fn beginning_now(mut self) -> Setup {
        self.arguments = ["run", "--from", "now"].map(str::to_owned).into();
        self
    }

    /// Writes a line for each confirm.
    pub(crate) fn with_confirm_lines(self) -> Setup {
        self.with("STATECAST_LOG__LEVEL", CONFIRM_LINES)
    }

    fn process(&self, arguments: &[&str]) -> Command {
        let binary = std::env::var_os(BINARY).unwrap_or_else(|| env!("CARGO_BIN_EXE_statecast").into());
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STATECAST_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs another command to its end.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Result<()> {
        let mut command = tokio::process::Command::from(self.process(arguments));
        let output = tokio::time::timeout(COMMAND_LIMIT, command.kill_on_drop(true).output()).await;
        let output = output.with_context(|| format!("statecast {arguments:?} did not end"))??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "statecast {arguments:?} failed: {said}");
        Ok(())
    }

    /// Starts it; returns at once.
    pub(crate) fn start(&self) -> Result<Relay> {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log = tempfile::NamedTempFile::new()?;
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command = self.process(&arguments);
        command.env("STATECAST_HTTP__LISTEN", http.to_string()).env("STATECAST_CONSOLE__LISTEN", "off");
        command.stdout(Stdio::null()).stderr(File::create(log.path())?);
        let child = command.spawn().context("start the relay")?;
        Ok(Relay { child, log, http })
    }

    /// Starts it and waits until it is ready, and streams if it is to.
    pub(crate) async fn ready(&self) -> Result<Relay> {
        let mut relay = self.start()?;
        let streams = self.environment.iter().rev().find(|(name, _)| name == "STATECAST_SOURCE__MODE");
        if streams.is_some_and(|(_, mode)| mode == "wal") {
            relay.wait("statecast_wal_streaming", 1.0, LOOK, START_LIMIT).await?;
        }
        relay.wait("statecast_leader", 1.0, LOOK, START_LIMIT).await?;
        Ok(relay)
    }
}

/// A running relay; dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    log: tempfile::NamedTempFile,
    http: SocketAddr,
}

/// A drain as it was seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    /// Events per second between the first confirms that were seen and the last.
    pub(crate) rate: f64,
    pub(crate) usage: Usage,
}

impl Relay {
    /// Waits until so many events are confirmed since it started.
    pub(crate) async fn drain(&mut self, events: u64, limit: Duration) -> Result<Drained> {
        let first = self.wait(CONFIRMED, 1.0, LOOK, limit).await?;
        let from = Instant::now();
        let last = self.wait(CONFIRMED, events as f64, LOOK, limit).await?;
        let took = from.elapsed().as_secs_f64();
        ensure!(last > first, "too few events to measure: all were confirmed at the first look");
        Ok(Drained { rate: (last - first) / took, usage: self.usage()? })
    }

    /// Waits until so many are confirmed; how long it took.
    pub(crate) async fn confirmed(&mut self, events: u64, limit: Duration) -> Result<f64> {
        let from = Instant::now();
        self.wait(CONFIRMED, events as f64, LOOK, limit).await?;
        Ok(from.elapsed().as_secs_f64())
    }

    /// How many are confirmed.
    pub(crate) async fn confirms(&self) -> f64 {
        self.metric(CONFIRMED).await.unwrap_or(0.0)
    }

    /// Waits until a metric has reached a value; what it is then.
    pub(crate) async fn wait(
        &mut self,
        name: &str,
        value: f64,
        look: Duration,
        limit: Duration,
    ) -> Result<f64> {
        let deadline = Instant::now() + limit;
        loop {
            let now = self.metric(name).await;
            if let Some(now) = now.filter(|now| *now >= value) {
                return Ok(now);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the relay ended ({status}): {}", self.complaint());
            }
            if Instant::now() >= deadline {
                bail!("{name} is {now:?} and not {value} after {limit:?}: {}", self.complaint());
            }
            tokio::time::sleep(look).await;
        }
    }

    /// A metric, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let body = tokio::time::timeout(Duration::from_secs(5), self.get("/metrics")).await.ok()?.ok()?;
        let samples = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with('{') || rest.starts_with(' '))
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Some(samples.sum())
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.http).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    /// When each event was confirmed, by `seq`, in microseconds since 1970; with [`Setup::with_confirm_lines`].
    pub(crate) fn confirm_times(&self) -> Vec<(i64, i64)> {
        let field = |line: &str, name: &str| {
            let (_, rest) = line.split_once(name)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<i64>().ok()
        };
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains("statecast::confirmed"));
        lines.filter_map(|line| Some((field(line, " seq=")?, field(line, " at_us=")?))).collect()
    }

    fn complaint(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("TRACE")).collect();
        lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" | ")
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the relay did not stop: {}", self.complaint());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
