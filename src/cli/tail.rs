//! `statecast tail`: one line per event, from the outbox or from a queue.
//!
//! The outbox is read by snapshot difference, like the relay does, so that an event which commits late is not missed; in
//! the order in which events become visible, and nothing is written. Reading a queue takes its messages out of it.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use time::OffsetDateTime;

use super::{Context, connect};
use crate::config::Config;
use crate::sink::connect as broker;
use crate::store::tail::{Tail, TailRow};

/// Between two looks at the outbox.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Messages on their way from the queue, at most.
const PREFETCH: u16 = 100;

/// Options of `tail`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Begin with the last N events
    #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 10, conflicts_with = "queue")]
    last: u32,
    /// Stop when there is nothing more, instead of waiting for it
    #[arg(long)]
    no_follow: bool,
    /// Print payloads as well
    #[arg(long)]
    payload: bool,
    /// Consume this queue instead: messages are acknowledged, and gone
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let config = context.load()?;
    match &args.queue {
        None => outbox(&config, args).await,
        Some(queue) => consume(&config, queue, args).await,
    }
}

async fn outbox(config: &Config, args: &Args) -> anyhow::Result<()> {
    let (mut client, _guard) = connect(config, "tail").await?;
    let (mut tail, rows) = Tail::start(&mut client, args.last, args.payload).await?;
    for row in &rows {
        writeln!(io::stdout(), "{}", row_line(row))?;
    }
    if args.no_follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let mut rows = std::pin::pin!(tail.more(&client).await?);
        while let Some(row) = rows.next().await {
            writeln!(io::stdout(), "{}", row_line(&row?))?;
        }
    }
}

fn row_line(row: &TailRow) -> String {
    let key = format!("{}:{}", row.aggregate_type, row.aggregate_id);
    let size = row.payload_bytes.map_or_else(|| "deleted".to_owned(), |bytes| format!("{bytes} B"));
    let line = line(&row.seq.to_string(), row.recorded_at_us, &row.event_type, &key, &size);
    with_payload(line, row.payload.as_deref())
}

/// seq, time, type, key, size.
fn line(seq: &str, at_us: i64, event_type: &str, key: &str, size: &str) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_us) * 1000).map_or_else(
        |_| at_us.to_string(),
        |at| {
            let (year, month, day) = at.to_calendar_date();
            let (hour, minute, second, ms) = at.to_hms_milli();
            let month = u8::from(month);
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
        },
    );
    format!("{seq:>10}  {time}  {event_type}  {key}  {size}")
}

/// JSON's line breaks mean nothing outside of its strings, and inside they are escaped.
fn with_payload(mut line: String, payload: Option<&str>) -> String {
    if let Some(payload) = payload {
        line.push_str("  ");
        line.extend(payload.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    line
}

async fn consume(config: &Config, queue: &str, args: &Args) -> anyhow::Result<()> {
    let name = ShortString::try_new(queue)
        .map_err(|_| super::Usage("a queue's name has at most 255 bytes".into()))?;
    let connection = broker::connect(&config.rabbitmq, &format!("statecast {} tail", config.name)).await?;
    let channel = connection.create_channel().await.context("cannot open a channel")?;
    eprintln!("consuming queue {queue:?}: messages printed here are taken out of it");
    let result = if args.no_follow {
        get_all(&channel, &name, args.payload).await
    } else {
        follow(&channel, &name, args.payload).await
    };
    broker::close(&connection).await;
    result
}

async fn get_all(channel: &Channel, queue: &ShortString, payload: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot read queue {:?}", queue.as_str());
    while let Some(message) =
        channel.basic_get(queue.clone(), BasicGetOptions::default()).await.with_context(cannot)?
    {
        print(&message.delivery, payload).await?;
    }
    Ok(())
}

async fn follow(channel: &Channel, queue: &ShortString, payload: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot consume queue {:?}", queue.as_str());
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.with_context(cannot)?;
    let mut deliveries = channel
        .basic_consume(
            queue.clone(),
            ShortString::default(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(cannot)?;
    while let Some(delivery) = deliveries.next().await {
        print(&delivery.with_context(cannot)?, payload).await?;
    }
    bail!("the broker ended the consumer: was queue {:?} deleted?", queue.as_str())
}

/// Acknowledged after it was printed: a message is never gone unseen.
async fn print(delivery: &Delivery, payload: bool) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}", delivery_line(delivery, payload))?;
    delivery.ack(BasicAckOptions::default()).await.context("cannot acknowledge")?;
    Ok(())
}

fn delivery_line(delivery: &Delivery, payload: bool) -> String {
    let properties = &delivery.properties;
    let seq = header(properties, "sequence").unwrap_or_default();
    let seq = match seq.trim_start_matches('0') {
        "" => "-",
        digits => digits,
    };
    let at_us = properties.timestamp().unwrap_or(0).saturating_mul(1_000_000);
    let kind = properties.kind().as_ref().map_or("-", ShortString::as_str);
    let key = header(properties, "partitionkey").unwrap_or_else(|| "-".to_owned());
    let again = if delivery.redelivered { ", redelivered" } else { "" };
    let size = format!("{} B{again}", delivery.data.len());
    let at_us = i64::try_from(at_us).unwrap_or(i64::MAX);
    let line: String = line(seq, at_us, kind, &key, &size);
    // Anything may have been published to a queue, terminal escapes included.
    let line = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let body = payload.then(|| String::from_utf8_lossy(&delivery.data));
    with_payload(line, body.as_deref())
}

fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> TailRow {
        TailRow {
            seq: 42,
            aggregate_type: "order".into(),
            aggregate_id: "4711".into(),
            event_type: "order.placed".into(),
            recorded_at_us: 1_793_709_296_123_789,
            payload_bytes: Some(12),
            payload: None,
        }
    }

    #[test]
    fn a_line_per_row() {
        assert_eq!(row_line(&row()), "        42  2026-11-03T12:34:56.123Z  order.placed  order:4711  12 B");
        let deleted = TailRow { payload_bytes: None, ..row() };
        assert!(row_line(&deleted).ends_with("order:4711  deleted"));
        let with = TailRow { payload: Some("{\n  \"a\": 1\n}".into()), ..row() };
        assert!(row_line(&with).ends_with("12 B  {   \"a\": 1 }"), "{}", row_line(&with));
        assert!(row_line(&TailRow { recorded_at_us: i64::MAX, ..row() }).contains("9223372036854775807"));
    }
}
