//! Which parts are run, how each ends, and where the report goes.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::plan::{Plan, Scale};
use crate::publisher::Template;
use crate::servers::Servers;
use crate::sheet::{Document, Section, Status, Surroundings};
use crate::usage::Machine;
use crate::{cost, drain, goals, growth, keys, latency, publisher, report, start, tax};

/// Written to standard error: what is running.
macro_rules! say {
    ($($text:tt)*) => { $crate::run::tell(&format!($($text)*)) };
}
pub(crate) use say;

/// What sections share.
pub(crate) struct Bench {
    pub(crate) servers: Servers,
    pub(crate) plan: Plan,
    /// By the bytes of a payload: each is looked at once.
    pub(crate) templates: tokio::sync::Mutex<HashMap<usize, Template>>,
    /// Of the drain: what the name of a case must hold.
    pub(crate) only_case: Option<String>,
    /// For what is drawn by chance: `pgbench`'s rows.
    pub(crate) seed: u64,
    /// What this run has measured so far.
    pub(crate) before: Document,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
/// A name, and what it runs.
type Part = (&'static str, for<'a> fn(&'a Bench, &'a mut Section) -> Running<'a>);

/// In this order; what may leave something behind comes last.
const PARTS: [Part; 7] = [
    (start::NAME, |bench, section| Box::pin(start::run(bench, section))),
    (drain::NAME, |bench, section| Box::pin(drain::run(bench, section))),
    (keys::NAME, |bench, section| Box::pin(keys::run(bench, section))),
    (latency::NAME, |bench, section| Box::pin(latency::run(bench, section))),
    (cost::NAME, |bench, section| Box::pin(cost::run(bench, section))),
    (tax::NAME, |bench, section| Box::pin(tax::run(bench, section))),
    (growth::NAME, |bench, section| Box::pin(growth::run(bench, section))),
];

pub(crate) fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = match runtime {
        Ok(runtime) if std::env::args().any(|argument| argument == publisher::ROLE) => {
            let done = runtime.block_on(publisher::run());
            // A read from standard input cannot be cancelled: do not wait for it.
            runtime.shutdown_background();
            done
        }
        Ok(runtime) => runtime.block_on(bench()),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("{error:?}"));
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<()> {
    let scale = if asked("QUICK").is_some_and(|quick| quick != "0") { Scale::Quick } else { Scale::Full };
    let parts = chosen()?;
    let out = out(scale)?;
    let json = out.join("benchmark.json");
    let mut document = Document::read(&json, scale);
    let seed = asked("SEED").map_or(Ok(1), |seed| seed.parse()).context("SEED is a number")?;
    say!("starting private servers");
    let began = Instant::now();
    let servers = Servers::start().await?;
    let surroundings = Surroundings { machine: Machine::here(), versions: servers.versions.clone(), seed };
    let only_case = asked("CASE");
    let mut bench = Bench {
        only_case,
        servers,
        plan: Plan::new(scale),
        seed,
        templates: Default::default(),
        before: Document::default(),
    };
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    for (at, (name, run)) in parts.into_iter().enumerate() {
        say!("{}", ahead(&names, at, &document, bench.plan.limit.saturating_sub(began.elapsed())));
        let mut section = Section {
            began: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            quick: scale == Scale::Quick,
            surroundings: surroundings.clone(),
            ..Section::default()
        };
        let left = bench.plan.limit.saturating_sub(began.elapsed());
        let interrupted = measure(&bench, &mut section, name, run, left).await;
        let ended_early = section.status != Status::Measured;
        document.sections.insert(name.to_owned(), section.clone());
        bench.before.sections.insert(name.to_owned(), section);
        document.write(&json)?;
        report::write(&document, &out, scale)?;
        if interrupted {
            break;
        }
        if ended_early {
            bench.servers.tidy().await?;
        }
    }
    say!("{} s; {}", began.elapsed().as_secs(), goals::summary(&document));
    Ok(())
}

/// Which section of how many, and how long it all may still take: as long as last time, or else what the plan allows at most.
pub(crate) fn ahead(names: &[&str], at: usize, before: &Document, most: Duration) -> String {
    let took = |name: &&str| {
        let section = before.sections.get(*name)?;
        (section.status == Status::Measured).then_some(section.took_s)
    };
    let rest = &names[at.min(names.len())..];
    let left = match rest.iter().map(took).sum::<Option<f64>>() {
        Some(seconds) => format!("about {:.0} min left, as last time", seconds / 60.0),
        None => format!("{} min left at most", most.as_secs().div_ceil(60)),
    };
    format!("section {} of {}: {}; {left}", at + 1, names.len(), rest.first().unwrap_or(&"none"))
}

/// Runs one part to its end, its limit or a signal; `true`: a signal.
async fn measure(
    bench: &Bench,
    section: &mut Section,
    name: &str,
    run: for<'a> fn(&'a Bench, &'a mut Section) -> Running<'a>,
    left: Duration,
) -> bool {
    let (began, limit) = (Instant::now(), bench.plan.section_limit.min(left));
    let ended = tokio::select! {
        ended = run(bench, section) => ended,
        () = tokio::time::sleep(limit) => Err(anyhow::anyhow!("its time of {} s is over", limit.as_secs())),
        _ = tokio::signal::ctrl_c() => Err(anyhow::Error::new(Interrupted)),
    };
    section.took_s = began.elapsed().as_secs_f64();
    let interrupted = ended.as_ref().is_err_and(|error| error.is::<Interrupted>());
    section.status = match ended {
        Ok(()) => Status::Measured,
        Err(error) => {
            let why = format!("{error:#}");
            say!("{name}: {why}");
            if section.figures.is_empty() { Status::NotMeasured(why) } else { Status::Partly(why) }
        }
    };
    interrupted
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// A variable, if it says something.
fn asked(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn chosen() -> Result<Vec<Part>> {
    let Some(only) = asked("ONLY") else { return Ok(PARTS.into()) };
    let names: Vec<&str> = only.split([',', ' ']).filter(|name| !name.is_empty()).collect();
    for name in &names {
        if !PARTS.iter().any(|(known, _)| known == name) {
            let known: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
            bail!("ONLY: there is no section {name:?}; there are {}", known.join(", "));
        }
    }
    Ok(PARTS.into_iter().filter(|(name, _)| names.contains(name)).collect())
}

/// The full benchmark is documentation; a quick one is not.
fn out(scale: Scale) -> Result<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = match (asked("OUT"), scale) {
        (Some(out), _) => out.into(),
        // Some cases of a section are not documentation either.
        (None, Scale::Full) if asked("CASE").is_none() => root.join("docs"),
        (None, _) => root.join("target/benchmark"),
    };
    std::fs::create_dir_all(dir.join("benchmark")).context("create a directory for the report")?;
    Ok(dir)
}

/// A line for who watches.
pub(crate) fn tell(text: &str) {
    use std::io::Write as _;
    let now = OffsetDateTime::now_utc();
    let _ = writeln!(std::io::stderr(), "{:02}:{:02}:{:02} {text}", now.hour(), now.minute(), now.second());
}
