//! One server process: account, directory, process group, watcher.
//!
//! Each server leads its own process group. Signals go to that group and to the descendants that left it (PostgreSQL's
//! backends each make a session of their own), which are listed while their parent is stopped and so cannot be stale.
//!
//! The watcher is a `sh` that reads a pipe of which we hold the write end. When we die, however abruptly, it reads the
//! end of file, checks that the process it watches is still the one we started, ends it and removes the directory.
//! It is ended before a server is stopped by us, so that it never acts on a process id that the system has reused.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::SandboxError;

/// Pause between two looks at a process.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Bytes of a log shown in an error.
const TAIL_BYTES: usize = 4_000;

/// Ports below the range that the kernel gives to outgoing connections, so that a stopped server's port stays free.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

/// What the watcher runs: `$1` leader, `$2` its start time or `-`, `$3` first signal, `$4` directory to remove.
const WATCHER: &str = r#"
read -r _
same() {
  [ "$2" = - ] || [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]
}
if same "$1" "$2"; then
  children=$(cat "/proc/$1/task/$1/children" 2>/dev/null)
  kill -CONT -- "-$1" $children 2>/dev/null
  kill -s "$3" "$1" 2>/dev/null
  n=0
  while [ "$3" != KILL ] && [ $n -lt 30 ] && kill -0 "$1" 2>/dev/null && ! grep -q ') Z' "/proc/$1/stat" 2>/dev/null; do
    sleep 0.1
    n=$((n + 1))
  done
  if same "$1" "$2"; then
    kill -STOP "$1" 2>/dev/null
    children=$(cat "/proc/$1/task/$1/children" 2>/dev/null)
    kill -KILL -- "-$1" $children 2>/dev/null
  fi
fi
n=0
while ! rm -rf -- "$4" 2>/dev/null && [ $n -lt 30 ]; do
  sleep 0.1
  n=$((n + 1))
done
"#;

pub(super) fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> SandboxError {
    let doing = doing.into();
    move |source| SandboxError::Io { doing, source }
}

/// An account that servers run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The first of `names` that exists, else `nobody`; nothing unless we are root.
    pub(super) fn unprivileged(names: &[&str]) -> Result<Option<Account>, SandboxError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(io_error("read /etc/passwd"))?;
        names.iter().chain(&["nobody"]).find_map(|name| Account::find(&passwd, name)).map(Some).ok_or(
            SandboxError::Missing {
                program: "an unprivileged account",
                install: "postgresql or rabbitmq-server",
            },
        )
    }

    fn find(passwd: &str, name: &str) -> Option<Account> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (found, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let account = Account { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
            (found == name && account.uid != 0).then_some(account)
        })
    }

    /// Runs `command` as this account.
    pub(super) fn apply(account: Option<Account>, command: &mut Command) {
        if let Some(account) = account {
            command.gid(account.gid).uid(account.uid);
        }
    }
}

/// A server's temporary directory, owned by its account.
#[derive(Debug)]
pub(super) struct Home {
    dir: tempfile::TempDir,
    account: Option<Account>,
}

impl Home {
    pub(super) fn new(account: Option<Account>) -> Result<Home, SandboxError> {
        let dir = tempfile::Builder::new()
            .prefix("statecast-sandbox-")
            .tempdir()
            .map_err(io_error("create a temporary directory"))?;
        let home = Home { dir, account };
        home.give(home.path(), 0o700)?;
        Ok(home)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }

    /// Writes a file that the server may read.
    pub(super) fn write(
        &self,
        name: &str,
        contents: impl AsRef<[u8]>,
        mode: u32,
    ) -> Result<PathBuf, SandboxError> {
        let path = self.path().join(name);
        fs::write(&path, contents).map_err(io_error(format!("write {}", path.display())))?;
        self.give(&path, mode)?;
        Ok(path)
    }

    /// Makes a directory that the server may write.
    pub(super) fn mkdir(&self, name: &str) -> Result<PathBuf, SandboxError> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).map_err(io_error(format!("create {}", path.display())))?;
        self.give(&path, 0o700)?;
        Ok(path)
    }

    /// Copies a file in.
    pub(super) fn copy(&self, from: &Path, name: &str) -> Result<PathBuf, SandboxError> {
        let contents = fs::read(from).map_err(io_error(format!("read {}", from.display())))?;
        self.write(name, contents, 0o600)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<(), SandboxError> {
        let doing = || io_error(format!("set the owner of {}", path.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(doing())?;
        match self.account {
            Some(account) => chown(path, Some(account.uid), Some(account.gid)).map_err(doing()),
            None => Ok(()),
        }
    }
}

/// A loopback port that nobody listens on and that this process has not given out before.
pub fn free_port() -> Result<u16, SandboxError> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..1_000 {
        let port = fastrand::u16(PORTS);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(SandboxError::Io { doing: "find a free port".to_owned(), source: io::ErrorKind::AddrInUse.into() })
}

/// The program `name` in one of `dirs` or on the PATH.
pub(super) fn find_program(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    dirs.iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The last lines of a file; empty if there is none.
pub(super) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(TAIL_BYTES);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

/// A running server: the leader of its process group, and the watcher.
#[derive(Debug)]
pub(super) struct Group {
    leader: Child,
    pid: Pid,
    watcher: Option<Child>,
    paused: Vec<Pid>,
}

impl Group {
    /// Starts `command` as the leader of a group of its own. Should we die, the leader gets `signal` (a name for
    /// `kill -s`), then everything is killed and `home` removed.
    pub(super) fn spawn(mut command: Command, signal: &str, home: &Path) -> Result<Group, SandboxError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut leader = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .map_err(io_error(format!("start {program}")))?;
        let pid = Pid::from_child(&leader);
        match watch(pid, signal, home) {
            Ok(watcher) => Ok(Group { leader, pid, watcher: Some(watcher), paused: Vec::new() }),
            Err(error) => {
                let _ = leader.kill();
                let _ = leader.wait();
                Err(error)
            }
        }
    }

    /// The leader's process id, which is also the group's.
    pub(super) fn id(&self) -> u32 {
        self.leader.id()
    }

    /// The exit status, if the leader has ended.
    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        self.leader.try_wait().ok().flatten()
    }

    /// Signals the leader only.
    pub(super) fn signal(&mut self, signal: Signal) {
        self.end_watcher();
        if self.exited().is_none() {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// Stops the leader and all its descendants where they are.
    pub(super) fn pause(&mut self) {
        if self.exited().is_some() {
            return;
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::STOP);
        // The leader makes no new children now; a child might, so look until nothing new appears.
        loop {
            let fresh: Vec<Pid> =
                descendants(self.pid).into_iter().filter(|pid| !self.paused.contains(pid)).collect();
            if fresh.is_empty() {
                return;
            }
            for pid in fresh {
                let _ = rustix::process::kill_process(pid, Signal::STOP);
                self.paused.push(pid);
            }
        }
    }

    /// Lets what [`Group::pause`] stopped go on.
    pub(super) fn resume(&mut self) {
        let paused = std::mem::take(&mut self.paused);
        if self.exited().is_some() {
            return;
        }
        // The leader last: until it runs, no child's id can have been reaped and reused.
        for pid in paused {
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::CONT);
    }

    /// SIGKILL for everything, as a crash of the machine would; returns when all of it is gone.
    pub(super) fn kill(&mut self) {
        self.end_watcher();
        if self.exited().is_some() {
            return;
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::STOP);
        let children = descendants(self.pid);
        for pid in &children {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        let _ = self.leader.wait();
        let deadline = Instant::now() + KILL_WAIT;
        while children.iter().any(|pid| alive(*pid)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the leader has ended; `false` if it did not within `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.exited().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// As [`Group::wait`], without blocking the runtime.
    pub(super) async fn wait_async(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.exited().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    fn end_watcher(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

fn watch(leader: Pid, signal: &str, home: &Path) -> Result<Child, SandboxError> {
    let pid = leader.as_raw_nonzero().to_string();
    let born = stat(leader).and_then(|fields| fields.get(19).cloned());
    Command::new("/bin/sh")
        .args(["-c", WATCHER, "statecast-watcher", &pid, born.as_deref().unwrap_or("-"), signal])
        .arg(home)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io_error("start a watcher"))
}

/// The fields of `/proc/PID/stat` from the state on (proc(5): field 3 is index 0). Nothing where there is no `/proc`.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The command name may hold spaces and parentheses; it ends at the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn alive(pid: Pid) -> bool {
    stat(pid).and_then(|fields| fields.first().cloned()).is_some_and(|state| state != "Z" && state != "X")
}

/// Every live process below `root`, by the parents that `/proc` names.
fn descendants(root: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pairs: Vec<(Pid, i32)> = entries
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)?;
            let fields = stat(pid)?;
            let live = fields.first()? != "Z";
            live.then_some((pid, fields.get(1)?.parse().ok()?))
        })
        .collect();
    let mut below: HashSet<i32> = HashSet::from([root.as_raw_nonzero().get()]);
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for (pid, parent) in &pairs {
            if below.contains(parent) && below.insert(pid.as_raw_nonzero().get()) {
                found.push(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_never_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var/lib:/bin/sh\n";
        assert_eq!(Account::find(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(Account::find(passwd, "root"), None);
        assert_eq!(Account::find(passwd, "rabbitmq"), None);
    }

    #[test]
    fn a_killed_group_takes_children_of_other_sessions_with_it() {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "setsid sleep 100 & wait"]);
        let mut group = Group::spawn(command, "KILL", home.path()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let children = loop {
            let children = descendants(group.pid);
            if !children.is_empty() || Instant::now() > deadline {
                break children;
            }
            std::thread::sleep(POLL);
        };
        assert!(!children.is_empty());
        group.kill();
        assert!(!children.into_iter().any(alive));
    }

    #[test]
    fn ports_differ() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }
}
