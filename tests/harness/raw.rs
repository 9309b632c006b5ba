//! Publishes messages that no client library would send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// A message in its wire format. Only RabbitMQ checks it.
#[derive(Debug, Default)]
pub struct Raw<'m> {
    /// The routing key.
    pub routing_key: &'m [u8],
    /// The property flags and the properties.
    pub properties: &'m [u8],
    /// The body.
    pub body: &'m [u8],
}

impl Raw<'_> {
    /// Publishes the message to an exchange. Returns when RabbitMQ has accepted it.
    ///
    /// # Panics
    ///
    /// When RabbitMQ closes the connection.
    pub async fn publish(&self, url: &str, exchange: &str) {
        let url = Url::parse(url).expect("the URL is valid");
        let password = url.password().unwrap_or_default();
        let address =
            (url.host_str().expect("the URL has a host"), url.port().expect("the URL has a port"));
        let mut server =
            TcpStream::connect(address).await.expect("RabbitMQ accepts the connection");
        server.write_all(b"AMQP\0\0\x09\x01").await.expect("RabbitMQ reads");
        answer(&mut server, [0, 10, 0, 10]).await;
        let login = long(format!("\0{}\0{password}", url.username()).as_bytes());
        let start = [&[0, 10, 0, 11, 0, 0, 0, 0], &short(b"PLAIN")[..], &login, &short(b"en_US")];
        send(&mut server, METHOD, 0, &start.concat()).await;
        answer(&mut server, [0, 10, 0, 30]).await;
        // Up to 2047 channels, frames of 128 KiB, no heartbeats.
        let tune = [0, 10, 0, 31, 7, 255, 0, 2, 0, 0, 0, 0];
        send(&mut server, METHOD, 0, &tune).await;
        let vhost = short(url.path().trim_start_matches('/').as_bytes());
        send(&mut server, METHOD, 0, &[&[0, 10, 0, 40], &vhost[..], &[0, 0]].concat()).await;
        answer(&mut server, [0, 10, 0, 41]).await;
        send(&mut server, METHOD, 1, &[0, 20, 0, 10, 0]).await;
        answer(&mut server, [0, 20, 0, 11]).await;

        let (exchange, key) = (short(exchange.as_bytes()), short(self.routing_key));
        let publish = [&[0, 60, 0, 40, 0, 0], &exchange[..], &key, &[0]].concat();
        send(&mut server, METHOD, 1, &publish).await;
        let length = (self.body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0], &length[..], self.properties].concat();
        send(&mut server, HEADER, 1, &header).await;
        send(&mut server, BODY, 1, self.body).await;
        let close = [&[0, 20, 0, 40, 0, 200], &short(b"bye")[..], &[0; 4]].concat();
        send(&mut server, METHOD, 1, &close).await;
        answer(&mut server, [0, 20, 0, 41]).await;
    }
}

async fn send(server: &mut TcpStream, kind: u8, channel: u8, payload: &[u8]) {
    let frame = [&[kind, 0, channel], &long(payload)[..], &[0xce]].concat();
    server.write_all(&frame).await.expect("RabbitMQ reads");
}

/// Reads the next frame, which must have this method.
async fn answer(server: &mut TcpStream, method: [u8; 4]) {
    let mut head = [0; 7];
    server.read_exact(&mut head).await.expect("RabbitMQ answers");
    let [.., a, b, c, d] = head;
    let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize + 1];
    server.read_exact(&mut payload).await.expect("RabbitMQ answers");
    assert!(payload.starts_with(&method), "{}", payload.escape_ascii());
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("the text is at most 255 bytes")], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("the text is below 4 GiB").to_be_bytes(), text].concat()
}
