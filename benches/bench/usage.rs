//! What a process has used, from `/proc` (see proc(5)), and what the machine is.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Ticks per second of the times in `/proc/PID/stat`: `USER_HZ`, 100 on every architecture that Rust and PostgreSQL
/// share.
const TICKS: f64 = 100.0;

/// Processor time and memory of one process.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Usage {
    pub(crate) user_s: f64,
    pub(crate) system_s: f64,
    /// The most that ever was resident.
    pub(crate) peak_mb: f64,
    /// What is resident now.
    pub(crate) resident_mb: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Usage> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's times")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process's memory")?;
        Usage::parse(&stat, &status).context("/proc is not as proc(5) says")
    }

    /// Time on a processor, both kinds.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }

    pub(crate) fn parse(stat: &str, status: &str) -> Option<Usage> {
        // The command name may hold spaces and parentheses; it ends at the last one, before field 3.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut times = rest.split(' ').skip(11).map(|field| field.parse::<f64>().ok());
        let (user, system) = (times.next()??, times.next()??);
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? * 1024.0 / 1e6)
        };
        Some(Usage {
            user_s: user / TICKS,
            system_s: system / TICKS,
            peak_mb: megabytes("VmHWM:")?,
            resident_mb: megabytes("VmRSS:")?,
        })
    }
}

/// What the figures depend on, without names and paths.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) memory_gb: f64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kb = memory.split(' ').next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0);
        // What follows the version names a build, such as a distributor's or a host's.
        let release = read("/proc/sys/kernel/osrelease");
        let kernel = release.trim().split('-').next().unwrap_or_default();
        Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_gb: (kb * 1024.0 / 1e8).round() / 10.0,
            kernel: kernel.to_owned(),
        }
    }
}
