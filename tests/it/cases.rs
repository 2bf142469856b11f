//! Runs the cases of schema and upkeep: each takes a server's URL and makes its own database there.

use statecast::sandbox::{Postgres, PostgresOptions};

use crate::{chunks, install, interrupted, retention, schema, servers};

/// On the shared server.
macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $module::$name(&servers::postgres().await.url("postgres")).await;
        }
    )*};
}

/// On a server of their own, which logs every lock wait of 100 ms; the case reads the log.
macro_rules! cases_with_log {
    ($($module:ident :: $name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let settings = [("deadlock_timeout", "100ms"), ("log_lock_waits", "on")];
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let server = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
            $module::$name(&server.url("postgres"), &server.log_path()).await;
        }
    )*};
}

cases! {
    install::install_twice_does_nothing_the_second_time,
    install::concurrent_installs,
    install::printed_sql_leaves_nothing_to_install,
    install::installer_without_superuser,
    install::odd_history_row_is_named,
    install::sql_ascii_is_refused,
    install::schema_versions,
    install::preflight_names_what_is_wrong,
    install::plain_server_and_tls_mode,
    schema::every_check_refuses_by_name,
    schema::publish_variants,
    schema::roles_may_what_they_should,
    retention::retention_limits,
    interrupted::interrupted_detach_is_finalised,
    interrupted::pending_tail_never_fails_an_insert,
    interrupted::crash_states_are_repaired,
    chunks::upkeep_without_the_grant,
    chunks::old_transaction_postpones,
    chunks::overlapping_writers_do_not_starve_upkeep,
}

cases_with_log! {
    chunks::upkeep_under_load,
    chunks::filled_tail_is_swapped_under_load,
    retention::retention_keeps_an_insert_between_seq_and_heap,
    retention::retention_and_held_inserts_do_not_wait_for_each_other,
}
