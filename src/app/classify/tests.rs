//! One error of every kind, or its code, and what it is taken for.

use std::collections::HashSet;
use std::io;

use lapin::protocol::{AMQPError, AMQPErrorKind};

use super::*;
use crate::store::schema::SchemaVersion;

fn closed(code: u16) -> SessionError {
    let error = AMQPError::new(AMQPErrorKind::from_id(code).unwrap(), "text".into());
    SessionError::Sink(SinkError::Closed {
        what: "channel",
        source: lapin::ErrorKind::ProtocolError(error).into(),
    })
}

fn snapshot() -> crate::snapshot::BadSnapshot {
    "none".parse::<crate::snapshot::Snapshot>().unwrap_err()
}

fn schema(error: SchemaError) -> SessionError {
    SessionError::Preflight(PreflightError::Schema(error))
}

fn connect(refused: bool) -> SinkError {
    SinkError::Connect { server: String::new(), cause: String::new(), refused }
}

/// What can be made without a server. The errors of a server are known by their codes: see below.
fn samples() -> Vec<(SessionError, Kind)> {
    let (version, text) = (SchemaVersion { major: 9, minor: 0 }, String::new);
    let url = "postgres://h:port".parse::<tokio_postgres::Config>().unwrap_err();
    let at_sea = || SessionError::Postgres(PgError::Timeout { at: text() });
    let s = Duration::from_secs(1);
    let lapin_io: lapin::Error = io::Error::from(io::ErrorKind::ConnectionReset).into();
    vec![
        (at_sea(), Kind::PgUnreachable),
        (SessionError::Postgres(PgError::Url(url)), Kind::PgSettings),
        (SessionError::Silent { doing: "asks", limit: s }, Kind::PgUnreachable),
        (SessionError::Keeper(KeeperError::Silent), Kind::PgUnreachable),
        (SessionError::Page(PageError::Closed), Kind::PgUnreachable),
        (SessionError::Page(PageError::Silent), Kind::PgUnreachable),
        (SessionError::TwoServers { leader: (1, 1), source_server: (1, 2) }, Kind::PgTwoServers),
        (SessionError::Preflight(PreflightError::InRecovery), Kind::PgReadOnly),
        (SessionError::Preflight(PreflightError::Pooled), Kind::PgPooled),
        (SessionError::Preflight(PreflightError::ServerTooOld(text())), Kind::PgUnfit),
        (SessionError::Preflight(PreflightError::SqlAscii(text())), Kind::PgUnfit),
        (
            SessionError::Preflight(PreflightError::Privilege { login: text(), missing: text() }),
            Kind::PgPrivilege,
        ),
        (schema(SchemaError::Forbidden { login: text() }), Kind::PgPrivilege),
        (schema(SchemaError::Missing { database: text() }), Kind::PgSchema),
        (schema(SchemaError::Incomplete { database: text() }), Kind::PgSchema),
        (schema(SchemaError::Older { found: version }), Kind::PgSchema),
        (schema(SchemaError::Newer { found: version }), Kind::PgSchemaNewer),
        (SessionError::Preflight(PreflightError::OtherSystem { found: 1, expected: 2 }), Kind::OtherSystem),
        (
            SessionError::Preflight(PreflightError::SequenceBehind { last_seq: 1, max_seq: 2 }),
            Kind::SequenceBehind,
        ),
        (
            SessionError::Preflight(PreflightError::Sequence { what: text(), remedy: text() }),
            Kind::SequenceAltered,
        ),
        (SessionError::Cursor(CursorError::Snapshot(snapshot())), Kind::CursorBroken),
        (SessionError::Cursor(CursorError::Superseded(text())), Kind::Superseded),
        (SessionError::Keeper(CursorError::Superseded(text()).into()), Kind::Superseded),
        (SessionError::Page(PageError::RowsGone { missing: 1, first: 1 }), Kind::RowsGone),
        (SessionError::Page(PageError::StreamedRowsGone { missing: 1, first: 1 }), Kind::RowsUnseen),
        (SessionError::Keeper(WriteError::NotInOutbox(1).into()), Kind::RowsGone),
        (SessionError::Page(PageError::NoCursor(text())), Kind::CursorGone),
        (SessionError::Page(PageError::Snapshot(snapshot())), Kind::PgOther),
        (SessionError::Wal(Obstacle::WalLevel(text())), Kind::WalMode),
        (SessionError::LeaseLost, Kind::LeaseLost),
        (SessionError::Sink(SinkError::LeaseLost), Kind::LeaseLost),
        (SessionError::StillThere { left: text(), limit: s }, Kind::Takeover),
        (SessionError::SilentBroker(s), Kind::MqUnreachable),
        (SessionError::Sink(connect(true)), Kind::MqRefused),
        (SessionError::Sink(connect(false)), Kind::MqUnreachable),
        (SessionError::Sink(SinkError::Topology(text())), Kind::MqTopology),
        (SessionError::Sink(SinkError::Fence { queue: text(), waited: s }), Kind::MqFence),
        (SessionError::Sink(SinkError::Closed { what: "connection", source: lapin_io }), Kind::MqUnreachable),
        (SessionError::Sink(SinkError::Url(text())), Kind::MqSettings),
        (SessionError::PeerGone("part"), Kind::Fault),
        (SessionError::Task(text()), Kind::Fault),
    ]
}

const SQLSTATES: &[(&str, Kind)] = &[
    ("28000", Kind::PgLogin),
    ("28P01", Kind::PgLogin),
    ("3D000", Kind::PgLogin),
    ("57P01", Kind::PgDown),
    ("57P02", Kind::PgDown),
    ("57P03", Kind::PgDown),
    ("57P05", Kind::PgDown),
    ("08006", Kind::PgDown),
    ("53300", Kind::PgConnections),
    ("53100", Kind::PgDisk),
    ("53200", Kind::PgResources),
    ("54000", Kind::PgResources),
    ("58030", Kind::PgResources),
    ("25006", Kind::PgReadOnly),
    ("42501", Kind::PgPrivilege),
    ("42P01", Kind::PgSchema),
    ("42703", Kind::PgSchema),
    ("42883", Kind::PgSchema),
    ("3F000", Kind::PgSchema),
    ("55P03", Kind::PgContention),
    ("40001", Kind::PgContention),
    ("40P01", Kind::PgContention),
    ("57014", Kind::PgContention),
    ("25P03", Kind::PgContention),
    ("XX001", Kind::PgOther),
    ("22023", Kind::PgOther),
    ("é", Kind::PgOther),
    ("", Kind::PgOther),
];

const REPLIES: &[(u16, Kind)] = &[
    (311, Kind::MqMessage),
    (406, Kind::MqMessage),
    (501, Kind::MqMessage),
    (320, Kind::MqForced),
    (403, Kind::MqRefused),
    (530, Kind::MqRefused),
    (404, Kind::MqTopology),
    (402, Kind::MqOther),
    (405, Kind::MqOther),
    (504, Kind::MqOther),
    (541, Kind::MqOther),
];

#[test]
fn every_kind_is_known_by_an_error() {
    let mut met: HashSet<Kind> = HashSet::new();
    for (error, expected) in samples() {
        assert_eq!(kind(&error), expected, "{error:?}");
        assert_eq!(classify(&error), expected.row().class);
        met.insert(expected);
    }
    for (code, expected) in SQLSTATES {
        assert_eq!(sqlstate(&SqlState::from_code(code)), *expected, "{code}");
        met.insert(*expected);
    }
    for (code, expected) in REPLIES {
        assert_eq!(kind(&closed(*code)), *expected, "{code}");
        met.insert(*expected);
    }
    // A server's refusal of TLS and of statements about a leader's backends cannot be made here: the tests against real
    // servers meet them.
    met.extend([Kind::PgTls]);
    let missing: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !met.contains(kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Codes that the documentation names lead to the kind that it names them for.
#[test]
fn the_codes_of_the_documentation_are_those_of_the_function() {
    let named = |kind: &Kind, code: &str| {
        let row = kind.row().error;
        let class = format!("{}xxx", code.get(..2).unwrap_or_default());
        row.contains(code) || row.contains(&class) || matches!(kind, Kind::PgOther | Kind::MqOther)
    };
    for (code, kind) in SQLSTATES {
        assert!(named(kind, code), "{code} is not said of {:?}", kind.row().name);
    }
    for (code, kind) in REPLIES {
        assert!(named(kind, &code.to_string()), "{code} is not said of {:?}", kind.row().name);
    }
    let is_code = |word: &&str| {
        word.len() == 5
            && word.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase())
            && word.starts_with(|c: char| c.is_ascii_digit())
    };
    for kind in Kind::ALL {
        let row = kind.row();
        let words = row.error.split(|c: char| !c.is_ascii_alphanumeric());
        for code in words.filter(is_code) {
            assert_eq!(sqlstate(&SqlState::from_code(code)), *kind, "{code}");
        }
        // 404 of a declare is said in words of its own; 403 and 406 mean other things there than while publishing.
        let words = row.error.split(|c: char| !c.is_ascii_alphanumeric());
        for code in words.filter_map(|word| word.parse::<u16>().ok()).filter(|code| (300..600).contains(code))
        {
            let declares = *kind == Kind::MqTopology && code == 406;
            assert!(declares || reply(code) == *kind, "{code}");
        }
    }
}

#[test]
fn only_what_cannot_heal_ends_the_process() {
    let permanent: HashSet<Kind> =
        Kind::ALL.iter().copied().filter(|kind| kind.row().class == Class::Permanent).collect();
    let expected = HashSet::from([
        Kind::PgSettings,
        Kind::PgSchemaNewer,
        Kind::PgUnfit,
        Kind::PgPooled,
        Kind::OtherSystem,
        Kind::SequenceBehind,
        Kind::SequenceAltered,
        Kind::RowsGone,
        Kind::CursorBroken,
        Kind::WalMode,
        Kind::MqSettings,
    ]);
    assert_eq!(permanent, expected);
    // What decides elsewhere whether a check of a person can be repeated agrees.
    for (error, kind) in samples() {
        if let SessionError::Preflight(error) = &error
            && !matches!(kind, Kind::PgPrivilege | Kind::PgSchema)
        {
            assert_eq!(error.is_permanent(), permanent.contains(&kind), "{error}");
        }
    }
}
