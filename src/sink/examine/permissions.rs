//! Judges what the user of `rabbitmq.urls` may do, by the broker's own rules: three regular expressions over names, not
//! anchored; an empty one matches nothing. See <https://www.rabbitmq.com/docs/access-control#authorisation>.

use regex::Regex;

use super::shapes::{PermissionShape, TopicShape};
use super::{Context, NAMES_MAX};
use crate::config::Declare;
use crate::finding::{Code, Finding, listed};
use crate::sink::fence;

const CODE: Code = Code::UserPermissions;
/// Compiled, a pattern takes no more.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// `granted`: nothing, if the user has no permissions in this virtual host.
pub(super) fn judge(
    granted: Option<&PermissionShape>,
    topics: &[TopicShape],
    context: &Context<'_>,
) -> Vec<Finding> {
    let Context { config, account, .. } = context;
    let place = format!("user {}, virtual host {}", account.user, account.vhost);
    let nothing = PermissionShape::default();
    let granted = granted.unwrap_or(&nothing);
    let mut needs: Vec<(&str, &str, String)> = vec![("write", &granted.write, config.exchange.clone())];
    if config.fence {
        let fences = (0..config.lanes).map(|lane| fence::queue_name(context.pipeline, lane));
        needs.extend(fences.map(|queue| ("configure", granted.configure.as_str(), queue)));
    }
    if config.declare == Declare::Create {
        needs.push(("configure", &granted.configure, config.exchange.clone()));
        if !config.queues.is_empty() {
            needs.push(("read", &granted.read, config.exchange.clone()));
        }
        for queue in &config.queues {
            needs.push(("configure", &granted.configure, queue.name.clone()));
            needs.push(("write", &granted.write, queue.name.clone()));
        }
    }
    let mut missing = Vec::new();
    for (permission, pattern, name) in needs {
        match allows(pattern, &name) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{permission} on {name:?}")),
            Err(why) => {
                return vec![Finding::not_examined(
                    CODE,
                    format!("{place}: {permission} {pattern:?}: {why}"),
                )];
            }
        }
    }
    if !missing.is_empty() {
        let PermissionShape { configure, write, read } = granted;
        let (vhost, user) = (&account.vhost, &account.user);
        let text = format!("it lacks {}", listed(&missing, NAMES_MAX));
        let remedy = format!(
            "rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ with patterns that match these (now '{configure}' '{write}' '{read}')"
        );
        return vec![Finding::error(CODE, place, text).with_remedy(remedy)];
    }
    topic(topics, context, &place)
}

/// Topic permissions restrict further, by routing key, where there are any for the exchange.
fn topic(topics: &[TopicShape], context: &Context<'_>, place: &str) -> Vec<Finding> {
    let config = context.config;
    let Some(topic) = topics.iter().find(|topic| topic.exchange == config.exchange) else {
        return Vec::new();
    };
    // The broker puts these into the pattern as they are.
    let account = context.account;
    let pattern = topic.write.replace("{username}", &account.user).replace("{vhost}", &account.vhost);
    let types = match context.seen(CODE) {
        Ok(types) => types,
        Err(not_examined) => return vec![not_examined],
    };
    let mut refused = Vec::new();
    for seen in types {
        let key = seen.routing_key(&config.routing_key);
        match allows(&pattern, &key) {
            Ok(true) => {}
            Ok(false) => refused.push(key),
            Err(why) => {
                return vec![Finding::not_examined(CODE, format!("{place}: topic {pattern:?}: {why}"))];
            }
        }
    }
    if refused.is_empty() {
        return Vec::new();
    }
    let text =
        format!("its topic permission {pattern:?} does not let it publish {}", listed(&refused, NAMES_MAX));
    let remedy = format!(
        "rabbitmqctl set_topic_permissions -p {} {} {} WRITE READ with a pattern that matches these",
        account.vhost, account.user, config.exchange
    );
    vec![Finding::error(CODE, place, text).with_remedy(remedy)]
}

/// PCRE there, another engine here: what that does not know cannot be judged.
fn allows(pattern: &str, name: &str) -> Result<bool, String> {
    if pattern.is_empty() {
        return Ok(false);
    }
    let compiled = regex::RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
    let compiled: Regex = compiled.map_err(|_| "this pattern cannot be judged here".to_owned())?;
    Ok(compiled.is_match(name))
}

#[cfg(test)]
mod tests {
    use super::super::EventType;
    use super::super::tests::{account, config};
    use super::*;
    use crate::config::{Queue, QueueKind};
    use crate::finding::Severity;

    fn granted(configure: &str, write: &str, read: &str) -> PermissionShape {
        PermissionShape { configure: configure.into(), write: write.into(), read: read.into() }
    }

    fn found(granted: Option<&PermissionShape>, declare: Declare) -> Option<Finding> {
        let mut config = config();
        config.declare = declare;
        config.queues = vec![Queue {
            name: "orders".into(),
            bindings: vec!["#".into()],
            kind: QueueKind::Quorum,
            arguments: Vec::new(),
        }];
        let account = account();
        let context = Context { config: &config, pipeline: "p", account: &account, types: Ok(&[]) };
        judge(granted, &[], &context).pop()
    }

    #[test]
    fn a_relay_needs_little() {
        let little = granted("^statecast\\.fence\\.", "^statecast\\.events$", "");
        assert_eq!(found(Some(&little), Declare::Check), None);
        assert_eq!(found(Some(&granted(".*", ".*", ".*")), Declare::Create), None);
        let finding = found(Some(&little), Declare::Create).unwrap();
        assert_eq!(finding.severity, Severity::Error);
        assert!(
            finding.what.contains("read on \"statecast.events\"")
                && finding.what.contains("configure on \"orders\"")
        );
        let finding = found(None, Declare::Check).unwrap();
        assert!(
            finding.what.contains("write on \"statecast.events\"") && finding.remedy.contains("-p / app")
        );
        let odd = found(Some(&granted(".*", "(?=x)", "")), Declare::Check).unwrap();
        assert_eq!(odd.severity, Severity::NotExamined);
    }

    #[test]
    fn topics_restrict_further() {
        let (config, account) = (config(), account());
        let seen =
            EventType { aggregate_type: "order".into(), aggregate_id: "1".into(), event_type: "paid".into() };
        let types = [seen];
        let context = Context { config: &config, pipeline: "p", account: &account, types: Ok(&types) };
        let all = granted(".*", ".*", ".*");
        let topic = |write: &str| TopicShape { exchange: "statecast.events".into(), write: write.into() };
        assert!(judge(Some(&all), &[topic("^order\\.")], &context).is_empty());
        let refused = judge(Some(&all), &[topic("^{username}\\.")], &context);
        assert!(refused[0].what.contains("order.paid") && refused[0].what.contains("^app"), "{refused:?}");
        let context = Context { types: Err("no connection"), ..context };
        assert!(judge(Some(&all), &[], &context).is_empty());
        let unknown = judge(Some(&all), &[topic("^order\\.")], &context);
        assert_eq!(unknown[0].severity, Severity::NotExamined, "{unknown:?}");
    }
}
