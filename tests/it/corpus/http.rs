//! Requests to the HTTP port.

use std::time::Duration;

use futures_util::future::join_all;
use harness::{Daemon, Stack};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Surprises, Verdict, corpus, written_out};
use crate::projector::TALLY;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default)]
    daemon: Server,
    send: String,
}

/// The daemon that gets the request.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Server {
    #[default]
    OutboxRelay,
    Projector,
}

/// The daemons answer every request in the corpus, and still serve requests afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn corpus_http() {
    Stack::run(async |stack| {
        let mut surprises = Surprises::default();
        let relay = stack.relay().start_ready().await;
        stack.projector(TALLY).arg("migrate").succeed().await;
        let projector = stack.projector(TALLY).start_ready().await;
        let addresses = [&relay, &projector].map(address);
        let cases = corpus::<Request>("http");
        let mut asked: Vec<_> = join_all(
            cases
                .iter()
                .map(|case| ask(&addresses[case.input.daemon as usize], case.input.send.as_str())),
        )
        .await;
        for (case, (_, message)) in cases.iter().zip(&asked) {
            let verdict = if message.contains(" 200 ") { Verdict::Apply } else { Verdict::Refuse };
            surprises.compare(case, verdict, message);
        }
        asked.extend(join_all((0..300).map(|_| ask(&addresses[0], "GET /livez HT"))).await);
        for daemon in [relay, projector] {
            assert_eq!(
                daemon.get("/livez").await.unwrap().0,
                200,
                "the daemon still serves requests"
            );
        }
        surprises.assert_none();
    })
    .await;
}

/// Clients that send requests and read no answer keep nobody out. Method: more of them than connections that a
/// daemon serves, each with more answers than fit into the buffers.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_keep_nobody_out() {
    Stack::run(async |stack| {
        let relay = stack.relay().start_ready().await;
        let address = address(&relay);
        let requests = "GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n".repeat(2_000);
        let silent = join_all((0..300).map(async |_| {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            // The daemon stops to read when it cannot write, or ends the connection.
            let _unsent =
                timeout(Duration::from_secs(1), stream.write_all(requests.as_bytes())).await;
            stream
        }))
        .await;
        for _ in 0..3 {
            assert_eq!(relay.get("/livez").await.map(|(status, _)| status), Some(200));
        }
        drop(silent);
    })
    .await;
}

/// The HTTP address of a daemon.
fn address(daemon: &Daemon) -> String {
    let log = daemon.log();
    let started = log.lines().find(|line| line.contains("started")).unwrap();
    let started: Value = serde_json::from_str(started).unwrap();
    started["http"].as_str().unwrap().to_owned()
}

/// Sends a request. Returns the first line of the answer, or the end of the connection.
async fn ask(address: &str, send: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The daemon may answer before it has read everything.
    drop(stream.write_all(written_out(send).as_bytes()).await);
    let mut answer = vec![0; 64];
    let message = match timeout(Duration::from_secs(30), stream.read(&mut answer)).await {
        Ok(Ok(0)) => "closed without an answer".to_owned(),
        Ok(Ok(length)) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "neither answered nor closed".to_owned(),
    };
    (stream, message)
}
