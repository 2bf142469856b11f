//! The publisher limit: a bare lapin program that sends the bytes which the relay sends, persistent, mandatory and with
//! confirms, and does nothing else. It is a process of its own, this program with `publisher` as its first argument, so
//! that its processor time and memory can be told from the benchmark's.
//!
//! It says `ready`, waits for a line, publishes, and answers with its [`Published`].

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::process::Stdio;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::histogram::{Latencies, Summary};
use crate::schedule::{self, now_us};
use crate::usage::Usage;

/// First argument of the process.
pub(crate) const ROLE: &str = "publisher";
/// Unconfirmed messages, at most: what the relay has by default.
pub(crate) const WINDOW: usize = 2_000;
/// Sent at a time, once so many places are free: polled once each, in order, then awaited.
const BATCH: usize = 250;

/// What to publish.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Task {
    pub(crate) url: String,
    pub(crate) exchange: String,
    pub(crate) count: u64,
    /// Per second, when each is due; without it as fast as it goes.
    pub(crate) rate: Option<u64>,
    pub(crate) template: Template,
}

/// A message as the relay sent it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Template {
    routing_key: String,
    content_type: String,
    message_id: String,
    kind: String,
    app_id: String,
    timestamp: u64,
    headers: BTreeMap<String, String>,
    body: String,
}

/// How it went.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Published {
    /// From the first publish to the last confirm.
    pub(crate) seconds: f64,
    pub(crate) usage: Usage,
    /// From the moment a publish was due to its confirm; only with a rate.
    pub(crate) latencies: Option<Summary>,
}

impl Template {
    pub(crate) fn of(delivery: &Delivery) -> Result<Template> {
        let properties = &delivery.properties;
        let text =
            |value: &Option<ShortString>| value.as_ref().map_or_else(String::new, |v| v.as_str().to_owned());
        let headers = properties.headers().clone().unwrap_or_default();
        let headers = headers.inner().iter().map(|(name, value)| match value {
            AMQPValue::LongString(value) => {
                Ok((name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            }
            other => bail!("header {name} is {other:?}"),
        });
        Ok(Template {
            routing_key: delivery.routing_key.as_str().to_owned(),
            content_type: text(properties.content_type()),
            message_id: text(properties.message_id()),
            kind: text(properties.kind()),
            app_id: text(properties.app_id()),
            timestamp: properties.timestamp().unwrap_or_default(),
            headers: headers.collect::<Result<_>>()?,
            body: String::from_utf8(delivery.data.clone()).context("the body is not UTF-8")?,
        })
    }

    fn properties(&self) -> Result<BasicProperties> {
        let mut headers = FieldTable::default();
        for (name, value) in &self.headers {
            headers.insert(short(name)?, AMQPValue::LongString(value.as_bytes().into()));
        }
        Ok(BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(short(&self.content_type)?)
            .with_message_id(short(&self.message_id)?)
            .with_type(short(&self.kind)?)
            .with_app_id(short(&self.app_id)?)
            .with_timestamp(self.timestamp)
            .with_headers(headers))
    }
}

fn short(text: &str) -> Result<ShortString> {
    ShortString::try_new(text).map_err(|_| anyhow::anyhow!("more than 255 bytes"))
}

/// The process, as the benchmark sees it. Connected and ready to begin.
pub(crate) struct Publisher {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Publisher {
    pub(crate) async fn start(task: &Task) -> Result<Publisher> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("start the publisher")?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        stdin.write_all((serde_json::to_string(task)? + "\n").as_bytes()).await?;
        let mut publisher = Publisher { child, stdin, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        publisher.stdout.read_line(&mut line).await?;
        ensure!(line.trim() == "ready", "the publisher is not ready: {line:?}");
        Ok(publisher)
    }

    /// Lets it publish; returns when all is confirmed.
    pub(crate) async fn publish(mut self) -> Result<Published> {
        self.stdin.write_all(b"go\n").await?;
        let mut answer = String::new();
        self.stdout.read_to_string(&mut answer).await?;
        ensure!(self.child.wait().await?.success(), "the publisher failed");
        serde_json::from_str(&answer).context("the publisher's answer")
    }
}

/// The process itself.
pub(crate) async fn run() -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let task = lines.next_line().await?.context("no task")?;
    let task: Task = serde_json::from_str(&task)?;
    let connection = Connection::connect(&task.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut sender = Sender::new(&task, channel)?;
    say("ready\n").await?;
    lines.next_line().await?.context("nobody waits for this")?;
    let began = Instant::now();
    let latencies = match task.rate {
        None => {
            sender.as_fast_as_it_goes(task.count).await?;
            None
        }
        Some(rate) => Some(sender.at_rate(task.count, rate).await?),
    };
    let seconds = began.elapsed().as_secs_f64();
    let usage = Usage::of(std::process::id())?;
    say(&serde_json::to_string(&Published { seconds, usage, latencies })?).await?;
    Ok(())
}

async fn say(text: &str) -> Result<()> {
    let mut stdout = tokio::io::stdout();
    stdout.write_all(text.as_bytes()).await?;
    Ok(stdout.flush().await?)
}

type InFlight<'a> = Pin<Box<dyn Future<Output = (i64, lapin::Result<Confirmation>)> + Send + 'a>>;

struct Sender {
    channel: Channel,
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

impl Sender {
    fn new(task: &Task, channel: Channel) -> Result<Sender> {
        let exchange = short(&task.exchange)?;
        let routing_key = short(&task.template.routing_key)?;
        let properties = task.template.properties()?;
        Ok(Sender {
            channel,
            exchange,
            routing_key,
            properties,
            body: task.template.body.clone().into_bytes(),
        })
    }

    fn send(&self, due_us: i64) -> InFlight<'_> {
        let (exchange, routing_key) = (self.exchange.clone(), self.routing_key.clone());
        let properties = self.properties.clone();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        Box::pin(async move {
            let sent =
                self.channel.basic_publish(exchange, routing_key, options, &self.body, properties).await;
            match sent {
                Ok(confirm) => (due_us, confirm.await),
                Err(error) => (due_us, Err(error)),
            }
        })
    }

    async fn as_fast_as_it_goes(&mut self, count: u64) -> Result<()> {
        let mut in_flight = FuturesUnordered::new();
        let mut left = count;
        while left > 0 || !in_flight.is_empty() {
            if left > 0 && in_flight.len() + BATCH <= WINDOW {
                for _ in 0..left.min(BATCH as u64) {
                    put(&mut in_flight, self.send(0)).await;
                    left -= 1;
                }
                continue;
            }
            let mut answer = in_flight.next().await;
            while let Some((_, confirmation)) = answer {
                confirmed(confirmation)?;
                answer = in_flight.next().now_or_never().flatten();
            }
        }
        Ok(())
    }

    async fn at_rate(&mut self, count: u64, rate: u64) -> Result<Summary> {
        let mut latencies = Latencies::new()?;
        let mut in_flight = FuturesUnordered::new();
        let mut due = schedule::start(Duration::from_secs_f64(1.0 / rate.max(1) as f64), count);
        let mut open = true;
        while open || !in_flight.is_empty() {
            tokio::select! {
                biased;
                Some((due_us, confirmation)) = in_flight.next(), if !in_flight.is_empty() => {
                    confirmed(confirmation)?;
                    latencies.record(due_us, now_us());
                }
                next = due.recv(), if open => match next {
                    Some(due_us) => put(&mut in_flight, self.send(due_us)).await,
                    None => open = false,
                },
            }
        }
        Ok(latencies.summary())
    }
}

/// The first poll hands the frames to the connection: in this order.
async fn put<'a>(in_flight: &mut FuturesUnordered<InFlight<'a>>, mut publish: InFlight<'a>) {
    match poll_fn(|cx| Poll::Ready(publish.as_mut().poll(cx))).await {
        Poll::Ready(answer) => in_flight.push(Box::pin(std::future::ready(answer))),
        Poll::Pending => in_flight.push(publish),
    }
}

fn confirmed(confirmation: lapin::Result<Confirmation>) -> Result<()> {
    match confirmation? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not confirmed: {other:?}"),
    }
}
