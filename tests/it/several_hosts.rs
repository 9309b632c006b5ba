//! Each server's URL may name several hosts: connections go to one that can be used.

use std::net::TcpListener;
use std::time::Duration;

use harness::{Mode, Proxy, Stack};
use serde_json::json;
use tokio::time::sleep;

use crate::projector::{TALLY, tested, wait_for};

/// Two hosts of a server and a third that refuses connections.
struct Cluster {
    hosts: [Proxy; 2],
    url: String,
}

impl Cluster {
    async fn before(url: &str) -> Self {
        let (one, address) = Proxy::before(url).await;
        let (other, _) = Proxy::before(url).await;
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let [first, second] = [&one, &other].map(|host| host.address().to_string());
        let url = address.replace(&first, &format!("{dead},{first},{second}"));
        assert_ne!(url, address);
        Self { hosts: [one, other], url }
    }

    /// The host with this number loses its connections and is silent, and the other one works.
    async fn fails(&self, number: usize) {
        self.hosts[1 - number].set(Mode::Pass);
        self.hosts[number].set(Mode::Reset);
        sleep(Duration::from_millis(100)).await;
        self.hosts[number].set(Mode::BlackHole);
    }
}

/// Both daemons work while one host refuses connections and another one is silent, also after the working host and
/// the silent one have changed places, for each of the three servers.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_work_while_one_host_of_each_server_does() {
    Stack::run(async |stack| {
        stack.projector(TALLY).arg("migrate").succeed().await;
        let (postgres, rabbitmq, mysql) = (
            Cluster::before(&stack.postgres_url).await,
            Cluster::before(&stack.amqp_url).await,
            Cluster::before(&stack.mysql_url).await,
        );
        let clusters = [&postgres, &rabbitmq, &mysql];
        for cluster in clusters {
            cluster.fails(0).await;
        }
        let relay = stack
            .relay()
            .env("EVENT_STORE_URL", &postgres.url)
            .env("AMQP_URL", &rabbitmq.url)
            .start_ready()
            .await;
        let projector = stack
            .projector(TALLY)
            .env("EVENT_STORE_URL", &postgres.url)
            .env("AMQP_URL", &rabbitmq.url)
            .env("READ_MODEL_URL", &mysql.url)
            .start_ready()
            .await;
        stack.append("order-1", &[tested(&json!(1))]).await;
        wait_for(stack, "order-1", "1").await;
        let mut versions = "1".to_owned();
        for (cluster, next) in clusters.into_iter().zip(2..) {
            cluster.fails(1).await;
            stack.append("order-1", &[tested(&json!(1))]).await;
            versions = format!("{versions},{next}");
            wait_for(stack, "order-1", &versions).await;
        }
        relay.ready().await;
        projector.ready().await;
    })
    .await;
}
