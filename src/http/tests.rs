//! Over real sockets: what is answered, and what a rude client gets.

use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::time::Instant;

use super::*;
use crate::health::Role;

struct Fixture {
    server: Option<Server>,
    addr: SocketAddr,
    health: Arc<Health>,
    stop: CancellationToken,
}

impl Fixture {
    fn new(limits: Limits) -> Fixture {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (health, metrics, stop) = (Health::new(), Metrics::new("test"), CancellationToken::new());
        let shared = Shared { health: Arc::clone(&health), metrics };
        let server = start_with(limits, listener, shared, stop.clone()).unwrap();
        Fixture { addr: server.addr, server: Some(server), health, stop }
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn send(&self, request: &str) -> String {
        let mut stream = self.connect();
        // The server may close before all of it is written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            server.join();
        }
    }
}

fn short() -> Limits {
    Limits { head: Duration::from_millis(200), connection: Duration::from_millis(600), ..LIMITS }
}

#[test]
fn live_ready_and_metrics() {
    let f = Fixture::new(LIMITS);
    assert_ne!(f.addr.port(), 0);
    assert!(f.get("/live").starts_with("HTTP/1.1 200 OK\r\n"));
    let starting = f.get("/ready");
    assert!(
        starting.starts_with("HTTP/1.1 503 ")
            && starting.ends_with(
                "\r\n\r\nnot ready\nrole: starting\nstarting: connecting to PostgreSQL and RabbitMQ\n"
            )
    );
    f.health.set_role(Role::Leader);
    f.health.set_warning("chunks", "3 left");
    let ready = f.get("/ready");
    assert!(ready.starts_with("HTTP/1.1 200 OK\r\n"), "{ready}");
    assert!(ready.ends_with("\r\n\r\nready\nrole: leader\nwarning: chunks: 3 left\n"), "{ready}");
    f.health.set_reason("broker", "mq:5672: connection refused");
    let json = f.send("GET /ready HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n");
    assert!(json.starts_with("HTTP/1.1 503 ") && json.contains("content-type: application/json"), "{json}");
    let body: serde_json::Value = serde_json::from_str(json.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["role"], "leader");
    assert_eq!(body["reasons"][0]["component"], "broker");
    assert_eq!(body["reasons"][0]["severity"], "not_ready");
    assert_eq!(body["reasons"][1]["severity"], "warning");
    let metrics = f.get("/metrics");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nstatecast_leader{pipeline=\"test\"} 0\n"), "{metrics}");
}

#[test]
fn other_paths_and_methods() {
    let f = Fixture::new(LIMITS);
    for path in ["/", "/ready/", "/Live", "/metrics/../etc/passwd", "/%2e%2e"] {
        assert!(f.get(path).starts_with("HTTP/1.1 404 "), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = f.send(&format!("{method} /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
    }
    assert!(f.send("HEAD /live HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert!(f.send("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let hello = f.send("\u{16}\u{3}\u{1}\r\n\r\n");
    assert!(hello.is_empty() || hello.starts_with("HTTP/1.1 400 "), "a TLS hello: {hello}");
    assert!(f.get("/live").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_slow_client_is_cut_off() {
    let f = Fixture::new(short());
    let started = Instant::now();
    let mut slow = f.connect();
    let mut silent = f.connect();
    slow.write_all(b"GET /live HTTP/1.1\r\n").unwrap();
    // A byte now and then does not prolong its time.
    let mut writer = slow.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while writer.write_all(b"X").is_ok() && started.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    for stream in [&mut slow, &mut silent] {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "cut after {:?}", started.elapsed());
    drip.join().unwrap();
}

#[test]
fn a_body_that_never_ends_is_cut_off() {
    let f = Fixture::new(short());
    let started = Instant::now();
    let mut stream = f.connect();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn huge_heads_are_refused() {
    let f = Fixture::new(LIMITS);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    for head in [format!("X: {}\r\n", "x".repeat(1 << 20)), many] {
        let answer = f.send(&format!("GET /live HTTP/1.1\r\nHost: x\r\n{head}\r\n"));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert!(f.get("/live").starts_with("HTTP/1.1 200 "));
}

#[test]
fn silent_clients_do_not_lock_others_out() {
    // With time enough to lock a probe out for as long as it is patient.
    let f = Fixture::new(Limits { connections: 4, head: Duration::from_secs(20), ..LIMITS });
    for round in 0..3 {
        let silent: Vec<StdStream> = (0..12).map(|_| f.connect()).collect();
        let started = Instant::now();
        assert!(f.get("/live").starts_with("HTTP/1.1 200 "), "{round}");
        // Twelve make room, a moment after they came.
        assert!(started.elapsed() < Duration::from_secs(2), "{round}: after {:?}", started.elapsed());
        drop(silent);
    }
}

#[test]
fn heads_have_less_time_than_probes() {
    assert!(LIMITS.head <= Duration::from_secs(1), "a probe's timeout is 3 s");
}

#[test]
fn a_stop_ends_it_at_once() {
    let mut f = Fixture::new(LIMITS);
    let open = f.connect();
    assert!(f.get("/live").contains(" 200 "));
    let started = Instant::now();
    f.stop.cancel();
    f.server.take().unwrap().join();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(StdStream::connect(f.addr).is_err());
    drop(open);
}

#[test]
fn a_port_in_use_is_an_error() {
    let f = Fixture::new(LIMITS);
    assert_eq!(bind(f.addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}
