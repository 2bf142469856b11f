//! What `statecast doctor` looks at in RabbitMQ: over AMQP (`amqp`), and over the management API (the rest). Facts are
//! fetched in [`examine`], judged by pure functions, one file per subject.

pub mod amqp;
mod bindings;
mod broker;
mod permissions;
mod queues;
mod routing;
mod shapes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lapin::uri::AMQPUri;

use super::management::{Management, ManagementError, segment};
use crate::config::Rabbitmq;
use crate::finding::{Code, Finding, complete, unexamined};
pub use routing::EventType;
use routing::{Exchange, Graph};
use shapes::{
    BindingShape, ExchangeShape, NodeShape, OverviewShape, PermissionShape, PolicyShape, QueueShape,
    TopicShape,
};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[
    Code::ManagementUnreachable,
    Code::BrokerAlarm,
    Code::ExchangeTransient,
    Code::AlternateExchange,
    Code::CatchAll,
    Code::BindingNone,
    Code::TypeUnbound,
    Code::QueueNoConsumer,
    Code::QueueDrops,
    Code::QueueTransient,
    Code::QueueNotReplicated,
    Code::QueueDown,
    Code::PolicyApplies,
    Code::UserPermissions,
];

/// The `Date` header has whole seconds.
pub const DATE_RESOLUTION: Duration = Duration::from_secs(1);
/// Exchanges that are followed from ours, at most.
const EXCHANGES_MAX: usize = 16;
/// Queues that are looked at, at most.
const QUEUES_MAX: usize = 200;
/// Names in one finding, at most.
const NAMES_MAX: usize = 10;

/// Whose permissions count, and where: of the first of `rabbitmq.urls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Virtual host.
    pub vhost: String,
    /// User.
    pub user: String,
}

impl Account {
    /// `None`: the URL cannot be read, which the connection says better.
    pub fn of(config: &Rabbitmq) -> Option<Account> {
        let uri: AMQPUri = config.urls.first()?.expose().parse().ok()?;
        Some(Account { vhost: uri.vhost, user: uri.authority.userinfo.username })
    }
}

/// What the judges know besides what the API says.
#[derive(Clone, Copy, Debug)]
struct Context<'a> {
    config: &'a Rabbitmq,
    pipeline: &'a str,
    account: &'a Account,
    /// What the outbox has lately seen, or in a line why that is not known.
    types: Result<&'a [EventType], &'a str>,
}

impl<'a> Context<'a> {
    /// The types, or what `code` says without them.
    fn seen(&self, code: Code) -> Result<&'a [EventType], Finding> {
        self.types.map_err(|why| {
            Finding::not_examined(code, format!("the types in the outbox are not known: {why}"))
        })
    }
}

/// Asks the API for everything and judges it. `types`: what the outbox has lately seen, or in a
/// line why that is not known.
pub async fn examine(
    management: &mut Management,
    config: &Rabbitmq,
    pipeline: &str,
    account: &Account,
    types: Result<&[EventType], &str>,
) -> Vec<Finding> {
    let context = Context { config, pipeline, account, types };
    let version = match management.get::<OverviewShape>("overview").await {
        Ok(Some(overview)) => Ok(overview.rabbitmq_version),
        Ok(None) => Err("there is no management API of RabbitMQ".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let mut findings = match version {
        Ok(version) => vec![Finding::ok_with(Code::ManagementUnreachable, format!("RabbitMQ {version}"))],
        Err(error) => {
            let mut findings = vec![Finding::warning(Code::ManagementUnreachable, management.at(), error)];
            let rest = CODES.iter().filter(|code| **code != Code::ManagementUnreachable).copied();
            let why = "the management API does not answer";
            findings.extend(unexamined(&rest.collect::<Vec<_>>(), why));
            return findings;
        }
    };
    let nodes = management.get::<Vec<NodeShape>>("nodes").await;
    findings.extend(match &nodes {
        Ok(nodes) => broker::judge(nodes.as_deref().unwrap_or_default()),
        Err(error) => vec![Finding::not_examined(Code::BrokerAlarm, why(error))],
    });
    let nodes = nodes.ok().flatten().map(|nodes| nodes.len());
    findings.extend(topology(management, context, nodes).await);
    findings.extend(match permissions(management, context).await {
        Ok(found) => found,
        Err(error) => vec![Finding::not_examined(Code::UserPermissions, why(&error))],
    });
    complete(CODES, findings)
}

/// Which tag of the user would have let it see that.
fn why(error: &ManagementError) -> String {
    match error {
        ManagementError::Refused { path, .. } => {
            let tag = if path.contains("permissions") { "administrator" } else { "monitoring" };
            format!("{error}: give the user of rabbitmq.management_url the tag {tag}")
        }
        error => error.to_string(),
    }
}

const EXCHANGE_CODES: &[Code] =
    &[Code::ExchangeTransient, Code::AlternateExchange, Code::CatchAll, Code::BindingNone, Code::TypeUnbound];
const QUEUE_CODES: &[Code] = &[
    Code::QueueNoConsumer,
    Code::QueueDrops,
    Code::QueueTransient,
    Code::QueueNotReplicated,
    Code::QueueDown,
];

async fn topology(management: &mut Management, context: Context<'_>, nodes: Option<usize>) -> Vec<Finding> {
    let all: Vec<Code> = [EXCHANGE_CODES, QUEUE_CODES, &[Code::PolicyApplies]].concat();
    let graph = match follow(management, context).await {
        Ok(graph) if graph.exchanges.contains_key(&context.config.exchange) => graph,
        Ok(_) => return unexamined(&all, "the exchange does not exist"),
        Err(error) => return unexamined(&all, &why(&error)),
    };
    let mut findings = bindings::judge(&graph, &context);
    let names: BTreeSet<&str> = graph.queues().collect();
    let mut queues = Vec::new();
    for name in names.iter().take(QUEUES_MAX) {
        let path = format!("queues/{}/{}", segment(&context.account.vhost), segment(name));
        match management.get::<QueueShape>(&path).await {
            // A 404: deleted since.
            Ok(queue) => queues.extend(queue),
            Err(error) => {
                findings.extend(unexamined(QUEUE_CODES, &why(&error)));
                break;
            }
        }
    }
    if names.len() > QUEUES_MAX {
        let text = format!("only the first {QUEUES_MAX} of {} queues were looked at", names.len());
        findings.extend(unexamined(QUEUE_CODES, &text));
    }
    findings.extend(queues::judge(&queues, nodes));
    findings.extend(broker::policies(&graph, &queues));
    findings
}

/// Our exchange, and those that it leads to.
async fn follow(management: &mut Management, context: Context<'_>) -> Result<Graph, ManagementError> {
    let vhost = segment(&context.account.vhost);
    let mut graph = Graph { root: context.config.exchange.clone(), ..Graph::default() };
    let mut next = VecDeque::from([graph.root.clone()]);
    let mut policies: BTreeMap<String, Option<PolicyShape>> = BTreeMap::new();
    while let Some(name) = next.pop_front() {
        if graph.exchanges.contains_key(&name) {
            continue;
        }
        if graph.exchanges.len() >= EXCHANGES_MAX {
            graph.truncated = true;
            break;
        }
        // The default exchange has an empty name, for which the API has another.
        let path =
            format!("exchanges/{vhost}/{}", segment(if name.is_empty() { "amq.default" } else { &name }));
        let Some(shape) = management.get::<ExchangeShape>(&path).await? else { continue };
        let bound = management.get::<Vec<BindingShape>>(&format!("{path}/bindings/source")).await?;
        if let Some(policy) = shape.policy.as_ref().filter(|policy| !policies.contains_key(*policy)) {
            let path = format!("policies/{vhost}/{}", segment(policy));
            // Not every user may see policies; their names are there all the same.
            policies.insert(policy.clone(), management.get(&path).await.unwrap_or_default());
        }
        let policy = shape.policy.as_ref().and_then(|policy| policies.get(policy)?.as_ref());
        let exchange = Exchange::new(shape, policy, bound.unwrap_or_default());
        next.extend(exchange.leads_to().map(str::to_owned));
        graph.exchanges.insert(name, exchange);
    }
    Ok(graph)
}

async fn permissions(
    management: &mut Management,
    context: Context<'_>,
) -> Result<Vec<Finding>, ManagementError> {
    let Account { vhost, user } = context.account;
    let whose = format!("{}/{}", segment(vhost), segment(user));
    let granted = management.get::<PermissionShape>(&format!("permissions/{whose}")).await?;
    let topics = management.get::<Vec<TopicShape>>(&format!("topic-permissions/{whose}")).await?;
    Ok(permissions::judge(granted.as_ref(), &topics.unwrap_or_default(), &context))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config() -> Rabbitmq {
        let env = [
            ("STATECAST_POSTGRES__URL".to_owned(), "postgres://u@h/d".to_owned()),
            ("STATECAST_RABBITMQ__URLS".to_owned(), "amqp://app:x@h/%2f".to_owned()),
        ];
        crate::config::load(None, env.into_iter()).unwrap().rabbitmq
    }

    pub(super) fn account() -> Account {
        Account { vhost: "/".into(), user: "app".into() }
    }

    #[test]
    fn the_account_is_that_of_the_url() {
        assert_eq!(Account::of(&config()), Some(account()));
    }

    #[test]
    fn a_refusal_names_the_tag() {
        let refused = |path: &str| why(&ManagementError::Refused { status: 401, path: path.into() });
        assert!(refused("nodes").ends_with("the tag monitoring"));
        assert!(refused("permissions/%2F/app").ends_with("the tag administrator"));
    }
}
