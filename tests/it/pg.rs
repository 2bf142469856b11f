//! Databases, logins and connections for the tests on a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use statecast::config::{Postgres, SecretString, Tls};
use statecast::postgres::{Guard, connect};
use statecast::store::install::install;
use tokio_postgres::Client;

/// A connection that ends with its value.
pub(crate) struct Session {
    pub(crate) client: Client,
    _guard: Guard,
}

impl std::ops::Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

pub(crate) fn config(url: &str) -> Postgres {
    Postgres { url: SecretString::new(url.to_owned()), tls: Tls::default() }
}

pub(crate) async fn open(url: &str) -> Session {
    let (client, guard) = connect(&config(url), "statecast/test").await.unwrap();
    Session { client, _guard: guard }
}

/// `url` with another database.
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, String::new()), |(b, q)| (b, format!("?{q}")));
    let base = base.rsplit_once('/').unwrap().0;
    format!("{base}/{database}{query}")
}

/// `url` with another user, without a password.
pub(crate) fn with_user(url: &str, user: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{user}:x@{host}")
}

/// An empty database of that name; its URL.
pub(crate) async fn database(url: &str, name: &str) -> String {
    database_with(url, name, "ENCODING 'UTF8'").await
}

pub(crate) async fn database_with(url: &str, name: &str, options: &str) -> String {
    let admin = open(url).await;
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.unwrap();
    let sql = format!("CREATE DATABASE {name} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' {options}");
    admin.batch_execute(&sql).await.unwrap();
    with_database(url, name)
}

/// An installed database of that name; its URL.
pub(crate) async fn installed(url: &str, name: &str, chunk_rows: i64) -> String {
    let url = database(url, name).await;
    let mut session = open(&url).await;
    install(&mut session.client, chunk_rows).await.unwrap();
    url
}

/// A login of that name with those grants; its URL.
pub(crate) async fn login(url: &str, name: &str, options: &str, grants: &str) -> String {
    let admin = open(url).await;
    let drop = format!("DO $$ BEGIN DROP OWNED BY {name}; EXCEPTION WHEN undefined_object THEN NULL; END $$");
    admin.batch_execute(&drop).await.unwrap();
    admin.batch_execute(&format!("DROP ROLE IF EXISTS {name}")).await.unwrap();
    admin.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'x' {options}; {grants}")).await.unwrap();
    with_user(url, name)
}

pub(crate) async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The error of a statement that must fail: (SQLSTATE, constraint, message).
pub(crate) async fn refused(client: &Client, sql: &str) -> (String, String, String) {
    let error = match client.batch_execute(sql).await {
        Ok(()) => panic!("was not refused: {sql}"),
        Err(error) => error,
    };
    let db = error.as_db_error().unwrap();
    let text = format!("{} {} {}", db.message(), db.detail().unwrap_or(""), db.hint().unwrap_or(""));
    (db.code().code().to_owned(), db.constraint().unwrap_or("").to_owned(), text)
}
