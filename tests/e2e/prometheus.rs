//! A Prometheus of our own, and its HTTP API (<https://prometheus.io/docs/prometheus/latest/querying/api/>).

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use statecast::sandbox::free_port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Between two looks: rules are evaluated each second.
const POLL: Duration = Duration::from_millis(250);
const START_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Ends Prometheus when this process has ended, however it did: then its end of the pipe is closed.
const WATCHER: &str = r#""$@" & pid=$!; cat >/dev/null; kill -KILL $pid; wait $pid"#;

/// A running Prometheus; dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Prometheus {
    watcher: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

/// What a query gives: labels and value of each series.
pub type Answer = Vec<(Value, f64)>;

impl Prometheus {
    /// Scrapes `targets` each second as the job `statecast` of the namespace `e2e`, and evaluates `rules` each second.
    pub async fn start(targets: &[SocketAddr], rules: &str) -> Prometheus {
        let dir = tempfile::tempdir().unwrap();
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{
                "job_name": "statecast",
                "static_configs": [{ "targets": targets, "labels": { "namespace": "e2e" } }],
            }],
        });
        // JSON is YAML.
        std::fs::write(dir.path().join("prometheus.yaml"), config.to_string()).unwrap();
        std::fs::write(dir.path().join("rules.yaml"), rules).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let watcher = Command::new("sh")
            .args([
                "-c",
                WATCHER,
                "sh",
                "prometheus",
                "--config.file=prometheus.yaml",
                "--storage.tsdb.path=data",
            ])
            .args([&format!("--web.listen-address={address}"), "--log.level=warn"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Prometheus { watcher, address, dir };
        let deadline = Instant::now() + START_LIMIT;
        while prometheus.get("/-/ready").await.is_none_or(|(status, _)| status != 200) {
            assert!(
                Instant::now() < deadline,
                "Prometheus does not start (Debian: apt install prometheus)\n{}",
                prometheus.log()
            );
            tokio::time::sleep(POLL).await;
        }
        prometheus
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The rules file that it reads.
    pub fn rules_file(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("rules.yaml")
    }

    /// HTTP 1.0: the answer comes in one piece.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.address).await.ok()?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        tokio::time::timeout(ANSWER_LIMIT, exchange).await.ok().flatten()
    }

    /// `data` of an answer of the API, or what it calls the error.
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        let (_, body) = self.get(&format!("/api/v1/{path}")).await.ok_or("no answer")?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" {
            Ok(answer["data"].take())
        } else {
            Err(answer["error"].to_string())
        }
    }

    /// Evaluates a query now. NaN, as a ratio of nothing to nothing gives it, is no value.
    pub async fn query(&self, query: &str) -> Result<Answer, String> {
        let data = self.api(&format!("query?query={}", encoded(query))).await?;
        let series = data["result"].as_array().ok_or("no vector")?.iter().filter_map(|series| {
            let value: f64 = series["value"][1].as_str()?.parse().ok()?;
            (!value.is_nan()).then(|| (series["metric"].clone(), value))
        });
        Ok(series.collect())
    }

    /// Waits until a query gives anything; `false` after `limit`.
    pub async fn wait_for(&self, query: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.query(query).await.unwrap_or_else(|error| panic!("{query}: {error}")).is_empty() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // The pipe is closed, which the watcher notices.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
        if std::thread::panicking() {
            eprintln!("--- Prometheus\n{}---", self.log());
        }
    }
}

/// Percent-encoded, but for what never needs it.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
