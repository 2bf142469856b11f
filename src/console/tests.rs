//! Over real sockets, without a database: who gets what, and what a rude client gets.

use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::time::Instant;

use super::*;
use crate::config::load;

const TOKEN: &str = "0123456789abcdef";

struct Fixture {
    console: Option<Console>,
    addr: SocketAddr,
    stop: CancellationToken,
}

impl Fixture {
    /// `listen` decides what is needed; the socket itself is on loopback.
    fn new(limits: Limits, listen: &str, token: Option<&str>) -> Fixture {
        let mut variables = vec![
            ("STATECAST_POSTGRES__URL", "postgres://u:hidden@127.0.0.1:1/d"),
            ("STATECAST_RABBITMQ__URLS", "amqp://h"),
            ("STATECAST_CONSOLE__LISTEN", listen),
        ];
        variables.extend(token.map(|token| ("STATECAST_CONSOLE__TOKEN", token)));
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Arc::new(load(None, variables).unwrap());
        let site = Arc::new(Site::new(&config, Health::new(), Metrics::new("test")).unwrap());
        let stop = CancellationToken::new();
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let console = start_with(limits, listener, site, stop.clone()).unwrap();
        Fixture { addr: console.addr, console: Some(console), stop }
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn send(&self, request: &str) -> String {
        let mut stream = self.connect();
        // The server may close before all of it is written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.addr))
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> String {
        let kind = "Content-Type: application/x-www-form-urlencoded";
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\n{kind}\r\nContent-Length: {length}\r\n{headers}\r\n{body}",
            self.addr
        ))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        self.console.take().into_iter().for_each(Console::join);
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

const PAGES: [&str; 6] = [
    "/",
    "/events",
    "/search?q=order:1",
    "/parked",
    "/cursor",
    "/search?q=01890a5d-ac96-774b-bcce-b302099a8057",
];

#[test]
fn pages_without_a_database_say_so_and_live_figures_go_on() {
    let f = Fixture::new(LIMITS, "127.0.0.1:0", None);
    for path in PAGES {
        let answer = f.get(path, "");
        assert_eq!(status(&answer), 200, "{path}: {answer}");
        assert!(answer.contains("PostgreSQL does not answer"), "{path}: {answer}");
        assert!(
            !answer.contains("hidden@") && answer.contains("default-src 'none'; script-src 'self'"),
            "{path}"
        );
        for header in
            ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-store"]
        {
            assert!(answer.contains(header), "{header}");
        }
        assert!(!answer.contains("style=\"") && !answer.contains("onclick"), "{path}: nothing inline");
    }
    let live = f.get("/api/live?since=x", "");
    let body: serde_json::Value = serde_json::from_str(live.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["role"], &body["ready"]), (&"starting".into(), &false.into()));
    assert_eq!(status(&f.send("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")), 200);
}

#[test]
fn assets_are_in_the_binary() {
    let f = Fixture::new(LIMITS, "0.0.0.0:0", Some(TOKEN));
    for (path, kind) in [
        ("/assets/console.css", "text/css"),
        ("/assets/console.js", "text/javascript"),
        ("/assets/icon.svg", "image/svg+xml"),
    ] {
        let answer = f.get(path, "");
        assert!(status(&answer) == 200 && answer.contains(&format!("content-type: {kind}")), "{answer}");
    }
}

#[test]
fn another_name_is_refused_on_loopback() {
    let f = Fixture::new(LIMITS, "127.0.0.1:0", None);
    for path in PAGES.into_iter().chain(["/api/live", "/none"]) {
        let answer = f.send(&format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n"));
        assert_eq!(status(&answer), 403, "{path}: {answer}");
        assert!(answer.contains("127.0.0.1"), "{answer}");
    }
    assert_eq!(status(&f.send("GET /api/live HTTP/1.0\r\n\r\n")), 403, "no name at all");
    let f = Fixture::new(LIMITS, "127.0.0.1:0", Some(TOKEN));
    let bearer =
        format!("GET /api/live HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    assert_eq!(status(&f.send(&bearer)), 200, "who has the token may use any name");
}

#[test]
fn a_proxy_on_this_machine_opens_it_to_nobody() {
    // What nginx sends by default: its own name for the host, version 1.0, and nothing about the client.
    let by_default = |f: &Fixture, more: &str| {
        f.send(&format!("GET /api/live HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n{more}\r\n", f.addr))
    };
    let f = Fixture::new(LIMITS, "127.0.0.1:0", Some(TOKEN));
    assert_eq!(status(&by_default(&f, "")), 401);
    assert_eq!(status(&by_default(&f, "X-Forwarded-For: 10.0.0.1\r\n")), 401);
    assert_eq!(status(&by_default(&f, &format!("Authorization: Bearer {TOKEN}\r\n"))), 200);
    let f = Fixture::new(LIMITS, "127.0.0.1:0", None);
    for header in ["X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1", "Via: 1.1 proxy"] {
        let answer = by_default(&f, &format!("{header}\r\n"));
        assert!(status(&answer) == 403 && answer.contains("console.token_file"), "{header}: {answer}");
    }
}

#[test]
fn a_foreign_page_makes_no_browser_search() {
    let f = Fixture::new(LIMITS, "127.0.0.1:0", None);
    let image = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n";
    let answer = f.get("/search?q=f47ac10b-58cc-4372-a567-0e02b2c3d479", image);
    assert!(status(&answer) == 403 && !answer.contains("does not answer"), "nothing is looked up: {answer}");
    assert!(answer.contains("cross-origin-resource-policy: same-origin"), "{answer}");
}

#[test]
fn with_a_token_everything_needs_it_or_a_session() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let f = Fixture::new(LIMITS, listen, Some(TOKEN));
        for path in PAGES.into_iter().chain(["/api/live", "/none"]) {
            let answer = f.get(path, "");
            assert_eq!(status(&answer), 401, "{listen} {path}");
            assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
            assert_eq!(status(&f.get(path, "Authorization: Bearer wrong-wrong-wrong\r\n")), 401, "{path}");
            assert!(!answer.contains("does not answer"), "nothing was looked up: {answer}");
        }
        assert!(f.get("/", "").contains("action=\"/login\""));
        assert_eq!(status(&f.get("/api/live", &format!("Authorization: Bearer {TOKEN}\r\n"))), 200);
        assert_eq!(status(&f.post("/login", "", "token=wrong-wrong-wrong-1")), 401);
        let welcome = f.post("/login", "", &format!("token={TOKEN}"));
        assert!(status(&welcome) == 303 && welcome.contains("location: /\r\n"), "{welcome}");
        let cookie = welcome.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
        let pair = cookie.split(';').next().unwrap();
        let session = format!("Cookie: {pair}\r\n");
        assert_eq!(status(&f.get("/api/live", &session)), 200);
        assert_eq!(status(&f.get("/api/live", &format!("Cookie: {pair}0\r\n"))), 401);
        let other = Fixture::new(LIMITS, listen, Some(TOKEN));
        assert_eq!(status(&other.get("/api/live", &session)), 200, "of another replica");
        let act = f.post("/parked/retry", &session, "id=01890a5d-ac96-774b-bcce-b302099a8057");
        assert_eq!(status(&act), 401, "a session does not act: {act}");
    }
}

#[test]
fn acts_are_refused_before_anything_is_read() {
    let id = "id=01890a5d-ac96-774b-bcce-b302099a8057";
    let bare = Fixture::new(LIMITS, "127.0.0.1:0", None);
    let answer = bare.post("/parked/retry", "", id);
    assert!(status(&answer) == 403 && answer.contains("none is configured"), "{answer}");
    let f = Fixture::new(LIMITS, "127.0.0.1:0", Some(TOKEN));
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    for act in ["/parked/retry", "/parked/discard"] {
        assert_eq!(status(&f.post(act, "", id)), 401);
        assert_eq!(status(&f.post(act, "Authorization: Bearer wrong-wrong-wrong\r\n", id)), 401);
        assert_eq!(status(&f.get(act, &bearer)), 405);
        assert_eq!(status(&f.post(act, &bearer, "")), 400);
        assert_eq!(status(&f.post(act, &bearer, &"x".repeat(20_000))), 413);
    }
    assert_eq!(status(&f.post("/parked/discard", &bearer, id)), 400, "no reason");
    let away = f.post("/parked/retry", &bearer, id);
    assert!(status(&away) == 503 && away.contains("PostgreSQL: "), "{away}");
    let json = format!(
        "POST /parked/retry HTTP/1.1\r\nHost: localhost\r\n{bearer}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    assert_eq!(status(&f.send(&json)), 415);
    for method in ["PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = f.send(&format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(status(&answer), 405, "{method}");
    }
}

#[test]
fn odd_requests_are_answered_or_cut_off() {
    let short = Limits { head: Duration::from_millis(200), connection: Duration::from_millis(900), ..LIMITS };
    let f = Fixture::new(short, "127.0.0.1:0", Some(TOKEN));
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    for path in ["/none", "//", "/..%2f..%2fetc/passwd", "/assets/../console.css", "/api", "/<script>"] {
        let code = status(&f.get(path, &bearer));
        assert!(code == 404 || code == 400, "{path}: {code}");
    }
    assert!(f.get("/search?q=%3Cscript%3Ealert(1)%3C/script%3E", &bearer).contains("&lt;script&gt;alert(1)"));
    let huge = f.get("/api/live", &format!("X: {}\r\n", "x".repeat(1 << 20)));
    assert!(huge.is_empty() || status(&huge) == 431, "{huge}");
    let started = Instant::now();
    let slow = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000";
    let silent: Vec<StdStream> = (0..LIMITS.connections * 2).map(|_| f.connect()).collect();
    for request in [
        "GET / HT".to_owned(),
        format!("POST /parked/retry HTTP/1.1\r\nHost: x\r\n{bearer}{slow}\r\n\r\nid="),
    ] {
        let answer = f.send(&request);
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    drop(silent);
    assert!(started.elapsed() < Duration::from_secs(8), "cut off after {:?}", started.elapsed());
    assert_eq!(status(&f.get("/api/live", &bearer)), 200);
}
