//! The web console beside a real relay, by raw HTTP: what it shows, who may, and that nothing waits for it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use statecast::sandbox::free_port;
use statecast::store::story::{find, of_entity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::process::Relay;
use crate::relay::{ARRIVAL_LIMIT, Bench, READY_LIMIT};
use crate::servers;

const TOKEN: &str = "secret-of-the-console-0815";
const WRONG: &str = "not-the-token-of-the-console";
const XSS: &str = "<script>alert(1)</script>\"'";

/// A relay with a console.
struct Site {
    bench: Bench,
    relay: Relay,
    console: SocketAddr,
}

impl Site {
    /// Orders, items, users and baskets have a queue, nothing else.
    async fn new(more: &[(&str, &str)]) -> Site {
        let mut bench =
            Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
        bench.topology.declare_queue("order.#", &[]).await;
        for kind in ["item.#", "user.#", "basket.#"] {
            bench.topology.bind(kind).await;
        }
        let console = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        for (name, value) in [
            ("STATECAST_CONSOLE__LISTEN", console.to_string().as_str()),
            ("STATECAST_CONSOLE__TOKEN", TOKEN),
            ("STATECAST_UNROUTABLE__PARK_AFTER", "1s"),
        ]
        .iter()
        .chain(more)
        {
            bench.invocation = bench.invocation.with(name, value);
        }
        let relay = bench.relay().await;
        Site { bench, relay, console }
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        let host = self.console;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}{kind}{headers}\r\n{body}");
        let exchange = async {
            let mut stream = TcpStream::connect(self.console).await.unwrap();
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        let answer = tokio::time::timeout(Duration::from_secs(30), exchange).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
    }

    async fn get(&self, path: &str) -> String {
        let (status, body) = self.send("GET", path, &format!("Authorization: Bearer {TOKEN}\r\n"), "").await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The page once it holds `text`.
    async fn wait_for(&self, path: &str, text: &str) -> String {
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        loop {
            let body = self.get(path).await;
            if body.contains(text) {
                return body;
            }
            assert!(Instant::now() < deadline, "{path} does not come to say {text:?}: {body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn act(&self, act: &str, token: &str, body: &str) -> (u16, String) {
        self.send("POST", &format!("/parked/{act}"), &format!("Authorization: Bearer {token}\r\n"), body)
            .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_what_became_of_events() {
    let site = Site::new(&[]).await;
    let first = site.bench.publish("order", "4711", 1).await;
    site.bench.publish("order", "4711", 2).await;
    site.bench.publish("order", XSS, 1).await;
    let sql =
        "SELECT statecast.publish('order', 'h', 'changed', '{\"secret\": 42}', headers => $1::text::json)";
    let headers = serde_json::json!({ "note": XSS }).to_string();
    site.bench.client().await.execute(sql, &[&headers]).await.unwrap();
    let story = site.wait_for("/search?q=order:4711", ">confirmed</span> <span class=\"small\">20").await;
    assert_eq!(story.matches("<td data-label=\"seq\"").count(), 2, "{story}");
    assert!(story.contains(">order.changed</td>") && story.contains(&first.to_string()), "{story}");
    let event = site.get(&format!("/search?q={first}")).await;
    assert!(event.contains("class=\"marked\"") && event.contains("Payloads are hidden"), "{event}");
    assert_eq!(event.matches("<td data-label=\"seq\"").count(), 2, "with its entity's story");
    let page = site.get("/events").await;
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;"), "{page}");
    assert!(!page.contains("<script>") && !page.contains("secret"), "{page}");
    assert!(page.matches("alert(1)").count() >= 2, "the id and the header: {page}");
    let unknown = site.get("/search?q=01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert!(
        unknown.contains("was found") && unknown.contains("4 events of the outbox were looked at"),
        "{unknown}"
    );
    assert!(site.get("/search?q=order:none").await.contains("No event of this entity"));
    for path in ["/", "/cursor"] {
        let page = site.get(path).await;
        assert!(page.contains("<dt>epoch</dt><dd>1</dd>"), "{path}: {page}");
        assert!(page.contains("polling") || page.contains("streaming"), "{path}: {page}");
    }
    assert!(site.get("/").await.contains("data-live=\"role\">leader</strong>"));
    let live: serde_json::Value = serde_json::from_str(&site.get("/api/live").await).unwrap();
    assert_eq!(
        (&live["role"], &live["ready"], &live["confirmed_total"]),
        (&"leader".into(), &true.into(), &4.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_are_shown_where_the_configuration_says_so() {
    let site = Site::new(&[("STATECAST_CONSOLE__SHOW_PAYLOAD", "true")]).await;
    let id = site.bench.publish("order", XSS, 1).await;
    let page = site.get(&format!("/search?q={id}")).await;
    assert!(page.contains("<pre>{&quot;key&quot;:&quot;&lt;script&gt;alert(1)"), "{page}");
    assert!(!page.contains("<script>"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_events_are_retried_and_discarded_with_the_token_only() {
    let mut site = Site::new(&[]).await;
    // More routing keys must be taken than not, or it is an outage in which nothing is parked.
    for kind in ["order", "item", "user", "basket"] {
        site.bench.publish(kind, "1", 1).await;
    }
    site.wait_for("/search?q=basket:1", ">confirmed</span>").await;
    let retried = site.bench.publish("ghost", "1", 1).await;
    let discarded = site.bench.publish("phantom", "2", 1).await;
    let mut flow = 0;
    let page = loop {
        flow += 1;
        site.bench.publish("order", &format!("flow-{flow}"), 1).await;
        let page = site.get("/parked?state=parked").await;
        if page.matches("name=\"id\"").count() == 2 {
            break page;
        }
        assert!(flow < 600, "not parked: {page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(page.contains("unroutable") && page.contains("ghost.changed"), "{page}");
    let (retry, discard) = (format!("id={retried}"), format!("id={discarded}&why=by%20hand"));
    for (act, body) in [("retry", &retry), ("discard", &discard)] {
        assert_eq!(site.send("POST", &format!("/parked/{act}"), "", body).await.0, 401);
        assert_eq!(site.act(act, WRONG, body).await.0, 401);
    }
    let client = site.bench.client().await;
    let asked: i64 = client.query_one("SELECT count(*) FROM statecast.audit", &[]).await.unwrap().get(0);
    assert_eq!(asked, 0, "nothing was asked for without the token");

    site.bench.topology.bind("ghost.#").await;
    let (status, said) = site.act("retry", TOKEN, &retry).await;
    assert!(status == 200 && said.contains("asked to retry 1 event"), "{said}");
    let (status, said) = site.act("discard", TOKEN, &discard).await;
    assert!(status == 200 && said.contains("asked to discard 1 event"), "{said}");
    site.wait_for("/parked", "Nothing is set aside").await;
    site.wait_for("/search?q=ghost:1", ">confirmed</span>").await;
    let story = site.get("/search?q=phantom:2").await;
    assert!(!story.contains(">confirmed</span>"), "{story}");
    assert_eq!(site.act("retry", TOKEN, &retry).await.0, 409, "there is nothing to ask for any more");
    let sql = "SELECT actor || ' ' || act || ' ' || coalesce(reason, '-') FROM statecast.audit ORDER BY at";
    let audit: Vec<String> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(audit[0].contains("console from 127.0.0.1") && audit[0].contains("retry"), "{audit:?}");
    assert!(audit[1].contains("discard by hand"), "{audit:?}");

    assert!(site.relay.wait_for_log("wrong token was refused", READY_LIMIT).await);
    let log = site.relay.log();
    assert!(log.contains("/parked/retry") && log.contains("127.0.0.1"), "{log}");
    assert!(!log.contains(TOKEN) && !log.contains(WRONG), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rude_client_holds_up_neither_relay_nor_probes() {
    let site = Site::new(&[]).await;
    let mut rude = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(site.console).await.unwrap();
        let head = match n % 3 {
            0 => "GET / HTTP/1.1\r\nX-Slow: ".to_owned(),
            1 => format!(
                "POST /parked/retry HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9000\r\n\r\nid="
            ),
            _ => String::new(),
        };
        let _ = stream.write_all(head.as_bytes()).await;
        rude.push(stream);
    }
    let started = Instant::now();
    for n in 0..20 {
        let (status, _) = site.relay.get("/ready").await.unwrap();
        assert_eq!(status, 200);
        site.bench.publish("order", "1", n).await;
    }
    assert!(site.relay.wait_for_metric("statecast_events_confirmed_total", 19.5, ARRIVAL_LIMIT).await);
    assert!(started.elapsed() < Duration::from_secs(10), "probes waited: {:?}", started.elapsed());
    drop(rude);
    let huge = format!("X: {}\r\n", "x".repeat(1 << 20));
    let (status, _) = site.send("GET", "/", &huge, "").await;
    assert!(status == 431 || status == 0, "{status}");
    site.wait_for("/search?q=order:1", ">confirmed</span>").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_costs_the_console_and_nothing_else() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::shared().await;
    let listen = taken.local_addr().unwrap().to_string();
    bench.invocation = bench.invocation.with("STATECAST_CONSOLE__LISTEN", &listen);
    let mut relay = bench.relay().await;
    assert!(relay.wait_for_log("goes on without its web console", READY_LIMIT).await, "{}", relay.log());
    assert!(relay.log().contains(&listen) && relay.log().contains("console.listen"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_by_id_looks_where_the_id_was_made() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    // A day's events, one each two seconds, whose ids and times belong together.
    let fill = "INSERT INTO statecast.outbox (event_id, aggregate_type, aggregate_id, event_type, payload, recorded_at)
         SELECT encode(overlay(uuid_send(statecast.uuid7())
                    PLACING substring(int8send((extract(epoch FROM t) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 'hex')::uuid,
                'order', (n % 100)::text, 'changed', '{}', t
           FROM generate_series(1, 40000) n, LATERAL (SELECT clock_timestamp() - (40000 - n) * interval '2 s') AS at (t)
          ORDER BY n";
    client.execute(fill, &[]).await.unwrap();
    for seq in [1, 2, 19_999, 20_000, 39_999, 40_000] {
        let sql = "SELECT event_id FROM statecast.outbox ORDER BY seq LIMIT 1 OFFSET $1";
        let id: Uuid = client.query_one(sql, &[&(seq - 1_i64)]).await.unwrap().get(0);
        let found = find(&client, "none", id).await.unwrap();
        let told = found.told.unwrap();
        assert_eq!((told.event.event_id, told.passed), (id, None));
        let after = 40_000 - seq + 10;
        assert!(found.looked_at <= after.min(25_000), "begins at its time: {} of {after}", found.looked_at);
    }
    let early = find(&client, "none", "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()).await.unwrap();
    assert_eq!((early.told.is_none(), early.looked_at), (true, 40_000));
    assert!(early.made_at.is_some_and(|at| at.starts_with("2023-06-30")));
    let late = find(&client, "none", "ffffffff-ffff-7fff-8fff-ffffffffffff".parse().unwrap()).await.unwrap();
    assert_eq!((late.told.is_none(), late.looked_at, late.between.is_some()), (true, 40_000, true));
    assert!(late.made_at.is_some_and(|at| at.contains("after the year 9999")));
    // Made by a host whose clock is an hour ahead: its row lies 1,800 rows before the time that its id says.
    let ahead = "UPDATE statecast.outbox o SET event_id =
            encode(overlay(uuid_send(o.event_id) PLACING substring(int8send(
                (extract(epoch FROM o.recorded_at + interval '1 h') * 1000)::bigint) FROM 3) FROM 1 FOR 6), 'hex')::uuid
          WHERE o.seq = (SELECT seq FROM statecast.outbox ORDER BY seq LIMIT 1 OFFSET 30000) RETURNING o.event_id";
    let ahead: Uuid = client.query_one(ahead, &[]).await.unwrap().get(0);
    assert_eq!(find(&client, "none", ahead).await.unwrap().told.unwrap().event.event_id, ahead);
    let plain: Uuid = "f47ac10b-58cc-4372-a567-0e02b2c3d479".parse().unwrap();
    assert_eq!(find(&client, "none", plain).await.unwrap().looked_at, 40_000);
    client.execute("UPDATE statecast.outbox SET event_id = $1 WHERE seq = (SELECT max(seq) - 7 FROM statecast.outbox)", &[&plain]).await.unwrap();
    assert!(find(&client, "none", plain).await.unwrap().told.is_some());
    let story = of_entity(&client, "none", "order", "7", 100).await.unwrap();
    assert!(story.len() == 100 && story.windows(2).all(|pair| pair[0].event.seq < pair[1].event.seq));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_that_nobody_looks_at_takes_no_connection() {
    let site = Site::new(&[]).await;
    let client = site.bench.client().await;
    let count = async || -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE application_name = 'statecast console' AND datname = current_database()";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    site.get("/events").await;
    assert_eq!(count().await, 1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while count().await > 0 {
        assert!(Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    site.get("/events").await;
}
