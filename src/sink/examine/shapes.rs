//! The parts of the management API's answers that are looked at. Every field may be missing or null: versions differ, and
//! figures come seconds after their object.

use serde::Deserialize;
use serde_json::Value;

/// `GET /api/overview`. The one field that must be there: it tells that this is RabbitMQ.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct OverviewShape {
    pub(super) rabbitmq_version: String,
}

/// `GET /api/exchanges/<vhost>/<name>`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExchangeShape {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) durable: Option<bool>,
    pub(super) auto_delete: Option<bool>,
    pub(super) arguments: Value,
    pub(super) policy: Option<String>,
}

/// One of `GET /api/exchanges/<vhost>/<name>/bindings/source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct BindingShape {
    pub(super) destination: String,
    /// `queue` or `exchange`.
    pub(super) destination_type: String,
    pub(super) routing_key: String,
}

/// `GET /api/policies/<vhost>/<name>`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PolicyShape {
    pub(super) definition: Value,
}

/// `GET /api/queues/<vhost>/<name>`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct QueueShape {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) durable: Option<bool>,
    pub(super) exclusive: Option<bool>,
    pub(super) auto_delete: Option<bool>,
    pub(super) arguments: Value,
    pub(super) policy: Option<String>,
    pub(super) operator_policy: Option<String>,
    /// An object; an empty list where there is nothing in it.
    pub(super) effective_policy_definition: Value,
    /// Up to five seconds old.
    pub(super) consumers: Option<u64>,
    /// At once.
    pub(super) consumer_details: Option<Vec<serde::de::IgnoredAny>>,
    pub(super) messages: Option<u64>,
    pub(super) state: Option<String>,
    pub(super) members: Option<Vec<String>>,
    pub(super) online: Option<Vec<String>>,
}

impl QueueShape {
    /// `None`: the broker keeps no figures.
    pub(super) fn consumers(&self) -> Option<u64> {
        let counted = self.consumer_details.as_ref().map(|details| details.len() as u64);
        self.consumers.max(counted)
    }

    /// An argument `x-<name>`, or a policy's `<name>`; the argument wins.
    pub(super) fn setting(&self, name: &str) -> Option<&Value> {
        let argument = self.arguments.get(format!("x-{name}"));
        argument.or_else(|| self.effective_policy_definition.get(name)).filter(|value| !value.is_null())
    }

    /// Where a setting comes from.
    pub(super) fn source(&self, name: &str) -> String {
        if self.arguments.get(format!("x-{name}")).is_some() {
            return "by argument".to_owned();
        }
        let policy = self.policy.iter().chain(&self.operator_policy).cloned().collect::<Vec<_>>().join(", ");
        format!("policy {policy}")
    }
}

/// One of `GET /api/nodes`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeShape {
    pub(super) name: String,
    pub(super) running: Option<bool>,
    pub(super) mem_alarm: Option<bool>,
    pub(super) mem_used: Option<u64>,
    pub(super) mem_limit: Option<u64>,
    pub(super) disk_free_alarm: Option<bool>,
    pub(super) disk_free: Option<u64>,
    pub(super) disk_free_limit: Option<u64>,
    pub(super) partitions: Option<Vec<String>>,
}

/// `GET /api/permissions/<vhost>/<user>`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PermissionShape {
    pub(super) configure: String,
    pub(super) write: String,
    pub(super) read: String,
}

/// One of `GET /api/topic-permissions/<vhost>/<user>`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TopicShape {
    pub(super) exchange: String,
    pub(super) write: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_null_has_a_default() {
        let queue: QueueShape =
            serde_json::from_str(r#"{"name":"q","policy":null,"effective_policy_definition":[],"more":{}}"#)
                .unwrap();
        assert_eq!(
            (queue.policy.as_ref(), queue.consumers(), queue.setting("max-length")),
            (None, None, None)
        );
        let queue: QueueShape =
            serde_json::from_str(r#"{"consumers":0,"consumer_details":[{}, {}]}"#).unwrap();
        assert_eq!(queue.consumers(), Some(2));
        assert!(serde_json::from_str::<QueueShape>(r#"{"name": 7}"#).is_err());
    }
}
