//! `statecast demo`: a small shop, its outbox, the relay, a consumer, and the books at the end.

mod servers;
mod shop;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::run::{Service, stop_on_signals};
use crate::app::Options;
use crate::config::Config;
use crate::postgres;
use crate::store::cursor::Start;
use crate::store::install;
use shop::Shop;
use watch::{Summary, Watch};

/// Time for the relay to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the last events to arrive after the shop has closed.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave servers and relay running afterwards, until Ctrl-C
    #[arg(long)]
    pub(super) keep: bool,
    /// How long the shop writes orders
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(super) seconds: u32,
}

pub(super) async fn run(_: &Context, args: &Args) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let servers = tokio::select! {
        servers = servers::Servers::start() => servers?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let config = &servers.config;
    let (mut client, _guard) = postgres::connect(&config.postgres, "statecast demo").await?;
    install::install(&mut client, config.retention.chunk_rows).await?;
    for line in super::install::publish(&mut client, config).await? {
        println!("{line}");
    }
    Shop::create_tables(&client).await?;
    println!("installed the schema (statecast.outbox) and a shop with a table of orders");

    let options = Options { until_idle: false, start: Start::Now };
    let service = Service::start(config.clone(), options)?;
    let relay_stop = CancellationToken::new();
    let (context, token) = (service.context.clone(), relay_stop.clone());
    let relay = tokio::spawn(async move { crate::app::run(context, token).await });
    let metrics_url = format!("http://{}/metrics", service.http.addr);
    println!("relay running: {metrics_url}");
    let console_url = service.console.as_ref().map(|console| format!("http://{}/", console.addr));
    if let Some(url) = &console_url {
        println!("web console:   {url}");
    }
    service.wait_until_leading(START_TIMEOUT).await?;

    let watch = Watch::start(config).await?;
    println!("the shop opens for {} s; each line is an event that a consumer received:\n", args.seconds);
    let shop = Shop::open(config, args.seconds, &stop).await?;
    watch.wait_for(shop.committed(), ARRIVAL_TIMEOUT).await;
    let summary = watch.summary(&shop, service.context.metrics.events_confirmed.get());
    print_summary(&shop, &summary);
    watch.end().await;

    if args.keep && !stop.is_cancelled() {
        print_whereabouts(config, &metrics_url, console_url.as_deref());
        stop.cancelled().await;
    }
    relay_stop.cancel();
    let ended = relay.await.context("the relay failed")?;
    service.end();
    servers.stop();
    ended?;
    if summary.lost > 0 || summary.out_of_order > 0 || summary.invented > 0 {
        bail!("the demo found lost, invented or reordered events: please report this");
    }
    Ok(())
}

fn print_summary(shop: &Shop, summary: &Summary) {
    println!(
        "\ncommitted {} events ({} transactions rolled back)",
        shop.committed().len(),
        shop.rolled_back()
    );
    println!(
        "confirmed {} by the broker · received {} by the consumer ({} repeats)",
        summary.confirmed, summary.received, summary.repeats
    );
    if summary.invented > 0 {
        println!("invented {}", summary.invented);
    }
    println!(
        "lost {} · out of order {} · p50 {:.1} ms · p99 {:.1} ms",
        summary.lost, summary.out_of_order, summary.p50_ms, summary.p99_ms
    );
}

fn print_whereabouts(config: &Arc<Config>, metrics_url: &str, console_url: Option<&str>) {
    println!("\nstill running, until Ctrl-C:");
    if let Some(url) = console_url {
        println!("  console     {url}");
    }
    println!("  metrics     {metrics_url}");
    println!("  PostgreSQL  {}", servers::without_password(config.postgres.url.expose()));
    for url in &config.rabbitmq.urls {
        println!("  RabbitMQ    {}", servers::without_password(url.expose()));
    }
    println!("  write one   SELECT statecast.publish('order', '1', 'order.placed', '{{\"total\": 1}}');");
}
