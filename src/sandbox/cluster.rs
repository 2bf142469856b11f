//! A cluster of private RabbitMQ nodes.
//!
//! Each is a [`Rabbitmq`] of its own, with its own directory, ports and processes; they share one port mapper and one
//! cookie. They are started one after another, because each joins those that run already. A node that is stopped or
//! killed keeps its data and joins again at [`Rabbitmq::start_again`].
//! See <https://www.rabbitmq.com/docs/clustering> and <https://www.rabbitmq.com/docs/partitions#pause-minority>.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SandboxError;
use super::process::POLL;
use super::rabbitmq::{Rabbitmq, RabbitmqOptions, Site, node_name};

const SERVER: &str = "RabbitMQ cluster";
/// For the nodes to know of each other once the last one accepts connections.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// Enough for any test; each costs about 150 MB and one scheduler.
const NODES_MAX: usize = 5;

/// Private nodes that form one broker; dropped, they are killed and their data removed.
#[derive(Debug)]
pub struct RabbitmqCluster {
    /// The nodes, in the order in which they were started.
    pub nodes: Vec<Rabbitmq>,
}

impl RabbitmqCluster {
    /// Starts `count` nodes; returns when all of them are members. A minority pauses itself.
    ///
    /// # Errors
    /// A node does not start, or does not join.
    pub async fn start(count: usize, options: RabbitmqOptions) -> Result<RabbitmqCluster, SandboxError> {
        let site = Site::start()?;
        let names: Vec<String> = (0..count.clamp(1, NODES_MAX)).map(|_| node_name()).collect();
        let mut options = RabbitmqOptions { schedulers: 1, ..options };
        options.config.push("cluster_formation.peer_discovery_backend = classic_config".to_owned());
        options.config.push("cluster_partition_handling = pause_minority".to_owned());
        for (number, name) in names.iter().enumerate() {
            options.config.push(format!("cluster_formation.classic_config.nodes.{} = {name}", number + 1));
        }
        let mut cluster = RabbitmqCluster { nodes: Vec::new() };
        for name in names {
            let mut node = Rabbitmq::prepare(&options, Arc::clone(&site), name)?;
            node.start_again().await?;
            cluster.nodes.push(node);
        }
        cluster.joined().await?;
        Ok(cluster)
    }

    /// The nodes' URLs, as one list for a client.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Rabbitmq::url).collect()
    }

    /// Waits until every node that runs sees all the others that run.
    ///
    /// # Errors
    /// They do not find each other in time.
    pub async fn joined(&self) -> Result<(), SandboxError> {
        let begun = Instant::now();
        let running: Vec<&Rabbitmq> = self.nodes.iter().filter(|node| node.pid().is_some()).collect();
        for node in &running {
            let seen = format!(
                "length([N || N <- [node() | nodes()], rabbit:is_running(N)]) =:= {}.",
                running.len()
            );
            while node.eval(&seen).await.ok().as_deref() != Some("true") {
                if begun.elapsed() > JOIN_LIMIT {
                    return Err(SandboxError::State { server: SERVER, state: "not joined" });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }
}
