//! `/livez`, `/readyz`, `/metrics` and `/keyring` over HTTP, for kubelet, Prometheus and operators. Public texts only, and nothing can be changed here.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Where the answers come from.
pub struct Answers {
    /// `ok`, or why the KEK cannot be used: what Status says.
    pub health: Box<dyn Fn() -> String + Send + Sync>,
    /// The metrics, in the text format of `OpenMetrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The keyring, as JSON.
    pub keyring: Box<dyn Fn() -> String + Send + Sync>,
}

/// The endpoints, as connections come to them.
#[derive(Clone)]
pub struct Endpoints {
    answers: Arc<Answers>,
    connections: Arc<Semaphore>,
}

/// Connections at one time: a scraper and a kubelet need two. The rest is for those that hold one without a request.
const MOST_CONNECTIONS: usize = 64;

/// Longest time for a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(2);

/// Longest time for all of a connection, so that nobody keeps a place from kubelet for longer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

impl Endpoints {
    /// Endpoints with these answers.
    pub fn new(answers: Answers) -> Self {
        Self { answers: Arc::new(answers), connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)) }
    }

    /// Serves one request on this connection, in a task of its own; one connection too many is closed at once.
    pub fn accept(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else { return };
        let answers = Arc::clone(&self.answers);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request: Request<Incoming>| {
                let response = answers.answer(request.method(), request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).keep_alive(false).max_buf_size(16 * 1024);
            // How a prober ends its connection is its own affair.
            let _ = timeout(CONNECTION_LIMIT, server.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

impl Answers {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, kind, text) = match (method, path) {
            (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => {
                let health = (self.health)();
                let status = if health == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (status, TEXT, format!("{health}\n"))
            }
            (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, OPEN_METRICS, (self.metrics)()),
            (&Method::GET | &Method::HEAD, "/keyring") => (StatusCode::OK, JSON, (self.keyring)()),
            (_, "/livez" | "/readyz" | "/metrics" | "/keyring") => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned())
            }
            _ => (StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz, /metrics and /keyring\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, kind);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    fn answers(health: &'static str) -> Answers {
        Answers {
            health: Box::new(move || health.to_owned()),
            metrics: Box::new(|| "# EOF\n".to_owned()),
            keyring: Box::new(|| "{}\n".to_owned()),
        }
    }

    fn status(health: &'static str, method: &Method, path: &str) -> u16 {
        answers(health).answer(method, path).status().as_u16()
    }

    const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A connection that holds so many bytes which nobody has read.
    fn connect(endpoints: &Endpoints, room: usize) -> DuplexStream {
        let (client, server) = duplex(room);
        endpoints.accept(server);
        client
    }

    /// The answer to one request, if there is one.
    async fn ask(endpoints: &Endpoints) -> Option<String> {
        let mut stream = connect(endpoints, 4096);
        stream.write_all(REQUEST).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    }

    #[tokio::test]
    async fn nobody_holds_a_place_for_long() {
        let endpoints = Endpoints::new(answers("ok"));
        // One request, and the connection ends, though the client would go on.
        assert!(ask(&endpoints).await.unwrap().ends_with("ok\n"));

        // Half say nothing, half take no answer.
        let silent: Vec<_> = (0..MOST_CONNECTIONS / 2).map(|_| connect(&endpoints, 4096)).collect();
        let mut deaf = Vec::new();
        for _ in 0..MOST_CONNECTIONS / 2 {
            let mut stream = connect(&endpoints, REQUEST.len());
            stream.write_all(REQUEST).await.unwrap();
            deaf.push(stream);
        }
        assert_eq!(ask(&endpoints).await, None, "no place is left");
        let began = Instant::now();
        while endpoints.connections.available_permits() < MOST_CONNECTIONS / 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() + Duration::from_secs(1) < CONNECTION_LIMIT, "{:?}", began.elapsed());
        assert!(ask(&endpoints).await.is_some());
        while endpoints.connections.available_permits() < MOST_CONNECTIONS {
            assert!(began.elapsed() < CONNECTION_LIMIT + Duration::from_secs(3), "a place is held for ever");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop((silent, deaf));
    }

    #[test]
    fn readiness_follows_status_and_liveness_does_not() {
        for (health, method, path, expected) in [
            ("ok", Method::GET, "/livez", 200),
            ("gone: x", Method::GET, "/livez", 200),
            ("ok", Method::GET, "/readyz", 200),
            ("gone: x", Method::HEAD, "/readyz", 503),
            ("ok", Method::GET, "/metrics", 200),
            ("ok", Method::GET, "/keyring", 200),
            ("ok", Method::POST, "/metrics", 405),
            ("ok", Method::GET, "/", 404),
            ("ok", Method::GET, "/readyz/", 404),
        ] {
            assert_eq!(status(health, &method, path), expected, "{method} {path}");
        }
    }
}
