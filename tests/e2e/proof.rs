//! What must show: the rules are valid, every alert fires in its fault, nothing fires where all is well, and every query of
//! every dashboard gives what it should.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;

use crate::collector::Collector;
use crate::faults::{
    Alone, Blocked, Certificate, CutOff, GivenUp, Missed, Nacked, NotStreaming, Parked, Restarting, Retained,
    Returned, Takeovers, Twice,
};
use crate::files;
use crate::prometheus::Prometheus;
use crate::rules;
use crate::stage::{Pipeline, Servers, Stage, certificate, targets};

/// For all of it.
const ALL: Duration = Duration::from_secs(480);
const WELL: &str = "well";

/// Alerts whose fault cannot be made in seconds, and why. Their expressions and durations are tested by promtool.
const NOT_LIVE: [(&str, &str); 1] = [("StatecastVersionsDiffer", "it takes binaries of two releases")];

/// Queries without data in a pipeline that is well, and why.
const EMPTY_WHEN_WELL: [(&str, &str); 0] = [];

/// Queries that were 0 all the time, in every fault, and why.
const ZERO_IN_EVERY_FAULT: [(&str, &str); 0] = [];

fn promtool(arguments: &[&str], dir: &Path) {
    let output = Command::new("promtool").args(arguments).current_dir(dir).output();
    let output = output.expect("promtool is not installed (Debian: apt install prometheus)");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
}

#[test]
#[ignore = "make e2e: needs Debian's package prometheus"]
fn promtool_takes_the_rules_and_their_tests_pass() {
    let dir = files::path("helm/statecast/rules");
    promtool(&["check", "rules", "statecast.rules.yaml"], &dir);
    for test in files::listed("helm/statecast/rules", ".test.yaml") {
        promtool(&["test", "rules", test.rsplit('/').next().unwrap()], &dir);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make e2e: needs Debian's package prometheus"]
async fn each_alert_fires_in_its_fault_and_each_query_shows_it() {
    tokio::time::timeout(ALL, Box::pin(everything())).await.expect("it took too long");
}

async fn everything() {
    let servers = Servers::start().await;
    let s = &servers;
    let (dir, collector) = (tempfile::tempdir().unwrap(), Collector::start().await);
    let well = healthy(s, &certificate(dir.path(), 365), &collector).await;
    let replica = well.run.replica();
    let (mut blocked, alone, twice, restarting) =
        tokio::join!(Blocked::new(s), Alone::new(s), Twice::new(s), Restarting::new(s));
    let (cut_off, takeovers, expires, parked) =
        tokio::join!(CutOff::new(s), Takeovers::new(s), Certificate::new(s), Parked::new(s));
    let (returned, nacked, not_streaming, missed) =
        tokio::join!(Returned::new(s), Nacked::new(s), NotStreaming::new(s), Missed::new(s));
    let (retained, given_up) = tokio::join!(Retained::new(s), GivenUp::new(s));
    let targets = targets(&[
        &well.run,
        &replica,
        &blocked.0.run,
        &alone.0.run,
        &twice.0.run,
        &twice.1.run,
        &restarting.0.run,
        &cut_off.0.run,
        &takeovers.0.run,
        &takeovers.1,
        &expires.0.run,
        &parked.0.run,
        &returned.0.run,
        &nacked.0.run,
        &not_streaming.0.run,
        &missed.0.run,
        &retained.0.run,
        &given_up.0.run,
    ]);
    let prometheus = Prometheus::start(&targets, &rules::live()).await;
    promtool(&["check", "rules", "rules.yaml"], prometheus.rules_file().parent().unwrap());
    let stage = Stage { prometheus, streaming: Barrier::new(3) };

    let _leader = stage.leading(&well).await;
    let _standby = replica.start();
    let _load = well.load().await;
    // From here on nothing may fire for it.
    let settled = format!(
        "statecast_wal_streaming{{pipeline=\"{WELL}\"}} == 1 and on (pipeline)
         count by (pipeline) (statecast_build_info) == 2 and on (pipeline)
         pipeline:statecast_events_confirmed:rate5m > 1 unless on (pipeline) ALERTS"
    );
    assert!(stage.seen(&settled).await, "the healthy pipeline is not well");
    let since = Instant::now();

    tokio::join!(
        async { tokio::join!(alone.strikes(&stage), twice.strikes(&stage), restarting.strikes(&stage)) },
        async {
            tokio::join!(cut_off.strikes(&stage, s), takeovers.strikes(&stage), expires.strikes(&stage))
        },
        async { tokio::join!(blocked.strikes(&stage), parked.strikes(&stage), returned.strikes(&stage)) },
        async { tokio::join!(nacked.strikes(&stage), not_streaming.strikes(&stage), missed.strikes(&stage)) },
        async { tokio::join!(retained.strikes(&stage), given_up.strikes(&stage)) },
    );
    println!("all faults: {:.0} s", since.elapsed().as_secs_f64());
    silent_where_all_is_well(&stage.prometheus, since).await;
    every_alert_fired(&stage.prometheus).await;
    rules_have_no_errors(&stage.prometheus).await;
    every_query_shows_something(&stage.prometheus).await;
}

/// The pipeline that nothing happens to; only its spans are taken by turns.
async fn healthy(servers: &Servers, ca_file: &Path, collector: &Collector) -> Pipeline {
    let endpoint = collector.url();
    let set = [
        ("SOURCE__MODE", "auto"),
        ("POSTGRES__TLS__CA_FILE", ca_file.to_str().unwrap()),
        ("OTEL__ENDPOINT", endpoint.as_str()),
        ("OTEL__SAMPLE", "1"),
    ];
    Pipeline::new(WELL, &servers.calm, &servers.broker, "#", &set).await
}

async fn silent_where_all_is_well(prometheus: &Prometheus, since: Instant) {
    let query = format!("count_over_time(ALERTS{{pipeline=\"{WELL}\"}}[{}s])", since.elapsed().as_secs());
    let fired = prometheus.query(&query).await.unwrap();
    assert!(fired.is_empty(), "alerts of a pipeline that is well: {fired:?}");
}

async fn every_alert_fired(prometheus: &Prometheus) {
    let query = "count by (alertname) (count_over_time(ALERTS{alertstate=\"firing\"}[10m]))";
    let fired: BTreeSet<String> = prometheus
        .query(query)
        .await
        .unwrap()
        .iter()
        .map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned())
        .collect();
    for alert in rules::names("alert") {
        let excused = NOT_LIVE.iter().any(|(name, _)| *name == alert);
        assert_ne!(fired.contains(&alert), excused, "{alert}: fired or excused, one of them");
    }
}

async fn rules_have_no_errors(prometheus: &Prometheus) {
    let groups = prometheus.api("rules").await.unwrap();
    let groups = groups["groups"].as_array().unwrap();
    let all: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert_eq!(all.len(), rules::names("alert").len() + rules::names("record").len());
    for rule in all {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
    }
    for record in rules::names("record") {
        let answer = prometheus.query(&format!("{record}{{pipeline=\"{WELL}\"}}")).await.unwrap();
        assert_eq!(answer.len(), 1, "{record} of a pipeline that is well");
    }
}

/// For the pipeline that is well each query has data now; and each was above 0 at some time, for some pipeline: one that
/// asks for what never happens would go unnoticed otherwise.
async fn every_query_shows_something(prometheus: &Prometheus) {
    assert!(prometheus.query("sum(statecast_no_such_metric)").await.unwrap().is_empty());
    assert!(prometheus.query("sum(").await.is_err());
    let (mut empty, mut zero) = (BTreeMap::new(), BTreeSet::new());
    let queries = rules::queries();
    assert!(queries.len() > 60);
    for query in &queries {
        let text = query.of(WELL);
        match prometheus.query(&text).await {
            Ok(answer) if answer.is_empty() => _ = empty.insert(query.place.clone(), text),
            Ok(_) => {}
            Err(error) => panic!("{}: {error}\n{text}", query.place),
        }
        let over_time = format!("max_over_time(({})[8m:1s]) > 0", query.of(".+"));
        if prometheus.query(&over_time).await.unwrap().is_empty() {
            zero.insert(query.place.clone());
        }
    }
    let excused =
        |list: &[(&str, &str)]| list.iter().map(|(place, _)| (*place).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(empty.keys().cloned().collect::<BTreeSet<_>>(), excused(&EMPTY_WHEN_WELL), "{empty:#?}");
    assert_eq!(zero, excused(&ZERO_IN_EVERY_FAULT));
    println!("{} queries of the dashboards have data", queries.len());
}
