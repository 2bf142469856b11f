//! How far a long job is, on standard error: a bar on a terminal, plain lines elsewhere.
//!
//! A plain line is written when the job enters another step, when it is done, and at most every ten seconds in between, so that
//! a log of a job that takes hours stays short. Nobody waits for it: what cannot be written is not.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines of the same step.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// How often a bar moves although nothing was told: it shows that the process lives.
const TICK: Duration = Duration::from_millis(200);

/// One job.
pub(super) struct Progress {
    total: u64,
    form: Form,
}

enum Form {
    Bar(ProgressBar),
    Plain { out: Box<dyn Write + Send>, doing: String, last: Option<Instant> },
}

impl Progress {
    /// Begins a job of `total` pieces.
    pub(super) fn new(total: u64) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::plain(total, Box::new(io::stderr()));
        }
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template("{spinner} {pos}/{len} [{bar:24}] {msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(TICK);
        Progress { total, form: Form::Bar(bar) }
    }

    fn plain(total: u64, out: Box<dyn Write + Send>) -> Progress {
        Progress { total, form: Form::Plain { out, doing: String::new(), last: None } }
    }

    /// So many pieces are done, and what comes now.
    pub(super) fn at(&mut self, done: u64, doing: &str) {
        self.at_moment(done, doing, Instant::now());
    }

    fn at_moment(&mut self, done: u64, now_doing: &str, now: Instant) {
        match &mut self.form {
            Form::Bar(bar) => {
                bar.set_position(done);
                if bar.message() != now_doing {
                    bar.set_message(now_doing.to_owned());
                }
            }
            Form::Plain { out, doing, last } => {
                let due = last.is_none_or(|last| now.saturating_duration_since(last) >= PLAIN_INTERVAL);
                if due || doing != now_doing || done == self.total {
                    let _ = writeln!(out, "{done}/{} {now_doing}", self.total);
                    (*doing, *last) = (now_doing.to_owned(), Some(now));
                }
            }
        }
    }
}

impl Drop for Progress {
    /// A bar goes away: what came of the job is said by whoever ran it.
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn plain_lines_are_few() {
        let (written, start) = (Written::default(), Instant::now());
        let mut progress = Progress::plain(100, Box::new(written.clone()));
        for (s, done, doing) in [
            (0, 0, "reading"),
            (1, 10, "reading"),
            (9, 20, "reading"),
            (10, 30, "reading"),
            (11, 31, "writing"),
            (12, 100, "writing"),
        ] {
            progress.at_moment(done, doing, start + Duration::from_secs(s));
        }
        drop(progress);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "0/100 reading\n30/100 reading\n31/100 writing\n100/100 writing\n");
    }

    #[test]
    fn a_closed_pipe_does_not_end_the_job() {
        let mut progress = Progress::plain(1, Box::new(Broken));
        progress.at(0, "reading");
        progress.at(1, "reading");
    }
}
