//! A program on a pseudo-terminal: what its screen shows, its keys, and how it leaves the terminal.
//!
//! `setsid --ctty` (util-linux) makes it the program's controlling terminal, so that a new size signals it as a real one does.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize};

/// The terminal as the program has drawn it.
struct Drawn {
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

/// A running program; dropped, it is killed.
pub struct Pty {
    child: Child,
    master: File,
    /// Held open, so that its settings outlive the program.
    slave: OwnedFd,
    drawn: Arc<Drawn>,
}

impl Pty {
    /// Runs `command`, which begins with `setsid --ctty`.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&master, winsize(columns, rows)).unwrap();
        let end = || slave.try_clone().unwrap();
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let parser = Mutex::new(vt100::Parser::new(rows, columns, 0));
        let drawn = Arc::new(Drawn { parser, changed: Condvar::new() });
        let master = File::from(master);
        let (mut reader, shared) = (master.try_clone().unwrap(), drawn.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error when both the program and the test have let the slave go.
            while let Ok(read @ 1..) = reader.read(&mut bytes) {
                shared.parser.lock().unwrap().process(&bytes[..read]);
                shared.changed.notify_all();
            }
        });
        Pty { child, master, slave, drawn }
    }

    /// Waits until the screen's text is as wanted; a failed test otherwise.
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut parser = self.drawn.parser.lock().unwrap();
        loop {
            let screen = parser.screen().contents();
            if wanted(&screen) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the screen after {} s:\n{screen}", limit.as_secs());
            parser = self.drawn.changed.wait_timeout(parser, left).unwrap().0;
        }
    }

    /// What the screen shows now.
    pub fn screen(&self) -> String {
        self.drawn.parser.lock().unwrap().screen().contents()
    }

    /// Keys.
    pub fn write(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.drawn.parser.lock().unwrap().screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.master, winsize(columns, rows)).unwrap();
    }

    /// Echo, line mode and the like.
    pub fn settings(&self) -> (InputModes, OutputModes, LocalModes) {
        let settings = tcgetattr(&self.slave).unwrap();
        (settings.input_modes, settings.output_modes, settings.local_modes)
    }

    /// Whether the alternate screen is shown.
    pub fn alternate_screen(&self) -> bool {
        self.drawn.parser.lock().unwrap().screen().alternate_screen()
    }

    /// Whether the cursor is shown.
    pub fn cursor_visible(&self) -> bool {
        !self.drawn.parser.lock().unwrap().screen().hide_cursor()
    }

    /// SIGTERM.
    pub fn sigterm(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for the program's end and until its last bytes have been drawn.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.settle();
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end; its screen:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whatever was written before this mark has been read when the mark is seen.
    fn settle(&self) {
        let mut slave = File::from(self.slave.try_clone().unwrap());
        slave.write_all(b"\r\n--end--").unwrap();
        self.wait_for(|screen| screen.contains("--end--"), Duration::from_secs(10));
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
