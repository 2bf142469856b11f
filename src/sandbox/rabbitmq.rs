//! A private RabbitMQ (3.10 and newer).
//!
//! It shares nothing with an installed broker: own node name, epmd, distribution port, cookie, data and log
//! directories, no plugins (but for management, if asked for), no configuration from `/etc`. The Erlang VM leads its own
//! process group; epmd is a second one, so that it neither is left behind nor serves another node. See
//! <https://www.rabbitmq.com/docs/configure#supported-environment-variables>.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

use super::process::{Account, Group, Home, POLL, find_program, free_port, io_error, tail};
use super::{SandboxError, ServerTls};

const SERVER: &str = "RabbitMQ";
const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CTL_LIMIT: Duration = Duration::from_secs(60);

/// How a private RabbitMQ is set up.
#[derive(Clone, Debug)]
pub struct RabbitmqOptions {
    /// Memory at which publishers are blocked, e.g. `1GiB`; tests lower it to see `connection.blocked`.
    pub memory_watermark: String,
    /// Further lines for `rabbitmq.conf`.
    pub config: Vec<String>,
    /// A TLS listener beside the plain one.
    pub tls: Option<ServerTls>,
    /// Scheduler threads of the Erlang VM.
    pub schedulers: u8,
    /// The management plugin with its HTTP API (a start takes about 2 s longer).
    pub management: bool,
}

impl Default for RabbitmqOptions {
    fn default() -> Self {
        RabbitmqOptions {
            memory_watermark: "1GiB".to_owned(),
            config: Vec::new(),
            tls: None,
            schedulers: 2,
            management: false,
        }
    }
}

/// A private RabbitMQ; dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Rabbitmq {
    // Dropped in this order: the node, then its epmd, then the directory.
    group: Option<Group>,
    site: Arc<Site>,
    home: Home,
    scripts: PathBuf,
    node: String,
    port: u16,
    tls_port: Option<u16>,
    management_port: Option<u16>,
    dist_port: u16,
    schedulers: u8,
}

/// What the nodes of a cluster share: their port mapper, which nobody else uses, and the secret by which they know each other.
#[derive(Debug)]
pub(super) struct Site {
    _epmd: Group,
    epmd_port: u16,
    cookie: String,
    _home: Home,
}

impl Site {
    pub(super) fn start() -> Result<Arc<Site>, SandboxError> {
        let epmd = epmd_program()?;
        let home = Home::new(Account::unprivileged(&["rabbitmq"])?)?;
        let epmd_port = free_port()?;
        let mut command = Command::new(epmd);
        command.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        command.env_clear().current_dir(home.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Account::apply(home.account(), &mut command);
        let cookie = std::iter::repeat_with(fastrand::alphanumeric).take(32).collect();
        Ok(Arc::new(Site {
            _epmd: Group::spawn(command, "KILL", home.path())?,
            epmd_port,
            cookie,
            _home: home,
        }))
    }
}

impl Rabbitmq {
    /// Creates and starts a broker; returns when it accepts AMQP connections.
    pub async fn start(options: RabbitmqOptions) -> Result<Rabbitmq, SandboxError> {
        let node = node_name();
        let mut broker = Rabbitmq::prepare(&options, Site::start()?, node)?;
        broker.start_again().await?;
        Ok(broker)
    }

    /// A node that is not started yet.
    pub(super) fn prepare(
        options: &RabbitmqOptions,
        site: Arc<Site>,
        node: String,
    ) -> Result<Rabbitmq, SandboxError> {
        let scripts = script_dir()?;
        let home = Home::new(Account::unprivileged(&["rabbitmq"])?)?;
        let (port, dist_port) = (free_port()?, free_port()?);
        let tls_port = options.tls.as_ref().map(|_| free_port()).transpose()?;
        let management_port = options.management.then(free_port).transpose()?;
        write_files(
            &home,
            options,
            &site.cookie,
            Ports { plain: port, tls: tls_port, management: management_port },
        )?;
        let schedulers = options.schedulers;
        Ok(Rabbitmq {
            group: None,
            site,
            home,
            scripts,
            node,
            port,
            tls_port,
            management_port,
            dist_port,
            schedulers,
        })
    }

    /// The node's name, as `rabbitmqctl` knows it.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// URL of the plain listener: user `guest`, virtual host `/`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// URL of the TLS listener (host `localhost`), if there is one.
    pub fn amqps_url(&self) -> Option<String> {
        self.tls_port.map(|port| format!("amqps://guest:guest@localhost:{port}/%2f"))
    }

    /// Port of the plain listener; it stays over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Port of the TLS listener.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// URL of the management API with the user `guest`, where [`RabbitmqOptions::management`] asked for it. It answers a
    /// moment after the broker does.
    pub fn management_url(&self) -> Option<String> {
        self.management_port.map(|port| format!("http://guest:guest@127.0.0.1:{port}"))
    }

    /// The broker's own directory, gone when it is dropped.
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// The Erlang VM's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.group.as_ref().map(Group::id)
    }

    /// Kills the Erlang VM and its children; data and epmd stay.
    pub fn kill9(&mut self) {
        if let Some(mut group) = self.group.take() {
            group.kill();
        }
    }

    /// Stops the broker in good order (SIGTERM).
    pub async fn stop(&mut self) -> Result<(), SandboxError> {
        let Some(group) = &mut self.group else {
            return Err(SandboxError::State { server: SERVER, state: "not running" });
        };
        group.signal(Signal::TERM);
        if !group.wait_async(STOP_LIMIT).await {
            return Err(SandboxError::NotStopped { server: SERVER, waited: STOP_LIMIT });
        }
        self.group = None;
        Ok(())
    }

    /// Starts a stopped or killed broker with its data, on its ports; returns when it accepts connections.
    pub async fn start_again(&mut self) -> Result<(), SandboxError> {
        if self.group.as_mut().is_some_and(|group| group.exited().is_none()) {
            return Err(SandboxError::State { server: SERVER, state: "already running" });
        }
        let output = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.output_path())
            .map_err(io_error("open RabbitMQ's output"))?;
        let errors = output.try_clone().map_err(io_error("open RabbitMQ's output"))?;
        let mut command = self.command("rabbitmq-server");
        command.stdout(output).stderr(errors);
        self.group = Some(Group::spawn(command, "KILL", self.home.path())?);
        self.ready().await
    }

    /// Freezes the broker (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&mut self) {
        if let Some(group) = &mut self.group {
            group.pause();
        }
    }

    /// Ends [`Rabbitmq::pause`].
    pub fn resume(&mut self) {
        if let Some(group) = &mut self.group {
            group.resume();
        }
    }

    /// Runs `rabbitmqctl` with `args` and returns what it printed. It starts an Erlang VM of its own: about 2 s.
    pub async fn ctl(&self, args: &[&str]) -> Result<String, SandboxError> {
        let mut command = tokio::process::Command::from(self.command("rabbitmqctl"));
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        let program = format!("rabbitmqctl {}", args.join(" "));
        let output = match tokio::time::timeout(CTL_LIMIT, command.output()).await {
            Ok(output) => output.map_err(io_error(format!("run {program}")))?,
            Err(_) => {
                return Err(SandboxError::NotStopped { server: "rabbitmqctl", waited: CTL_LIMIT });
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(SandboxError::Failed { program, output: text(&output.stdout) + &text(&output.stderr) })
    }

    /// Evaluates Erlang in the node (ends with a full stop) and returns the result as text. For what `rabbitmqctl` does as
    /// well, without an Erlang VM of its own: milliseconds.
    pub async fn eval(&self, erlang: &str) -> Result<String, SandboxError> {
        let program = find_program("erl_call", &[]).ok_or(SandboxError::Missing {
            program: "erl_call",
            install: "Erlang/OTP (Debian: erlang-base)",
        })?;
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.home.path());
        command.args([
            "-address",
            &format!("localhost:{}", self.dist_port),
            "-c",
            &self.site.cookie,
            "-r",
            "-e",
        ]);
        Account::apply(self.home.account(), &mut command);
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let asking = async {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(format!("{erlang}\n").as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = match tokio::time::timeout(CTL_LIMIT, asking).await {
            Ok(output) => output.map_err(io_error("run erl_call"))?,
            Err(_) => return Err(SandboxError::NotStopped { server: "erl_call", waited: CTL_LIMIT }),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout);
        // It answers {ok, Result} or {error, Reason}, whatever its exit code.
        match said.trim().strip_prefix("{ok,").and_then(|rest| rest.strip_suffix('}')) {
            Some(result) if output.status.success() => Ok(result.trim().to_owned()),
            _ => Err(SandboxError::Failed {
                program: format!("erl_call, {erlang}"),
                output: said + &text(&output.stderr),
            }),
        }
    }

    /// The node's log.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("log/node.log")
    }

    /// The whole log.
    pub fn read_log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn output_path(&self) -> PathBuf {
        self.home.path().join("output.log")
    }

    /// A RabbitMQ script in an environment that knows this node only.
    fn command(&self, script: &str) -> Command {
        let home = self.home.path();
        let mut command = Command::new(self.scripts.join(script));
        command.env_clear().current_dir(home);
        for (name, value) in [
            ("PATH", std::env::var_os("PATH").unwrap_or_default()),
            ("HOME", home.into()),
            ("LANG", "C.UTF-8".into()),
            // Makes the script become the Erlang VM instead of its parent: signals then reach the VM itself.
            ("detached", "1".into()),
            ("ERL_EPMD_PORT", self.site.epmd_port.to_string().into()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("ERL_CRASH_DUMP", "/dev/null".into()),
            ("RABBITMQ_NODENAME", self.node.clone().into()),
            ("RABBITMQ_DIST_PORT", self.dist_port.to_string().into()),
            ("RABBITMQ_MNESIA_BASE", home.join("mnesia").into()),
            ("RABBITMQ_LOG_BASE", home.join("log").into()),
            ("RABBITMQ_LOGS", self.log_path().into()),
            ("RABBITMQ_PID_FILE", home.join("pid").into()),
            ("RABBITMQ_CONF_ENV_FILE", home.join("env.conf").into()),
            ("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf").into()),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", home.join("advanced.config").into()),
            ("RABBITMQ_GENERATED_CONFIG_DIR", home.join("generated").into()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("enabled_plugins").into()),
            // Schedulers neither bound to cores nor many: several brokers may share the machine.
            ("RABBITMQ_SCHEDULER_BIND_TYPE", "u".into()),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                format!(
                    "+S {0}:{0} +A 8 +SDio 4 -start_epmd false -kernel inet_dist_use_interface {{127,0,0,1}}",
                    self.schedulers
                )
                .into(),
            ),
            ("RABBITMQ_CTL_ERL_ARGS", "+S 1:1 -start_epmd false".into()),
        ] {
            command.env(name, value);
        }
        Account::apply(self.home.account(), &mut command);
        command
    }

    async fn ready(&mut self) -> Result<(), SandboxError> {
        let begun = Instant::now();
        loop {
            let ended = self.group.as_mut().and_then(Group::exited);
            let reason = match (ended, self.answers().await) {
                (Some(status), _) => status.to_string(),
                (None, Ok(())) => return Ok(()),
                (None, Err(_)) if begun.elapsed() < START_LIMIT => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                (None, Err(reason)) => reason,
            };
            let log = tail(&self.output_path()) + &tail(&self.log_path());
            return Err(SandboxError::NotReady { server: SERVER, waited: begun.elapsed(), reason, log });
        }
    }

    async fn answers(&self) -> Result<(), String> {
        // Most tries end here; lapin is asked only once somebody listens.
        tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|error| error.to_string())?;
        let session = async {
            let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
            // Kept: a channel dropped here would still be closing when the connection closes, which is an error.
            let _channel = connection.create_channel().await?;
            connection.close(200, "".into()).await
        };
        match tokio::time::timeout(CONNECT_LIMIT, session).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }
}

/// A name that no other node has.
pub(super) fn node_name() -> String {
    format!("sc-{:016x}@localhost", fastrand::u64(..))
}

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    tls: Option<u16>,
    management: Option<u16>,
}

fn write_files(
    home: &Home,
    options: &RabbitmqOptions,
    cookie: &str,
    ports: Ports,
) -> Result<(), SandboxError> {
    for dir in ["mnesia", "log", "generated"] {
        home.mkdir(dir)?;
    }
    let mut lines = vec![
        format!("listeners.tcp.1 = 127.0.0.1:{}", ports.plain),
        "loopback_users = none".to_owned(),
        format!("vm_memory_high_watermark.absolute = {}", options.memory_watermark),
        "disk_free_limit.absolute = 50MB".to_owned(),
        "log.console = false".to_owned(),
        "log.file.level = info".to_owned(),
    ];
    if let (Some(tls), Some(tls_port)) = (&options.tls, ports.tls) {
        lines.push(format!("listeners.ssl.1 = 127.0.0.1:{tls_port}"));
        for (name, from) in [("cacertfile", &tls.ca), ("certfile", &tls.cert), ("keyfile", &tls.key)] {
            lines.push(format!("ssl_options.{name} = {}", home.copy(from, name)?.display()));
        }
        let verify = if tls.client_cert_required { "verify_peer" } else { "verify_none" };
        lines.push(format!("ssl_options.verify = {verify}"));
        lines.push(format!("ssl_options.fail_if_no_peer_cert = {}", tls.client_cert_required));
    }
    let mut plugins = "";
    if let Some(port) = ports.management {
        plugins = "rabbitmq_management";
        lines.push("management.tcp.ip = 127.0.0.1".to_owned());
        lines.push(format!("management.tcp.port = {port}"));
    }
    lines.extend(options.config.iter().cloned());
    home.write("rabbitmq.conf", lines.join("\n") + "\n", 0o600)?;
    home.write("advanced.config", "[].\n", 0o600)?;
    home.write("enabled_plugins", format!("[{plugins}].\n"), 0o600)?;
    home.write("env.conf", "", 0o600)?;
    home.write(".erlang.cookie", cookie, 0o400)?;
    Ok(())
}

/// The directory of RabbitMQ's own scripts: Debian's in `/usr/sbin` insist on root and on the installed broker.
fn script_dir() -> Result<PathBuf, SandboxError> {
    let mut dirs = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    dirs.into_iter()
        .filter_map(|dir| dir.join("rabbitmq-server").canonicalize().ok()?.parent().map(Path::to_owned))
        .find(|dir| dir.join("rabbitmq-env").is_file())
        .ok_or(SandboxError::Missing {
            program: "RabbitMQ",
            install: "RabbitMQ 3.10 or newer (Debian: rabbitmq-server)",
        })
}

fn epmd_program() -> Result<PathBuf, SandboxError> {
    find_program("epmd", &[PathBuf::from("/usr/lib/erlang/bin")]).ok_or(SandboxError::Missing {
        program: "epmd",
        install: "Erlang/OTP (Debian: rabbitmq-server brings it)",
    })
}
