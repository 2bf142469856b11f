//! The web console in a real browser. `STATECAST_SCREENSHOTS=DIR` keeps pictures.

use std::net::SocketAddr;
use std::time::Duration;

use statecast::sandbox::free_port;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::browser::Browser;
use crate::process::{Invocation, Relay};
use crate::servers::{self, Topology, connect, unique};

const TOKEN: &str = "secret-of-the-console-0815";
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Between two events of a load.
const WRITE_INTERVAL: Duration = Duration::from_millis(50);
/// Would change the title if any of it ran.
const XSS: &str = "\"><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

/// A relay with a console; orders and items have a queue, nothing else.
struct Site {
    topology: Topology,
    database: String,
    client: Client,
    relay: Relay,
    url: String,
}

impl Site {
    async fn new() -> Site {
        let database = servers::fresh_database().await;
        let topology = Topology::new(servers::rabbitmq().await.url());
        topology.declare_exchange().await;
        topology.declare_queue("order.#", &[]).await;
        topology.bind("item.#").await;
        let console = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let invocation = Invocation::run(&database, &topology, &unique("shop"))
            .with("STATECAST_CONSOLE__LISTEN", &console.to_string())
            .with("STATECAST_CONSOLE__TOKEN", TOKEN)
            .with("STATECAST_CONSOLE__SHOW_PAYLOAD", "true")
            .with("STATECAST_UNROUTABLE__PARK_AFTER", "1s");
        invocation.arguments(&["install"]).succeed().await;
        let client = connect(&database).await.unwrap();
        let relay = invocation.start();
        relay.wait_ready(READY_LIMIT).await.unwrap();
        Site { topology, database, client, relay, url: format!("http://{console}") }
    }

    async fn publish(&self, kind: &str, id: &str) -> Uuid {
        let payload = serde_json::json!({ "id": id, "state": "placed" }).to_string();
        let headers = serde_json::json!({ "note": XSS }).to_string();
        let sql = "SELECT statecast.publish($1, $2, 'placed', $3::text::json, headers => $4::text::json)";
        self.client.query_one(sql, &[&kind, &id, &payload, &headers]).await.unwrap().get(0)
    }

    /// Writes events of one order until it is dropped.
    async fn load(&self) -> AbortOnDropHandle<()> {
        let client = connect(&self.database).await.unwrap();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let sql = "SELECT statecast.publish('order', 'busy', 'placed', '{\"state\": \"placed\"}')";
            while client.execute(sql, &[]).await.is_ok() {
                tokio::time::sleep(WRITE_INTERVAL).await;
            }
        }))
    }

    fn open(&self, browser: &Browser, path: &str) {
        browser.open(&format!("{}{path}", self.url));
    }

    /// Opens a session.
    fn log_in(&self, browser: &Browser) {
        self.open(browser, "/");
        browser.enter("#token", TOKEN);
        browser.click("main button");
        browser.wait_for("return document.title.startsWith('Overview')");
        // The browser notes the 401 of the first look.
        browser.complaints();
    }
}

/// In the plot of `series`, a line between two points at least.
fn has_line(series: &str, path: &str) -> String {
    let path = format!("document.querySelector('.plot[data-series=\"{series}\"] path.{path}')");
    format!("return {path}.getAttribute('d').includes('L')")
}

/// Nothing ran that others wrote, nothing was refused by the policy, nothing is wider than the window.
fn assert_well(browser: &Browser, page: &str) {
    assert_eq!(browser.complaints(), Vec::<String>::new(), "{page}");
    assert_ne!(browser.script("return document.title"), "owned", "{page}");
    let fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.script(fits), true, "{page} is wider than its window");
    let unnamed = "return [...document.querySelectorAll('input, select, button')].filter((field) =>
        !field.labels?.length && !field.getAttribute('aria-label') && !field.textContent.trim()).length";
    assert_eq!(browser.script(unnamed), 0, "{page}: a field without a name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium and chromedriver: make e2e"]
async fn console_pages_load_live_figures_move_and_search_finds() {
    let site = Site::new().await;
    let browser = Browser::start();
    site.log_in(&browser);
    assert!(browser.text().contains("ready"));
    let total = "return Number(document.querySelector('[data-live=confirmed_total]').textContent)";
    browser.wait_for("return document.querySelector('[data-live=role]').textContent === 'leader'");
    assert_eq!(browser.script(total), 0);
    for n in 0..400 {
        site.publish("order", &format!("{}", n % 20)).await;
        if n % 100 == 99 {
            browser.wait_for(&format!("{total} === {}", n + 1));
        }
    }
    browser.wait_for(&has_line("confirmed read", "first"));
    // The tile is of the last second, so it needs events in every one.
    let load = site.load().await;
    browser.wait_for("return /^[0-9.]+ ms$/.test(document.querySelector('[data-live=p99]').textContent)");
    browser.wait_for(&has_line("p50_ms p99_ms", "second"));
    drop(load);
    assert_well(&browser, "overview");
    browser.picture("overview-light.png");

    let event = site.publish("order", XSS).await;
    browser.enter("#q", &event.to_string());
    browser.click(".search button");
    browser.wait_for("return document.body.innerText.includes('Story of')");
    let text = browser.text();
    assert!(
        text.contains(XSS) && text.contains("order.placed") && text.contains("\"state\":\"placed\""),
        "{text}"
    );
    assert_eq!(browser.script("return document.querySelectorAll('main img, main script').length"), 0);
    assert_well(&browser, "story");
    browser.picture("event-light.png");
    browser.enter("#q", "order:7");
    browser.click(".search button");
    browser.wait_for("return document.querySelectorAll('tbody tr').length === 20");
    browser.picture("story-light.png");

    for (path, name) in [
        ("/", "overview"),
        ("/events", "events"),
        ("/search?q=order:7", "story"),
        ("/search?q=none", "help"),
        ("/search?q=01890a5d-ac96-774b-bcce-b302099a8057", "not-found"),
        ("/parked", "parked-empty"),
        ("/cursor", "cursor"),
    ] {
        for (width, dark) in [(1280, true), (400, false)] {
            browser.size(width, 900);
            browser.dark(dark);
            site.open(&browser, path);
            assert_well(&browser, &format!("{name} at {width}"));
            browser.picture(&format!("{name}-{width}.png"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium and chromedriver: make e2e"]
async fn console_retries_a_parked_event_by_click_with_the_token_and_not_without() {
    let site = Site::new().await;
    let browser = Browser::start();
    // More routing keys must be taken than not, or it is an outage in which nothing is parked.
    site.publish("order", "1").await;
    site.publish("item", "1").await;
    site.log_in(&browser);
    browser
        .wait_for("return Number(document.querySelector('[data-live=confirmed_total]').textContent) === 2");
    let parked = site.publish("ghost", XSS).await;
    site.publish("ghost", XSS).await;
    let rows =
        |browser: &Browser| browser.script("return document.querySelectorAll('tbody .pill.bad').length");
    for n in 0.. {
        assert!(n < 300, "nothing is parked:\n{}", browser.text());
        site.publish("order", &n.to_string()).await;
        site.open(&browser, "/parked");
        if rows(&browser) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(browser.text().contains(XSS) && browser.text().contains("unroutable"), "{}", browser.text());
    assert_well(&browser, "parked");
    browser.picture("parked-light.png");
    browser.size(400, 900);
    browser.picture("parked-400.png");
    browser.size(1280, 900);
    site.topology.bind("ghost.#").await;

    browser.click(&format!("input[value$='{parked}']"));
    browser.click("[data-act=retry]");
    browser.wait_for("return document.getElementById('confirm').open");
    browser.picture("confirm-light.png");
    browser.enter("#token", "wrong-wrong-wrong-wrong");
    browser.click("#confirm-yes");
    browser.wait_for("return !document.getElementById('confirm-error').hidden");
    assert!(browser.text().contains("that is not the token"), "{}", browser.text());
    browser.picture("refused-light.png");
    let asked = "SELECT count(*) FROM statecast.parked WHERE request IS NOT NULL OR state = 'retry'";
    assert_eq!(site.client.query_one(asked, &[]).await.unwrap().get::<_, i64>(0), 0);
    let complaints = browser.complaints();
    assert!(
        complaints.len() == 1 && complaints[0].contains("401"),
        "the browser notes the 401: {complaints:?}"
    );

    browser.enter("#token", TOKEN);
    browser.click("#confirm-yes");
    browser.wait_for("return document.body.innerText.includes('asked to retry 1 event')");
    // The page comes anew by itself, with nothing left.
    browser.wait_for("return document.body.innerText.includes('Nothing is set aside')");
    assert_well(&browser, "parked, retried");
    site.open(&browser, &format!("/search?q={parked}"));
    browser.wait_for("return document.querySelectorAll('tbody .pill.good').length === 2");
    assert!(!site.relay.log().contains("wrong-wrong"), "{}", site.relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium and chromedriver: make e2e"]
async fn console_asks_for_the_token() {
    let site = Site::new().await;
    let browser = Browser::start();
    site.open(&browser, "/events");
    assert!(browser.text().contains("Token") && !browser.text().contains("seq"), "{}", browser.text());
    browser.picture("login-light.png");
    browser.enter("#token", "wrong-wrong-wrong-wrong");
    browser.click("main button");
    browser.wait_for("return document.body.innerText.includes('not the token')");
    browser.complaints();
    browser.enter("#token", TOKEN);
    browser.click("main button");
    browser.wait_for("return document.title.startsWith('Overview')");
    site.open(&browser, "/events");
    assert!(browser.text().contains("The outbox is empty"), "{}", browser.text());
    assert_eq!(browser.script("return document.cookie"), "", "no script sees the session");
    assert_well(&browser, "with a session");
}
