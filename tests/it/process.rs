//! The real binary, as an operator runs it: environment in, exit code and log out.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use statecast::sandbox::free_port;

use crate::servers::{Topology, unique};

const POLL: Duration = Duration::from_millis(10);
/// Bytes of the log shown with a failed test.
const TAIL_BYTES: usize = 8_000;

/// How to run `statecast`.
#[derive(Clone, Debug)]
pub struct Invocation {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    http: SocketAddr,
}

impl Invocation {
    /// `statecast run` for one pipeline.
    pub fn run(postgres_url: &str, topology: &Topology, pipeline: &str) -> Invocation {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        Invocation { arguments: vec!["run".to_owned()], environment: Vec::new(), http }
            .with("STATECAST_NAME", pipeline)
            .with("STATECAST_POSTGRES__URL", postgres_url)
            .with("STATECAST_RABBITMQ__URLS", &topology.url)
            .with("STATECAST_RABBITMQ__EXCHANGE", &topology.exchange)
            .with("STATECAST_HTTP__LISTEN", &http.to_string())
            .with("STATECAST_CONSOLE__LISTEN", "off")
            .with("STATECAST_LOG__LEVEL", "info")
            .with("STATECAST_SOURCE__MODE", "poll")
    }

    /// Another command in the same environment, e.g. `["install"]`.
    pub fn arguments(&self, arguments: &[&str]) -> Invocation {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Invocation { arguments, ..self.clone() }
    }

    /// One more variable; it wins over an earlier one of the same name.
    pub fn with(mut self, name: &str, value: &str) -> Invocation {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a variable that was set before.
    pub fn without(mut self, name: &str) -> Invocation {
        self.environment.retain(|(set, _)| set != name);
        self
    }

    /// The same with an HTTP port of its own, for a second replica.
    pub fn replica(&self) -> Invocation {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let mut replica = self.clone();
        replica.http = http;
        replica.with("STATECAST_HTTP__LISTEN", &http.to_string())
    }

    /// Where its probes and metrics answer.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_statecast"));
        command.args(&self.arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STATECAST_") {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }

    /// The command for a pseudo-terminal, which becomes its controlling terminal.
    pub fn terminal_command(&self) -> Command {
        let plain = self.command();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command
    }

    /// Runs it in the background.
    pub fn start(&self) -> Relay {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(unique("log"));
        let file = File::create(&log).unwrap();
        let mut command = self.command();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap();
        Relay { child, log, http: self.http, _dir: dir }
    }

    /// Runs it to its end: exit code, standard output, standard error.
    pub async fn output(&self, limit: Duration) -> (Option<i32>, String, String) {
        let mut command = tokio::process::Command::from(self.command());
        let output = tokio::time::timeout(limit, command.kill_on_drop(true).output()).await;
        let output = output.unwrap_or_else(|_| panic!("{:?} did not end", self.arguments)).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs it to its end, which must be a success; its standard output.
    pub async fn succeed(&self) -> String {
        let (code, stdout, stderr) = self.output(Duration::from_secs(60)).await;
        assert_eq!(code, Some(0), "{:?}\n{stdout}\n{stderr}", self.arguments);
        stdout
    }
}

/// A running `statecast`; dropped, it is killed. Its log is printed if the test panics.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    log: PathBuf,
    http: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Relay {
    /// SIGKILL; returns when the process is gone.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its probes and metrics are.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// SIGTERM.
    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has not ended.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the process.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log holds `text`; `false` after `limit` or when the process has ended without it.
    pub async fn wait_for_log(&mut self, text: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let ended = !self.running();
            if self.log().contains(text) {
                return true;
            }
            if ended || Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `GET path`: status and body; nothing while nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.http).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        tokio::time::timeout(Duration::from_secs(5), exchange).await.ok().flatten()
    }

    /// Sum of a metric over its labels; 0 while there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_where(name, "").await
    }

    /// The same over the samples whose line holds `label`, e.g. `via="wal"`.
    pub async fn metric_where(&self, name: &str, label: &str) -> f64 {
        let (_, body) = self.get("/metrics").await.unwrap_or_default();
        let samples = body.lines().filter(|line| line.contains(label)).filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with('{') || rest.starts_with(' '))
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        samples.sum()
    }

    /// Waits until a metric is above `above`; `false` after `limit`.
    pub async fn wait_for_metric(&self, name: &str, above: f64, limit: Duration) -> bool {
        self.wait_for_sample(name, "", limit, |value| value > above).await
    }

    /// Waits until `enough` holds for [`Relay::metric_where`]; `false` after `limit`.
    pub async fn wait_for_sample(
        &self,
        name: &str,
        label: &str,
        limit: Duration,
        enough: impl Fn(f64) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        while !enough(self.metric_where(name, label).await) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits until `/ready` says 200; the last answer otherwise.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.get("/ready").await;
            match answer {
                Some((200, _)) => return Ok(()),
                answer if Instant::now() >= deadline => return Err(format!("{answer:?}")),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let mut start = log.len().saturating_sub(TAIL_BYTES);
            while !log.is_char_boundary(start) {
                start += 1;
            }
            eprintln!("--- the end of the relay's log\n{}---", &log[start..]);
        }
    }
}
