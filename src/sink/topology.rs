//! Exchange, queues and bindings: checked, or created.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Connection, ExchangeKind};

use super::{SinkError, reply_code};
use crate::config::{Argument, Declare, Queue, Rabbitmq};

/// Makes sure that the exchange (and the listed queues) exist, on a channel of its own: a refused declare closes it.
///
/// # Errors
/// What is missing or different, and what to do.
pub async fn ensure(connection: &Connection, config: &Rabbitmq) -> Result<(), SinkError> {
    match config.declare {
        Declare::Check => check(connection, config).await,
        Declare::Create => create(connection, config).await,
    }
}

fn name(text: &str) -> Result<ShortString, SinkError> {
    ShortString::try_new(text).map_err(|_| SinkError::Topology(format!("{text:?} is longer than 255 bytes")))
}

/// Looks for the exchange and the listed queues, and changes nothing.
///
/// # Errors
/// What is missing.
pub async fn check(connection: &Connection, config: &Rabbitmq) -> Result<(), SinkError> {
    let exchange = &config.exchange;
    let channel = connection.create_channel().await.map_err(closed)?;
    let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
    channel
        .exchange_declare(name(exchange)?, ExchangeKind::Topic, passive, FieldTable::default())
        .await
        .map_err(|e| {
            refusal(
                e,
                &format!(
                    "exchange {exchange:?} does not exist: create it, or set rabbitmq.declare = \"create\""
                ),
            )
        })?;
    for queue in &config.queues {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        channel.queue_declare(name(&queue.name)?, passive, FieldTable::default()).await.map_err(|e| {
            let queue = &queue.name;
            refusal(
                e,
                &format!("queue {queue:?} does not exist: create it, or set rabbitmq.declare = \"create\""),
            )
        })?;
    }
    let _ = channel.close(200, "checked".into()).await;
    Ok(())
}

async fn create(connection: &Connection, config: &Rabbitmq) -> Result<(), SinkError> {
    let exchange = &config.exchange;
    let channel = connection.create_channel().await.map_err(closed)?;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(name(exchange)?, ExchangeKind::Topic, durable, FieldTable::default())
        .await
        .map_err(|e| {
            refusal(e, &format!("exchange {exchange:?} cannot be created as a durable topic exchange"))
        })?;
    for queue in &config.queues {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name(&queue.name)?, durable, arguments(queue)?).await.map_err(|e| {
            refusal(e, &format!("queue {:?} cannot be created as {}", queue.name, queue.kind.as_str()))
        })?;
        for binding in &queue.bindings {
            channel
                .queue_bind(
                    name(&queue.name)?,
                    name(exchange)?,
                    name(binding)?,
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .map_err(|e| {
                    refusal(e, &format!("queue {:?} cannot be bound to {exchange:?}", queue.name))
                })?;
        }
    }
    let _ = channel.close(200, "created".into()).await;
    Ok(())
}

fn arguments(queue: &Queue) -> Result<FieldTable, SinkError> {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(queue.kind.as_str())));
    for (key, value) in &queue.arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
            Argument::Int(number) => AMQPValue::LongLongInt(*number),
            Argument::Bool(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert(name(key)?, value);
    }
    Ok(table)
}

fn closed(source: lapin::Error) -> SinkError {
    SinkError::Closed { what: "connection", source }
}

/// A refused declare, with a remedy where the broker's answer allows one; other errors stay what they are.
fn refusal(error: lapin::Error, not_found: &str) -> SinkError {
    match reply_code(&error) {
        Some(404) => SinkError::Topology(not_found.to_owned()),
        Some(403) => {
            SinkError::Topology(format!("{error}: the user needs the configure permission for a declare"))
        }
        Some(406) => SinkError::Topology(format!("{not_found}: it exists with other properties ({error})")),
        _ => closed(error),
    }
}
