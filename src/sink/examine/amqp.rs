//! What can be asked over AMQP, which every user may: do exchange and queues exist? Passive declares, which change nothing.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ExchangeKind};
use tokio::time::timeout;

use crate::config::{Declare, Rabbitmq};
use crate::finding::{Code, Finding, complete, unexamined};
use crate::sink::reply_code;

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::ExchangeMissing, Code::QueueMissing];

/// For all answers together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What exists, as far as the broker says it in time.
pub async fn examine(connection: &Connection, config: &Rabbitmq) -> Vec<Finding> {
    let asking = timeout(ANSWER_TIMEOUT, ask(connection, config)).await;
    asking.unwrap_or_else(|_| unexamined(CODES, "the broker did not answer in time"))
}

/// Each on a channel of its own: a refused declare closes it.
async fn ask(connection: &Connection, config: &Rabbitmq) -> Vec<Finding> {
    let mut findings = Vec::new();
    let exchange = &config.exchange;
    let answer = passive_exchange(connection, exchange).await;
    findings.extend(judge(Code::ExchangeMissing, &format!("exchange {exchange}"), answer, config.declare));
    for queue in &config.queues {
        let answer = passive_queue(connection, &queue.name).await;
        findings.extend(judge(Code::QueueMissing, &format!("queue {}", queue.name), answer, config.declare));
    }
    complete(CODES, findings)
}

/// A reply code and what the broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    code: Option<u16>,
    text: String,
}

impl From<lapin::Error> for Refusal {
    fn from(error: lapin::Error) -> Refusal {
        Refusal { code: reply_code(&error), text: error.to_string() }
    }
}

fn judge(code: Code, place: &str, answer: Result<(), Refusal>, declare: Declare) -> Option<Finding> {
    match answer {
        Ok(()) => None,
        Err(Refusal { code: Some(404), .. }) if declare == Declare::Create => {
            let text = "it does not exist yet: `run` will create it";
            Some(Finding::info(code, place, text).with_remedy("nothing"))
        }
        Err(Refusal { code: Some(404), .. }) => Some(Finding::error(code, place, "it does not exist")),
        // Somebody's own: it is there.
        Err(Refusal { code: Some(405), .. }) => None,
        Err(Refusal { text, .. }) => Some(Finding::not_examined(code, format!("{place}: {text}"))),
    }
}

fn name(text: &str) -> Result<ShortString, Refusal> {
    ShortString::try_new(text).map_err(|_| Refusal { code: None, text: "longer than 255 bytes".to_owned() })
}

async fn passive_exchange(connection: &Connection, exchange: &str) -> Result<(), Refusal> {
    let channel = connection.create_channel().await?;
    let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
    channel.exchange_declare(name(exchange)?, ExchangeKind::Topic, passive, FieldTable::default()).await?;
    let _ = channel.close(200, "looked".into()).await;
    Ok(())
}

async fn passive_queue(connection: &Connection, queue: &str) -> Result<(), Refusal> {
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(name(queue)?, passive, FieldTable::default()).await?;
    let _ = channel.close(200, "looked".into()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn what_run_creates_is_no_error() {
        let refused = |code, declare| {
            let answer = Err(Refusal { code, text: String::new() });
            judge(Code::ExchangeMissing, "exchange e", answer, declare).map(|finding| finding.severity)
        };
        assert_eq!(refused(Some(404), Declare::Check), Some(Severity::Error));
        assert_eq!(refused(Some(404), Declare::Create), Some(Severity::Info));
        assert_eq!(refused(Some(405), Declare::Check), None);
        assert_eq!(refused(Some(403), Declare::Check), Some(Severity::NotExamined));
        assert_eq!(judge(Code::QueueMissing, "", Ok(()), Declare::Check), None);
    }
}
