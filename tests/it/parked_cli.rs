//! `statecast parked`, `cursor rebase|drop` and `status --verify` as people run them, beside a leader that has set events aside;
//! with a login that has the relay's rights and no more.

use std::time::Duration;

use serde_json::Value;
use statecast::contract::{Act, Aside, Became, Commit, Reason, SetAside};
use statecast::store::install::install;
use statecast::store::preflight::preflight;
use statecast::store::schema::{SchemaError, SchemaVersion, require_schema};

use crate::keeping::{Keeping, PIPELINE, change, parked, queued, refusal, waiting};
use crate::pg::{database, login, open};
use crate::process::Invocation;
use crate::servers::{Topology, postgres, unique};

const LIMIT: Duration = Duration::from_secs(60);
const HOSTILE: &str = "x\u{1b}[2J\u{9b}\u{202e}\nstate    confirmed";

/// Seven events: 1 waits, 2 is behind it, 3 and 4 are parked, 5 is behind 4, 6 and 7 are not set aside.
struct Site {
    keeping: Keeping,
    statecast: Invocation,
}

impl Site {
    async fn new() -> Site {
        let mut keeping = Keeping::new().await;
        for id in ["a", "a", "b", "c", "c", "d", "d"] {
            keeping.publish(id).await;
        }
        let state = Aside::Parked(refusal(Reason::Unroutable, HOSTILE));
        let hostile = SetAside { seq: 4, key: 3, state, routing_key: Some("order.changed".into()) };
        let set_aside = vec![
            waiting(1, 1, Reason::Nack),
            queued(2, 1),
            parked(3, 2, Reason::TooLarge),
            hostile,
            queued(5, 3),
        ];
        let commit = Commit { set_aside, ..keeping.pass_all().await };
        keeping.commit(commit).await;
        // As if another hand than the keeper's had written it.
        keeping
            .client
            .execute("UPDATE statecast.parked SET detail = $1 WHERE seq = 4", &[&HOSTILE])
            .await
            .unwrap();
        let topology = Topology::new("amqp://127.0.0.1:1");
        let statecast = Invocation::run(&keeping.url, &topology, PIPELINE);
        Site { keeping, statecast }
    }

    async fn succeed(&self, line: &str) -> String {
        self.statecast.arguments(&line.split(' ').collect::<Vec<_>>()).succeed().await
    }

    /// Exit code and standard error of a command that fails.
    async fn fail(&self, line: &str) -> (i32, String) {
        let arguments: Vec<&str> = line.split(' ').collect();
        let (code, _, stderr) = self.statecast.arguments(&arguments).output(LIMIT).await;
        (code.unwrap(), stderr)
    }

    async fn id(&self, seq: i64) -> String {
        let sql = "SELECT event_id::text FROM statecast.parked WHERE seq = $1";
        self.keeping.texts(sql, &[&seq]).await.remove(0)
    }

    /// The seqs that a list shows.
    async fn listed(&self, selectors: &str) -> Vec<i64> {
        let text = self.succeed(&format!("parked list{selectors}")).await;
        text.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
    }

    /// seq and request of the rows that somebody asks something for.
    async fn requests(&self) -> Vec<String> {
        let sql = "SELECT concat_ws(' ', seq, request) FROM statecast.parked WHERE request IS NOT NULL ORDER BY seq";
        self.keeping.texts(sql, &[]).await
    }

    async fn audit(&self) -> Vec<String> {
        let sql = "SELECT concat_ws(' | ', act, selector, reason) FROM statecast.audit ORDER BY at";
        self.keeping.texts(sql, &[]).await
    }
}

#[tokio::test]
async fn list_shows_what_is_selected() {
    let site = Site::new().await;
    assert_eq!(site.listed("").await, [1, 2, 3, 4, 5]);
    assert_eq!(site.listed(" --all").await, [1, 2, 3, 4, 5]);
    assert_eq!(site.listed(" --key order:c").await, [4, 5]);
    assert_eq!(site.listed(" --key other:c").await, Vec::<i64>::new());
    assert_eq!(site.listed(" --type order --state parked").await, [3, 4]);
    assert_eq!(site.listed(" --reason too_large").await, [3]);
    assert_eq!(site.listed(" --reason nack --state queued").await, Vec::<i64>::new());
    assert_eq!(site.listed(" --older-than 1h").await, Vec::<i64>::new());
    site.keeping.run("UPDATE statecast.parked SET recorded_at = now() - interval '2 h' WHERE seq = 2").await;
    assert_eq!(site.listed(" --older-than 1h").await, [2]);
    let (three, four) = (site.id(3).await, site.id(4).await);
    assert_eq!(site.listed(&format!(" --id {three} --id {four} --reason unroutable")).await, [4]);

    let text = site.succeed("parked list --limit 2").await;
    assert!(text.lines().count() == 3 && text.contains("and 3 more"), "{text}");
    let json: Value = serde_json::from_str(&site.succeed("parked list --json --limit 4").await).unwrap();
    assert_eq!(
        (&json["schema"], &json["matching"], &json["pipeline"]),
        (&1.into(), &5.into(), &PIPELINE.into())
    );
    let event = &json["events"][3];
    assert_eq!((&event["seq"], &event["detail"]), (&4.into(), &HOSTILE.into()));
    assert_eq!((&event["reason"], &event["attempts"]), (&"unroutable".into(), &1.into()));
    assert_eq!(event["event_id"], four);
    assert_eq!((&event["request"], &event["payload_bytes"]), (&Value::Null, &12.into()));
    // Another pipeline sees nothing, and that is no failure.
    let other = site.statecast.arguments(&["parked", "list"]).with("STATECAST_NAME", "other");
    assert_eq!(other.succeed().await, "");
}

/// Keys and answers are other people's text.
#[tokio::test]
async fn hostile_text_does_not_reach_the_terminal() {
    let site = Site::new().await;
    let id = site.id(4).await;
    for line in
        ["parked list".to_owned(), "parked list --json".to_owned(), format!("parked show {id} --payload")]
    {
        let text = site.succeed(&line).await;
        let bad: Vec<char> =
            text.chars().filter(|c| *c != '\n' && c.is_control() || *c == '\u{202e}').collect();
        assert!(bad.is_empty(), "{line}: {bad:?}");
        assert!(!text.contains("\nstate    confirmed"), "a line of its own: {text}");
    }
}

#[tokio::test]
async fn show_tells_everything_and_the_payload_if_asked() {
    let mut site = Site::new().await;
    let id = site.id(5).await;
    let text = site.succeed(&format!("parked show {id}")).await;
    for part in [
        "key             order:c\n",
        "state           queued\n",
        "1 of its key\n",
        "payload         12 B\n",
        "none\n",
    ] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    assert!(!text.contains("1.10"), "{text}");
    let text = site.succeed(&format!("parked show {id} --payload")).await;
    assert!(text.ends_with("{\"n\":  1.10}\n"), "{text}");
    let text = site.succeed(&format!("parked show {}", site.id(3).await)).await;
    assert!(text.contains("too_large") && text.contains("detail          can never go\n"), "{text}");
    assert!(text.contains("parked at") && text.contains("has passed it"), "{text}");

    let id = site.id(1).await;
    site.keeping.run("UPDATE statecast.parked SET request = 'retry', requested_by = 'alice', requested_at = now() WHERE seq = 1").await;
    let text = site.succeed(&format!("parked show {id}")).await;
    assert!(text.contains("retry, asked by alice at") && text.contains("not answered yet"), "{text}");
    let commit = Commit { changes: vec![change(1, Became::Unchanged)], ..site.keeping.pass_all().await };
    site.keeping.commit(commit).await;
    let text = site.succeed(&format!("parked show {id}")).await;
    assert!(text.contains("none; the last, by alice at"), "{text}");

    let (code, stderr) = site.fail("parked show 01890a5d-ac96-774b-bcce-b302099a8057").await;
    assert!(code == 1 && stderr.contains("is not set aside in pipeline books"), "{stderr}");
}

#[tokio::test]
async fn retry_and_discard_ask_the_leader_and_leave_a_trace() {
    let mut site = Site::new().await;
    let leads = format!("the leader (backend {}", site.keeping.pid());
    // What only queues is not retried: it goes when its key does.
    let text = site.succeed("parked retry --all").await;
    assert!(text.starts_with("asked to retry 3 events\n") && text.contains(&leads), "{text}");
    assert_eq!(site.requests().await, ["1 retry", "3 retry", "4 retry"]);
    assert_eq!(site.keeping.asked().await, [(1, Act::Retry), (3, Act::Retry), (4, Act::Retry)]);
    // A later request takes the place of one that is not answered.
    let text = site.succeed("parked retry --all").await;
    assert!(text.starts_with("asked to retry 0 events; 3 were asked for already"), "{text}");
    let arguments = ["parked", "discard", "--key", "order:c", "--why", "sent by hand"];
    let text = site.statecast.arguments(&arguments).succeed().await;
    assert!(text.starts_with("asked to discard 2 events\n"), "{text}");
    assert_eq!(site.requests().await, ["1 retry", "3 retry", "4 discard", "5 discard"]);
    let audit = site.audit().await;
    assert_eq!(
        audit,
        [
            "parked retry | books: --all (3 events)",
            "parked discard | books: --key order:c (2 events) | sent by hand"
        ]
    );
    let actors = site.keeping.texts("SELECT DISTINCT actor FROM statecast.audit", &[]).await;
    let role = site.keeping.url.split("://").nth(1).unwrap().split(':').next().unwrap();
    assert!(
        actors.len() == 1 && actors[0].contains('@') && actors[0].ends_with(&format!(" as {role}")),
        "{actors:?}"
    );
    let by = site
        .keeping
        .texts("SELECT DISTINCT requested_by FROM statecast.parked WHERE request IS NOT NULL", &[])
        .await;
    assert_eq!(by, actors);
    // The leader answers; nothing is left to ask for.
    let changes = vec![
        change(1, Became::Confirmed),
        change(2, Became::Confirmed),
        change(3, Became::Discarded),
        change(4, Became::Discarded),
        change(5, Became::Discarded),
    ];
    let commit = Commit { changes, ..site.keeping.pass_all().await };
    site.keeping.commit(commit).await;
    assert_eq!(site.listed("").await, Vec::<i64>::new());
    assert!(site.succeed("status --verify").await.contains("discarded  3\n"));
}

#[tokio::test]
async fn nothing_is_asked_for_where_nothing_matches_or_nothing_is_said() {
    let mut site = Site::new().await;
    let (code, stderr) = site.fail("parked retry").await;
    assert!(code == 64 && stderr.contains("say which events"), "{stderr}");
    let (code, stderr) = site.fail("parked discard --all").await;
    assert!(code == 64 && stderr.contains("--why"), "{stderr}");
    let (code, stderr) = site.fail("parked retry --key order:nobody --why because").await;
    assert!(
        code == 1 && stderr.contains("no event that is parked or waits matches --key order:nobody"),
        "{stderr}"
    );
    let (code, stderr) = site.fail("parked retry --state queued").await;
    assert!(code == 1 && stderr.contains("what is queued goes when its key does"), "{stderr}");
    let (code, _) = site.fail("parked discard --older-than 1d --why old --dry-run").await;
    assert_eq!(code, 1);

    let text = site.succeed("parked discard --all --why x --dry-run").await;
    assert!(
        text.lines().count() == 6 && text.ends_with("would ask to discard 5 events; nothing was changed\n"),
        "{text}"
    );
    let text = site.succeed("parked retry --all --dry-run").await;
    assert!(text.lines().count() == 4 && text.contains("would ask to retry 3 events"), "{text}");
    assert_eq!((site.requests().await, site.audit().await), (vec![], vec![]));

    // Of the ids that are named, those that are found are asked for, and the others are named.
    let other = "01890a5d-ac96-774b-bcce-b302099a8057";
    let line = format!("parked retry --id {} --id {other} --id {}", site.id(3).await, site.id(2).await);
    let arguments: Vec<&str> = line.split(' ').collect();
    let (code, stdout, stderr) = site.statecast.arguments(&arguments).output(LIMIT).await;
    assert!(code == Some(0) && stdout.starts_with("asked to retry 1 event\n"), "{stdout}");
    assert!(stderr.contains(other) && stderr.contains(&site.id(2).await), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    // Without a leader somebody must start one.
    site.keeping.end().await.unwrap();
    let text = site.succeed("parked retry --reason nack").await;
    assert!(text.contains("no relay leads now"), "{text}");
}

/// A request never waits for rows that the leader is writing: it could end in a deadlock that hits the leader.
#[tokio::test]
async fn rows_that_are_being_written_are_not_waited_for() {
    let site = Site::new().await;
    site.keeping.run("BEGIN; SELECT 1 FROM statecast.parked WHERE seq = 3 FOR UPDATE").await;
    let text = site.succeed("parked retry --all").await;
    assert!(
        text.starts_with("asked to retry 2 events; 1 was being written by the leader: say it again"),
        "{text}"
    );
    let (code, stderr) = site.fail("parked retry --reason too_large").await;
    assert!(code == 1 && stderr.contains("say it again"), "{stderr}");
    assert_eq!(site.audit().await, ["parked retry | books: --all (2 events)"]);
    site.keeping.run("COMMIT").await;
    assert!(site.succeed("parked retry --reason too_large").await.starts_with("asked to retry 1 event\n"));
}

/// The leader's own writes wait for no more than one batch.
#[tokio::test]
async fn many_rows_are_asked_for_some_at_a_time() {
    let site = Site::new().await;
    site.keeping
        .run(
            "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                    schema_version, recorded_at, state, reason)
             SELECT 'books', n, '3', n, gen_random_uuid(), 'order', 'many', 'changed', '1.0.0', now(), 'parked', 'nack'
               FROM generate_series(1001, 13000) n",
        )
        .await;
    let text = site.succeed("parked retry --key order:many").await;
    assert!(text.starts_with("asked to retry 12000 events\n"), "{text}");
    let audit = [5000, 5000, 2000].map(|n| format!("parked retry | books: --key order:many ({n} events)"));
    assert_eq!(site.audit().await, audit);
    assert_eq!(site.requests().await.len(), 12_000);
}

#[tokio::test]
async fn a_rebase_sets_back_what_lies_above_the_floor() {
    let mut site = Site::new().await;
    let keeping = &mut site.keeping;
    // 1 to 7 are passed and below the floor, 1 to 3 are gone from the outbox. 8 to 10 are above it, set aside and not passed, one of
    // them final. 4 and 8 to 10 come "from another server".
    let (position, max_seq) = keeping.now().await;
    for id in ["e", "e", "f"] {
        keeping.publish(id).await;
    }
    let set_aside = vec![waiting(8, 8, Reason::Nack), queued(9, 8), waiting(10, 9, Reason::Nack)];
    let changes = vec![change(10, Became::Discarded)];
    let commit = Commit { set_aside, changes, position, max_seq, passed: 7, ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping
        .run(
            "UPDATE statecast.cursor SET floor_seq = 7;
             INSERT INTO statecast.chunk (lo, hi, rows) VALUES (1, 4, 3); DELETE FROM statecast.outbox WHERE seq < 4",
        )
        .await;
    assert_eq!(keeping.wrong().await, Vec::<&str>::new());
    keeping
        .run(
            "UPDATE statecast.outbox SET xid = '4000000000' WHERE seq >= 8;
             UPDATE statecast.parked SET xid = '4000000000' WHERE seq >= 8 OR seq = 4",
        )
        .await;
    let (code, stderr) = site.fail("cursor rebase --yes").await;
    assert!(code == 1 && stderr.contains("a relay leads"), "{stderr}");
    site.keeping.end().await.unwrap();
    let text = site.succeed("cursor rebase --yes --reason restored").await;
    assert!(text.contains("above seq 7: 3 events to publish again"), "{text}");
    assert!(text.contains("7 events stay set aside"), "{text}");
    let rows = [
        "1 waiting passed",
        "2 queued passed",
        "3 parked passed",
        "4 parked passed",
        "5 queued passed",
        "8 waiting",
        "9 queued",
    ];
    assert_eq!(site.keeping.rows().await, rows);
    assert_eq!(site.keeping.wrong().await, Vec::<&str>::new());
    // The next leader finds them; a snapshot of this server passes them.
    site.keeping.take_over().await;
    assert_eq!((site.keeping.claim.aside.unpassed.as_slice(), site.keeping.claim.passed), (&[8, 9][..], 7));
    let (position, max_seq) = site.keeping.now().await;
    let stay = site.keeping.stay().await;
    let commit = Commit { position, max_seq, passed: 10, closes: true, unpassed: true, ..stay };
    assert_eq!(site.keeping.commit(commit).await.passed, [8, 9]);
    assert_eq!(site.keeping.wrong().await, Vec::<&str>::new());
    assert!(site.succeed("status --verify").await.contains("ready      yes\n"));
}

/// Nothing is known to be settled: what the outbox still has is listed again, what it has not stays passed.
#[tokio::test]
async fn a_rebase_to_the_start_leaves_what_no_page_can_list() {
    let mut site = Site::new().await;
    site.keeping.end().await.unwrap();
    site.keeping
        .run(
            "INSERT INTO statecast.chunk (lo, hi, rows) VALUES (1, 3, 2); DELETE FROM statecast.outbox WHERE seq < 3;
             UPDATE statecast.cursor SET floor_seq = 1000",
        )
        .await;
    let text = site.succeed("cursor rebase --yes").await;
    assert!(text.contains("above seq 0: 5 events"), "{text}");
    assert_eq!(
        site.keeping.rows().await,
        ["1 waiting passed", "2 queued passed", "3 parked", "4 parked", "5 queued"]
    );
    assert_eq!((site.keeping.books().await.1, site.keeping.wrong().await), (2, vec![]));
}

#[tokio::test]
async fn a_drop_forgets_what_is_set_aside() {
    let mut site = Site::new().await;
    site.keeping.end().await.unwrap();
    site.keeping
        .run(
            "INSERT INTO statecast.parked SELECT (x).* FROM (
                 SELECT jsonb_populate_record(p, '{\"pipeline\": \"other\"}') AS x FROM statecast.parked p WHERE seq = 1) s",
        )
        .await;
    let (code, stderr) = site.fail("cursor drop").await;
    assert!(code == 64 && stderr.contains("what is set aside"), "{stderr}");
    let text = site.succeed("cursor drop --yes").await;
    assert!(text.contains("5 events that were set aside are forgotten"), "{text}");
    let left = site.keeping.texts("SELECT pipeline FROM statecast.parked", &[]).await;
    assert_eq!(left, ["other"], "another pipeline's rows stay");
}

#[tokio::test]
async fn status_counts_what_is_set_aside_and_verifies_the_books() {
    let site = Site::new().await;
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let status = json(site.succeed("status --json").await);
    let figures = ["pending", "parked", "confirmed", "discarded"].map(|name| status[name].as_i64().unwrap());
    assert_eq!(figures, [3, 2, 2, 0]);
    assert!(status.get("verify").is_none() && status["oldest_pending_ms"].is_i64(), "{status}");
    let text = site.succeed("status --verify").await;
    assert!(
        text.contains("set aside  3 of the pending") && text.contains("parked     2, for a person"),
        "{text}"
    );
    assert!(
        text.contains("verify     committed 7 (outbox 7 + dropped 0 - base 0) = confirmed 2 + parked 2"),
        "{text}"
    );
    let status = json(site.succeed("status --verify --json").await);
    assert_eq!(status["verify"]["exact"], true);
    assert_eq!(status["verify"]["checks"].as_array().unwrap().len(), 7);

    site.keeping.run("UPDATE statecast.cursor SET confirmed = confirmed + 1").await;
    let (code, stderr) = site.fail("status --verify").await;
    assert_eq!(code, 1);
    for part in [
        "committed 7 ",
        "confirmed 3 + parked 2 + discarded 0 + pending 3 = 8: difference -1",
        "before the position 7 ",
    ] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    let (code, stdout, _) = site.statecast.arguments(&["status", "--verify", "--json"]).output(LIMIT).await;
    let status = json(stdout);
    assert_eq!((code, &status["verify"]["exact"]), (Some(1), &false.into()));
    assert_eq!(status["verify"]["checks"][0]["difference"], -1);
    // Elsewhere its numbers mean nothing.
    site.keeping.run("UPDATE statecast.cursor SET system_identifier = 1").await;
    let (code, stderr) = site.fail("status --verify").await;
    assert!(code == 1 && stderr.contains("belongs to another server"), "{stderr}");
    site.keeping.run("DELETE FROM statecast.cursor").await;
    let (code, stderr) = site.fail("status --verify").await;
    assert!(code == 1 && stderr.contains("never run"), "{stderr}");
}

/// Retention empties a chunk and records its rows in one transaction, and a TRUNCATE is seen at once by everybody: the count waits
/// for it before it takes its snapshot, or it would see neither the rows nor their record.
#[tokio::test]
async fn the_books_are_exact_while_a_chunk_is_dropped() {
    let mut site = Site::new().await;
    let leaf = site.keeping.texts("SELECT tableoid::regclass::text FROM statecast.outbox LIMIT 1", &[]).await;
    let retention = site.keeping.superuser().await;
    let empty =
        format!("INSERT INTO statecast.chunk (lo, hi, rows) VALUES (1, 8, 7); TRUNCATE ONLY {}", leaf[0]);
    retention.batch_execute(&format!("BEGIN; {empty}")).await.unwrap();
    let verify = site.statecast.arguments(&["status", "--verify"]);
    let verifying = tokio::spawn(async move { verify.output(LIMIT).await });
    let waits = "SELECT count(*) FROM pg_stat_activity
                  WHERE application_name LIKE 'statecast % status' AND wait_event_type = 'Lock' AND datname = current_database()";
    while site.keeping.number(waits).await == 0 {
        assert!(!verifying.is_finished(), "{:?}", verifying.await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    retention.batch_execute("COMMIT").await.unwrap();
    let (code, stdout, stderr) = verifying.await.unwrap();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("committed 7 (outbox 0 + dropped 7 - base 0)"), "{stdout}");
    site.keeping.end().await.unwrap();
}

/// A schema that was installed by an earlier version is named, and brought up to date.
#[tokio::test]
async fn an_older_schema_is_upgraded() {
    let url = database(&postgres().await.url("postgres"), "it_upgrade").await;
    let mut session = open(&url).await;
    install(&mut session.client, 1000).await.unwrap();
    session
        .batch_execute(
            "DROP TABLE statecast.parked; ALTER TABLE statecast.cursor DROP COLUMN backends_started;
             UPDATE statecast.meta SET schema_minor = 0;
             DELETE FROM statecast.refinery_schema_history WHERE version >= 3",
        )
        .await
        .unwrap();
    let error = require_schema(&session).await.unwrap_err();
    assert!(matches!(error, SchemaError::Older { found: SchemaVersion { major: 1, minor: 0 } }), "{error}");
    assert!(error.to_string().contains("statecast install"), "{error}");
    assert_eq!(
        install(&mut session.client, 1000).await.unwrap().applied,
        ["V3__parked", "V4__lease", "V5__parked_since"]
    );
    assert_eq!(require_schema(&session).await.unwrap(), SchemaVersion { major: 1, minor: 3 });
    // Whoever installed it by hand may have forgotten a grant.
    session.batch_execute("REVOKE DELETE ON statecast.parked FROM statecast_relay").await.unwrap();
    let role = unique("it_parked").replace('-', "_");
    let relay = open(&login(&url, &role, "", &format!("GRANT statecast_relay TO {role}")).await).await;
    let error = preflight(&relay, None).await.unwrap_err();
    assert!(error.to_string().contains("lacks DELETE on statecast.parked"), "{error}");
}
